"""A small network, trained on a log and tested target by target, and the interval of a paired difference."""

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

import lrec
from lrec.cli import main as command
from lrec.data.datasets import datamodule_of
from lrec.evaluation.cases import cases_of_test, rank_by_net
from lrec.run import Run

DRAWS, MAX_LEN = 2000, 50


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
        "model.width": 32,
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


def told(of: tuple[float, float, float]) -> str:
    """A mean with its interval."""
    return "{:+.4f} [{:+.4f}, {:+.4f}]".format(*of)
