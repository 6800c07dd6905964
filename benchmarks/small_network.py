"""A small network, trained on a log and tested target by target, the interval of a paired difference, and the size that
would bring as much."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

import lrec
from lrec.cli import main as command
from lrec.data.datasets import datamodule_of
from lrec.evaluation.cases import cases_of_test, rank_by_net
from lrec.laws.equivalents import LadderCurve
from lrec.run import Run

DRAWS, MAX_LEN = 2000, 50
WIDTH, LADDER = 32, (8, 16, 64, 128)  # the width of all networks, and the others of the ladder


class Tested(NamedTuple):
    """A trained run, its test by target, and its cost."""

    run: Run
    users_C: np.ndarray
    loss_C: np.ndarray  # nan outside the catalogue
    ndcg_C: np.ndarray
    step_ms: float  # processor time of a step: that of the whole run, start and evaluation included


def trained(folder: Path, given: dict[str, object], seed: int, epochs: int, most: int | None = None) -> Tested:
    """Train a run in `folder` with the options `given`, its stores beside it, and test its best checkpoint, on `most`
    users."""
    chosen: dict[str, object] = {
        "model.layers": 1,
        "model.width": WIDTH,
        "model.heads": 2,
        "model.optimizer.muon": "null",
        "data.max_len": MAX_LEN,
        "data.targets_per_step": 512,
    }
    # A class comes before its options.
    values = given | {name: value for name, value in chosen.items() if name not in given}
    values |= {
        "data.data_dir": folder.parent / "data",
        "data.seed": seed,
        "seed_everything": seed,
        "trainer.max_epochs": epochs,
        "trainer.check_val_every_n_epoch": epochs,
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": folder,
    }
    begin = time.process_time()
    arguments = [f"--{key}={each}" for key, each in values.items()]
    command(["fit", "--config=data/csv.yaml", "--config=trainer/laptop.yaml", *arguments])
    spent, run = time.process_time() - begin, Run(folder)
    module = datamodule_of(run.config.options)
    module.setup("test")
    cases = cases_of_test(module.cuts, module.max_len)
    cases = cases.where(np.sort(np.random.default_rng(0).permutation(len(cases))[:most]))
    ranked = rank_by_net(lrec.load(folder, new_items=False).net.float(), cases)
    ndcg_C = np.where(ranked.rank_C <= 10, 1 / np.log2(1 + ranked.rank_C), 0.0)
    return Tested(run, cases.users_C, ranked.loss_C, ndcg_C, 1000 * spent / (epochs * module.steps_per_epoch))


class WithLosses(Protocol):
    """A tested run: its losses by target, nan outside the catalogue."""

    @property
    def loss_C(self) -> np.ndarray: ...


class Measured(NamedTuple):
    """A run's test, by target, its validation and its cost."""

    loss_C: np.ndarray  # nan outside the catalogue
    ndcg_C: np.ndarray
    val_loss: float
    step_ms: float  # processor time of a step, start and validation included


def measured(kept: Path, given: dict[str, object], seed: int, epochs: int, most: int) -> Measured:
    """The run in the file `kept`; if there is no file, a run is trained, tested on `most` users, and kept."""
    if not kept.exists():
        given = given | {"points.test": "false", "trainer.precision": "32-true"}
        tested = trained(kept.with_suffix(""), given, seed, epochs, most)
        val_loss = tested.run.points[-1].val_loss
        assert val_loss is not None
        np.savez(kept, loss=tested.loss_C, ndcg=tested.ndcg_C, about=np.array([val_loss, tested.step_ms]))
    read = np.load(kept)
    return Measured(read["loss"], read["ndcg"], *map(float, read["about"]))


def interval(differences_SC: np.ndarray) -> tuple[float, float, float]:
    """The mean over seeds and users, and the 5 % and 95 % quantiles of draws of both."""
    random, (n_seeds, n_users) = np.random.default_rng(0), differences_SC.shape
    draws = [
        differences_SC[random.integers(n_seeds, size=n_seeds)].mean(0)[random.integers(n_users, size=n_users)].mean()
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(draws, [0.05, 0.95])
    return float(differences_SC.mean()), float(low), float(high)


def equivalent_size(
    gain: tuple[float, float, float],
    runs: Mapping[tuple[str, str, int], WithLosses],
    data: str,
    plain: str,
    known_C: np.ndarray,
) -> str:
    """How many times the parameters in blocks lower the loss as much as a gain over the arm `plain`, with its 90 %
    interval. `runs` are by data, arm and seed; the ladder is the plain arm and the arms of its other widths."""
    arms = {f"width {width}": width for width in LADDER} | {plain: WIDTH}
    losses = {
        width: np.mean([run.loss_C[known_C] for (of, name, _), run in runs.items() if (of, name) == (data, arm)])
        for arm, width in arms.items()
    }
    widths = sorted(losses)
    if min(losses, key=losses.__getitem__) < WIDTH:
        return "size does not pay"
    (middle, low, high), body_of = gain, {width: 12.0 * width**2 for width in widths}
    curve = LadderCurve(np.array(list(body_of.values())), np.array([losses[width] for width in widths]), may_stop=True)
    worth = curve.worth(body_of[WIDTH], float(losses[WIDTH]) + middle, (high - low) / 2)
    times, *ends = ("more" if each == math.inf else f"{each:.1f}" for each in worth)
    return f"{times} [{', '.join(ends)}]"


def told(of: tuple[float, float, float]) -> str:
    """A mean with its interval."""
    return "{:+.4f} [{:+.4f}, {:+.4f}]".format(*of)
