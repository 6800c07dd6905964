"""The optimizer's switch on two processes (gloo): the same step, phases and losses as on one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SWITCHES = {
    "at a step": ["--model.optimizer.switch={at: 7, lr: 0.3}", "--trainer.max_epochs=3"],
    "on convergence": [
        "--model.optimizer.switch={patience: 1, min_improvement: 0.15, lr: 0.3}",
        "--trainer.max_epochs=6",
    ],
}


def fit(folder: Path, options: list[str], devices: int, strategy: str) -> list[dict[str, Any]]:
    """A short run on so many processes, two micro-batches a step; returns its points."""
    arguments = [
        "--config=data/synthetic.yaml",
        "--config=trainer/laptop.yaml",
        "--data.n_users=201",  # an odd number: one rank needs a filler row
        "--data.n_items=50",
        "--data.length=12",
        f"--data.data_dir={folder.parent / 'data'}",
        "--data.targets_per_step=512",
        "--model.size=3k",
        "--model.optimizer.lr=0.03",
        "--trainer.accumulate_grad_batches=2",
        "--trainer.enable_progress_bar=false",
        f"--trainer.devices={devices}",
        f"--trainer.strategy={strategy}",
        f"--trainer.default_root_dir={folder}",
        *options,
    ]
    result = subprocess.run(
        [sys.executable, "-m", "lrec", "fit", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]


def switched_at(folder: Path) -> int:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    (step,) = {group["sgd_from"] for group in checkpoint["optimizer_states"][0]["param_groups"]}
    return int(step)


@pytest.mark.parametrize("switch", SWITCHES)
def test_two_processes_switch_as_one(switch: str, tmp_path: Path) -> None:
    one = fit(tmp_path / "one", SWITCHES[switch], 1, "auto")
    two = fit(tmp_path / "two", SWITCHES[switch], 2, "ddp")
    assert {point["lr_phase"] for point in one} == {"adamw", "sgd"}
    assert switched_at(tmp_path / "one") == switched_at(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        assert [a[name] for name in ("step", "D", "lr_phase", "best")] == [
            b[name] for name in ("step", "D", "lr_phase", "best")
        ]
        for name in ("train_loss", "val_loss"):
            assert a[name] == pytest.approx(b[name], rel=1e-5)
