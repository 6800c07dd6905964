"""The parts of training and evaluation, compared with the machine's own matrix products, all in one run.

    python benchmarks/parts.py [--threads 2] [--out benchmarks/parts.md]

Every measurement is a process of its own, so that its peak memory is its own. Times are medians. The histories are
synthetic, with lengths from a geometric distribution, like real ones; batches come from the training loader.
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
from rows import commit

from lrec.common.hardware import keep_freed_memory
from lrec.data.batching.train_batches import TrainBatch
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.evaluation.metrics import KS
from lrec.model import cost
from lrec.model.config import Dropout, OverDepth, TransformerConfig
from lrec.model.losses import GBCE, FullSoftmax, Loss, SampledSoftmax
from lrec.model.network_sizes import find_size
from lrec.model.transformer import Transformer
from lrec.ranking.scoring import score
from lrec.training.optim import Optimizer
from lrec.training.throughput import measure_peak

GIB = 2**30


def median_s(work: Callable[[], object], repeats: int = 5) -> float:
    """Median seconds of some runs, after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def peak_gib() -> float:
    """Peak memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_loss(loss: Loss) -> dict[str, float]:
    """Loss and gradients of 25,600 positions among 100,000 items, width 128, and the bare products with its columns."""
    positions, items, width = 25_600, 100_000, 128
    columns = getattr(loss, "negatives", items)
    hidden_MD = torch.randn(positions, width, requires_grad=True)
    table_VD = (0.02 * torch.randn(items, width)).requires_grad_()
    targets_M, counts_V = torch.randint(items, (positions,)), torch.ones(items)
    hidden_MD.grad, table_VD.grad = torch.zeros_like(hidden_MD), torch.zeros_like(table_VD)
    # Warm up the allocator and the kernels on a few rows.
    loss(hidden_MD[:256], table_VD, targets_M[:256], counts_V).backward()
    before = peak_gib()

    def step() -> None:
        loss(hidden_MD, table_VD, targets_M, counts_V).backward()

    seconds = median_s(step, 3)
    after = peak_gib()
    rows = 1024
    scores, gradient = torch.empty(rows, columns), torch.zeros(columns, width)

    @torch.no_grad()
    def products() -> None:
        for start in range(0, positions, rows):
            torch.mm(hidden_MD[start : start + rows], table_VD[:columns].T, out=scores)
            scores @ table_VD[:columns]
            torch.addmm(gradient, scores.T, hidden_MD[start : start + rows], out=gradient)

    return {"columns": columns, "seconds": seconds, "products_s": median_s(products, 3), "extra_gib": after - before}


def measure_step(size: str, precision: str, compiled: bool, full: int | None = None) -> dict[str, float]:
    """A training step by its parts, on real batches of the loader; with windows of `full` targets if that is given."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        data = generated_data(Path(folder), full)
        loader = data.train_dataloader()
        started, batches = time.perf_counter(), []
        for batch in loader:
            batches.append(batch)
            if len(batches) == 20:
                break
        loader_s = (time.perf_counter() - started) / len(batches)
        config = TransformerConfig(
            data.n_items, data.max_len, *find_size(size), Dropout(0.1, OverDepth(0.1, 0.1), OverDepth(0.1, 0.1))
        )
        counts_V = torch.as_tensor(data.item_counts_V)
    keep_freed_memory()  # as in a fit
    net = Transformer(config)
    if compiled:
        for block in net.blocks:
            block.forward = torch.compile(block.forward, dynamic=True)
    optimizer, _ = Optimizer().build(net, 1000)
    head_flops = FullSoftmax().flops_per_target(config.n_items, config.width)
    parts: dict[str, list[float]] = {"forward": [], "loss": [], "backward": [], "optimizer": []}
    measured = batches if size == "98k" else batches[:6]
    for index, batch in enumerate([*batches[:2], *measured]):
        clock = step_clock(net, optimizer, batch, counts_V, dtype)
        if index >= 2:  # the first two warm up, or compile
            for name, begin, end in zip(parts, clock[:-1], clock[1:], strict=True):
                parts[name].append(end - begin)
    seconds = sum(sum(times) for times in parts.values())
    flops = sum(cost.training_flops(config, b.step_targets, b.step_pairs, head_flops) for b in measured)
    real = sum(len(batch.targets_M) for batch in batches) / sum(batch.items_BL.numel() for batch in batches)
    return {
        "loader": loader_s,
        **{name: statistics.median(times) for name, times in parts.items()},
        "flops_per_s": flops / seconds,
        "peak_flops_per_s": measure_peak(torch.device("cpu"), dtype, torch.get_num_threads()),
        "targets_per_s": sum(batch.step_targets for batch in measured) / seconds,
        "real_share": real,
        "memory_gib": peak_gib(),
    }


def step_clock(
    net: Transformer, optimizer: torch.optim.Optimizer, batch: TrainBatch, counts_V: torch.Tensor, dtype: torch.dtype
) -> list[float]:
    """Take a step; the times at its start and after forward, loss, backward, and clipping with the optimizer."""
    clock = [time.perf_counter()]

    def head(hidden_BLD: torch.Tensor, table_VD: torch.Tensor) -> torch.Tensor:
        clock.append(time.perf_counter())
        return FullSoftmax()(hidden_BLD.flatten(0, 1)[batch.positions_M], table_VD, batch.targets_M, counts_V)

    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        loss = net(batch.items_BL, head) / batch.step_targets
    clock.append(time.perf_counter())
    loss.backward()
    clock.append(time.perf_counter())
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    clock.append(time.perf_counter())
    return clock


def measure_evaluation(rows: int, items: int, width: int) -> dict[str, float]:
    """Cross-entropy, ranks and top 50 with and without seen items, in batches of 1,024 users."""
    table_VD = torch.randn(items, width)
    keep_freed_memory()  # as in an evaluation
    before = peak_gib()

    def batch(n: int) -> None:
        seen_rows_S = torch.arange(n).repeat_interleave(20)
        targets_B, seen_items_S = torch.randint(items, (n,)), torch.randint(items, (20 * n,))
        score(torch.randn(n, width), table_VD, targets_B, seen_rows_S, seen_items_S, max(KS))

    started = time.perf_counter()
    for start in range(0, rows, 1024):
        batch(min(1024, rows - start))
    seconds = time.perf_counter() - started
    after = peak_gib()
    hidden_BD, logits = torch.randn(128, width), torch.empty(128, min(items, 2**14))

    def products() -> None:
        for start in range(0, items - items % logits.shape[1], logits.shape[1]):
            torch.mm(hidden_BD, table_VD[start : start + logits.shape[1]].T, out=logits)

    return {
        "users_per_s": rows / seconds,
        "products_users_per_s": 128 / median_s(products),
        "extra_gib": after - before,
    }


def generated_data(folder: Path, full: int | None) -> InteractionsDataModule:
    """22,363 users and 12,101 items, as many interactions a user as in Amazon Beauty: at least 5, 8.9 on average.

    Or 2,000 users, each of whom trains on `full` targets.
    """
    random = np.random.default_rng(0)
    lengths = np.minimum(4 + random.geometric(0.2, 22_363), 200) if full is None else np.full(2000, full + 3)
    rows = int(lengths.sum())
    items = np.minimum(random.zipf(1.3, rows) - 1, 12_100)
    pl.DataFrame(
        {"user": np.repeat(np.arange(len(lengths)), lengths), "item": items, "time": np.arange(rows)}
    ).write_csv(folder / "log.csv")
    data = InteractionsDataModule(
        folder / "log.csv",
        user_column="user",
        item_column="item",
        time_column="time",
        data_dir=folder / "stores",
        max_len=full or 50,
    )
    data.prepare_data()
    data.setup()
    return data


MEASUREMENTS: dict[str, Callable[[], dict[str, float]]] = {
    "loss FullSoftmax": lambda: measure_loss(FullSoftmax()),
    "loss SampledSoftmax": lambda: measure_loss(SampledSoftmax(8192)),
    "loss GBCE": lambda: measure_loss(GBCE(8192)),
    **{
        f"step {size} {precision}{' compiled' if compiled else ''}": partial(measure_step, size, precision, compiled)
        for size, precision, compiled in [
            ("98k", "float32", False),
            ("1.6m", "float32", False),
            ("9.4m", "float32", False),
            ("9.4m", "bf16", False),
            ("9.4m", "float32", True),
            ("9.4m", "bf16", True),
        ]
    },
    **{
        f"step {size} float32, length 200": partial(measure_step, size, "float32", False, 200)
        for size in ("98k", "1.6m")
    },
    "evaluation 22363 users x 12101 items": lambda: measure_evaluation(22_363, 12_101, 64),
    "evaluation 10000 users x 1000000 items": lambda: measure_evaluation(10_000, 1_000_000, 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="*", help="Measurements whose names contain one of these.")
    parser.add_argument("--out", type=Path, help="Write the page here.")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.measure:
        torch.manual_seed(0)
        print(json.dumps(MEASUREMENTS[options.measure]()))
        return
    results = {}
    for name in MEASUREMENTS:
        if options.only and not any(part in name for part in options.only):
            continue
        command = [sys.executable, __file__, "--threads", str(options.threads), "--measure", name]
        finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        results[name] = json.loads(finished.stdout.strip().splitlines()[-1])
        print(name, results[name], flush=True)
    if options.out:
        options.out.write_text(page(results, options.threads))


def page(results: dict[str, dict[str, float]], threads: int) -> str:
    """The Markdown page."""
    lines = [
        "# The parts of a step against the machine's matrix products",
        "",
        f"{time.strftime('%Y-%m-%d')}, commit {commit()}, {platform.machine()}, {threads} threads, torch "
        f"{torch.__version__}.",
        "",
        "    python benchmarks/parts.py --out benchmarks/parts.md",
        "",
    ]
    lines += [
        "## A loss and its gradients",
        "",
        "25,600 positions, 100,000 items, width 128, compared with the three matrix products alone: with the",
        "catalogue, or with 8,192 negatives. Memory is in addition to the process with inputs and gradients.",
        "",
        "| | columns | loss and gradients, s | products, s | ratio | memory above, GiB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, loss in results.items():
        if name.startswith("loss "):
            lines.append(
                f"| {name.removeprefix('loss ')} | {loss['columns']:,} | {loss['seconds']:.2f} "
                f"| {loss['products_s']:.2f} | **{loss['seconds'] / loss['products_s']:.2f}x** "
                f"| {loss['extra_gib']:.2f} |"
            )
    lines.append("")
    lines += [
        "## A training step",
        "",
        "12,101 items, histories with the lengths of Amazon Beauty, up to 50, 4,096 targets a step, dropout 0.1,",
        "clipping, AdamW. Length 200 has windows of 200 targets. FLOPs count blocks, attention and head on real",
        "positions. MFU divides their rate by that of a large square product in the same precision and process.",
        "",
        "| size, precision | loader ms | forward | loss and its gradients | backward | clip and optimizer | targets/s "
        "| GFLOP/s | of (measured peak) | MFU | real positions | peak GiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, step in results.items():
        if name.startswith("step "):
            times = " | ".join(f"{1e3 * step[p]:,.1f}" for p in ("loader", "forward", "loss", "backward", "optimizer"))
            lines.append(
                f"| {name.removeprefix('step ')} | {times} | {step['targets_per_s']:,.0f} "
                f"| {step['flops_per_s'] / 1e9:,.0f} | {step['peak_flops_per_s'] / 1e9:,.0f} "
                f"| **{step['flops_per_s'] / step['peak_flops_per_s']:.0%}** | {step['real_share']:.1%} "
                f"| {step['memory_gib']:.2f} |"
            )
    lines += [
        "",
        "## Evaluation",
        "",
        "Cross-entropy, exact ranks and top 50, each with and without the seen items, of every user over the whole",
        "catalogue, width 64. Memory is in addition to the process with the item table.",
        "",
        "| | users/s | bare score products, users/s | share | memory above, GiB |",
        "|---|---|---|---|---|",
    ]
    for name, evaluation in results.items():
        if name.startswith("evaluation "):
            share = evaluation["users_per_s"] / evaluation["products_users_per_s"]
            lines.append(
                f"| {name.removeprefix('evaluation ')} | {evaluation['users_per_s']:,.0f} "
                f"| {evaluation['products_users_per_s']:,.0f} | {share:.0%} | {evaluation['extra_gib']:.2f} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
