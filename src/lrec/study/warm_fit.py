"""Continue the training of a network on newer data: the options of this `lrec fit`, and the training itself."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrec.errors import UserError, check_range
from lrec.run import Point, RunConfig
from lrec.study.grid import PlannedRun
from lrec.study.launch import Training

# Share of the run's own learning rate: its network is trained already, and Adam's moments start from zero.
LR_SHARE = 0.25


@dataclass(frozen=True)
class Recipe:
    """What an update trains on, how long and how fast."""

    steps: int | None = None  # of the optimizer; None: one pass over the new rows and the replayed histories
    lr: float | None = None  # the peak; None: `LR_SHARE` times the run's peak
    replay: float = 0.1  # share of the users, by the hash of their ids, whose whole histories are used again

    def __post_init__(self) -> None:
        check_range("--steps", self.steps, at_least=1)
        check_range("--lr", self.lr, above=0)
        check_range("--replay", self.replay, above=0, at_most=1)


def trained_on(config: RunConfig, since: int, recipe: Recipe) -> dict[str, Any]:
    """The options, by dotted name, that change if the training of a network continues on newer data.

    `since` is the time, in the source's unit, from which rows are new to the network. It trains on these rows with up
    to max_len older rows of each user, and on the whole histories of a share of the users (`recipe.replay`). There is
    one evaluation, at the end, so nothing is chosen on the validation window. Raises UserError if the item table of the
    network is made of vectors: no network can start from such a table.
    """
    if config.value("model.item_vectors") is not None and config.value("model.item_vectors_use") != "initial":
        raise UserError(
            "model.item_vectors: item embeddings are made of vectors, and no network can start from such a network"
        )
    # In batches, not in steps.
    evaluated_after = (recipe.steps or 0) * (config.value("trainer.accumulate_grad_batches") or 1)
    changes: dict[str, Any] = {
        "data.reduction": {"users": recipe.replay, "since": since, "before": config.value("data.max_len")},
        "model.item_vectors": None,
        "model.optimizer.lr": recipe.lr or LR_SHARE * float(config.value("model.optimizer.lr")),
        "trainer.max_time": None,
        "trainer.max_epochs": 1 if recipe.steps is None else -1,
        "trainer.max_steps": recipe.steps or -1,
        "trainer.limit_train_batches": None,
        "trainer.val_check_interval": evaluated_after or None,
        "trainer.check_val_every_n_epoch": 1 if recipe.steps is None else None,
    }
    if "model.optimizer.switch.lr" in config.flat:
        changes["model.optimizer.switch"] = None
    return changes


def carry_out(folder: Path, options: dict[str, Any]) -> Point:
    """Train a run in its folder as a study does: a stopped run continues, a finished run stays as it is. Returns its
    best evaluation, or its last one if it diverged. Raises UserError if it failed, or was told to stop."""
    planned = PlannedRun(folder.name, "", 0, 1.0, "", "", False, options)
    training = Training(planned, folder, "update", int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    try:
        outcome = training.carry_out()
    except BaseException:
        training.processes.stop()
        raise
    if outcome.point is None:
        raise UserError(
            f"the training in {folder} {outcome.status}: {outcome.reason or 'start the same command again'}"
        )
    return outcome.point
