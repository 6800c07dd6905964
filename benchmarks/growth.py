"""What growing costs: seconds and memory of training over sizes, catalogues and lengths of history, with exponents.

    python benchmarks/growth.py [--threads 2] [--out benchmarks/growth.md]

Each case is a process of its own: a few training steps on full windows (blocks, full softmax, AdamW), the median step
turned into seconds per million interactions, and the peak of the process. An exponent is the slope of log cost against
log size, by least squares over the larger half of the cases, in which the growing part of the cost is the largest.
"""

import argparse
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from rows import commit

from lrec.model.config import TransformerConfig
from lrec.model.losses import full_softmax
from lrec.model.network_sizes import SIZES
from lrec.model.transformer import Transformer
from lrec.training.optim import Optimizer

# (what grows, entry, size, items, length, targets a step)
CASES = [
    *(("size", name, name, 10_000, 50, 4096) for name in ("3k", "12k", "98k", "786k", "1.6m", "9.4m")),
    *(("items", f"{items:,}", "98k", items, 50, 1024) for items in (10**4, 10**5, 10**6, 10**7)),
    *(("length", str(length), "98k", 10_000, length, 4000) for length in (50, 100, 200, 500, 1000)),
]


REMARKS = {
    "size": "They are below 1 because the head costs the same at every size. They approach 1 as the blocks grow.",
    "items": "Full softmax multiplies with the whole item table, so 1 is expected. A sampled loss costs less.",
    "length": "At these widths, attention is a small share of a step. So a long history costs hardly more.",
}


def measure(size: str, items: int, length: int, targets: int) -> dict[str, float]:
    """Median seconds of a step and the peak of the process."""
    net = Transformer(TransformerConfig(items, length, *SIZES[size]))
    optimizer, _ = Optimizer().build(net, 1000)
    times = []
    for _ in range(4 if items < 10**7 else 3):
        items_BL = torch.randint(items, (targets // length, length))
        targets_M = torch.randint(items, (items_BL.numel(),))
        started = time.perf_counter()
        loss = net(items_BL, lambda hidden, table, y=targets_M: full_softmax(hidden.flatten(0, 1), table, y))
        (loss / len(targets_M)).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - started)
    per_million = statistics.median(times[1:]) * 1e6 / (targets // length * length)
    return {"seconds": per_million, "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def exponent(x: list[float], y: list[float]) -> float:
    """Slope of log y against log x over the larger half."""
    half = len(x) // 2
    return float(np.polyfit(np.log(x[half:]), np.log(y[half:]), 1)[0]) if len(x) - half >= 2 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=["size", "items", "length"])
    parser.add_argument("--out", type=Path, help="Write the page here.")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.case is not None:
        print(json.dumps(measure(*CASES[options.case][2:])))
        return
    lines = [
        "# What growing costs",
        "",
        f"{time.strftime('%Y-%m-%d')}, commit {commit()}, {platform.machine()}, {options.threads} threads, "
        f"torch {torch.__version__}, float32.",
        "",
        "    python benchmarks/growth.py --out benchmarks/growth.md",
        "",
        "Training steps on full windows with full softmax and AdamW; memory is the peak of the process.",
    ]
    for grows in ("size", "items", "length"):
        if options.only not in (None, grows):
            continue
        lines += ["", f"| {grows} | seconds per million interactions | peak GiB |", "|---|---|---|"]
        x: list[float] = []
        seconds: list[float] = []
        gib: list[float] = []
        for index, (group, entry, size, items, length, targets) in enumerate(CASES):
            if group != grows:
                continue
            command = [sys.executable, __file__, "--threads", str(options.threads), "--case", str(index)]
            result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
            layers, width, _ = SIZES[size]
            x.append({"size": 12 * layers * width**2, "items": items, "length": length}[grows])
            seconds.append(result["seconds"])
            gib.append(result["gib"])
            lines.append(f"| {entry} (steps of {targets:,}) | {seconds[-1]:,.1f} | {gib[-1]:.2f} |")
            print(lines[-1], flush=True)
        lines += ["", f"Exponents: seconds {exponent(x, seconds):.2f}, memory {exponent(x, gib):.2f}. {REMARKS[grows]}"]
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
