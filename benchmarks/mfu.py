"""The share of a device's arithmetic that training uses, by size: real runs of `lrec fit`, 200 steps each.

    python benchmarks/mfu.py --accelerator gpu [--sizes 98k 1.6m 9.4m 75m 829m] [--page mfu.md]

Histories are random, with full windows, over a catalogue as large as that of MovieLens-20M. Steps are as large as in
published runs; choose smaller ones on a CPU. The first steps, in which a device warms up, count too. The last column is
the memory that `lrec sizes` expects.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from lrec.model import memory
from lrec.model.config import TransformerConfig
from lrec.model.network_sizes import find_size

N_ITEMS, LENGTH, ROWS_OF_ITEM = 26_000, 50, 20
SIZES = ["98k", "786k", "1.6m", "9.4m", "75m", "829m"]
TITLES = (
    "size", "targets/s", "TFLOP/s", "of the measured products", "of the nominal rate", "products", "memory, GiB",
    "expected, GiB",
)  # fmt: skip


def write_log(path: Path) -> None:
    """Random items, all equally often; every user trains on whole windows."""
    per_user = 4 * LENGTH + 3  # one more item than targets, and one each for validation and test
    users = N_ITEMS * ROWS_OF_ITEM // per_user
    items = np.random.default_rng(0).permutation(np.arange(users * per_user) % N_ITEMS)
    of_user = np.repeat(np.arange(users), per_user)
    pl.DataFrame({"user": of_user, "item": items, "time": np.arange(len(items))}).write_csv(path)


def train(size: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What a run's throughput.json says."""
    run = folder / size
    command = [
        *(sys.executable, "-m", "lrec", "fit", "--config=data/csv.yaml", f"--data.path={folder / 'log.csv'}"),
        *("--data.user_column=user", "--data.item_column=item", "--data.time_column=time"),
        *(f"--data.data_dir={folder / 'stores'}", f"--data.max_len={LENGTH}", "--data.num_workers=2"),
        *(f"--data.targets_per_step={options.targets}", f"--model.size={size}", "--trainer.devices=1"),
        f"--model.compile_blocks={str(options.compile).lower()}",
        *(f"--trainer.accelerator={options.accelerator}", f"--trainer.precision={options.precision}"),
        *(f"--trainer.max_steps={options.steps}", "--trainer.limit_val_batches=0"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        f"--trainer.default_root_dir={run}",
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    measured: dict[str, Any] = json.loads((run / "throughput.json").read_text())
    return measured


def row(size: str, measured: dict[str, Any], options: argparse.Namespace) -> str:
    """A row of the page."""
    device: Literal["cpu", "cuda"] = "cpu" if options.accelerator == "cpu" else "cuda"
    config = TransformerConfig(N_ITEMS, LENGTH, *find_size(size))
    expected = memory.of_step(config, options.targets, options.precision, device=device).total / 2**30
    nominal = measured["mfu_nominal"]
    cells = (
        size,
        f"{measured['targets_per_s']:,.0f}",
        f"{measured['flops_per_s'] / 1e12:,.2f}",
        f"{measured['mfu']:.0%}",
        "" if nominal is None else f"{nominal:.0%}",
        measured["products"],
        f"{measured['memory_gib']:.2f}",
        f"{expected:.2f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="gpu")
    parser.add_argument("--sizes", nargs="+", default=SIZES)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--targets", type=int, default=16_384, help="targets of a step")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--compile", action="store_true", help="compile the blocks; takes more steps to be worth it")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.accelerator == "gpu" else f"{os.cpu_count()} CPU cores"
    lines = [
        "# Share of a device's arithmetic that training uses",
        "",
        f"{time.strftime('%Y-%m-%d')}, {name}, torch {torch.__version__}: {options.steps} steps of {options.targets:,} "
        f"targets, {N_ITEMS:,} items, windows of {LENGTH}, {options.precision}{', compiled' * options.compile}.",
        "",
        f"    python {' '.join(sys.argv)}",
        "",
        f"| {' | '.join(TITLES)} |",
        f"|{'---|' * len(TITLES)}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_log(Path(folder) / "log.csv")
        for size in options.sizes:
            lines.append(row(size, train(size, options, Path(folder)), options))
            print(lines[-1], flush=True)
    if options.page:
        options.page.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
