"""Every choice of architecture with muP, sharded over two processes, against one process."""

import math

import pytest
from running import Fit, points

pytestmark = pytest.mark.usefixtures("warm_processes")

CHOICES = {
    "modern": ("--config=model/modern.yaml", "--config=model/mup.yaml", "--model.optimizer.lr=0.003"),
    # A small rate: LayerNorm of what a first position reads, which may be almost nothing, makes rounding grow.
    "hstu": ("--config=model/hstu.yaml", "--config=model/mup.yaml", "--model.optimizer.lr=0.0003"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_two_shards_equal_one_process(name: str, fit: Fit) -> None:
    one, two = (points(fit(f"{name}-{processes}", processes, *CHOICES[name])) for processes in (0, 2))
    assert [point["world_size"] for point in one + two] == [1] * len(one) + [2] * len(two)
    for name in ("train_loss", "val_loss"):
        assert [point[name] for point in two] == pytest.approx([point[name] for point in one], rel=1e-5)
    assert [point["N_total"] for point in two] == [point["N_total"] for point in one]
    assert one[-1]["val_loss"] < math.log(51) - 0.1  # that of guessing
