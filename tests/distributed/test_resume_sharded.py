"""Training on from a checkpoint equals training straight through: in mid-epoch, with dropout, before, at and after the
switch of the optimizer, and on another number of processes."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from running import Fit, fit_command, losses, points, run_here
from running import run as run_refused

from lrec.checkpoint import reading

pytestmark = pytest.mark.usefixtures("warm_processes")

SWITCHED = "--model.optimizer.switch={at: 10, lr: 0.05}"
DROPOUT = ["--model.dropout.embedding=0.1", "--model.dropout.residual={first: 0.2, last: 0.1}"]
EVERY_THIRD = "--trainer.val_check_interval=3"


def keep(folder: Path) -> str:
    """The option that keeps the checkpoint of every fifth step."""
    options = {"dirpath": str(folder), "filename": "{step}", "every_n_train_steps": 5, "save_top_k": -1}
    return "--trainer.callbacks+=" + json.dumps({"class_path": "ModelCheckpoint", "init_args": options})


def kept(run: Path, step: int) -> str:
    return f"--ckpt_path={run.with_name(run.name + '-kept') / f'step={step}.ckpt'}"


@pytest.mark.parametrize(
    "step", [pytest.param(5, marks=pytest.mark.slow), 10, pytest.param(15, marks=pytest.mark.slow)]
)
def test_one_process_to_the_last_bit(step: int, folder: Path) -> None:
    def fit(name: str, *options: str) -> Path:
        run_here(fit_command(folder, folder / name, 0, EVERY_THIRD, SWITCHED, *DROPOUT, *options))
        return folder / name

    straight = folder / "straight"
    if not straight.exists():
        fit("straight", keep(folder / "straight-kept"))
    resumed = fit(f"straight-{step}", kept(straight, step))
    assert losses(resumed) == losses(straight)


def test_evaluations_between_accumulated_micro_batches(folder: Path) -> None:
    """Three micro-batches are a step and a half, but every checkpoint is one of whole steps."""
    run, kept = folder / "evaluated-between", folder / "evaluated-between-kept"
    options = ["--trainer.accumulate_grad_batches=2", EVERY_THIRD, *DROPOUT, "--trainer.max_steps=8"]
    every = {
        "class_path": "ModelCheckpoint",
        "init_args": {"dirpath": str(kept), "filename": "{step}", "save_top_k": -1},
    }
    run_here(fit_command(folder, run, 0, *options, "--trainer.callbacks+=" + json.dumps(every)))
    first = min(kept.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    resumed = folder / "accumulated-resumed"
    run_here(fit_command(folder, resumed, 0, *options, f"--ckpt_path={first}"))
    assert [point["val_loss"] for point in points(resumed)] == [point["val_loss"] for point in points(run)]
    assert losses(resumed) == losses(run)


class SaveInMidStep(Callback):
    """Saves after the first of two micro-batches of a step, as a run does if its time ends there."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == 4:
            trainer.save_checkpoint(self.path)


def test_a_step_that_was_saved_half_is_taken_again(folder: Path) -> None:
    run, resumed, kept = folder / "halved", folder / "halved-resumed", folder / "halved.ckpt"
    options = [
        "--trainer.accumulate_grad_batches=2",
        "--trainer.val_check_interval=4",
        "--trainer.max_steps=8",
        *DROPOUT,
    ]
    saver = {"class_path": f"{__name__}.SaveInMidStep", "init_args": {"path": str(kept)}}
    run_here(fit_command(folder, run, 0, *options, "--trainer.callbacks+=" + json.dumps(saver)))
    run_here(fit_command(folder, resumed, 0, *options, f"--ckpt_path={kept}"))
    assert [point["val_loss"] for point in points(resumed)] == [point["val_loss"] for point in points(run)]


class NoteVerified(Callback):
    """Writes down which shards each process verifies."""

    def __init__(self, folder: str) -> None:
        Path(folder).mkdir(exist_ok=True)
        verify, load = reading._Shards._verify, reading._load_pt

        def note(what: object) -> None:
            with (Path(folder) / os.environ.get("LOCAL_RANK", "0")).open("a") as file:
                file.write(f"{what}\n")

        def noted(shards: Any, name: str) -> None:
            verify(shards, name)
            note(name)

        def loaded(path: Path, mmap: bool = False, verify: bool = True) -> Any:
            note(verify)
            return load(path, mmap, verify)

        reading._Shards._verify, reading._load_pt = noted, loaded  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def two(folder: Path, fit: Fit) -> Path:
    """Two processes, with dropout."""
    return fit("two-dropout", 2, EVERY_THIRD, SWITCHED, *DROPOUT, keep(folder / "two-dropout-kept"))


@pytest.mark.parametrize(
    "step", [pytest.param(5, marks=pytest.mark.slow), 10, pytest.param(15, marks=pytest.mark.slow)]
)
def test_two_processes(step: int, two: Path, folder: Path, fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)  # where the processes find NoteVerified
    name = f"two-dropout-{step}"
    watch = {"class_path": f"{__name__}.NoteVerified", "init_args": {"folder": str(folder / f"{name}-verified")}}
    watched = "--trainer.callbacks+=" + json.dumps(watch)
    resumed = fit(name, 2, EVERY_THIRD, SWITCHED, *DROPOUT, kept(two, step), watched)
    assert losses(resumed) == losses(two)
    first, second = ((folder / f"{name}-verified" / rank).read_text().split() for rank in "01")
    token = next(name for name in first if "safetensors" in name)[
        :8
    ]  # of the checkpoint that was resumed; the run's best one is read after it
    for mine in (first, second):
        assert len([name for name in mine if name.startswith(token)]) == 1, "each process verifies its own, once"


def test_all_processes_refuse_a_shard_that_one_finds_damaged(two: Path, folder: Path) -> None:
    kept, run = folder / "damaged.ckpt", folder / "from-damaged"
    shutil.copytree(two / "checkpoints" / "last.ckpt", kept)
    shard = next(kept.glob("*-00001-of-00002.safetensors"))  # the second process's
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    printed = run_refused(fit_command(folder, run, 2, f"--ckpt_path={kept}"), code=2)
    said = f"lrec: error: {kept}: not a checkpoint that lrec wrote, or a damaged one"
    assert printed.count("lrec: error: ") == printed.count(said) > 0  # lines of two processes may run into each other
    assert not (run / "points.jsonl").exists()


def test_only_the_first_process_verifies_a_whole_file(folder: Path, fit: Fit, monkeypatch: Any) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    kept = fit("whole-file", 0, "--trainer.max_steps=3") / "checkpoints" / "last.ckpt"
    watch = {"class_path": f"{__name__}.NoteVerified", "init_args": {"folder": str(folder / "file-verified")}}
    watched = "--trainer.callbacks+=" + json.dumps(watch)
    fit("from-whole-file", 2, f"--ckpt_path={kept}", "--trainer.max_steps=5", watched, "--trainer.strategy=ddp")
    first, second = ((folder / "file-verified" / rank).read_text().split() for rank in "01")
    assert first.count("True") == 1
    assert second == ["False"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "step"),
    [(2, 1, 5), (2, 0, 10), (0, 2, 10)],
)
def test_another_number_of_processes(before: int, after: int, step: int, folder: Path, fit: Fit) -> None:
    """From two shards to one process with and without sharding, and from one file to two processes."""
    straight = folder / f"from-{before}"
    if not straight.exists():
        fit(straight.name, before, EVERY_THIRD, SWITCHED, keep(folder / f"{straight.name}-kept"))
    resumed = fit(f"from-{before}-to-{after}-{step}", after, EVERY_THIRD, SWITCHED, kept(straight, step))
    assert losses(resumed) == pytest.approx(losses(straight), rel=1e-6)


@pytest.mark.slow
def test_one_three_two_and_one_process_in_turn(folder: Path, fit: Fit) -> None:
    """A run that grows and shrinks, each time in the middle of an epoch, ends as one that never stopped."""
    straight = fit("never-stopped", 0, EVERY_THIRD, SWITCHED, keep(folder / "never-stopped-kept"))
    run = straight
    for step, processes in ((5, 3), (10, 2), (15, 1)):
        name = f"{processes}-from-{step}"
        run = fit(name, processes, EVERY_THIRD, SWITCHED, kept(run, step), keep(folder / f"{name}-kept"))
        assert losses(run) == pytest.approx(losses(straight), rel=1e-6)
