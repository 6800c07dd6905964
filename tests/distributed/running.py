"""Tiny but complete runs of `lrec` on one and two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Protocol
from unittest.mock import patch

import torch

from lrec.cli import main
from lrec.options.config_files import find_config

# 51 items, which two processes cannot share equally, and 3 evaluation batches, so that one of them needs a filler.
# An epoch has 14 steps, so 20 steps end in the middle of the second epoch.
OPTIONS = [
    f"--config={find_config('data/synthetic.yaml')}",
    "--data.n_users=2101",
    "--data.n_items=51",
    "--data.length=16",
    "--data.max_len=8",
    "--data.targets_per_step=2048",
    "--model.size=25k",
    "--model.optimizer.lr=0.01",
    "--trainer.gradient_clip_val=0.5",
    "--trainer.enable_progress_bar=false",
    "--early_stopping.patience=1000",
]
ALONE, SHARDED = "trainer/laptop.yaml", "trainer/fsdp-cpu.yaml"


class Fit(Protocol):
    """See `fit`."""

    def __call__(self, name: str, processes: int, *options: str, code: int = 0) -> Path: ...


def environment() -> dict[str, str]:
    """The environment of a child process, which uses one thread."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def fit_command(folder: Path, run: Path, processes: int, *options: str) -> list[str]:
    """The command of `lrec fit` on `processes` processes with sharded parameters; 0 means one without sharding."""
    return [
        *(sys.executable, "-m", "lrec", "fit"),
        f"--config={find_config(SHARDED if processes else ALONE)}",
        *OPTIONS,
        f"--trainer.devices={max(processes, 1)}",
        "--trainer.max_steps=20",
        f"--data.data_dir={folder / 'data'}",
        f"--trainer.default_root_dir={run}",
        *options,
    ]


def run(command: list[str], code: int = 0, **more: str) -> str:
    """Run a command, which must exit with `code`; its stdout and stderr."""
    result = subprocess.run(command, capture_output=True, text=True, env=environment() | more, timeout=200, check=False)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


def run_here(command: list[str]) -> None:
    """Run `python -m lrec ...` in this process, which saves the seconds that another one takes to start."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with patch.dict(os.environ):
        main(command[3:])
    torch.set_num_threads(threads)


def run_on(processes: int, command: list[str]) -> None:
    """Run the command, in this process if one is enough."""
    if processes > 1:
        run(command)
    else:
        run_here(command)


def points(run: Path) -> list[dict[str, Any]]:
    """The points of a run."""
    return [json.loads(line) for line in (run / "points.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    """The training loss between evaluations, over all targets of those steps."""
    return [point["train_loss"] for point in points(run)]
