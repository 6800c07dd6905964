"""A warm start on a catalogue that has grown, sharded over two processes, against one process."""

from pathlib import Path

import pytest
from running import Fit, fit_command, losses, points, run

pytestmark = pytest.mark.usefixtures("warm_processes")

SHORT = (
    "--data.n_users=301",
    "--data.targets_per_step=512",
    "--model.size=3k",
    "--trainer.max_steps=3",
    "--trainer.val_check_interval=1",
)
BEST = Path("checkpoints", "best.ckpt")


def test_two_processes_begin_as_one_from_a_file_and_from_shards(folder: Path, fit: Fit) -> None:
    # Two processes can share none of these catalogues equally, so the rows of each are cut at another item.
    start = fit("catalogue-of-45", 0, *SHORT, "--data.n_items=45") / BEST
    assert start.is_file()
    for n_items in (51, 57):
        options = (*SHORT, f"--data.n_items={n_items}", f"--model.warm_start={start}")
        one, two = fit(f"{n_items}-on-one", 0, *options), folder / f"{n_items}-on-two"
        printed = run(fit_command(folder, two, 2, *options))
        assert printed.count(f"warm start from {start}: {n_items - 6} items keep their embeddings, 6 are new") == 1
        assert losses(two) == pytest.approx(losses(one), rel=1e-5)
        assert [p["val_loss"] for p in points(two)] == pytest.approx([p["val_loss"] for p in points(one)], rel=1e-5)
        start = two / BEST
        assert start.is_dir()
