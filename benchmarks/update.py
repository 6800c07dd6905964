"""Appending against preparing anew; an update against the old model and a full retraining. Logs are cut by time.

    OMP_NUM_THREADS=1 python benchmarks/update.py --data shared/data/interactions [--parts append,rates,models]

append: processor time to prepare all clicks of Globo, and to append their newer half, or newest tenth, to the rest. The
stores must be equal. rates: one pass of `lrec update` at several shares of the run's own learning rate, by its figures
on the validation window, which comes before the window that judges. models: `lrec update --full` at the default. Both
take a share of the users, by the remainder of their id. The script rewrites the section of a part in
benchmarks/update.md and keeps what is before the sections.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
from rows import here

from lrec.common.text_tables import rows_table
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.store.prepare import append_to
from lrec.data.store.store import Store
from lrec.run import Run

SHARES = (1.0, 0.5, 0.25)  # of the run's learning rate
FIT = [
    "--config=data/csv.yaml", "--config=trainer/laptop.yaml", "--trainer.precision=32-true", "--data.time_column=time",
    "--trainer.enable_progress_bar=false", "--trainer.max_epochs=3", "--data.targets_per_step=512", "--data.max_len=20",
    "--model.size=1x32", "--data.split=GlobalTemporal",
]  # fmt: skip


def globo(folder: Path) -> pl.DataFrame:
    """News clicks of half a month."""
    names = {"user_id": "user", "click_article_id": "item", "click_timestamp": "time"}
    return pl.read_parquet(folder / "globo_clicks.parquet").rename(names)


def movies(folder: Path) -> pl.DataFrame:
    """MovieLens-1M."""
    import lzma

    text = lzma.decompress((folder / "ml-1m_ratings.dat.xz").read_bytes()).replace(b"::", b",")
    schema = {"user": pl.Int64, "item": pl.Int64, "rating": pl.Int64, "time": pl.Int64}
    return pl.read_csv(text, has_header=False, schema=schema).drop("rating")


# A log, one of how many users is taken, and where in the order of time the old part and the new part end. News change
# within days, so their new part is a day and a half.
LOGS: dict[str, tuple[Callable[[Path], pl.DataFrame], int, float, float]] = {
    "Globo": (globo, 16, 0.6, 0.7),
    "MovieLens-1M": (movies, 8, 0.5, 1.0),
}


def append(data: Path, folder: Path) -> str:
    """Processor seconds of appending and of preparing anew, of the same store."""
    log = globo(data).sort("time", maintain_order=True)
    rows = [["appended", "of rows", "preparing all, s", "appending, s", "share"]]
    for share in (0.5, 0.1):
        cut = int((1 - share) * len(log))
        parts = {"all": log, "old": log[:cut], "new": log[cut:]}
        stores, seconds = dict[str, Store](), dict[str, float]()
        for name, part in parts.items():
            (folder / f"{name}{share}").mkdir()
            file = folder / f"{name}{share}" / "log.parquet"
            part.write_parquet(file)
            module = InteractionsDataModule(file, time_column="time", data_dir=file.parent)
            source = module.source()
            began = time.process_time()
            if name == "new":
                stores[name] = Store.open(append_to(stores["old"], source, module.read, file.parent))
            else:
                module.prepare_data()
                stores[name] = module.open_store()
            seconds[name] = time.process_time() - began
        for file in stores["all"].path.glob("*.[np]*"):
            assert file.read_bytes() == (stores["new"].path / file.name).read_bytes(), file.name
        shown = (f"{seconds['all']:.1f}", f"{seconds['new']:.1f}", f"{seconds['new'] / seconds['all']:.0%}")
        rows.append([f"{len(log) - cut:,}", f"{len(log):,}", *shown])
    return rows_table(rows)


def old_run(name: str, data: Path, folder: Path) -> Path:
    """The run on the old part of a log; next to its folder, new.parquet is the new part."""
    read, one_of, ends, new_ends = LOGS[name]
    log = read(data).filter(pl.col("user") % one_of == 0).sort("time", maintain_order=True)
    here = folder / name
    here.mkdir(exist_ok=True)
    bounds = int(ends * len(log)), int(new_ends * len(log))
    log[: bounds[0]].write_parquet(here / "old.parquet")
    log[slice(*bounds)].write_parquet(here / "new.parquet")
    places = [f"--data.path={here / 'old.parquet'}", f"--data.data_dir={here / 'stores'}"]
    if not (here / "run").exists():
        lrec("fit", *FIT, *places, f"--trainer.default_root_dir={here / 'run'}")
    return here / "run"


def lrec(*arguments: object) -> None:
    subprocess.run([sys.executable, "-m", "lrec", *map(str, arguments)], check=True)


def rates(data: Path, folder: Path) -> str:
    """Figures on the validation window after one pass, by the share of the run's learning rate."""
    rows = [["log", "share of the rate", "val loss", "val NDCG@10"]]
    for name in LOGS:
        run = old_run(name, data, folder)
        own = float(Run(run).config.value("model.optimizer.lr"))
        for share in SHARES:
            out = run.with_name(f"rate-{share}")
            lrec("update", run, "--data", run.with_name("new.parquet"), "--lr", share * own, "--out", out)
            (point,) = Run(out / "updated").points
            rows.append([name, f"{share:g}", f"{point.val_loss:.4f}", f"{point.metric('val/NDCG@10'):.4f}"])
    return rows_table(rows, text=(0,))


def models(data: Path, folder: Path) -> str:
    """The old model, the updated one and a full retraining on the newest window."""
    rows = [["log", "model", "loss", "HR@10", "NDCG@10", "NDCG@10 - old", "targets trained on", "FLOPs", "minutes"]]
    drift = []
    for name in LOGS:
        run = old_run(name, data, folder)
        out = run.with_name("full")
        lrec("update", run, "--data", run.with_name("new.parquet"), "--full", "--out", out)
        record: dict[str, Any] = json.loads((out / "update.json").read_text())
        for model, mine in record["models"].items():
            cells = [
                f"{mine[each]:.4f} ± {mine[f'{each}_se']:.4f}" for each in ("loss", "HR@10", "NDCG@10", "difference")
            ]
            cost = ["", "", ""]
            if model in record["minutes"]:
                point = Run(out / model).points[-1]
                cost = [f"{point.D:,}", f"{point.flops:.2e}", f"{record['minutes'][model]:.1f}"]
            rows.append([name, model, *cells, *cost])
        found, window = record["drift"], record["window"]
        drift.append(
            f"{name}: {window['targets']:,} targets of {window['users']:,} users judge; {found['unknown_items']:.1%} "
            f"of {found['rows']:,} new rows are on unknown items; popularity is {found['distance']:.3f} away "
            f"from the old ({found['distance_by_chance']:.3f} by chance)."
        )
    return "\n\n".join([rows_table(rows, text=(0, 1)), *drift])


PARTS: dict[str, Callable[[Path, Path], str]] = {"append": append, "rates": rates, "models": models}
TITLE = "# Updates: appending, rates, and what they come to\n\n    OMP_NUM_THREADS=1 python benchmarks/update.py\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data" / "interactions")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--work", type=Path, help="Folder for runs and stores, kept; by default a temporary one.")
    arguments = parser.parse_args()
    page = Path(__file__).with_suffix(".md")
    head, *found = page.read_text().split("\n## ") if page.exists() else [TITLE]
    sections = dict(part.split("\n", 1) for part in found)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.work or Path(temporary)
        folder.mkdir(exist_ok=True)
        for part in arguments.parts.split(","):
            sections[part] = f"\n{here()}\n\n{PARTS[part](arguments.data, folder)}\n"
            page.write_text(head + "".join(f"\n## {name}\n{sections[name]}" for name in PARTS if name in sections))


if __name__ == "__main__":
    main()
