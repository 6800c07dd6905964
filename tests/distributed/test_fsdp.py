"""Two processes with sharded parameters against one without: the same losses, the same metrics, the same points."""

import json
import sys
from pathlib import Path

import pytest
from running import Fit, losses, points, run, run_here

pytestmark = pytest.mark.usefixtures("warm_processes")

EVERY_STEP = "--trainer.val_check_interval=1"


@pytest.fixture(scope="module")
def one(fit: Fit) -> Path:
    """Twenty steps of one process."""
    return fit("one", 0, EVERY_STEP)


@pytest.fixture(scope="module")
def two(fit: Fit) -> Path:
    """The same steps on two processes."""
    return fit("two", 2, EVERY_STEP)


def test_twenty_steps_on_two_processes_equal_those_on_one(one: Path, two: Path) -> None:
    assert len(losses(one)) == 20
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert [p["val_loss"] for p in points(two)] == pytest.approx([p["val_loss"] for p in points(one)], rel=1e-5)


def test_points_are_the_same_whatever_the_number_of_processes(one: Path, two: Path) -> None:
    for a, b in zip(points(one), points(two), strict=True):
        assert a.keys() == b.keys()
        assert set(a["metrics"]) == set(b["metrics"])
        for name in a.keys() - {"run", "world_size", "wall_s", "config_hash", "train_loss", "val_loss", "test_loss"}:
            if name != "metrics":
                assert a[name] == b[name], name


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=2"],
        [
            "--trainer.strategy=lrec.FSDP2",
            "--trainer.strategy.shard_group=1",  # each process a whole copy: hybrid sharding at its smallest
            "--model.checkpoint_activations=true",
        ],
    ],
    ids=["accumulated", "hybrid, activations checkpointed"],
)
def test_other_ways_to_take_the_same_steps(
    options: list[str], one: Path, fit: Fit, request: pytest.FixtureRequest
) -> None:
    other = fit(request.node.callspec.id.split(",")[0], 2, EVERY_STEP, *options)
    assert losses(other) == pytest.approx(losses(one), rel=1e-5)


@pytest.mark.slow
def test_touched_rows_of_a_sampled_loss(fit: Fit) -> None:
    sampled = ["--trainer.val_check_interval=5", "--model.loss=lrec.SampledSoftmax", "--model.loss.negatives=8"]
    # At this learning rate no step's loss jumps, so rounding errors do not grow.
    rows = [
        "--model.optimizer.touched_rows=true",
        "--model.optimizer.switch={at: 12, lr: 0.02}",
        "--model.optimizer.lr=0.002",
    ]
    runs = [fit(f"touched-{processes}", processes, *sampled, *rows) for processes in (0, 2)]
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-5)


@pytest.mark.slow
def test_products_in_bfloat16_stay_near(fit: Fit) -> None:
    # At this learning rate no step's loss jumps, so rounding errors do not grow.
    slow = [EVERY_STEP, "--model.optimizer.lr=0.002", "--model.parametrisation=standard"]
    half = fit("half", 2, *slow, "--trainer.strategy=lrec.FSDP2", "--trainer.strategy.param_dtype=bfloat16")
    assert {point["precision"] for point in points(half)} == {"bf16-mixed"}
    assert losses(half) == pytest.approx(losses(fit("slow", 0, *slow)), rel=5e-4)


def test_any_number_of_processes_evaluates_a_checkpoint_alike(two: Path) -> None:
    figures = []
    validate = [sys.executable, "-m", "lrec", "validate", f"--config={two / 'config.yaml'}"]
    for start, options in ((run_here, ["--trainer.strategy=auto", "--trainer.devices=1"]), (run, [])):
        start([*validate, *options])
        figures.append(json.loads((two / "metrics.json").read_text()))
    one_process, two_processes = figures
    for scorer in ("model", "popularity"):
        assert two_processes[scorer] == pytest.approx(one_process[scorer], rel=1e-6)
    ranked = {name for name in one_process["model"] if not name.startswith("loss")}
    assert {name: one_process["model"][name] for name in ranked} == pytest.approx(
        {name: two_processes["model"][name] for name in ranked}, rel=1e-12
    )
