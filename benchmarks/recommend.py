"""Recommendations: speed against RecTools, latency by size and catalogue, throughput by size, memory by user number.

    python benchmarks/recommend.py [--threads 2] [--users 100000] [--items 100000] [--page benchmarks/recommend.md]
    python benchmarks/recommend.py --parts latency

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
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch
from peers import environment
from processes import measure
from rows import commit

from lrec.common.files import write_text
from lrec.model.config import TransformerConfig
from lrec.model.cost import n_body
from lrec.model.network_sizes import SIZES
from lrec.model.transformer import Transformer
from lrec.serving.export import write_safetensors
from lrec.serving.recommender import Model

HERE = Path(__file__).parent
MAX_LEN, K = 50, 10
PEER_SIZE = "98k"  # SASRec's: 2 blocks, width 64, 2 heads
LADDER = ("98k", "1.6m", "9.4m")
CALLS = 40  # of one history


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=Path("data/peers"), help="Where RecTools' lies.")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--length", type=int, default=MAX_LEN, help="Items of each history.")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = os.environ["POLARS_MAX_THREADS"] = str(options.threads)
    sections = []
    for part in options.parts:
        sections.append(PARTS[part](options))
        print(sections[-1], flush=True)
    if options.page is not None:
        write_text(options.page, page(sections, options))


def untrained(size: str, n_items: int) -> Model:
    """A network of a size with items named i0, i1, ..."""
    config = TransformerConfig(n_items, MAX_LEN, *SIZES[size])
    about = {name: getattr(config, name) for name in ("n_items", "max_len", "layers", "width", "heads")} | {
        "parametrisation": "standard"
    }
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
    """lrec and RecTools on the same histories, catalogue and shape of network, from raw ids to raw ids."""
    model, histories = (
        untrained(PEER_SIZE, options.items),
        random_histories(options.users, options.items, options.length),
    )
    model.recommend(histories.head(100), K)
    started = time.perf_counter()
    found = model.recommend(histories, K)
    seconds = time.perf_counter() - started
    assert found["items"].list.len().min() == K
    rows: list[tuple[str, str, float, dict | None, float]]
    rows = [("lrec", "this commit", options.users / seconds, None, peak_gib())]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        histories.explode("items").rename({"items": "item"}).write_csv(folder / "histories.csv")
        every = pl.DataFrame({"user": np.arange(options.items) // MAX_LEN, "item": model.item_ids})
        every.write_csv(folder / "catalogue.csv")
        for ranker in ("torch", "implicit"):
            measured = run_rectools(folder, ranker, options)
            speed = measured["users"] / measured["seconds"]
            rows.append((f"RecTools, {ranker} ranker", measured["version"], speed, measured, measured["memory_gib"]))
    lines = [
        "## Beside RecTools",
        "",
        f"The network (2 blocks, width 64, 2 heads) makes {options.users:,} lists of the {K} best unseen items, from "
        f"histories of {options.length} items and a catalogue of {options.items:,}.",
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
        "lrec's time includes everything from raw ids to raw ids. RecTools maps the ids when it makes its dataset.",
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


def latency(options: argparse.Namespace) -> str:
    """One history at a time, by size and catalogue, and the matrix products of its network and scores."""
    lines = [
        "## Latency",
        "",
        f"The model is in memory. A call takes one history of {options.length} raw ids and returns the raw ids of the",
        f"{K} best unseen items. The table has the median and the 95th percentile of {CALLS} calls. Column `products`",
        "has the median time of the matrix products alone, and `above` the rest of the latency.",
        "",
        "| size | N_body | items | latency, ms | 95th, ms | products, ms | above, ms |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for size in LADDER:
        for n_items in (options.items // 10, options.items, 10 * options.items):
            model = untrained(size, n_items)
            histories = random_histories(CALLS + 5, n_items, options.length)["items"].to_list()
            products = bare_products(model.net, options.length)
            calls, bare = [], []
            for history in histories:
                calls.append(ms(partial(model.recommend, [history], K)))
                bare.append(ms(products))
            calls, bare = sorted(calls[5:]), sorted(bare[5:])
            middle, of_products = statistics.median(calls), statistics.median(bare)
            lines.append(
                f"| {size} | {n_body(model.net.config):,} | {n_items:,} | {middle:.1f} "
                f"| {calls[int(0.95 * len(calls))]:.1f} | {of_products:.1f} | {middle - of_products:.1f} |"
            )
    return "\n".join(lines)


def bare_products(net: Transformer, length: int) -> Callable[[], None]:
    """The matrix products of one history, of blocks and scores. In the last block, only keys and values are for all
    positions; the rest is for one."""
    config = net.config
    width, inner, heads = config.width, config.inner_width, config.heads
    hidden_LD, inner_LF = torch.randn(length, width), torch.randn(length, inner)
    weight_DE, up_DF, down_FD = torch.randn(width, 3 * width), torch.randn(width, inner), torch.randn(inner, width)
    key_HLK, weights_HLL = torch.randn(heads, length, width // heads), torch.randn(heads, length, length)
    table_VD, scores_1V = net.items.weight.detach(), torch.empty(1, config.n_items)

    def products() -> None:
        for layer in range(config.layers):
            rows = length if layer < config.layers - 1 else 1
            if rows == length:
                torch.mm(hidden_LD, weight_DE)
            else:
                torch.mm(hidden_LD[:1], weight_DE[:, :width])
                torch.mm(hidden_LD, weight_DE[:, width:])
            torch.bmm(key_HLK[:, :rows], key_HLK.transpose(1, 2))
            torch.bmm(weights_HLL[:, :rows], key_HLK)
            torch.mm(hidden_LD[:rows], weight_DE[:, :width])
            torch.mm(hidden_LD[:rows], up_DF)
            torch.mm(inner_LF[:rows], down_FD)
        torch.mm(hidden_LD[:1], table_VD.T, out=scores_1V)

    return products


def ms(call: Callable[[], object]) -> float:
    """Milliseconds that a call takes."""
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def throughput(options: argparse.Namespace) -> str:
    """Many histories in one call, by size."""
    users = 2048
    lines = [
        "## By size",
        "",
        f"One call has {users:,} histories of {options.length} items. The catalogue has {options.items:,} items.",
        "",
        "| size | N_body | histories/s |",
        "|---|---:|---:|",
    ]
    for size in LADDER:
        model, histories = untrained(size, options.items), random_histories(users, options.items, options.length)
        model.recommend(histories.head(100), K)
        speed = 1000 * users / ms(partial(model.recommend, histories, K))
        lines.append(f"| {size} | {n_body(model.net.config):,} | {speed:,.0f} |")
    return "\n".join(lines)


def by_users(options: argparse.Namespace) -> str:
    """Peak memory of `lrec recommend` over files of more and more users."""
    n_items, length = 10_000, 20
    lines = [
        "## Memory",
        "",
        f"This is the peak memory of the whole process of `lrec recommend`, for {n_items:,} items, "
        f"histories of {length} and size {PEER_SIZE}.",
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
    return "\n".join(
        [
            "# Recommendations: speed and memory",
            "",
            f"{time.strftime('%Y-%m-%d')}, commit {commit()}, {platform.machine()}, {options.threads} threads, torch "
            f"{torch.__version__}, Python {platform.python_version()}.",
            "",
            "    python benchmarks/recommend.py --page benchmarks/recommend.md",
            "",
            "\n\n".join(sections),
            "",
        ]
    )


PARTS = {"peer": beside_rectools, "throughput": throughput, "latency": latency, "memory": by_users}

if __name__ == "__main__":
    main()
