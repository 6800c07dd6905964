"""`lrec tasks` on two processes equals one, to the last bit, for runs trained by one and by two."""

import json
import sys
from pathlib import Path

import pytest
from running import Fit, run

pytestmark = pytest.mark.usefixtures("warm_processes")

# Long enough for a trajectory and for held-out users, in several batches of evaluation.
LONG = ["--data.length=60", "--data.split.trajectory=4", "--data.split.held_out_users=0.3", "--trainer.max_steps=5"]
LONG += ["--trainer.val_check_interval=5"]


@pytest.fixture(scope="module")
def runs(fit: Fit) -> list[Path]:
    """Two sizes, the larger one trained by two processes."""
    return [fit("tasks-small", 0, *LONG, "--model.size=0.8k"), fit("tasks-large", 2, *LONG)]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(runs: list[Path], folder: Path) -> None:
    tasks = ["-m", "lrec", "tasks", "--runs", *map(str, runs), "--out"]
    alone = run([sys.executable, *tasks, str(folder / "tasks-1")])
    shared = run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            *tasks,
            str(folder / "tasks-2"),
        ]
    )
    one, two = ((folder / f"tasks-{n}" / "tasks.json").read_text() for n in (1, 2))
    assert one == two
    sections = {name: len(task["sections"]) for name, task in json.loads(one)["tasks"].items()}
    assert sections == {"cold_start": 2, "long_tail": 1, "robustness": 1, "transfer": 0, "trajectory": 4}
    assert alone.count("Long tail.") == shared.count("Long tail.") == 1, "one process speaks for both"
