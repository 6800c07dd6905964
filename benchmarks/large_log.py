"""From a large log to batches: seconds and peak memory of each stage in a process of its own.

    python benchmarks/large_log.py --rows 10_000_000 [--memory_gib 4] [--folder FOLDER]

Writes interactions to Parquet files, sorted by user as a database would write them (users of 10 to 400 rows, a million
items, of which few are popular). Then it prepares a store, opens it, splits it, and plans an epoch. The second process
that splits maps what the first one wrote. The Markov baseline's counts are not made: lrec leaves them out if they do
not fit. Adds a row per stage to benchmarks/large_log.md. Peak memory includes mapped pages, which processes share.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
from processes import measure

FILE_ROWS, ITEMS, LEAST, MOST = 10_000_000, 1_000_000, 10, 400
HEADER = """# A large log, stage by stage

    python benchmarks/large_log.py --rows 10_000_000
    python benchmarks/large_log.py --rows 200_000_000

Each stage is a process of its own. The second process that splits or plans maps what the first one wrote. Peak memory
includes pages of mapped files.

| rows | users | store, GiB | stage | seconds | peak GiB | beside imports, bytes a row |
|---|---|---|---|---|---|---|
"""
STAGES = {
    "imports": "",
    "prepare": "data.prepare_data()",
    "open": "data.open_store().items_N[-1]",
    "split": "data.cut(data.open_store())",
    "split again": "data.cut(data.open_store()).counts_V",
    "split and plan": "data.setup(); shared_epoch(data.batch_plan, 0, folder, 0)",
    "plan again": "data.setup(); shared_epoch(data.batch_plan, 0, folder, 0).lengths_W.sum()",
}
PROCESS = """
import sys, time
from pathlib import Path
import lrec
from lrec.data.batching.plan import shared_epoch
folder = Path(sys.argv[1])
data = lrec.InteractionsDataModule(
    folder / "log", data_dir=folder / "stores", memory_gib=float(sys.argv[2]), max_len=200, targets_per_step=65536
)
start = time.monotonic()
{stage}
print(time.monotonic() - start)
"""


def write_log(folder: Path, rows: int) -> int:
    """Write files of whole users, in order; returns the number of users."""
    folder.mkdir(parents=True)
    random, first_user, left = np.random.default_rng(0), 0, rows
    while left > 0:
        lengths_U = random.integers(LEAST, MOST + 1, FILE_ROWS // LEAST)
        lengths_U = lengths_U[: int(np.searchsorted(np.cumsum(lengths_U), min(FILE_ROWS, left))) + 1]
        n_rows = int(lengths_U.sum())
        # Item n is drawn with a probability of about n ** -0.5; ids are in no order.
        items_N = (ITEMS * random.random(n_rows, dtype=np.float32) ** 2).astype(np.int64) * 7_919 % ITEMS
        users_N = np.repeat(np.arange(first_user, first_user + len(lengths_U)), lengths_U)
        times_N = 1_500_000_000 + random.integers(0, 10**8, n_rows)
        frame = pl.DataFrame({"user": users_N, "item": items_N, "timestamp": times_N}).sort("user", "timestamp")
        frame.write_parquet(folder / f"part-{first_user:012}.parquet")
        first_user, left = first_user + len(lengths_U), left - n_rows
    return first_user


def main() -> None:
    """Write the log, run each stage, and note what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="Interactions.")
    parser.add_argument("--memory_gib", type=float, default=4, help="Memory for the rows during preparation.")
    parser.add_argument("--folder", type=Path, help="Where the log and the store lie; they are removed at the end.")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="large-log-", dir=options.folder))
    page = Path(__file__).with_suffix(".md")
    try:
        users = write_log(folder / "log", options.rows)
        print(f"{options.rows:,} rows of {users:,} users in {_size(folder / 'log'):.2f} GiB of Parquet")
        rows, base = [], 0.0
        for name, stage in STAGES.items():
            command = [sys.executable, "-c", PROCESS.format(stage=stage), str(folder), str(options.memory_gib)]
            printed, _, peak = measure(command)
            base = base or peak
            each = max(peak - base, 0) * 2**30 / options.rows
            size = _size(folder / "stores") if (folder / "stores").exists() else 0
            row = f"{options.rows:,} | {users:,} | {size:.2f} | {name} | {float(printed.split()[-1]):.1f} | {peak:.2f}"
            rows.append(f"| {row} | {each:.0f} |")
            print(rows[-1], flush=True)
        before = page.read_text(encoding="utf-8") if page.exists() else HEADER
        page.write_text(before + "\n".join(rows) + "\n", encoding="utf-8")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _size(folder: Path) -> float:
    """GiB of the files in a folder."""
    return sum(os.path.getsize(file) for file in folder.rglob("*") if file.is_file()) / 2**30


if __name__ == "__main__":
    main()
