"""Commands of all kinds that are refused, also for a damaged checkpoint, leave a run's folder as it was."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshot import snapshot

SMALL = [
    "--config=data/synthetic.yaml", "--config=trainer/laptop.yaml", "--data.n_users=200", "--data.n_items=40",
    "--data.length=12", "--data.targets_per_step=256", "--model.size=3k", "--trainer.enable_progress_bar=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    from lrec.cli import main

    folder = tmp_path_factory.mktemp("runs")
    where = [f"--data.data_dir={folder / 'stores'}", f"--trainer.default_root_dir={folder / 'run'}"]
    main(["fit", *SMALL, "--trainer.max_epochs=1", *where])
    return folder / "run"


OWN = ["--config=RUN/config.yaml"]
ONE_SIZE = ["--sizes=[3k]", "--law=null", "--holdout=0", "--fractions=[1.0]"]
REFUSED = {
    "fit, damaged checkpoint": ["fit", *OWN, "--ckpt_path=RUN/../damaged.ckpt"],
    "test, damaged checkpoint": ["test", *OWN, "--ckpt_path=RUN/../damaged.ckpt"],
    "validate, unknown option": ["validate", *OWN, "--data.n_itemz=3"],
    "predict, out of range": ["predict", *OWN, "--data.max_len=0"],
    "recommend, no histories": ["recommend", "--ckpt_path=RUN", "--histories=RUN/none.csv"],
    "recommend, not a list of histories": ["recommend", "--ckpt_path=RUN", "--histories=RUN/points.jsonl"],
    "recommend, out a folder": ["recommend", "--ckpt_path=RUN", "--histories=RUN/points.jsonl", "--out=RUN"],
    "export, k": ["export", "--ckpt_path=RUN", "--out=RUN/model", "--k=0"],
    "export, out a file": ["export", "--ckpt_path=RUN", "--out=RUN/config.yaml/model.safetensors"],
    "tasks, unknown": ["tasks", "--runs=RUN", "--tasks=none", "--out=RUN"],
    "tasks, seed": ["tasks", "--runs=RUN", "--seed=-1", "--out=RUN"],
    "tasks, no store": ["tasks", "--runs=RUN/../moved", "--out=RUN"],
    "scaling fit, too few": ["scaling", "fit", "--points=RUN/points.jsonl", "--out=RUN/fit"],
    "scaling plan, no fit": ["scaling", "plan", "--fit=RUN/metrics.json", "--size=1e6"],
    "scaling compare, no study": ["scaling", "compare", "--studies=RUN", "--out=RUN/compared"],
    "scaling study, not a study": ["scaling", "study", "--config=study/quickstart.yaml", *ONE_SIZE, "--out=RUN"],
    "data describe, not a store": ["data", "describe", "RUN"],
}


@pytest.mark.parametrize("arguments", REFUSED.values(), ids=REFUSED.keys())
def test_a_refused_command_changes_nothing(arguments: list[str], run: Path, refused: Callable[..., str]) -> None:
    data = (run / "checkpoints" / "best.ckpt").read_bytes()
    (run.parent / "damaged.ckpt").write_bytes(data[:9000] + bytes([data[9000] ^ 1]) + data[9001:])
    moved = run.parent / "moved"
    (moved / "checkpoints").mkdir(parents=True, exist_ok=True)
    config = (run / "config.yaml").read_text().replace(str(run.parent / "stores"), str(run.parent / "no stores"))
    (moved / "config.yaml").write_text(config)
    (moved / "checkpoints" / "best.ckpt").write_bytes(data)
    before = snapshot(run.parent)
    refused(*(argument.replace("RUN", str(run)) for argument in arguments))
    assert snapshot(run.parent) == before
    assert json.dumps(os.listdir(run.parent)).count("no stores") == 0
