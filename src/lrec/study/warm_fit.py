"""How a trained network is trained on with newer data: the options of that `lrec fit`, and carrying it out."""

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

# Of a run's own learning rate: its network is trained already, and Adam's moments begin anew.
LR_SHARE = 0.25


@dataclass(frozen=True)
class Recipe:
    """What an update trains on, how long and how fast."""

    steps: int | None = None  # of the optimizer; None: one pass over new and replayed histories
    lr: float | None = None  # the peak; None: `LR_SHARE` of that of the run
    replay: float = 0.1  # share of the users whose whole histories are trained on again, by the hash of their ids

    def __post_init__(self) -> None:
        check_range("--steps", self.steps, at_least=1)
        check_range("--lr", self.lr, above=0)
        check_range("--replay", self.replay, above=0, at_most=1)


def windowed(config: RunConfig, store: Path, split: GlobalTemporal) -> dict[str, Any]:
    """The options of a run, as config.yaml nests them, on another store with another cut in time: a full retraining."""
    return changed(config.options, {"data.store": str(store), "data.split": as_plain(split), "points.test": False})


def warm_options(
    config: RunConfig, warm_start: Path, store: Path, split: GlobalTemporal, since: int, recipe: Recipe
) -> dict[str, Any]:
    """The options of an update's `lrec fit`, as config.yaml nests them: those of the network's run, but for what is
    trained on. `since` is the time, in the source's unit, of the first row that has not trained the network.

    New rows train, each user's after as many older ones as an input is long, and the histories of `recipe.replay` of
    all users. There is one evaluation, at the end, so nothing is chosen on the validation window. UserError where the
    network's item table is made of vectors, with which no other one begins.
    """
    options = changed(windowed(config, store, split), {"model.warm_start": str(warm_start)})
    return changed(options, trained_on(config, since, recipe))


def trained_on(config: RunConfig, since: int, recipe: Recipe) -> dict[str, Any]:
    """What changes of a run's options, by dotted name, where a trained network is trained on: see `warm_options`."""
    if config.value("model.item_vectors") is not None and config.value("model.item_vectors_use") != "initial":
        raise UserError(
            "model.item_vectors: item embeddings are made of vectors, and no network begins with such a one"
        )
    changes: dict[str, Any] = {
        "data.reduction": {"users": recipe.replay, "since": since, "before": config.value("data.max_len")},
        "model.item_vectors": None,
        "model.optimizer.lr": rate_of(config, recipe),
        "trainer.max_time": None,
        "trainer.max_epochs": 1 if recipe.steps is None else -1,
        "trainer.max_steps": recipe.steps or -1,
        "trainer.limit_train_batches": None,
        # In batches.
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
    """Train a run in its folder as a study trains its own: what was stopped goes on, what is finished stays. Its best
    evaluation, or its last one if it diverged; UserError where it failed, or was told to stop."""
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
