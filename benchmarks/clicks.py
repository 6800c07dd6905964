"""News clicks, from a file of interactions to recommendations for all users: three commands of lrec, and RecTools.

    python benchmarks/clicks.py --data globo_clicks.parquet [--environments data/peers] [--epochs 3] [--threads 2]

Both tools read the same CSV file of clicks (5-core). With lrec, we run a user's three commands, which prepare the file,
train, and recommend. The training command also validates and tests, and writes checkpoints. With RecTools, one process
reads the file, trains SASRec with the same size and number of epochs, and recommends. We do not count the time of this
process's imports. The split is leave-one-out: the target is a user's last click, and the lists are made from the clicks
before this click. The lists do not contain articles that the user has read.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
from peers import environment, in_order, run
from processes import measure
from replicate import baselines_of
from rows import here

from lrec.common.files import write_text
from lrec.run import Run

HERE = Path(__file__).parent
K, CORE, MAX_LEN = 10, 5, 50
COMMANDS = {
    "lrec data prepare": "data prepare --config=data/csv.yaml --data.path=log.csv",
    "lrec fit": "fit --config=data/csv.yaml --config=trainer/laptop.yaml --data.path=log.csv "
    "--data.targets_per_step=1024 --model.size=98k --model.optimizer.lr=0.006 --model.optimizer.muon=null "
    "--trainer.enable_progress_bar=false --trainer.default_root_dir=run",
    "lrec recommend": "recommend --ckpt_path=run --histories=histories.csv --out=lists.parquet",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="The raw file.")
    parser.add_argument("--environments", type=Path, default=Path("data/peers"), help="Where RecTools' lies.")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--users", type=int, help="Only so many users, to try the script.")
    parser.add_argument("--folder", type=Path, default=Path("runs/clicks"), help="A new folder for what is made.")
    options = parser.parse_args()
    python, data = environment(options.environments, "rectools"), options.data.absolute()
    options.folder.mkdir(parents=True)  # nothing may be there from an earlier run
    os.chdir(options.folder)
    targets, counts = write_files(data, options.users)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    rows = []
    for name, arguments in COMMANDS.items():
        more = [f"--trainer.max_epochs={options.epochs}"] if name == "lrec fit" else []
        _, seconds, memory = measure([sys.executable, "-m", "lrec", *arguments.split(), *more])
        rows.append((name, seconds, memory))
        print(rows[-1], flush=True)
    ours = accuracy(pl.read_parquet("lists.parquet"), targets)
    theirs = run("rectools", python, Path(), MAX_LEN, options.epochs, options.threads)
    text = page(rows, ours, theirs, counts, options)
    print(text)
    if options.users is None:
        write_text(HERE / "clicks.md", text)


def write_files(raw: Path, users: int | None) -> tuple[pl.DataFrame, dict[str, int]]:
    """Write log.csv, and histories.csv without each user's last click. Return these last clicks, and the counts."""
    log = pl.read_parquet(raw).select(user="user_id", item="click_article_id", time="click_timestamp")
    if users is not None:
        log = log.filter(pl.col("user") < users)
    while True:
        kept = log.filter(pl.len().over("user") >= CORE).filter(pl.len().over("item") >= CORE)
        if len(kept) == len(log):
            break
        log = kept
    log = in_order(log)
    log.write_csv("log.csv")
    is_last = pl.col("time") == pl.col("time").max().over("user")
    log.filter(~is_last).write_csv("histories.csv")
    counts = {"users": log["user"].n_unique(), "items": log["item"].n_unique(), "clicks": len(log)}
    return log.filter(is_last).select(pl.col("user", "item").cast(pl.String)), counts


def accuracy(lists: pl.DataFrame, targets: pl.DataFrame) -> tuple[float, float]:
    """HR@10 and NDCG@10 of lists for all users."""
    assert len(lists) == len(targets)
    listed = lists.select("user", item="items", place=pl.int_ranges(pl.col("items").list.len()))
    hits = listed.explode("item", "place").join(targets, on=["user", "item"])
    return len(hits) / len(targets), float((1 / np.log2(2 + hits["place"].to_numpy())).sum()) / len(targets)


def page(
    rows: list[tuple[str, float, float]],
    ours: tuple[float, float],
    theirs: dict,
    counts: dict[str, int],
    options: argparse.Namespace,
) -> str:
    """The text of benchmarks/clicks.md."""
    total, whole = sum(seconds for _, seconds, _ in rows), theirs["whole_seconds"]
    point = Run(Path("run")).points[-1]
    lines = [
        "# News clicks, from a file to recommendations for all users",
        "",
        f"{time.strftime('%Y-%m-%d')}, {here()}, {options.threads} threads.",
        "",
        "    python benchmarks/clicks.py --data globo_clicks.parquet",
        "",
        (__doc__ or "").split("\n\n", 2)[2].strip(),
        "",
        f"The data have {counts['users']:,} users, {counts['items']:,} articles and {counts['clicks']:,} clicks. Both "
        f"tools train two blocks of width 64 with full softmax, for {options.epochs} epochs. lrec trains in "
        f"{point.precision}, because its option `precision: auto` chose this precision. RecTools trains in float32.",
        "",
        "| | seconds | peak GiB |",
        "|---|---:|---:|",
        *(f"| {name} | {seconds:,.0f} | {memory:.2f} |" for name, seconds, memory in rows),
        f"| lrec, all three | {total:,.0f} | {max(memory for _, _, memory in rows):.2f} |",
        f"| RecTools {theirs['version']} | {whole:,.0f} | {theirs['evaluation_memory_gib']:.2f} |",
        "",
        f"lrec takes {total / whole:.1%} of the time of RecTools. The training of RecTools takes "
        f"{theirs['seconds']:,.0f} s.",
        "",
        "| | HR@10 | NDCG@10 |",
        "|---|---:|---:|",
        f"| lrec | {ours[0]:.4f} | {ours[1]:.4f} |",
        f"| RecTools | {theirs['HR@10']:.4f} | {theirs['NDCG@10']:.4f} |",
        *(f"| `{name}` | {hr:.4f} | {ndcg:.4f} |" for name, (hr, ndcg) in baselines_of(point.metrics).items()),
        "",
        "These are the commands of lrec:",
        "",
        *(f"    lrec {arguments}" for arguments in COMMANDS.values()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
