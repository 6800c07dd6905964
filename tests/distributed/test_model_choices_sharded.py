"""Every choice of architecture with muP, sharded over two processes, against one process."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from running import Fit, points

import lrec

pytestmark = pytest.mark.usefixtures("warm_processes")

CHOICES = {
    "modern": ("--config=model/modern.yaml", "--model.parametrisation=scaled", "--model.optimizer.lr=0.003"),
    # A small rate: a first position may read almost nothing, and LayerNorm of that makes rounding errors grow.
    "hstu": ("--config=model/hstu.yaml", "--model.parametrisation=scaled", "--model.optimizer.lr=0.0003"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["modern", "hstu"])
def test_two_shards_equal_one_process(name: str, fit: Fit) -> None:
    one, two = (points(fit(f"{name}-{processes}", processes, *CHOICES[name])) for processes in (0, 2))
    assert [point["world_size"] for point in one + two] == [1] * len(one) + [2] * len(two)
    for name in ("train_loss", "val_loss"):
        assert [point[name] for point in two] == pytest.approx([point[name] for point in one], rel=1e-5)
    assert [point["N_total"] for point in two] == [point["N_total"] for point in one]
    assert one[-1]["val_loss"] < math.log(51) - 0.1  # log(51) is the loss of guessing


@pytest.fixture(scope="module")
def vectors(folder: Path) -> Path:
    """Vectors of the 51 items, and of two that no user has."""
    random, path = np.random.default_rng(0), folder / "vectors.parquet"
    items = [*(f"{item:02}" for item in range(51)), "new", "newer"]
    pl.DataFrame({"item": items, "vector": random.normal(size=(53, 6)).tolist()}).write_parquet(path)
    return path


@pytest.mark.slow
def test_item_vectors_in_shards(vectors: Path, fit: Fit) -> None:
    """Two processes take the steps of one, and their checkpoint of shards knows the new items like a whole one."""
    runs = [
        fit(
            f"vectors-{processes}",
            processes,
            f"--model.item_vectors={vectors}",
            "--model.parametrisation=scaled",
            "--model.optimizer.lr=0.003",
        )
        for processes in (0, 2)
    ]
    one, two = map(points, runs)
    for name in ("train_loss", "val_loss"):
        assert [point[name] for point in two] == pytest.approx([point[name] for point in one], rel=1e-5)
    models = [lrec.load(run) for run in runs]
    assert [model.item_ids.to_list()[-2:] for model in models] == [["new", "newer"]] * 2
    torch.testing.assert_close(models[1].net.items.weight, models[0].net.items.weight, rtol=1e-3, atol=1e-4)
