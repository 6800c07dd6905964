"""The optimizer's switch in whole runs: at a step, on convergence, with accumulation, early stopping and resume."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def options(log_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A quick run on the log, dropout on: 9 steps an epoch."""
    return [
        "--config=data/csv.yaml",
        "--config=trainer/laptop.yaml",
        f"--data.path={log_csv}",
        f"--data.data_dir={tmp_path_factory.getbasetemp() / 'stores'}",
        "--data.user_column=who",
        "--data.item_column=what",
        "--data.time_column=when",
        "--data.max_len=10",
        "--data.targets_per_step=256",
        "--model.size=1.7k",
        "--model.dropout.residual={first: 0.2, last: 0.2}",
        "--model.optimizer.lr=0.03",
        "--model.optimizer.decay=constant",
        "--trainer.enable_progress_bar=false",
    ]


def points_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "points.jsonl").read_text().splitlines()]


def keep_checkpoints(folder: Path, **when: int) -> str:
    arguments = {"dirpath": str(folder), "filename": "{step}", "save_top_k": -1, **when}
    return f"--trainer.callbacks+={json.dumps({'class_path': 'ModelCheckpoint', 'init_args': arguments})}"


def last_checkpoint(run: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint


def assert_same_end(run: Path, other: Path) -> None:
    """Assert that the points (except clocks), weights and optimizers of two runs are the same, bit for bit."""
    for one, another in zip(points_of(run), points_of(other), strict=True):
        # train_loss is left out: a resumed run does not know the part of the epoch before its checkpoint.
        for name in ("step", "D", "lr_phase", "val_loss", "test_loss", "metrics", "best"):
            assert one[name] == another[name], (one["step"], name)
    ends = last_checkpoint(run), last_checkpoint(other)
    assert ends[0]["state_dict"].keys() == ends[1]["state_dict"].keys()
    assert all(torch.equal(ends[0]["state_dict"][name], ends[1]["state_dict"][name]) for name in ends[0]["state_dict"])
    states = [end["optimizer_states"][0] for end in ends]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for index, state in states[0]["state"].items():
        assert all(torch.equal(state[name], states[1]["state"][index][name]) for name in state)


def test_a_fixed_step_counts_optimizer_steps_and_accumulation_changes_nothing(
    options: list[str], tmp_path: Path, lrec: Callable[..., str]
) -> None:
    runs = []
    for accumulated in (1, 3):
        runs.append(tmp_path / str(accumulated))
        lrec("fit", *options, f"--trainer.default_root_dir={runs[-1]}", "--trainer.max_epochs=3",
             "--model.dropout.residual={first: 0, last: 0}", "--model.optimizer.switch.at=12",
             f"--trainer.accumulate_grad_batches={accumulated}")  # fmt: skip
    for one, three in zip(*map(points_of, runs), strict=True):
        assert one["step"] == three["step"]
        assert one["lr_phase"] == three["lr_phase"]
        assert one["val_loss"] == pytest.approx(three["val_loss"], rel=1e-5)
    points = points_of(runs[1])
    steps = points[0]["step"]
    assert steps < 12 < 2 * steps
    assert [point["lr_phase"] for point in points] == ["adamw", "sgd", "sgd"]
    for group in last_checkpoint(runs[1])["optimizer_states"][0]["param_groups"]:
        assert group["sgd_from"] == 12


def test_convergence_switches_and_early_stopping_waits_for_it(
    options: list[str], tmp_path: Path, lrec: Callable[..., str]
) -> None:
    run = tmp_path / "run"
    lrec("fit", *options, f"--trainer.default_root_dir={run}", "--trainer.max_epochs=60", "--early_stopping.patience=2",
         "--model.optimizer.switch={patience: 3, min_improvement: 0.002, lr: 0.05}")  # fmt: skip
    points = points_of(run)
    phases = [point["lr_phase"] for point in points]
    adamw = phases.count("adamw")
    assert phases == ["adamw"] * adamw + ["sgd"] * (len(phases) - adamw)
    # The switch comes after the first three evaluations in a row that did not improve on the best before them.
    best, waited, converged = float("inf"), 0, None
    for index, point in enumerate(points):
        best, waited = (point["val_loss"], 0) if point["val_loss"] < best - 0.002 else (best, waited + 1)
        if waited == 3:
            converged = index + 1
            break
    assert adamw == converged
    # Early stopping, though less patient, counts SGD's evaluations only: two without improvement, and the run ends.
    losses = [point["val_loss"] for point in points[adamw:]]
    assert len(points) < 60
    assert min(losses[:-2]) <= min(losses[-2:])
    for end in range(3, len(losses)):
        assert min(losses[: end - 2]) > min(losses[end - 2 : end]), "it could have stopped earlier"


def test_a_run_that_does_not_converge_switches_when_it_is_due(
    options: list[str], tmp_path: Path, lrec: Callable[..., str]
) -> None:
    lrec("fit", *options, f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=4",
         "--model.optimizer.switch={patience: 9, latest: 0.5}")  # fmt: skip
    assert [point["lr_phase"] for point in points_of(tmp_path)] == ["adamw", "adamw", "sgd", "sgd"]
    assert (
        last_checkpoint(tmp_path)["optimizer_states"][0]["param_groups"][0]["sgd_from"]
        == points_of(tmp_path)[1]["step"]
    )


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [1, 2])
def test_resume_before_at_and_after_a_fixed_step_is_exact(
    accumulated: int, options: list[str], tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    without = [*options, "--trainer.max_epochs=4", f"--trainer.accumulate_grad_batches={accumulated}"]
    options = [*without, "--model.optimizer.switch.at=14", "--model.optimizer.switch.lr=0.3"]
    undisturbed = tmp_path / "undisturbed"
    lrec("fit", *options, f"--trainer.default_root_dir={undisturbed}",
         keep_checkpoints(tmp_path / "kept", every_n_train_steps=7))  # fmt: skip
    for step in (7, 14, 21):
        resumed = tmp_path / f"from-{step}"
        checkpoint = tmp_path / "kept" / f"step={step}.ckpt"
        lrec("fit", *options, f"--trainer.default_root_dir={resumed}", f"--ckpt_path={checkpoint}")
        assert_same_end(undisturbed, resumed)
    again = [f"--trainer.default_root_dir={tmp_path / 'none'}", f"--ckpt_path={checkpoint}"]
    for changed, now in ((without, "null"), ([*options, "--model.optimizer.switch.lr=0.2"], "0.2")):
        assert f"--model.optimizer.switch.lr 0.3, not {now}" in refused("fit", *changed, *again)


@pytest.mark.slow
def test_resume_before_at_and_after_convergence_is_exact(
    options: list[str], tmp_path: Path, lrec: Callable[..., str]
) -> None:
    options = [*options, "--trainer.max_epochs=14", "--early_stopping.patience=4",
               "--model.optimizer.switch={patience: 2, min_improvement: 0.01, lr: 0.05}"]  # fmt: skip
    undisturbed, kept, evaluated = (tmp_path / name for name in ("undisturbed", "kept", "evaluated"))
    lrec("fit", *options, f"--trainer.default_root_dir={undisturbed}",
         keep_checkpoints(kept, every_n_train_steps=1), keep_checkpoints(evaluated, every_n_epochs=1))  # fmt: skip
    (switched,) = {g["sgd_from"] for g in last_checkpoint(undisturbed)["optimizer_states"][0]["param_groups"]}
    epoch = points_of(undisturbed)[0]["step"]
    assert switched % epoch == 0
    # In mid-epoch before the switch with the count half up; at the evaluation that triggers it; one step after it.
    for folder, step in ((kept, switched - epoch // 2), (evaluated, switched), (kept, switched + 1)):
        resumed = tmp_path / f"from-{step}"
        lrec("fit", *options, f"--trainer.default_root_dir={resumed}", f"--ckpt_path={folder / f'step={step}.ckpt'}")
        assert_same_end(undisturbed, resumed)
