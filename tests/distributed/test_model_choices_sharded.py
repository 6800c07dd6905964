"""Every choice of architecture with muP, sharded over two processes, against one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def fit(folder: Path, trainer: str) -> list[dict]:  # type: ignore[type-arg]
    """A short run; returns its points."""
    arguments = [
        "--config=data/synthetic.yaml",
        "--config=model/modern.yaml",
        "--config=model/mup.yaml",
        f"--config=trainer/{trainer}.yaml",
        "--data.n_users=301",
        "--data.n_items=51",
        "--data.length=20",
        f"--data.data_dir={folder.parent / 'data'}",
        "--data.targets_per_step=512",
        "--model.size=55k",
        "--model.optimizer.lr=0.003",
        "--trainer.max_epochs=2",
        "--trainer.enable_progress_bar=false",
        f"--trainer.default_root_dir={folder}",
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


def test_two_shards_equal_one_process(tmp_path: Path) -> None:
    one, two = fit(tmp_path / "one", "laptop"), fit(tmp_path / "two", "fsdp-cpu")
    assert [point["world_size"] for point in one + two] == [1, 1, 2, 2]
    for name in ("train_loss", "val_loss"):
        assert [point[name] for point in two] == pytest.approx([point[name] for point in one], rel=1e-5)
    assert [point["N_total"] for point in two] == [point["N_total"] for point in one]
    assert one[-1]["val_loss"] < one[0]["val_loss"]
