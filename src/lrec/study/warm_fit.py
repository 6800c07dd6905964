"""Continue the training of a network on newer data: the options of this `lrec fit`, and the training itself."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrec.data.splits.temporal import GlobalTemporal
from lrec.errors import UserError, check_range
from lrec.options.objects import as_plain
from lrec.run import Point, RunConfig
from lrec.study.grid import PlannedRun, changed
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


def windowed(config: RunConfig, store: Path, split: GlobalTemporal) -> dict[str, Any]:
    """The options of a full retraining, nested as in config.yaml: the run's, with another store and another split."""
    return changed(config.options, {"data.store": str(store), "data.split": as_plain(split), "points.test": False})


def warm_options(
    config: RunConfig, warm_start: Path, store: Path, split: GlobalTemporal, since: int, recipe: Recipe
) -> dict[str, Any]:
    """The options of an update's `lrec fit`, nested as in config.yaml: those of the network's run, on other data.

    `since` is the time, in the source's unit, from which rows are new to the network. The update trains on these rows
    with up to max_len older rows of each user, and on the whole histories of a share of the users (`recipe.replay`).
    There is one evaluation, at the end, so nothing is chosen on the validation window. Raises UserError if the item
    table of the network is made of vectors: no network can start from such a table.
    """
    options = changed(windowed(config, store, split), {"model.warm_start": str(warm_start)})
    return changed(options, trained_on(config, since, recipe))


def trained_on(config: RunConfig, since: int, recipe: Recipe) -> dict[str, Any]:
    """The options, by dotted name, that change if the training of a network continues: see `warm_options`."""
    if config.value("model.item_vectors") is not None and config.value("model.item_vectors_use") != "initial":
        raise UserError(
            "model.item_vectors: item embeddings are made of vectors, and no network can start from such a network"
        )
    changes: dict[str, Any] = {
        "data.reduction": {"users": recipe.replay, "since": since, "before": config.value("data.max_len")},
        "model.item_vectors": None,
        "model.optimizer.lr": rate_of(config, recipe),
        "trainer.max_time": None,
        "trainer.max_epochs": 1 if recipe.steps is None else -1,
        "trainer.max_steps": recipe.steps or -1,
        "trainer.limit_train_batches": None,
        # In batches, not in steps.
        "trainer.val_check_interval": (recipe.steps or 0) * (config.value("trainer.accumulate_grad_batches") or 1)
        or None,
        "trainer.check_val_every_n_epoch": 1 if recipe.steps is None else None,
    }
    if "model.optimizer.switch.lr" in config.flat:
        changes["model.optimizer.switch"] = None
    return changes


def rate_of(config: RunConfig, recipe: Recipe) -> float:
    """The peak learning rate of an update."""
    return recipe.lr or LR_SHARE * float(config.value("model.optimizer.lr"))


def carry_out(folder: Path, options: dict[str, Any], name: str) -> Point:
    """Train a run in its folder as a study does: a stopped run continues, a finished run stays as it is. Returns its
    best evaluation, or its last one if it diverged. Raises UserError if it failed, or was told to stop."""
    planned = PlannedRun(folder.name, "", 0, 1.0, "", "", False, options)
    training = Training(planned, folder, name, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
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
