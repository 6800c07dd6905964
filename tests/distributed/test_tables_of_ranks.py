"""Tables of two processes: each writes the rows of its own users, and together they equal those of one."""

import sys
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from running import Fit, run_on

pytestmark = pytest.mark.usefixtures("warm_processes")


def tables(trained: Path, devices: int, command: str, name: str, *more: str) -> list[pl.DataFrame]:
    """The tables that each of `devices` processes writes with the checkpoint of a run."""
    options = [f"--trainer.devices={devices}", f"--trainer.strategy={'ddp' if devices > 1 else 'auto'}", *more]
    run_on(devices, [sys.executable, "-m", "lrec", command, f"--config={trained / 'config.yaml'}", *options])
    names = [f"{name}.parquet"] if devices == 1 else [f"{name}.{rank}.parquet" for rank in range(devices)]
    return [pl.read_parquet(trained / name) for name in names]


def test_two_processes_write_the_lists_of_one(fit: Fit) -> None:
    trained = fit("predicting", 0)
    (one,) = tables(trained, 1, "predict", "predictions")
    two = tables(trained, 2, "predict", "predictions")
    assert all(len(part) > 1000 for part in two)
    assert not any("tmp" in path.name for path in trained.iterdir())
    users, lists = pl.concat(two).sort("user"), one.sort("user")
    assert users["user"].to_list() == lists["user"].to_list()
    assert users["items"].to_list() == lists["items"].to_list()


@pytest.mark.slow
def test_two_processes_write_the_targets_of_one(fit: Fit) -> None:
    trained = fit("testing", 0)
    (one,), two = (tables(trained, n, "test", "targets", "--trainer.callbacks+=lrec.TargetWriter") for n in (1, 2))
    assert all(len(part) > 1000 for part in two)
    both, one = (table.sort("user", "position") for table in (pl.concat(two), one))
    assert_frame_equal(both, one, rel_tol=1e-5)
