"""Time and peak memory of preparing a file of MovieLens-20M's shape: lrec, Polars' streaming engine, DuckDB, pandas.

    python benchmarks/prepare.py --against pandas polars duckdb [--rows N] [--format csv|parquet] [--memory_gib M]

Generates the file, prepares it with each tool in a process of its own, checks that they agree (lrec, Polars and DuckDB
in every entry of every array), and adds a row per tool to benchmarks/prepare.md. A CSV file of MovieLens-20M's own size
goes through the preset lsrm-ml20m as well, and must give the published number of training interactions.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl
from processes import measure
from rows import commit

ROWS, USERS, ITEMS = 20_000_263, 138_493, 26_744
# Ratings of a user in MovieLens-20M.
LEAST, MOST = 20, 9_254
# Training targets of the LSRM preset as the paper counts them: all rows without the last eleven of each user.
PUBLISHED = 18_476_840
HEADER = """# Preparing interactions: time and peak memory

Each tool reads a file of MovieLens-20M's shape (userId,movieId,rating,timestamp; 20,000,263 rows, 138,493 users of 20
to 9,254 ratings, 26,744 items of Zipf-like popularity, seconds with ties; larger files have more users). Of rows that
are equal in every column, it keeps the first. It numbers users and items in the order of their ids as text, and sorts
rows by user, time and row of the file.

- `lrec` writes and hashes a store that opens by memory-mapping, and would name the row of a mistake in the file.
- `polars` uses its streaming engine: scan_csv, sort, filter, join, sort. It writes the same arrays.
- `duckdb` uses SQL: read_csv, row_number, GROUP BY, JOIN, ORDER BY, COPY to Parquet. It writes the same arrays.
- `pandas` writes nothing and numbers ids as they appear: read_csv, drop_duplicates, sort_values, factorize, groupby.
- `preset` is `lrec data prepare --config data/lsrm-ml20m.yaml` on the same file: the LSRM paper counts 18,476,840
  training interactions, which are those of the training part and of validation.

The arrays of lrec, Polars and DuckDB are equal, also if rows are repeated in the file (`--repeated 0.02`).
`memory_gib` is the option of lrec and the memory_limit of DuckDB; Polars has no such limit. Each tool runs in a process
of its own; seconds are wall-clock without and with imports, peak memory is the largest resident size. The aims: at
least 5 times as fast as pandas with at most 1/3 of its peak; 200 million rows within 6 GiB, opened in less than 1 s.

    python benchmarks/prepare.py --against pandas polars duckdb
    python benchmarks/prepare.py --against duckdb --memory_gib 0.5
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

POLARS = """
import sys, time
import numpy as np, polars as pl
start = time.monotonic()
file, folder = sys.argv[1:3]
scan = pl.scan_csv if file.endswith(".csv") else pl.scan_parquet
types = {"userId": pl.Int32, "movieId": pl.Int32, "timestamp": pl.Int64, "rating": pl.Float32}
row = pl.struct(*types)
rows = (
    scan(file, row_index_name="row").cast(types)
    .sort("userId", "timestamp", "movieId", "rating", "row")
    .filter((row != row.shift(1)).fill_null(True))
    .select("row", "userId", "movieId", "timestamp")
    .collect(engine="streaming")
)

def codes(column, name):
    ids = rows[column].unique().cast(pl.String).sort()
    return pl.LazyFrame({column: ids.cast(pl.Int32), name: np.arange(len(ids), dtype=np.int32)})

users, items = codes("userId", "user"), codes("movieId", "item")
done = (
    rows.lazy().join(users, on="userId").join(items, on="movieId")
    .select("user", "item", "timestamp", "row").sort("user", "timestamp", "row").drop("row")
    .collect(engine="streaming")
)
np.save(f"{folder}/items.npy", done["item"].to_numpy())
np.save(f"{folder}/times.npy", done["timestamp"].to_numpy())
offsets = np.concatenate([[0], np.cumsum(np.bincount(done["user"].to_numpy()))])
np.save(f"{folder}/offsets.npy", offsets)
print(len(offsets) - 1, done["item"].n_unique(), len(done), time.monotonic() - start)
"""

DUCKDB = """
import sys, time
import duckdb, numpy as np, polars as pl
start = time.monotonic()
file, folder, memory = sys.argv[1:4]
base = duckdb.connect(f"{folder}/base.db")
if memory:
    base.execute(f"SET memory_limit = '{float(memory) * 2**30 / 1e9}GB'")
base.execute("SET enable_progress_bar = false")
read = "read_csv" if file.endswith(".csv") else "read_parquet"
base.execute(
    "CREATE TABLE kept AS SELECT min(row) AS row, userId, movieId, timestamp"
    f" FROM (SELECT *, row_number() OVER () AS row FROM {read}('{file}')) GROUP BY userId, movieId, rating, timestamp"
)
for table, column in (("users", "userId"), ("items", "movieId")):
    base.execute(
        f"CREATE TABLE {table} AS SELECT id, (row_number() OVER (ORDER BY CAST(id AS VARCHAR)) - 1)::INTEGER AS code"
        f" FROM (SELECT DISTINCT {column} AS id FROM kept)"
    )
base.execute(
    "COPY (SELECT users.code AS user, items.code AS item, timestamp AS time FROM kept JOIN users ON userId = users.id"
    f" JOIN items ON movieId = items.id ORDER BY users.code, timestamp, row) TO '{folder}/rows.parquet'"
)
base.close()
rows = pl.scan_parquet(f"{folder}/rows.parquet")
column = lambda name: rows.select(name).collect().to_series().to_numpy()
np.save(f"{folder}/times.npy", column("time"))
items, offsets = column("item"), np.concatenate([[0], np.cumsum(np.bincount(column("user")))])
np.save(f"{folder}/items.npy", items)
np.save(f"{folder}/offsets.npy", offsets)
print(len(offsets) - 1, items.max() + 1, len(items), time.monotonic() - start)
"""

LREC = """
import sys, time
from pathlib import Path
from lrec.data.store.prepare import prepare_store
from lrec.data.formats.readers import Columns, infer_format, read_table, to_interactions
from lrec.data.store.store import Store
start = time.monotonic()
file, memory = Path(sys.argv[1]), float(sys.argv[3]) if sys.argv[3] else None
columns = Columns("userId", "movieId", "timestamp")
path = prepare_store(Path(sys.argv[2]), "ml", {}, 0,
                     lambda: to_interactions(read_table(file, infer_format(file.name), columns.integers), columns),
                     memory)
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


def generate(file: Path, rows: int, repeated: float) -> None:
    """Write the file piece by piece: users in order, each with at least 20 different items, in bursts that tie in time.

    As in MovieLens-20M, no user has an item twice; then a share of the rows is repeated. Popularity is Zipf-like, and
    ids are not dense.
    """
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
            # One draw in each of the user's equal shares of the popularity, moved up if it is taken.
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
            frame = pl.concat([frame, frame.sample(int(repeated * n), seed=first)])
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
    parser.add_argument("--against", nargs="*", default=[], choices=["pandas", "polars", "duckdb"])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repeated", type=float, default=0.0, help="share of the rows that stand twice in the file")
    parser.add_argument("--memory_gib", default="", help="lrec's option and DuckDB's limit; left out: their defaults")
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv")
    parser.add_argument("--folder", type=Path, help="where the file and the store are made; left out: a temporary one")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder, prefix="lrec-prepare-"))
    try:
        report(arguments, folder)
    finally:
        shutil.rmtree(folder)


def report(arguments: argparse.Namespace, folder: Path) -> None:
    file = folder / f"ratings.{arguments.format}"
    print(f"generating {arguments.rows:,} rows", file=sys.stderr)
    subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1]); import prepare, pathlib;"
         "prepare.generate(pathlib.Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))",
         str(Path(__file__).parent), str(file), str(arguments.rows), str(arguments.repeated)], check=True,
    )  # fmt: skip
    programs = {"pandas": PANDAS, "polars": POLARS, "duckdb": DUCKDB}
    tools = {name: programs[name] for name in arguments.against} | {"lrec": LREC}
    if (arguments.rows, arguments.repeated, arguments.format) == (ROWS, 0, "csv"):
        tools["preset"] = PRESET
    results: dict[str, tuple[list[float], float, float]] = {}
    for tool, program in tools.items():
        (folder / tool).mkdir()
        if arguments.rows <= ROWS:
            file.read_bytes()  # so that all tools find the file in the page cache
        load = os.getloadavg()[0]
        words, whole, peak = measure(
            [sys.executable, "-c", program, str(file), str(folder / tool), arguments.memory_gib]
        )
        printed = [float(word) for word in words.split()]
        results[tool] = printed, whole, peak
        print(f"{tool}: {printed[3]:.1f} s ({whole:.1f} s with imports), {peak:.2f} GiB", file=sys.stderr)
        machine = f"{os.cpu_count()} cores {platform.machine()}, load {load:.1f}"
        add_row(arguments, tool, results, file.stat().st_size, machine)
    assert len({tuple(printed[:3]) for printed, _, _ in results.values()}) == 1, "the tools disagree"
    (store,) = (folder / "lrec").glob("ml-*")
    for name in ("items.npy", "offsets.npy", "times.npy"):
        for other in (folder / tool / name for tool in arguments.against if tool != "pandas"):
            assert np.array_equal(np.load(store / name, "r"), np.load(other, "r")), f"{other} differs"
    if "preset" in results:
        assert int(results["preset"][0][4]) == PUBLISHED, "not the published number of training interactions"


def add_row(arguments: argparse.Namespace, tool: str, results: dict[str, tuple], size: int, machine: str) -> None:
    page = Path(__file__).with_suffix(".md")
    printed, whole, peak = results[tool]
    package = tool if tool in arguments.against else "polars"
    if not page.exists():
        titles = ["tool", "versions", "rows", "file", "memory_gib", "seconds", "with imports", "peak GiB"]
        title = f"| {' | '.join([*titles, 'against pandas', 'also', 'machine', 'commit'])} |"
        page.write_text(f"{HEADER}{title}\n|{'---|' * 12}\n", encoding="utf-8")
    against = "-"
    if "pandas" in results and tool != "pandas":
        (_, _, _, seconds, *_), _, pandas_peak = results["pandas"]
        against = f"{seconds / printed[3]:.1f} times as fast, 1/{pandas_peak / peak:.1f} of the memory"
    also = {"lrec": "opened in {:.3f} s", "preset": "{:,.0f} training interactions"}.get(tool, "-")
    cells = [
        tool, f"{package} {version(package)}, Python {platform.python_version()}", f"{arguments.rows:,}",
        f"{arguments.format}, {size / 2**20:,.0f} MiB",
        (arguments.memory_gib or "default") if tool in ("lrec", "duckdb") else "-",
        f"{printed[3]:.1f}", f"{whole:.1f}", f"{peak:.2f}", against, also.format(*printed[4:]), machine, commit(),
    ]  # fmt: skip
    with page.open("a", encoding="utf-8") as out:
        out.write(f"| {' | '.join(cells)} |\n")


if __name__ == "__main__":
    main()
