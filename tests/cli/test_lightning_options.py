"""Lightning's options that would not do what they say are refused in one line, and nothing is written."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace
from torch import backends

from lrec.errors import UserError
from lrec.model.losses import GBCE
from lrec.training.lightning_options import check_options, few_steps, warnings_of

FIT = ("fit", "--config=data/synthetic.yaml", "--config=trainer/laptop.yaml", "--model.size=0.8k")

REFUSED = {
    "--trainer.strategy=fsdp": "--trainer.strategy fsdp: lrec trains with auto, ddp, or fsdp2",
    "--trainer.strategy=ModelParallelStrategy": "--trainer.strategy ModelParallelStrategy: lrec trains with",
    "--trainer.strategy=ddp_spawn": "--trainer.strategy DDPStrategy: the network stays in the processes",
    "--trainer.strategy=deepspeed_stage_2": "--trainer.strategy deepspeed_stage_2: lrec trains with",
    "--trainer.precision=64-true": "--trainer.precision 64-true: choose one of 32-true",
    "--trainer.barebones=true": "--trainer.barebones true",
    "--trainer.callbacks+=LearningRateFinder": "--trainer.callbacks LearningRateFinder: the rate is",
    "--trainer.callbacks+=BatchSizeFinder": "the size of a step is --data.targets_per_step",
    "--trainer.callbacks+={{class_path: StochasticWeightAveraging, init_args: {{swa_lrs: 1}}}}": "it reads the model",
    "--trainer.accelerator=mps": "--trainer.accelerator mps: metrics need float64",
    "--trainer.overfit_batches=2": "--trainer.overfit_batches: the loader of lrec has a plan",
    "--trainer.reload_dataloaders_every_n_epochs=1": "--trainer.reload_dataloaders_every_n_epochs: the loader",
    "--trainer.max_epochs=-1": "--trainer.max_epochs -1 never ends",
    "--seed_everything=-1": "--seed_everything must be at least 0",
    f"--seed_everything={2**40}": "--seed_everything must be at least 0 and at most 4294967295",
    "--trainer.check_val_every_n_epoch=0": "--trainer.check_val_every_n_epoch must be at least 1, got 0",
    "--trainer.accumulate_grad_batches=0": "--trainer.accumulate_grad_batches must be at least 1, got 0",
    "--trainer.gradient_clip_val=-1": "--trainer.gradient_clip_val must be at least 0, got -1",
    "--trainer.val_check_interval=0": "--trainer.val_check_interval must be above 0, got 0",
    "--trainer.val_check_interval=00:00:01:00": "--trainer.val_check_interval 00:00:01:00: give a number of batches",
    "--trainer.strategy=ddp_wrong": "--trainer: You selected an invalid strategy name",
    "--trainer.accelerator=abacus": "--trainer: You selected an invalid accelerator name",
    "--trainer.devices=many": "--trainer: `devices` selected with `CPUAccelerator` should be an int > 0",
    "--trainer.num_nodes=0": "--trainer: `num_nodes` must be a positive integer",
    "--trainer.max_epochs=0": "--trainer.max_epochs 0: fit would train nothing",
    "--trainer.max_steps=0": "--trainer.max_steps 0: fit would train nothing",
    "--trainer.limit_train_batches=0": "--trainer.limit_train_batches 0: fit would train nothing",
    "--trainer.limit_test_batches=0": "to leave out the test, give --points.test false",
    "--checkpoint.filename=last": "last.ckpt is another checkpoint of the run",
    "--checkpoint.every_n_train_steps=3": "--last.every_n_steps keeps a recent one",
    "--checkpoint.train_time_interval=00:00:01:00": "--last.every_n_steps keeps a recent one",
    "--model.top_k=0": "top_k must be at least 1, got 0",
    "--model.optimizer.weight_decay=-1": "optimizer.weight_decay must be at least 0, got -1",
    "--model.optimizer.betas=[0.9, 1]": "optimizer.betas must be at least 0 and below 1, got 1",
    "--data.seed=-1": "seed must be at least 0",
    "--trainer.logger=WandbLogger": "needs a package that is not installed",
    "--trainer.logger=CometLogger": "needs a package that is not installed",
    "--trainer.default_root_dir={file}": "file is not a folder",
    "--trainer.default_root_dir={file}/run": "file is not a folder",
}


@pytest.mark.parametrize("option", REFUSED)
def test_refused_in_one_line(
    option: str, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    error = refused(*FIT, option.format(file=tmp_path / "file"))
    assert REFUSED[option] in error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "command",
    [
        ("tasks", "--runs={folder}", "--out={file}"),
        ("scaling", "study", "--config=study/quickstart.yaml", "--out={file}"),
        ("scaling", "compare", "--studies={folder}", "--out={file}"),
        ("scaling", "fit", "--points={points}", "--out={file}"),
    ],
    ids=" ".join,
)
def test_an_out_that_is_a_file(command: tuple[str, ...], tmp_path: Path, refused: Callable[..., str]) -> None:
    file, points = tmp_path / "file", tmp_path / "points.csv"
    file.touch()
    rows = "".join(f"{1000 * 2**i},{6 - 0.2 * i}\n" for i in range(8))
    points.write_text("N_body,test_loss\n" + rows)
    paths = {"file": file, "folder": tmp_path, "points": points}
    assert "is not a folder" in refused(*(argument.format(**paths) for argument in command))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "points.csv"]


def test_auto_is_the_cpu_beside_a_gpu_without_float64(
    tmp_path: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends.mps, "is_available", lambda: True)
    data = ["--config=data/synthetic.yaml", "--data.n_users=50", "--data.n_items=20", f"--data.data_dir={tmp_path}"]
    trainer = ["--trainer.accelerator=auto", "--trainer.max_steps=1", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    lrec("fit", *data, "--model.size=0.8k", *trainer)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["trainer"]["accelerator"] == "cpu"


def options(**trainer: object) -> Namespace:
    """Options as the parser makes them."""
    usual = {"strategy": "auto", "precision": None, "barebones": False, "callbacks": None}
    usual |= {"max_time": None, "max_epochs": 3, "max_steps": -1}
    usual |= {"accelerator": "cpu", "devices": 1, "num_nodes": 1}
    usual |= {"check_val_every_n_epoch": 1, "accumulate_grad_batches": 1, "val_check_interval": None}
    usual |= dict.fromkeys(f"limit_{part}_batches" for part in ("train", "val", "test", "predict"))
    usual |= {"gradient_clip_val": None}
    usual |= {"overfit_batches": 0.0, "reload_dataloaders_every_n_epochs": 0}
    return Namespace(seed_everything=0, trainer=Namespace(**usual | trainer))


@pytest.mark.parametrize(
    "trainer",
    [
        {"strategy": "ddp_find_unused_parameters_true"},
        {"strategy": Namespace(class_path="lrec.FSDP2")},
        {"strategy": Namespace(class_path="lightning.pytorch.strategies.DDPStrategy")},
        {"precision": "bf16-mixed"},
        {"precision": 32},
        {"max_epochs": -1, "max_steps": 9},
        {"max_epochs": -1, "max_time": "00:00:01:00"},
        {"max_epochs": -1, "callbacks": [Namespace(class_path="lightning.pytorch.callbacks.Timer")]},
    ],
    ids=str,
)
def test_what_works_is_left_alone(trainer: dict[str, object]) -> None:
    check_options("fit", options(**trainer))


@pytest.mark.parametrize(("command", "stage"), [("test", "test"), ("validate", "val"), ("predict", "predict")])
def test_a_limit_that_leaves_nothing_is_refused(command: str, stage: str) -> None:
    with pytest.raises(UserError, match=f"limit_{stage}_batches 0: {command} would do nothing"):
        check_options(command, options(**{f"limit_{stage}_batches": 0}))


def test_only_fit_refuses_training_without_end() -> None:
    check_options("test", options(max_epochs=-1))
    with pytest.raises(UserError, match="never ends"):
        check_options("fit", options(max_epochs=-1))


@pytest.mark.parametrize(
    ("trainer", "fits"),
    [
        ({"devices": 1}, False),
        ({"devices": "auto"}, False),
        ({"devices": 2}, True),
        ({"devices": 1, "num_nodes": 2}, True),
        ({"devices": "auto", "accelerator": "gpu"}, True),
    ],
    ids=str,
)
def test_torchrun_starts_as_many_processes_as_there_are_devices(
    trainer: dict[str, object], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_options("fit", options(devices=1))
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    if fits:
        check_options("fit", options(**trainer))
        return
    with pytest.raises(UserError, match="torchrun started 2 processes in all"):
        check_options("fit", options(**trainer))


@pytest.mark.parametrize(
    ("precision", "said"), [pytest.param("bf16-true", True, marks=pytest.mark.slow), ("bf16-mixed", False)]
)
def test_parameters_of_16_bits_get_a_warning(
    precision: str, said: bool, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    small = ("--data.n_users=100", "--data.n_items=20", "--data.length=8", f"--data.data_dir={tmp_path}")
    printed = lrec(*FIT, *small, f"--trainer.precision={precision}", "--trainer.fast_dev_run=true")
    assert (f"--trainer.precision {precision} keeps the parameters themselves in 16 bits" in printed) == said


def test_a_metric_that_early_stopping_cannot_find_is_named(tmp_path: Path, refused: Callable[..., str]) -> None:
    small = ("--data.n_users=100", "--data.n_items=20", "--data.length=8", f"--data.data_dir={tmp_path}")
    stops = ("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss", "--trainer.max_epochs=1")
    error = refused(*FIT, *small, *stops, f"--trainer.default_root_dir={tmp_path / 'run'}")
    assert error.endswith("conditioned on metric `val_loss` which is not available; val/loss is")


@pytest.mark.slow
def test_a_run_that_only_a_timer_ends_gets_no_hint(tmp_path: Path, lrec: Callable[..., str]) -> None:
    small = ("--data.n_users=100", "--data.n_items=20", "--data.length=8", f"--data.data_dir={tmp_path}")
    timer = {"class_path": "Timer", "init_args": {"duration": "00:00:00:01"}}
    ends = ("--trainer.max_epochs=-1", f"--trainer.callbacks+={json.dumps(timer)}")
    printed = lrec(*FIT, *small, *ends, f"--trainer.default_root_dir={tmp_path / 'run'}")
    assert "optimizer steps" not in printed
    assert (tmp_path / "run" / "metrics.json").is_file()


def small_data(n_positions: int) -> Any:
    """20 steps of 500 positions in an epoch; of the positions, half have a target."""
    plan = SimpleNamespace(steps_of=lambda size: -(-n_positions // size), part=SimpleNamespace(n_positions=n_positions))
    sizes = {"steps_per_epoch": plan.steps_of(500), "targets_per_step": 500, "max_len": 10, "U": n_positions // 2}
    return SimpleNamespace(batch_plan=plan, n_items=50, **sizes)


@pytest.mark.parametrize(
    ("max_steps", "max_epochs", "advice"),
    [
        (-1, 2, "no more than 40 optimizer steps .* --data.targets_per_step 64 would make it 314$"),
        (10, 2, "no more than 10 optimizer steps .* 64 with --trainer.max_steps 78 would make it 78$"),
    ],
)
def test_the_advice_against_few_steps_gives_as_many_as_it_says(max_steps: int, max_epochs: int, advice: str) -> None:
    assert re.search(advice, few_steps(max_steps, max_epochs, small_data(10_000)) or "")


@pytest.mark.parametrize(("limit", "says"), [(0.5, "no more than 20 optimizer steps"), (5, None)])
def test_the_advice_against_few_steps_knows_a_limit_of_batches(limit: float, says: str | None) -> None:
    chosen = options(limit_train_batches=limit, max_epochs=2, max_steps=-1, max_time=None, precision="32-true")
    (found,) = [*warnings_of(chosen, small_data(10_000), GBCE())] or [None]
    assert found == says or (says is not None and says in str(found))
