"""Architecture and muP from the command line: trained, resumed, tested, and enforced by the checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lrec.model import cost
from lrec.model.config import Architecture
from lrec.model.transformer import Transformer
from lrec.options.config_files import find_config
from lrec.study.grid import PlannedRun
from lrec.training.lightning_cli import compose

MODERN, HSTU = (f"--config=model/{name}.yaml" for name in ("modern", "hstu"))
SCALED = "--model.parametrisation=scaled"


@pytest.fixture(scope="module")
def options(log_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    columns = {"user": "who", "item": "what", "time": "when"}
    return [
        "--config=data/csv.yaml",
        "--config=trainer/laptop.yaml",
        f"--data.path={log_csv}",
        *(f"--data.{name}_column={column}" for name, column in columns.items()),
        f"--data.data_dir={tmp_path_factory.mktemp('stores')}",
        "--data.max_len=10",
        "--data.targets_per_step=256",
        "--model.size=3k",
        "--model.optimizer.lr=0.01",
        "--model.dropout.residual.first=0.1",
        "--trainer.max_epochs=3",
        "--trainer.enable_progress_bar=false",
    ]


def points_of(run: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in (run / "points.jsonl").read_text().splitlines()]


CHOICES = {"modern": [MODERN], "scaled": [SCALED], "modern and scaled": [MODERN, SCALED], "hstu": [HSTU]}


@pytest.mark.parametrize(
    "choices",
    [
        pytest.param(each, marks=[] if name == "modern and scaled" else pytest.mark.slow, id=name)
        for name, each in CHOICES.items()
    ],
)
def test_a_run_with_choices_learns_resumes_and_tests(
    choices: list[str], options: list[str], tmp_path: Path, lrec: Callable[..., str]
) -> None:
    kept = {"dirpath": str(tmp_path / "kept"), "filename": "{step}", "every_n_train_steps": 11, "save_top_k": -1}
    keep = f"--trainer.callbacks+={json.dumps({'class_path': 'ModelCheckpoint', 'init_args': kept})}"
    whole, resumed = (tmp_path / name for name in ("whole", "resumed"))
    lrec("fit", *options, *choices, f"--trainer.default_root_dir={whole}", keep)
    middle = tmp_path / "kept" / "step=11.ckpt"
    lrec("fit", *options, *choices, f"--trainer.default_root_dir={resumed}", f"--ckpt_path={middle}")
    undisturbed, after = points_of(whole), points_of(resumed)
    assert undisturbed[0]["step"] not in (0, 11)
    for name in ("val_loss", "test_loss", "metrics", "D", "step"):
        assert [point[name] for point in undisturbed] == [point[name] for point in after]
    assert undisturbed[-1]["val_loss"] < undisturbed[0]["val_loss"]
    assert f"loss {min(undisturbed, key=lambda p: p['val_loss'])['test_loss']:.4f}" in lrec(
        "test", "--config", whole / "config.yaml"
    )


def test_a_checkpoint_of_another_choice_is_refused(
    options: list[str], tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    run = tmp_path / "run"
    lrec("fit", *options, MODERN, f"--trainer.default_root_dir={run}", "--trainer.max_epochs=1")
    saved = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["lrec"]
    assert (saved["architecture.norm"], saved["parametrisation"]) == ("rms", "scaled")
    config = ["--config", run / "config.yaml"]
    error = refused("test", *config, "--model.architecture.norm=layer")
    assert "the checkpoint has architecture.norm rms, the config layer" in error
    error = refused("test", *config, "--model.parametrisation=standard")
    assert "the checkpoint has parametrisation scaled, the config standard" in error


def test_a_study_counts_the_architecture_it_trains() -> None:
    configs = [f"--config={find_config(f'{name}.yaml')}" for name in ("data/synthetic", "model/modern")]
    options = compose([*configs, "--model.size=25k"])
    config = PlannedRun("name", "25k", 0, 1.0, "", "", False, options).network(n_items=200)
    net = Transformer(config)
    assert config.architecture == Architecture("rms", "swiglu", "rotary", True)
    assert cost.n_total(config) == sum(parameter.numel() for parameter in net.parameters())


def test_choices_that_cannot_be_are_refused(options: list[str], tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = f"--trainer.default_root_dir={tmp_path / 'run'}"
    error = refused("fit", *options, folder, "--model.architecture.norm=batch")
    assert "model.architecture.norm" in error
    assert "layer" in error
    assert "model.parametrisation" in refused("fit", *options, folder, "--model.parametrisation=mup")
    shape = ["--model.size=null", "--model.layers=1", "--model.width=6", "--model.heads=2"]
    error = refused("fit", *options, folder, *shape, "--model.architecture.positions=rotary")
    assert "rotary needs an even width per head, got 6 / 2 heads" in error
    assert not (tmp_path / "run" / "points.jsonl").exists()
