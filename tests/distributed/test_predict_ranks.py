"""predict on two processes: each writes the lists of its own users, and together they equal those of one."""

import sys
from pathlib import Path

import polars as pl
import pytest
from running import Fit, run_on

pytestmark = pytest.mark.usefixtures("warm_processes")


def predicted(trained: Path, devices: int) -> list[pl.DataFrame]:
    """The lists that each of `devices` processes writes with the checkpoint of a run."""
    options = [f"--trainer.devices={devices}", f"--trainer.strategy={'ddp' if devices > 1 else 'auto'}"]
    command = [*(sys.executable, "-m", "lrec", "predict"), f"--config={trained / 'config.yaml'}", *options]
    run_on(devices, command)
    names = ["predictions.parquet"] if devices == 1 else [f"predictions.{rank}.parquet" for rank in range(devices)]
    return [pl.read_parquet(trained / name) for name in names]


def test_two_processes_write_the_lists_of_one(fit: Fit) -> None:
    trained = fit("predicting", 0)
    (one,) = predicted(trained, 1)
    two = predicted(trained, 2)
    assert all(len(part) > 1000 for part in two)
    assert not any("tmp" in path.name for path in trained.iterdir())
    users, lists = pl.concat(two).sort("user"), one.sort("user")
    assert users["user"].to_list() == lists["user"].to_list()
    assert users["items"].to_list() == lists["items"].to_list()
