"""Peak memory of real training steps on a CPU against the estimate of `lrec sizes`.

Each row is a process of its own: it builds the net and takes three steps of AdamW on full windows of 50 items. Measured
is the largest resident size since then, less that of the same process after a step of one block of that width, with
freed memory handed back to the system (MALLOC_MMAP_THRESHOLD_=65536); in brackets with the allocator as it comes, which
keeps some of it.

A repeated call goes on from the rows in the results file.

    python benchmarks/memory.py --results memory.jsonl --page benchmarks/memory.md
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from lrec import cost
from lrec.files import write_text
from lrec.losses import full_softmax
from lrec.net import SIZES, Architecture, Transformer, TransformerConfig
from lrec.optim import Optimizer

MODERN = Architecture("rms", "swiglu", "rotary", True)
CASES = [
    # size, architecture, precision, checkpointing
    ("1.6m", "gpt2", "32-true", False),
    ("1.6m", "gpt2", "bf16-mixed", False),
    ("1.6m", "modern", "32-true", False),
    ("1.6m", "gpt2", "32-true", True),
    ("9.4m", "gpt2", "32-true", False),
    ("9.4m", "gpt2", "bf16-mixed", False),
    ("9.4m", "modern", "32-true", False),
    ("9.4m", "gpt2", "32-true", True),
    ("75m", "gpt2", "32-true", False),
    ("75m", "gpt2", "bf16-true", False),
    ("75m", "modern", "32-true", False),
    ("75m", "gpt2", "32-true", True),
]


def shape_of(size: str, architecture: str, n_items: int) -> TransformerConfig:
    """The net of a case."""
    return TransformerConfig(
        n_items, 50, *SIZES[size], architecture=MODERN if architecture == "modern" else Architecture()
    )


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith(field)).split()[1]) * 1024


def train(config: TransformerConfig, positions: int, precision: str, checkpointing: bool) -> None:
    """Three steps."""
    net = Transformer(config)
    if precision == "bf16-true":
        net = net.bfloat16()
    net.checkpoint_activations = checkpointing
    optimizer, _ = Optimizer().build(net, 3)
    items_BL = torch.randint(0, config.n_items, (-(-positions // config.max_len), config.max_len))
    targets_M = torch.randint(0, config.n_items, (items_BL.numel(),))
    positions_M = torch.arange(items_BL.numel())
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = net(items_BL, lambda h_BLD, t_VD: full_softmax(h_BLD.flatten(0, 1)[positions_M], t_VD, targets_M))
        optimizer.zero_grad()
        (loss / len(targets_M)).backward()
        optimizer.step()


def measure(case: tuple[str, str, str, bool], n_items: int, positions: int) -> int:
    """Bytes a case needs beyond the process itself; to be called in a fresh process."""
    size, architecture, precision, checkpointing = case
    config = shape_of(size, architecture, n_items)
    train(replace(config, n_items=50, layers=1), 50, precision, checkpointing)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the largest size so far
    train(config, positions, precision, checkpointing)
    return resident("VmHWM") - before


def in_new_process(case: tuple[str, str, str, bool], options: argparse.Namespace, allocator: dict[str, str]) -> int:
    """`measure` in a fresh process with these variables in its environment."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    command += ["--n_items", str(options.n_items), "--positions", str(options.positions)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | allocator
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)


def page(rows: dict[str, list[int]], options: argparse.Namespace) -> str:
    """The rows as Markdown."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        "# Memory of a training step, measured and estimated",
        "",
        *__doc__.split("\n\n", 1)[1].strip().splitlines(),
        "",
        f"{options.n_items:,} items, {options.positions:,} positions a step, one thread of {os.cpu_count()} cores",
        f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, commit {commit}.",
        "",
        "| size | blocks | precision | checkpointing | measured MiB | estimated MiB | error |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    for case in CASES:
        size, architecture, precision, checkpointing = case
        measured, default = rows[json.dumps(case)]
        config = shape_of(size, architecture, options.n_items)
        estimate = cost.memory(config, options.positions, precision, checkpointing=checkpointing).total
        cells = [size, architecture, precision, "yes" if checkpointing else "no"]
        cells.append(f"{measured / 2**20:,.0f} ({default / 2**20:,.0f})")
        cells += [f"{estimate / 2**20:,.0f}", f"{100 * (estimate / measured - 1):+.1f} %"]
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
        print(measure(tuple(options.case), options.n_items, options.positions))
        return
    started = time.monotonic()
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    rows = dict(map(json.loads, lines))
    for case in CASES:
        key = json.dumps(case)
        if key in rows or time.monotonic() - started > options.slice_s:
            continue
        rows[key] = [
            in_new_process(case, options, {"MALLOC_MMAP_THRESHOLD_": "65536"}),
            in_new_process(case, options, {}),
        ]
        with options.results.open("a") as file:
            file.write(json.dumps([key, rows[key]]) + "\n")
        print(f"{len(rows)}/{len(CASES)} {case}: {rows[key]}", flush=True)
    if options.page and len(rows) == len(CASES):
        write_text(options.page, page(rows, options))


if __name__ == "__main__":
    main()
