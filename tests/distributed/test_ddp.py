"""Two processes (gloo) against one: the same steps, the same losses, the same metrics."""

import sys
from pathlib import Path

import pytest
from running import points, run_on
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.usefixtures("warm_processes")


def fit(folder: Path, devices: int) -> list[dict]:  # type: ignore[type-arg]
    """Train a short run on `devices` processes; returns its points."""
    arguments = [
        "--config=data/synthetic.yaml",
        "--config=trainer/laptop.yaml",
        "--data.n_users=501",  # an odd number: one rank needs a filler row
        "--data.n_items=50",
        "--data.length=20",
        f"--data.data_dir={folder.parent / 'data'}",
        "--data.targets_per_step=512",
        "--model.size=25k",
        "--model.optimizer.lr=0.01",
        "--trainer.max_epochs=2",
        "--trainer.log_every_n_steps=3",
        "--trainer.enable_progress_bar=false",
        f"--trainer.devices={devices}",
        f"--trainer.strategy={'ddp' if devices > 1 else 'auto'}",
        f"--trainer.default_root_dir={folder}",
    ]
    run_on(devices, [sys.executable, "-m", "lrec", "fit", *arguments])
    return points(folder)


def logged(run: Path) -> list[float]:
    """train/loss as TensorBoard has it."""
    events = EventAccumulator(str(run))
    events.Reload()
    return [event.value for event in events.Scalars("train/loss")]


def test_two_processes_equal_one(tmp_path: Path) -> None:
    one, two = fit(tmp_path / "one", 1), fit(tmp_path / "two", 2)
    assert logged(tmp_path / "two") == pytest.approx(logged(tmp_path / "one"), rel=1e-5)
    assert [point["world_size"] for point in one + two] == [1, 1, 2, 2]
    for a, b in zip(one, two, strict=True):
        for name in ("N_total", "D", "U", "flops", "step", "best", "status", "data_hash"):
            assert a[name] == b[name]
        for name in ("train_loss", "val_loss"):
            assert a[name] == pytest.approx(b[name], rel=1e-5)
        assert (a["test_loss"] or 0) == pytest.approx(b["test_loss"] or 0, rel=1e-5)
        assert set(a["metrics"]) == set(b["metrics"])
        for name, value in a["metrics"].items():
            if value is None:  # the loss of a baseline that gives no probabilities
                assert b["metrics"][name] is None, name
                continue
            # Popularity does not depend on the weights; a rank may move by rounding of the weights.
            tolerance = 1e-6 if "/popularity/" in name else 5e-3
            assert value == pytest.approx(b["metrics"][name], rel=tolerance, abs=tolerance), name
