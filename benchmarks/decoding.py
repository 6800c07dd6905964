"""Step-by-step decoding with the key/value cache against encoding every history again.

Histories have 50 items; each of ten steps appends the best item. The scores of the two ways differ by at most the value
in the last column. Seconds are processor time, the fastest of five repeats.

    python benchmarks/decoding.py --page benchmarks/decoding.md
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rows import commit
from torch import Tensor

from lrec.common.files import write_text
from lrec.model.attention_context import KeyValueCache
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.network_sizes import SIZES
from lrec.model.transformer import Transformer

LENGTH, STEPS = 50, 10
ARCHITECTURES = {"gpt2": Architecture(), "modern": Architecture("rms", "swiglu", "rotary", True)}


def last(hidden_BLD: Tensor, table_VD: Tensor) -> Tensor:
    """Scores of every item after the last position."""
    return hidden_BLD[:, -1] @ table_VD.T


def again(net: Transformer, items_BL: Tensor) -> list[Tensor]:
    """Scores of each step, by encoding whole histories."""
    scores: list[Tensor] = []
    for _ in range(STEPS):
        scores.append(net(items_BL, last))
        items_BL = torch.cat([items_BL, scores[-1].argmax(1, keepdim=True)], 1)
    return scores


def cached(net: Transformer, items_BL: Tensor) -> list[Tensor]:
    """Scores of each step; after the first step, only the new position is encoded."""
    cache = KeyValueCache(len(items_BL), net.config.max_len)
    scores = [net(items_BL, last, cache=cache)]
    for _ in range(STEPS - 1):
        scores.append(net(scores[-1].argmax(1, keepdim=True), last, cache=cache))
    return scores


def seconds(decode: Callable[[Transformer, Tensor], list[Tensor]], net: Transformer, items_BL: Tensor) -> float:
    """Processor time of the fastest of five repeats."""
    spent = []
    for _ in range(5):
        started = time.process_time()
        decode(net, items_BL)
        spent.append(time.process_time() - started)
    return min(spent)


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="Markdown page to write")
    parser.add_argument("--sizes", nargs="+", default=["98k", "786k", "9.4m"])
    parser.add_argument("--n_items", type=int, default=3500)
    parser.add_argument("--rows", type=int, default=64, help="histories decoded together")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Decoding step by step, with and without the cache",
        "",
        *__doc__.split("\n\n", 1)[1].strip().splitlines(),
        "",
        f"{options.rows} histories together, {options.n_items:,} items, one thread of {os.cpu_count()} cores "
        f"{platform.machine()}, torch {torch.__version__}, commit {commit()}.",
        "",
        "| size | blocks | again, s | cached, s | times faster | largest difference of a score |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for size in options.sizes:
        for name, architecture in ARCHITECTURES.items():
            config = TransformerConfig(options.n_items, LENGTH + STEPS, *SIZES[size], architecture=architecture)
            net = Transformer(config).eval()
            items_BL = torch.randint(0, options.n_items, (options.rows, LENGTH))
            pairs = zip(again(net, items_BL), cached(net, items_BL), strict=True)
            difference = max(float((a - c).abs().max()) for a, c in pairs)
            slow, fast = seconds(again, net, items_BL), seconds(cached, net, items_BL)
            lines.append(f"| {size} | {name} | {slow:.3f} | {fast:.3f} | {slow / fast:.1f} | {difference:.1e} |")
            print(lines[-1], flush=True)
    if options.page:
        write_text(options.page, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
