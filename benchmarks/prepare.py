"""Time and peak memory of preparing a file of MovieLens-20M's shape, with lrec and with plain pandas.

    python benchmarks/prepare.py --pandas PYTHON [--rows 20000263] [--format csv|parquet] [--memory_gib M]

Generates the file, prepares it with each tool in a process of its own, checks that they agree, and adds a row per tool
to benchmarks/prepare.md. A CSV file of MovieLens-20M's own size goes through the preset lsrm-ml20m as well, and must
give the published number of training interactions.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from processes import measure

ROWS, USERS, ITEMS = 20_000_263, 138_493, 26_744
# Ratings of a user in MovieLens-20M.
LEAST, MOST = 20, 9_254
# Training targets of the LSRM preset as the paper counts them: all rows without the last eleven of each user.
PUBLISHED = 18_476_840
HEADER = """# Preparing interactions: time and peak memory

A file of MovieLens-20M's shape (userId,movieId,rating,timestamp; 20,000,263 rows, 138,493 users of 20 to 9,254 ratings,
26,744 items of Zipf-like popularity, seconds with ties; larger files have more users) is read, de-duplicated, put in
stable order, encoded and grouped by user. `lrec` writes and hashes a store that opens by memory-mapping; `pandas` takes
the same steps in memory and writes nothing: read_csv, drop_duplicates, stable sort_values, factorize, groupby. `preset`
is `lrec data prepare --config data/lsrm-ml20m.yaml` on the same file: the LSRM paper counts 18,476,840 training
interactions, which are those of the training part and of validation. Each runs in a process of its own; seconds are
wall-clock without and with imports, peak memory is the process's largest resident size. Aims: at least 5 times as fast
as pandas with at most 1/3 of its peak; 200 million rows within 6 GiB, opened in less than a second.

    python benchmarks/prepare.py --pandas PYTHON
    python benchmarks/prepare.py --rows 200000000 --memory_gib 4
    python benchmarks/prepare.py --rows 200000000 --memory_gib 4 --format parquet

"""

PANDAS = """
import sys, time
import pandas as pd
start = time.monotonic()
frame = pd.read_csv(sys.argv[1]) if sys.argv[1].endswith(".csv") else pd.read_parquet(sys.argv[1])
frame = frame.drop_duplicates()
frame = frame.sort_values(["userId", "timestamp"], kind="stable")
users, user_ids = pd.factorize(frame["userId"])
frame["user"] = users
items, item_ids = pd.factorize(frame["movieId"])
frame["item"] = items
sequences = frame.groupby("user")["item"].apply(lambda items: items.to_numpy())
print(len(user_ids), len(item_ids), sum(len(sequence) for sequence in sequences), time.monotonic() - start)
"""

LREC = """
import sys, time
from pathlib import Path
from lrec.data.prepare import prepare_store
from lrec.data.readers import Columns, infer_format, read_table, to_interactions
from lrec.data.store import Store
start = time.monotonic()
file, memory = Path(sys.argv[1]), float(sys.argv[3]) if sys.argv[3] else None
columns = Columns("userId", "movieId", "timestamp")
path = prepare_store(Path(sys.argv[2]), "ml", {}, 0,
                     lambda: to_interactions(read_table(file, infer_format(file.name), columns), columns), memory)
seconds = time.monotonic() - start
start = time.monotonic()
counts = Store.open(path).statistics
opening = time.monotonic() - start
print(counts["users"], counts["items"], counts["interactions"], seconds, opening)
"""

PRESET = """
import re, subprocess, sys, time
start = time.monotonic()
command = [sys.executable, "-m", "lrec", "data", "prepare", "--config", "data/lsrm-ml20m.yaml",
           "--data.path", sys.argv[1], "--data.data_dir", sys.argv[2]]
printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
count = {name: int(number.replace(",", "")) for name, number in re.findall(r"^(\\w+) +([\\d,]+)$", printed, re.M)}
print(count["users"], count["items"], count["interactions"], time.monotonic() - start,
      count["training"] + count["validation"])
"""


def generate(file: Path, rows: int) -> None:
    """Write the file piece by piece: users in order, each with at least 20 different items, in bursts that tie in time.

    As in MovieLens-20M, no user has an item twice. Popularity is Zipf-like, and ids are not dense.
    """
    import numpy as np
    import polars as pl

    random = np.random.default_rng(0)
    n_users = max(1, round(USERS * rows / ROWS))
    lengths = random.lognormal(4.2, 1.2, n_users)
    lengths = np.clip(lengths * (rows / lengths.sum()), LEAST, MOST).astype(np.int64)
    while (short := rows - int(lengths.sum())) != 0:
        movable = np.flatnonzero(lengths < MOST if short > 0 else lengths > LEAST)
        chosen = random.permutation(movable)[: abs(short)]
        lengths[chosen] += np.sign(short)
    weights = 1 / (np.arange(ITEMS) + 30.0)
    shares = np.cumsum(weights / weights.sum())
    parts = []
    with file.open("wb") as out:
        if file.suffix == ".csv":
            out.write(b"userId,movieId,rating,timestamp\n")
        for first in range(0, n_users, 5000):
            counts = lengths[first : first + 5000]
            owner = np.repeat(np.arange(len(counts)), counts)
            n = len(owner)
            nth = np.arange(n) - np.repeat(np.cumsum(counts) - counts, counts)
            # One draw in each of the user's equal shares of the popularity, moved up where it is taken.
            drawn = np.searchsorted(shares, (nth + random.random(n)) / counts[owner]) - nth + owner * 2 * ITEMS
            items = np.maximum.accumulate(drawn) - owner * 2 * ITEMS + nth
            items = np.minimum(items, ITEMS - counts[owner] + nth)
            start = random.integers(789_652_009, 1_400_000_000, len(counts))[owner]
            times = start + random.integers(0, 3000, n) * random.integers(0, 30, n)
            frame = pl.DataFrame(
                {
                    "userId": owner + first + 1,
                    "movieId": items * 5 + 1,
                    "rating": random.integers(1, 11, n) / 2,
                    "timestamp": times,
                }
            )
            if file.suffix == ".csv":
                frame.write_csv(out, include_header=False)
            else:
                parts.append(file.with_name(f"part-{first}.parquet"))
                frame.write_parquet(parts[-1])
    if parts:
        pl.scan_parquet(parts).sink_parquet(file)
        for part in parts:
            part.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pandas", help="python of an environment with pandas and pyarrow; left out: lrec alone")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--memory_gib", default="", help="the option memory_gib; left out: its default")
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv")
    parser.add_argument("--folder", type=Path, help="where the file and the store are made; left out: a temporary one")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder, prefix="lrec-prepare-"))
    try:
        report(arguments, folder)
    finally:
        shutil.rmtree(folder)


def report(arguments: argparse.Namespace, folder: Path) -> None:
    import polars

    file = folder / f"ratings.{arguments.format}"
    print(f"generating {arguments.rows:,} rows", file=sys.stderr)
    subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1]); import prepare, pathlib;"
         "prepare.generate(pathlib.Path(sys.argv[2]), int(sys.argv[3]))",
         str(Path(__file__).parent), str(file), str(arguments.rows)], check=True,
    )  # fmt: skip
    tools = {"pandas": [arguments.pandas, "-c", PANDAS, str(file)]} if arguments.pandas else {}
    tools["lrec"] = [sys.executable, "-c", LREC, str(file), str(folder / "stores"), arguments.memory_gib]
    if (arguments.rows, arguments.format) == (ROWS, "csv"):
        tools["preset"] = [sys.executable, "-c", PRESET, str(file), str(folder / "preset")]
    results: dict[str, tuple[list[float], float, float]] = {}
    for tool, command in tools.items():
        if arguments.rows <= ROWS:
            file.read_bytes()  # all of them find the file in the page cache
        load = os.getloadavg()[0]
        words, whole, peak = measure(command)
        printed = [float(word) for word in words.split()]
        results[tool] = printed, whole, peak
        print(f"{tool}: {printed[3]:.1f} s ({whole:.1f} s with imports), {peak:.2f} GiB", file=sys.stderr)
        machine = f"{os.cpu_count()} cores {platform.machine()}, load {load:.1f}"
        add_row(arguments, tool, results, file.stat().st_size, polars.__version__, machine)
    assert len({tuple(printed[:3]) for printed, _, _ in results.values()}) == 1, "the tools disagree"
    if "preset" in results:
        assert int(results["preset"][0][4]) == PUBLISHED, "not the published number of training interactions"


def add_row(
    arguments: argparse.Namespace, tool: str, results: dict[str, tuple], size: int, version: str, machine: str
) -> None:
    page = Path(__file__).with_suffix(".md")
    printed, whole, peak = results[tool]
    if tool == "pandas":
        ask = [arguments.pandas, "-c", "import pandas; print(pandas.__version__)"]
        version = subprocess.run(ask, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    else:
        version = f"polars {version}"
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    if not page.exists():
        titles = ["tool", "versions", "rows", "file", "memory_gib", "seconds", "with imports", "peak GiB"]
        title = f"| {' | '.join([*titles, 'against pandas', 'also', 'machine', 'commit'])} |"
        page.write_text(f"{HEADER}{title}\n|{'---|' * 12}\n", encoding="utf-8")
    against = "-"
    if "pandas" in results and tool != "pandas":
        (_, _, _, seconds, *_), _, pandas_peak = results["pandas"]
        against = f"{seconds / printed[3]:.1f} times as fast, 1/{pandas_peak / peak:.1f} of the memory"
    also = {"pandas": "-", "lrec": "opened in {:.3f} s", "preset": "{:,.0f} training interactions"}[tool]
    cells = [
        tool, f"{version}, Python {platform.python_version()}", f"{arguments.rows:,}",
        f"{arguments.format}, {size / 2**20:,.0f} MiB", (arguments.memory_gib or "default") if tool == "lrec" else "-",
        f"{printed[3]:.1f}", f"{whole:.1f}", f"{peak:.2f}", against, also.format(*printed[4:]), machine, commit,
    ]  # fmt: skip
    with page.open("a", encoding="utf-8") as out:
        out.write(f"| {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
