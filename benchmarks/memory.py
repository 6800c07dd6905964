"""Peak memory of real training steps on a CPU, compared with the estimate of `lrec sizes`.

Each row is a process of its own, or two under FSDP2. It builds the network and takes three steps of AdamW on full
windows of 50 items. The measured memory is the largest resident size in this time, minus the size that the process had
after steps of one block of that width. Freed memory goes back to the system (MALLOC_MMAP_THRESHOLD_=65536). The figures
in brackets are with the default allocator, which keeps some of it.

A repeated call measures only the rows that the results file lacks.

    python benchmarks/memory.py --results memory.jsonl --page benchmarks/memory.md
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from rows import HANDED_BACK, forget_largest, here, in_new_processes, measured, resident, tell
from torch.distributed.device_mesh import init_device_mesh

from lrec.common.files import write_text
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.losses import full_softmax
from lrec.model.memory import Precision, of_step
from lrec.model.network_sizes import SIZES
from lrec.model.parallelize import Sharding, build

MODERN = Architecture("rms", "swiglu", "rotary", True)


class Case(NamedTuple):
    """A row: an entry of the ladder, gpt2 or modern blocks, and how they are trained."""

    size: str
    blocks: str
    precision: Precision
    checkpointing: bool = False
    shards: int = 1


CASES = [
    Case("1.6m", "gpt2", "32-true"),
    Case("1.6m", "gpt2", "bf16-mixed"),
    Case("1.6m", "modern", "32-true"),
    Case("1.6m", "gpt2", "32-true", checkpointing=True),
    Case("1.6m", "gpt2", "32-true", shards=2),
    Case("9.4m", "gpt2", "32-true"),
    Case("9.4m", "gpt2", "bf16-mixed"),
    Case("9.4m", "modern", "32-true"),
    Case("9.4m", "gpt2", "32-true", checkpointing=True),
    Case("9.4m", "gpt2", "32-true", shards=2),
    Case("9.4m", "gpt2", "bf16-mixed", shards=2),
    Case("75m", "gpt2", "32-true"),
    Case("75m", "gpt2", "bf16-true"),
    Case("75m", "modern", "32-true"),
    Case("75m", "gpt2", "32-true", checkpointing=True),
    Case("75m", "gpt2", "32-true", checkpointing=True, shards=2),
]


def shape_of(case: Case, n_items: int) -> TransformerConfig:
    """The net of a case."""
    architecture = MODERN if case.blocks == "modern" else Architecture()
    return TransformerConfig(n_items, 50, *SIZES[case.size], architecture=architecture)


def train(config: TransformerConfig, case: Case, positions: int) -> None:
    """Take three steps in one of `case.shards` processes, each on `positions` positions of its own."""
    sharding = None
    if case.shards > 1:
        mesh = init_device_mesh("cpu", (case.shards,))
        sharding = Sharding(mesh, torch.bfloat16 if case.precision == "bf16-mixed" else None)
    net = build(config, 0, sharding, case.checkpointing)
    if case.precision == "bf16-true":
        net = net.bfloat16()
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    items_BL = torch.randint(0, config.n_items, (-(-positions // config.max_len), config.max_len))
    targets_M = torch.randint(0, config.n_items, (items_BL.numel(),))
    positions_M = torch.arange(items_BL.numel())
    for _ in range(3):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=case.precision == "bf16-mixed" and sharding is None):
            loss = net(items_BL, lambda h_BLD, t_VD: full_softmax(h_BLD.flatten(0, 1)[positions_M], t_VD, targets_M))
        (loss / len(targets_M)).backward()
        optimizer.step()


def measure(case: Case, n_items: int, positions: int) -> int:
    """Bytes that training adds to a process, the most of any shard; call it in fresh processes."""
    if case.shards > 1:
        torch.distributed.init_process_group("gloo")
    config = shape_of(case, n_items)
    train(replace(config, n_items=50, layers=1), case, 50)
    before = resident("VmRSS")
    forget_largest()
    train(config, case, positions)
    needed = torch.tensor(resident("VmHWM") - before)
    if case.shards > 1:
        torch.distributed.all_reduce(needed, torch.distributed.ReduceOp.MAX)
        torch.distributed.destroy_process_group()
    return int(needed)


def page(rows: dict[Case, list[int]], options: argparse.Namespace) -> str:
    """The rows as Markdown."""
    lines = [
        "# Memory of a training step, measured and estimated",
        "",
        *__doc__.split("\n\n", 1)[1].strip().splitlines(),
        "",
        f"{options.n_items:,} items, {options.positions:,} positions a step, one thread; {here()}.",
        "",
        "| size | blocks | precision | checkpointing | shards | measured MiB | estimated MiB | error |",
        "|---|---|---|---|---:|---:|---:|---:|",
    ]
    for case in CASES:
        needed, default = rows[case]
        config = shape_of(case, options.n_items)
        estimate = of_step(config, options.positions, case.precision, case.shards, case.checkpointing).total
        cells = [case.size, case.blocks, case.precision, "yes" if case.checkpointing else "no", str(case.shards)]
        cells.append(f"{needed / 2**20:,.0f} ({default / 2**20:,.0f})")
        cells += [f"{estimate / 2**20:,.0f}", f"{100 * (estimate / needed - 1):+.1f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what the results file lacks; write the page once all is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("memory.jsonl"), help="a line per measured row")
    parser.add_argument("--page", type=Path, help="Markdown page to write once all rows are there")
    parser.add_argument("--n_items", type=int, default=10_000)
    parser.add_argument("--positions", type=int, default=2000, help="positions of a step")
    parser.add_argument("--slice_s", type=float, default=math.inf, help="start no further row after so many seconds")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        tell(measure(Case(*options.case), options.n_items, options.positions))
        return
    arguments = ["--n_items", str(options.n_items), "--positions", str(options.positions)]

    def with_both_allocators(case: Case) -> list[int]:
        return [in_new_processes(__file__, arguments, case, case.shards, each) for each in (HANDED_BACK, {})]

    started = time.monotonic()
    rows = measured(CASES, options.results, with_both_allocators, lambda: time.monotonic() - started > options.slice_s)
    if options.page and len(rows) == len(CASES):
        write_text(options.page, page(rows, options))


if __name__ == "__main__":
    main()
