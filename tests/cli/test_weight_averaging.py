"""With Lightning's weight averaging, the averages are evaluated, after fit and by every later command."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lrec.checkpoint.writing import write

AVERAGING = json.dumps({"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.9}})
QUICK = (
    "--config=data/synthetic.yaml",
    "--config=trainer/laptop.yaml",
    "--data.n_users=200",
    "--data.n_items=40",
    "--data.length=12",
    "--data.targets_per_step=256",
    "--model.size=3k",
    "--model.optimizer.lr=0.03",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
    f"--trainer.callbacks+={AVERAGING}",
)


def test_the_averages_are_tested_after_fit(
    tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str], recwarn: pytest.WarningsRecorder
) -> None:
    run = tmp_path / "run"
    options = [*QUICK, f"--data.data_dir={tmp_path}", f"--trainer.default_root_dir={run}"]
    lrec("fit", *options)
    after_fit = json.loads((run / "metrics.json").read_text())["model"]
    lrec("test", "--config", run / "config.yaml")
    assert json.loads((run / "metrics.json").read_text())["model"] == after_fit
    assert not [str(warning.message) for warning in recwarn if "WeightAveraging" in str(warning.message)]
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    raw, averaged = checkpoint["current_model_state"], checkpoint["state_dict"]
    assert not torch.equal(raw["net.items.weight"], averaged["net.items.weight"])
    # The figures are those of the averages, not of the raw weights.
    checkpoint["state_dict"] = raw
    write(tmp_path / "raw.ckpt", checkpoint)
    lrec("test", "--config", run / "config.yaml", f"--ckpt_path={tmp_path / 'raw.ckpt'}")
    assert json.loads((run / "metrics.json").read_text())["model"]["loss"] != after_fit["loss"]
    sharded = f"--trainer.default_root_dir={tmp_path / 'sharded'}"
    assert "cannot average sharded parameters" in refused("fit", *options, sharded, "--trainer.strategy=fsdp2")
