"""The optimizer's switch and the steps that runs share, on two processes (gloo): the same as on one."""

import sys
from pathlib import Path
from typing import Any

import pytest
from running import points, run_on

from lrec.checkpoint.reading import read

pytestmark = pytest.mark.usefixtures("warm_processes")

AT_A_STEP = ["--model.optimizer.switch={at: 7, lr: 0.3}", "--trainer.max_epochs=3"]
ON_CONVERGENCE = ["--model.optimizer.switch={patience: 1, min_improvement: 0.15, lr: 0.3}", "--trainer.max_epochs=6"]


def fit(folder: Path, options: list[str], devices: int, strategy: str) -> list[dict[str, Any]]:
    """Train a short run on `devices` processes, two micro-batches a step; returns its points."""
    arguments = [
        "--config=data/synthetic.yaml",
        "--config=trainer/laptop.yaml",
        "--data.n_users=201",  # an odd number: one rank needs a filler row
        "--data.n_items=51",
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
    run_on(devices, [sys.executable, "-m", "lrec", "fit", *arguments])
    return points(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "options"),
    [("ddp", ON_CONVERGENCE), ("fsdp2", AT_A_STEP)],
    ids=["ddp, converged", "fsdp2, at a step"],
)
def test_two_processes_switch_as_one(strategy: str, options: list[str], tmp_path: Path) -> None:
    one = fit(tmp_path / "one", options, 1, "auto")
    two = fit(tmp_path / "two", options, 2, strategy)
    assert {point["lr_phase"] for point in one} == {"adamw", "sgd"}
    for a, b in zip(one, two, strict=True):
        assert [a[name] for name in ("step", "D", "lr_phase")] == [b[name] for name in ("step", "D", "lr_phase")]
        assert a["val_loss"] == pytest.approx(b["val_loss"], rel=1e-5)
    groups = [
        read(tmp_path / name / "checkpoints" / "last.ckpt")["optimizer_states"][0]["param_groups"]
        for name in ("one", "two")
    ]
    assert groups[0][0]["sgd_from"] is not None
    assert {group["sgd_from"] for group in groups[0] + groups[1]} == {groups[0][0]["sgd_from"]}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_with_muon_as_one(strategy: str, tmp_path: Path) -> None:
    options = ["--model.optimizer.muon=2.5", "--trainer.max_epochs=3"]
    one, two = fit(tmp_path / "one", options, 1, "auto"), fit(tmp_path / "two", options, 2, strategy)
    adamw = fit(tmp_path / "adamw", options[1:], 1, "auto")
    assert [point["val_loss"] for point in two] == pytest.approx([point["val_loss"] for point in one], rel=1e-5)
    assert abs(adamw[-1]["val_loss"] - one[-1]["val_loss"]) > 0.03


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_go_on_from_a_shorter_run(strategy: str, tmp_path: Path) -> None:
    def options(epochs: int) -> list[str]:
        return [
            f"--trainer.max_epochs={epochs}",
            "--model.optimizer.decay=wsd",
            f"--model.optimizer.warmup={0.2 / epochs}",
        ]

    fit(tmp_path / "short", options(1), 2, strategy)
    go_on = f"--ckpt_path={tmp_path / 'short' / 'checkpoints' / 'stable.ckpt'}"
    two = fit(tmp_path / "two", [*options(3), go_on], 2, strategy)
    one = fit(tmp_path / "one", options(3), 1, "auto")
    assert [point["D"] for point in two] == [point["D"] for point in one]
    assert [point["val_loss"] for point in two] == pytest.approx([point["val_loss"] for point in one], rel=1e-5)
