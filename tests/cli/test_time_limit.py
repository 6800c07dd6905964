"""A run with a time limit: its learning rate rises and falls within that time, also if more time is given later."""

import math
from collections.abc import Callable
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_session_start_info_plugin_data

from lrec.run import Run

LR = 0.01
QUICK = (
    "--config=data/synthetic.yaml",
    "--config=trainer/laptop.yaml",
    "--data.n_users=200",
    "--data.n_items=40",
    "--data.length=12",
    "--data.targets_per_step=256",
    "--model.size=0.8k",
    f"--model.optimizer.lr={LR}",
    "--model.optimizer.decay=cosine",
    "--model.parametrisation=standard",  # one rate for all
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=1",
    "--trainer.callbacks+=LearningRateMonitor",
    "--early_stopping.patience=100000",
)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes only when the limit is checked, so a busy machine takes as many steps as an idle one."""
    seconds = count(0, 0.005)
    monkeypatch.setattr("lightning.pytorch.callbacks.timer.time", SimpleNamespace(monotonic=lambda: next(seconds)))


def rates_of(run: Path) -> list[float]:
    """The learning rate of each step, as a share of its peak."""
    events = EventAccumulator(str(run))
    events.Reload()
    (tag, *_) = [tag for tag in events.Tags()["scalars"] if tag.startswith("various/lr-")]
    return [event.value / LR for event in events.Scalars(tag)]


def test_the_table_of_runs_has_no_epochs_if_time_is_the_limit(tmp_path: Path, lrec: Callable[..., str]) -> None:
    lrec("fit", *QUICK, f"--data.data_dir={tmp_path}", f"--trainer.default_root_dir={tmp_path / 'run'}",
         "--trainer.max_epochs=-1", "--trainer.max_time={milliseconds: 10}")  # fmt: skip
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    row = parse_session_start_info_plugin_data(content).hparams
    assert "lr" in row
    assert "epochs" not in row


@pytest.mark.parametrize("epochs", ["100000", pytest.param("-1", marks=pytest.mark.slow)])
def test_warm_up_and_decay_end_with_the_time(epochs: str, tmp_path: Path, lrec: Callable[..., str]) -> None:
    run = tmp_path / "run"
    lrec("fit", *QUICK, f"--data.data_dir={tmp_path}", f"--trainer.default_root_dir={run}",
         f"--trainer.max_epochs={epochs}", "--trainer.max_time={seconds: 1}")  # fmt: skip
    rates = rates_of(run)
    assert max(rates) > 0.9
    assert rates[-1] < 0.1
    peak = rates.index(max(rates))
    assert 0 < peak < len(rates) / 2
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))


OWN = """
from dataclasses import dataclass
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR
from lrec import OptimizerConfig

@dataclass(frozen=True)
class Cosine(OptimizerConfig):
    def build(self, net, total_steps):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        return optimizer, CosineAnnealingLR(optimizer, total_steps)
"""


def test_a_schedule_whose_rate_depends_on_the_one_before_ends_with_the_time(
    tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    quick = [option for option in QUICK if "optimizer" not in option]
    fit = ["fit", *quick, f"--data.data_dir={tmp_path}", "--trainer.default_root_dir=run"]
    fit += ["--model.optimizer=own.Cosine", "--trainer.max_time={seconds: 1}"]
    assert "the schedule must be a LambdaLR, not CosineAnnealingLR" in refused(*fit, "--trainer.max_epochs=-1")
    lrec(*fit, "--trainer.max_epochs=200")
    rates = rates_of(tmp_path / "run")
    assert rates == sorted(rates, reverse=True)
    assert rates[len(rates) // 2] == pytest.approx(0.5, abs=0.1)
    assert 0 <= rates[-1] < 0.1


def test_a_switch_comes_in_time(tmp_path: Path, lrec: Callable[..., str]) -> None:
    lrec("fit", *QUICK, f"--data.data_dir={tmp_path}", f"--trainer.default_root_dir={tmp_path / 'run'}",
         "--trainer.max_epochs=100000", "--trainer.max_time={seconds: 1}",
         "--model.optimizer.switch={latest: 0.5, lr: 0.02, patience: 100000}")  # fmt: skip
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    steps, switched = last["global_step"], last["optimizer_states"][0]["param_groups"][0]["sgd_from"]
    assert 0.2 * steps < switched < 0.8 * steps
    assert last["optimizer_states"][0]["param_groups"][0]["lr"] < 0.1 * 0.02, "SGD's rate falls to the end too"


def test_an_evaluation_after_a_part_of_a_step_adds_no_second_point(tmp_path: Path, lrec: Callable[..., str]) -> None:
    run = tmp_path / "run"
    lrec("fit", *QUICK, f"--data.data_dir={tmp_path}", f"--trainer.default_root_dir={run}",
         "--trainer.accumulate_grad_batches=4", "--trainer.val_check_interval=4",
         "--trainer.max_epochs=9", "--trainer.max_time={milliseconds: 310}")  # fmt: skip
    steps = [point.step for point in Run(run).points]
    assert steps == list(range(1, len(steps) + 1))
    assert sum(point.best for point in Run(run).points) == 1


def test_the_end_of_the_time_is_saved_without_an_evaluation(tmp_path: Path, lrec: Callable[..., str]) -> None:
    run = tmp_path / "run"
    lrec("fit", *QUICK, f"--data.data_dir={tmp_path}", f"--trainer.default_root_dir={run}",
         "--trainer.check_val_every_n_epoch=1000", "--trainer.max_time={milliseconds: 310}")  # fmt: skip
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == len(rates_of(run)) > 5
    assert not last["lrec_stopped"]


def test_a_run_does_not_stop_before_the_rate_of_wsd_falls(tmp_path: Path, lrec: Callable[..., str]) -> None:
    quick = [option for option in QUICK if not option.startswith(("--model.optimizer", "--early"))]
    lrec("fit", *quick, "--model.optimizer.decay=wsd", "--model.optimizer.lr=1e-12", "--early_stopping.patience=1",
         "--model.optimizer.warmup=0", f"--data.data_dir={tmp_path}", f"--trainer.default_root_dir={tmp_path / 'run'}",
         "--trainer.max_epochs=100000", "--trainer.max_time={seconds: 1}")  # fmt: skip
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    (group, *_) = last["optimizer_states"][0]["param_groups"]
    assert group["lr"] < group["initial_lr"]


@pytest.mark.slow
def test_more_time_goes_on_at_the_rate_of_that_share(tmp_path: Path, lrec: Callable[..., str]) -> None:
    run = tmp_path / "run"
    fit = ["fit", *QUICK, f"--data.data_dir={tmp_path}", f"--trainer.default_root_dir={run}"]
    fit += ["--trainer.max_epochs=100000"]
    lrec(*fit, "--trainer.max_time={seconds: 1}")
    steps = len(rates_of(run))
    lrec(*fit, "--trainer.max_time={seconds: 2}", "--ckpt_path=last")
    rates = rates_of(run)[steps:]
    at_half = (1 + math.cos(math.pi * (0.5 - 0.05) / 0.95)) / 2
    # The first step still has the rate of the end of the first run.
    assert max(rates[1:]) == pytest.approx(at_half, abs=0.05)
    assert rates[-1] < 0.1
