"""lrec compared with RecTools and RecBole: the same model, data and loss, each in its own environment.

    python benchmarks/peers.py --data FOLDER [--datasets beauty ml-latest-small ml-100k] [--threads 2]

Builds the peers' virtual environments once, under --environments, and writes benchmarks/peers.md. Every engine trains
SASRec's size (2 blocks, width 64, 2 heads, dropout 0.1) with full softmax for the same number of epochs, then ranks the
whole catalogue for every test user. Each runs in a fresh process, one after another. lrec takes seconds, and the peers
take minutes. So lrec runs before, between and after them: its median and their times are from the same machine load.
"""

import argparse
import gzip
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from rows import commit

HERE = Path(__file__).parent
ENVIRONMENTS = {
    "rectools": ["rectools[torch]==0.19.0"],
    "recbole": ["recbole==1.2.1", "numpy<2", "pandas<2.2", "scipy<1.13"],
}
PEERS = {"rectools": "rectools", "flatsasrec": "rectools", "recbole": "recbole"}
"""Each peer's environment."""
BF16 = "lrec, bf16-mixed"
# Raw file (RecBole brings that of MovieLens-100K), longest history, epochs, and the timed batches of RecBole's epoch: a
# whole epoch takes it half an hour with prefixes of 200 items.
DATASETS = {
    "beauty": ("s3rec_Beauty.txt.gz", 50, 2, None),
    "ml-latest-small": ("ml-latest-small_ratings.csv.gz", 200, 1, 4),
    "ml-100k": ("ml-100k.inter", 200, 1, 4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder with the raw files.")
    parser.add_argument("--datasets", nargs="+", default=list(DATASETS), choices=list(DATASETS))
    parser.add_argument("--environments", type=Path, default=Path("data/peers"), help="Where the environments lie.")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--users", type=int, help="Only so many users, to try the script.")
    options = parser.parse_args()
    pythons = {"lrec": Path(sys.executable)} | {
        peer: environment(options.environments, name) for peer, name in PEERS.items()
    }
    tables = []
    for name in options.datasets:
        file, max_len, epochs, batches = DATASETS[name]
        raw = next((options.environments / "recbole").rglob(file), options.data / file)
        folder = options.environments / "data" / name
        counts = write_log(raw, folder, options.users)

        def measure(engine: str, *more: str | int) -> dict:
            return run(engine, pythons[engine], folder, max_len, epochs, options.threads, *more)  # noqa: B023 (at once)

        ours, ours_in_bf16, theirs = [measure("lrec")], [], {}
        for peer in PEERS:
            theirs[peer] = measure(peer, "--batches", batches) if peer == "recbole" and batches else measure(peer)
            ours.append(measure("lrec"))
            ours_in_bf16.append(measure("lrec", "--precision", "bf16-mixed"))
        results = {"lrec": median_of(ours), BF16: median_of(ours_in_bf16)} | theirs
        ceiling = ceiling_targets_per_s(counts, max_len, options.threads)
        tables.append(table(name, counts, max_len, epochs, results, ceiling))
        print(tables[-1], flush=True)
        if options.users is None:  # after each data set: the peers take up to half an hour for one
            (HERE / "peers.md").write_text(page(tables, options.threads))


def median_of(runs: list[dict]) -> dict:
    """The first of some runs of one engine, with the median times of all."""
    times = ("seconds", "evaluation_seconds", "test_seconds")
    return runs[0] | {name: statistics.median(run[name] for run in runs) for name in times}


def environment(root: Path, name: str) -> Path:
    """The Python of an environment, which is built if it is not there."""
    python = root.absolute() / name / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(root / name)], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *ENVIRONMENTS[name]], check=True)
    return python


def write_log(raw: Path, folder: Path, users: int | None) -> dict[str, int]:
    """Write folder/log.csv: user,item,time `in_order`."""
    if raw.name.endswith(".txt.gz"):
        with gzip.open(raw, "rt") as lines:
            histories = [line.split() for line in lines]
        log = pl.DataFrame(
            {
                "user": np.repeat([h[0] for h in histories], [len(h) - 1 for h in histories]),
                "item": [item for h in histories for item in h[1:]],
            }
        ).with_columns(pl.int_range(pl.len()).alias("time"))
    elif raw.name.endswith(".inter"):
        log = pl.read_csv(raw, separator="\t", new_columns=["user", "item", "rating", "time"])
    else:
        log = pl.read_csv(raw).rename({"userId": "user", "movieId": "item", "timestamp": "time"})
    log = in_order(log.select("user", "item", "time").unique(maintain_order=True))
    if users is not None:
        log = log.filter(pl.col("user").is_in(log["user"].unique(maintain_order=True)[:users].to_list()))
    folder.mkdir(parents=True, exist_ok=True)
    log.write_csv(folder / "log.csv")
    return {"users": log["user"].n_unique(), "items": log["item"].n_unique(), "interactions": len(log)}


def in_order(log: pl.DataFrame) -> pl.DataFrame:
    """Sort by user and time, and make times distinct, so that nothing depends on how an engine sorts."""
    return log.sort("user", "time", maintain_order=True).with_columns(time=pl.int_range(pl.len()) + 1_000_000)


def run(engine: str, python: Path, folder: Path, max_len: int, epochs: int, threads: int, *more: str | int) -> dict:
    """One engine in a fresh process."""
    folder = folder.absolute()
    command = [python, (HERE / "peers").absolute() / f"run_{engine}.py", "--folder", folder, "--epochs", epochs]
    command += ["--max_len", max_len, "--threads", threads, *more]
    variables = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if engine != "lrec":
        variables.pop("PYTHONPATH", None)
    finished = subprocess.run(
        [str(part) for part in command], env=variables, cwd=folder, capture_output=True, text=True
    )
    if finished.returncode:
        raise SystemExit(f"{engine} failed:\n{finished.stderr[-3000:]}")
    return json.loads(finished.stdout.strip().splitlines()[-1])


def ceiling_targets_per_s(counts: dict[str, int], max_len: int, threads: int) -> float:
    """Targets per second if a step were only its matrix products, of blocks and head, forward and backward."""
    torch.set_num_threads(threads)
    rows, width, items = 4096, 64, counts["items"]
    hidden, inner = torch.randn(rows, width), torch.randn(rows, 4 * width)
    narrow, wide, table = torch.randn(width, width), torch.randn(width, 4 * width), torch.randn(items, width)
    logits = torch.randn(128, items)

    def products() -> None:
        for _ in range(2):  # blocks; backward, each product costs two more like it
            for _ in range(3):
                for _ in range(4):
                    hidden @ narrow
                hidden @ wide
                inner @ wide.T
        for start in range(0, rows, 128):
            torch.mm(hidden[start : start + 128], table.T, out=logits)
            logits @ table
            logits.T @ hidden[start : start + 128]

    times = []
    for _ in range(7):
        started = time.perf_counter()
        products()
        times.append(time.perf_counter() - started)
    return rows / statistics.median(times[1:])


def table(name: str, counts: dict[str, int], max_len: int, epochs: int, results: dict, ceiling: float) -> str:
    """A data set's figures, and their ratios to lrec's."""
    ours = results["lrec"]
    our_speed, our_evaluation = ours["targets"] / ours["seconds"], ours["users"] / ours["evaluation_seconds"]
    lines = [
        f"## {name}",
        "",
        f"{counts['users']:,} users have {counts['interactions']:,} interactions with {counts['items']:,} items. "
        f"Networks read at most {max_len} items. The number of epochs is {epochs}.",
        "",
        "| | targets/s | lrec / tool | peak GiB, fit | lrec's share | HR@10 | NDCG@10 | users/s | lrec / tool "
        "| peak GiB, all |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for engine, result in results.items():
        speed, evaluation = result["targets"] / result["seconds"], result["users"] / result["evaluation_seconds"]
        accuracy = (
            "{HR@10:.4f} | {NDCG@10:.4f}".format_map(result) if result.get("whole", True) else "part of | an epoch"
        )
        lines.append(
            f"| {engine} {result['version']} | {speed:,.0f} | {our_speed / speed:.1f}x | {result['memory_gib']:.2f} "
            f"| {ours['memory_gib'] / result['memory_gib']:.2f} | {accuracy} "
            f"| {evaluation:,.0f} | {our_evaluation / evaluation:.1f}x | {result['evaluation_memory_gib']:.2f} |"
        )
    popularity = ours["popularity"]
    tested = ours["users"] / ours["test_seconds"]
    recbole = results["recbole"]["users"] / results["recbole"]["evaluation_seconds"]
    lines.append(f"| `popularity` | | | | | {popularity['HR@10']:.4f} | {popularity['NDCG@10']:.4f} | | | |")
    lines += [
        "",
        f"A step with matrix products alone would reach {ceiling:,.0f} targets/s. lrec reaches "
        f"{our_speed / ceiling:.0%} of this speed. `lrec test` also computes all metrics and five baselines. "
        f"This command ranks {tested:,.0f} users/s, {tested / recbole:.1f} times as many as RecBole's evaluation.",
    ]
    return "\n".join(lines) + "\n"


def page(tables: list[str], threads: int) -> str:
    """benchmarks/peers.md."""
    return "\n".join(
        [
            "# lrec beside RecTools and RecBole",
            "",
            f"{time.strftime('%Y-%m-%d')}, commit {commit()}, {platform.machine()}, {threads} threads, torch "
            f"{torch.__version__}, Python {platform.python_version()}.",
            "",
            "    python benchmarks/peers.py --data FOLDER",
            "",
            "We train the same model with every tool: 2 blocks of width 64 with 2 heads, dropout 0.1, and full",
            "softmax over the catalogue. The split is leave-one-out. All items are ranked, except the items that the",
            "user had. We train for few epochs, because the other tools take minutes for each epoch. So the",
            "accuracies show what a model learns in these epochs, and not the best accuracy of a model.",
            "",
            "- **RecTools** trains in batches of 128 users, and **RecBole** trains in batches of 2,048 rows. Both",
            "  batch sizes are the defaults. The learning rate is 0.001.",
            "- **flatsasrec** is RecTools' FlatSASRecNet (`rectools.fast_transformers`). We train it with Lightning",
            "  and AdamW, and make its lists with `encode_last`. The item table keeps torch's initial values, which",
            "  have a standard deviation of 1. So flatsasrec learns little in so few epochs.",
            "- **lrec** trains on 1,024 targets per step, with a learning rate of 0.006. We chose this rate by the",
            "  validation targets of Beauty. We ran lrec before, between and after the other tools, in float32 and in",
            "  bf16-mixed. The tables have the medians of these runs. The option `trainer.precision: auto` chooses",
            "  bf16-mixed if the processor has instructions for bfloat16.",
            "",
            "The column **targets/s** does not count padding. In RecBole, each prefix of a history is a row, and each",
            "row counts as one target. At length 200, we timed only four batches of RecBole's epoch. For the column",
            "**users/s**, we timed `recommend` in lrec and RecTools, which turns raw ids of histories into raw ids of",
            "the ten best items. The tables have the median of three runs. In RecBole, we timed the full-sort",
            "evaluation without the filter of seen items, and computed its metrics with this filter.",
            "",
            "The columns **lrec / tool** divide lrec's speed by the tool's speed. The value 2.0x means that lrec is",
            "twice as fast. **Peak GiB** is the memory of the process with its imports. **lrec's share** is lrec's",
            "memory divided by the memory of the tool.",
            "",
            *tables,
        ]
    )


if __name__ == "__main__":
    main()
