"""Recommendations: speed beside RecTools, latency and throughput by size, and memory by number of users.

    python benchmarks/recommend.py [--threads 2] [--users 100000] [--items 100000] [--page benchmarks/recommend.md]

Networks are untrained: what is timed does not depend on their weights. RecTools' environment is built once, under
--environments, as benchmarks/peers.py does.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch
from peers import environment
from processes import measure

from lrec.cost import n_body
from lrec.export import write_safetensors
from lrec.files import write_text
from lrec.net import Transformer
from lrec.recommend import Model
from lrec.shape import SIZES, TransformerConfig

HERE = Path(__file__).parent
MAX_LEN, K = 50, 10
PEER_SIZE = "98k"  # SASRec's: 2 blocks, width 64, 2 heads
LADDER = ("98k", "1.6m", "9.4m")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=Path("data/peers"), help="Where RecTools' lies.")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--length", type=int, default=MAX_LEN, help="Items of each history.")
    parser.add_argument("--parts", nargs="+", default=["peer", "sizes", "memory"])
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = os.environ["POLARS_MAX_THREADS"] = str(options.threads)
    sections = []
    for part in options.parts:
        sections.append({"peer": beside_rectools, "sizes": by_size, "memory": by_users}[part](options))
        print(sections[-1], flush=True)
    if options.page is not None:
        write_text(options.page, page(sections, options))


def untrained(size: str, n_items: int) -> Model:
    """A network of a size with items named i0, i1, ..."""
    config = TransformerConfig(n_items, MAX_LEN, *SIZES[size])
    about = {name: getattr(config, name) for name in ("n_items", "max_len", "layers", "width", "heads")} | {"mup": None}
    return Model(Transformer(config).eval(), pl.Series([f"i{item}" for item in range(n_items)]), about)


def random_histories(users: int, n_items: int, length: int) -> pl.DataFrame:
    """Distinct items for every user."""
    random = np.random.default_rng(0)
    first, step = random.integers(n_items, size=users), 1 + 2 * random.integers(n_items // 4, size=users)
    items_UL = (first[:, None] + step[:, None] * np.arange(length)) % n_items
    names = pl.Series([f"i{item}" for item in range(n_items)])
    lists = names.gather(items_UL.ravel()).reshape((users, length)).arr.to_list()
    return pl.DataFrame({"user": [f"u{user}" for user in range(users)], "items": lists})


def beside_rectools(options: argparse.Namespace) -> str:
    """The same histories, catalogue and shape of network through both, from raw ids to raw ids."""
    model, histories = (
        untrained(PEER_SIZE, options.items),
        random_histories(options.users, options.items, options.length),
    )
    model.recommend(histories.head(100), K)
    started = time.perf_counter()
    found = model.recommend(histories, K)
    seconds = time.perf_counter() - started
    assert found["items"].list.len().min() == K
    rows = [("lrec", "this commit", options.users / seconds, None, peak_gib())]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        histories.explode("items").rename({"items": "item"}).write_csv(folder / "histories.csv")
        every = pl.DataFrame({"user": np.arange(options.items) // MAX_LEN, "item": model.item_ids})
        every.write_csv(folder / "catalogue.csv")
        for ranker in ("torch", "implicit"):
            peer = run_rectools(folder, ranker, options)
            speed = peer["users"] / peer["seconds"]
            rows.append((f"RecTools, {ranker} ranker", peer["version"], speed, peer, peer["memory_gib"]))
    lines = [
        "## Beside RecTools",
        "",
        f"{options.users:,} histories of {options.length} items, {options.items:,} items, the {K} best unseen ones; "
        "2 blocks, width 64, 2 heads.",
        "",
        "| | version | histories/s | lrec is | histories/s with its dataset | lrec is | peak GiB |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    ours = rows[0][2]
    for name, version, speed, peer, memory in rows:
        whole = speed if peer is None else peer["users"] / (peer["seconds"] + peer["construct_seconds"])
        lines.append(
            f"| {name} | {version} | {speed:,.0f} | {ours / speed:.1f}x | {whole:,.0f} | {ours / whole:.1f}x "
            f"| {memory:.2f} |"
        )
    lines += [
        "",
        "lrec's time includes everything from raw ids to raw ids; RecTools' maps ids when it makes its dataset.",
    ]
    return "\n".join(lines)


def run_rectools(folder: Path, ranker: str, options: argparse.Namespace) -> dict:
    """RecTools in a fresh process of its own environment."""
    script = (HERE / "peers").absolute() / "run_rectools_recommend.py"
    command = [environment(options.environments, "rectools"), script, "--folder", folder, "--max_len", MAX_LEN]
    command += ["--threads", options.threads, "--ranker", ranker]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        [str(part) for part in command], env=variables, cwd=folder, capture_output=True, text=True
    )
    if finished.returncode:
        raise SystemExit(f"RecTools failed:\n{finished.stderr[-3000:]}")
    return json.loads(finished.stdout.strip().splitlines()[-1])


def by_size(options: argparse.Namespace) -> str:
    """One history at a time, and many."""
    lines = [
        "## By size",
        "",
        f"Histories of {options.length} items, {options.items:,} items. Latency: one history a call, the median and "
        "95th percentile of 40 calls. Throughput: 2,048 histories in one call.",
        "",
        "| size | N_body | latency, ms | 95th, ms | histories/s |",
        "|---|---:|---:|---:|---:|",
    ]
    for size in LADDER:
        model = untrained(size, options.items)
        histories = random_histories(2048, options.items, options.length)
        calls = []
        for history in histories["items"].head(45).to_list():
            started = time.perf_counter()
            model.recommend([history], K)
            calls.append(1000 * (time.perf_counter() - started))
        started = time.perf_counter()
        model.recommend(histories, K)
        speed = len(histories) / (time.perf_counter() - started)
        calls = sorted(calls[5:])
        lines.append(
            f"| {size} | {n_body(model.net.config):,} | {statistics.median(calls):.1f} "
            f"| {calls[int(0.95 * len(calls))]:.1f} | {speed:,.0f} |"
        )
    return "\n".join(lines)


def by_users(options: argparse.Namespace) -> str:
    """Peak memory of `lrec recommend` over files of more and more users."""
    n_items, length = 10_000, 20
    lines = [
        "## Memory",
        "",
        f"Peak of the whole process, `lrec recommend` from file to file; {n_items:,} items, histories of {length}, "
        f"size {PEER_SIZE}.",
        "",
        "| users | a row per user, Parquet: GiB | s | a row per interaction, CSV: GiB | s |",
        "|---:|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_safetensors(untrained(PEER_SIZE, n_items), folder / "model.safetensors")
        for users in (options.users // 4, options.users // 2, options.users, 2 * options.users):
            histories = random_histories(users, n_items, length)
            histories.write_parquet(folder / "users.parquet")
            histories.explode("items").rename({"items": "item"}).with_row_index("time", 1).write_csv(
                folder / "rows.csv"
            )
            cells = []
            for file, arguments in (("users.parquet", ()), ("rows.csv", ("--time_column", "time"))):
                command = [sys.executable, "-m", "lrec", "recommend", "--ckpt_path", folder / "model.safetensors"]
                command += ["--histories", folder / file, *arguments, "--out", folder / "out.parquet"]
                _, seconds, peak = measure([str(part) for part in command])
                cells.append(f"{peak:.2f} | {seconds:.0f}")
            lines.append(f"| {users:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def page(sections: list[str], options: argparse.Namespace) -> str:
    """benchmarks/recommend.md."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, cwd=HERE).stdout.strip()
    return "\n".join(
        [
            "# Recommendations: speed and memory",
            "",
            f"{time.strftime('%Y-%m-%d')}, commit {commit}, {platform.machine()}, {options.threads} threads, torch "
            f"{torch.__version__}, Python {platform.python_version()}.",
            "",
            "    python benchmarks/recommend.py --page benchmarks/recommend.md",
            "",
            "\n\n".join(sections),
            "",
        ]
    )


if __name__ == "__main__":
    main()
