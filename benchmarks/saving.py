"""How long training stops for a checkpoint that is written in the background, and for one that is written at once.

    OMP_NUM_THREADS=1 python benchmarks/saving.py

A network of the ladder with AdamW's moments, over 10,000 items, is saved five times each way, in turn. In the
background, training waits only for the copy. A row is added to benchmarks/saving.md.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rows import commit

from lrec.checkpoint.writing import Save, Saver
from lrec.model.config import TransformerConfig
from lrec.model.network_sizes import SIZES
from lrec.model.transformer import Transformer

TITLES = ("size", "checkpoint, GB", "in the background, s", "at once, s", "until it is there, s", "machine", "commit")
HEADER = f"""# What a checkpoint costs training

How long training stops while a checkpoint is saved: medians of five saves each way, in turn.

    OMP_NUM_THREADS=1 python benchmarks/saving.py

| {" | ".join(TITLES)} |
|{"---|" * len(TITLES)}
"""


def checkpoint_of(size: str) -> dict[str, Any]:
    """What a run of that size saves, except small values."""
    net = Transformer(TransformerConfig(10_000, 50, *SIZES[size]))
    weights = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    moments = {name: {"exp_avg": torch.randn_like(t), "exp_avg_sq": torch.rand_like(t)} for name, t in weights.items()}
    return {"lrec": {"size": size}, "state_dict": weights, "optimizer_states": [{"state": moments}]}


def save(path: Path, checkpoint: dict[str, Any], background: bool) -> tuple[float, float]:
    """Seconds until training goes on, and until the checkpoint is there."""
    saver, began = Saver(), time.perf_counter()
    saver.start(Save(path, checkpoint, copied=background), background)
    stood_still = time.perf_counter() - began
    saver.join()
    return stood_still, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="75m")
    arguments = parser.parse_args()
    checkpoint = checkpoint_of(arguments.size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "last.ckpt"
        times = [(save(path, checkpoint, True), save(path, checkpoint, False)) for _ in range(5)]
        gigabytes = path.stat().st_size / 1e9
    waited = [statistics.median(run[way][0] for run in times) for way in (0, 1)]
    there = statistics.median(run[0][1] for run in times)
    machine = f"{os.cpu_count()} cores {platform.machine()}, load {os.getloadavg()[0]:.1f}"
    page = Path(__file__).with_suffix(".md")
    if not page.exists():
        page.write_text(HEADER)
    figures = (f"{number:.2f}" for number in (gigabytes, *waited, there))
    with page.open("a") as out:
        out.write(f"| {' | '.join((arguments.size, *figures, machine, commit()))} |\n")


if __name__ == "__main__":
    main()
