"""Trained runs, read from their folders without a Trainer and sorted by size."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from lrec.common.files import json_hash
from lrec.data.datamodule import SequenceDataModule
from lrec.data.datasets import datamodule_of
from lrec.data.splits.rules import Split
from lrec.data.store.store import Store
from lrec.errors import UserError
from lrec.evaluation.metrics import METRICS, Metric, metrics_of
from lrec.evaluation.shared_scoring import device
from lrec.model import cost
from lrec.model.transformer import Transformer
from lrec.options.class_paths import check_trusted
from lrec.run import Run
from lrec.serving.export import load

# Options outside model that decide how long a run trains.
_LENGTH = ("trainer.max_epochs", "trainer.max_steps", "trainer.limit_train_batches", "data.targets_per_step")

BySize = dict[int, list["TrainedRun"]]  # runs of each N_body, ascending


@dataclass(frozen=True)
class TrainedRun:
    """A run and its best network, ready to evaluate."""

    run: Run
    net: Transformer
    n_body: int
    name: str  # the size as model.size names it, or layers x width


@dataclass(frozen=True)
class DomainRuns:
    """Runs trained on one domain alone, from scratch or from a trained network, and the split of this domain."""

    split: Split
    alone: BySize
    fine_tuned: BySize


@dataclass(frozen=True)
class Ladder:
    """Runs of several sizes on the same data, by N_body; runs of one size are averaged (they differ in their seed)."""

    split: Split  # where each user's sequence is cut
    max_len: int  # longest input, in items
    runs: BySize  # trained on all domains
    domains: dict[str, DomainRuns] = field(default_factory=dict)  # trained on one domain, cut at the same places
    most_users: int | None = None  # largest number of drawn test users, and of held-out users; None: all
    metrics: tuple[Metric, ...] = METRICS  # lrec's, and your own metrics that the runs were trained with

    @property
    def sizes(self) -> dict[str, float]:
        """N_body of each size by its name, ascending."""
        return {runs[0].name: float(n_body) for n_body, runs in self.runs.items()}

    @property
    def counts_V(self) -> np.ndarray:
        """Training interactions of each catalogue item."""
        return self.split.counts_V

    def rows(self) -> list[tuple[str, list[TrainedRun]]]:
        """For each size: what its runs were trained on, and the runs. This includes runs of one domain."""
        rows = [("all", runs) for runs in self.runs.values()]
        for name, mine in self.domains.items():
            rows += [(f"domain {name}", runs) for runs in mine.alone.values()]
            rows += [(f"domain {name}, from a trained network", runs) for runs in mine.fine_tuned.values()]
        return rows


@dataclass
class Data:
    """The data of runs, each opened once."""

    trust: bool = False  # import classes that are not lrec's own, and prepare stores that do not exist
    _opened: dict[str, SequenceDataModule] = field(default_factory=dict)

    def of(self, run: Run) -> SequenceDataModule:
        """The DataModule of a run, set up. Without `trust`, nothing is written to the folder of its data."""
        key = json_hash(run.config.nested["data"])
        if key not in self._opened:
            check_trusted({"data": run.config.options["data"]}, self.trust, run.config_file)
            data = datamodule_of(run.config.options)
            if self.trust:
                data.prepare_data()
            elif not data.store_path.exists():
                raise UserError(
                    f"{run.config_file}: {data.store_path} does not exist; --trust prepares it, and so lets the run's "
                    "configuration choose where lrec writes"
                )
            data.setup("test")
            self._opened[key] = data
        return self._opened[key]


def load_run(run: Run, data: Data) -> TrainedRun:
    """A run's best network, on a GPU if there is one; UserError if it does not fit the run's data."""
    now, model = data.of(run).data_hash, load(run.best, trust=data.trust, new_items=False)
    if (trained_on := model.about["data_hash"]) != now:
        raise UserError(
            f"{run.folder} was trained on other data than its configuration now leads to (data_hash {trained_on[:16]} "
            f"and {now[:16]})"
        )
    net, shape = model.net.float().requires_grad_(False).to(device()), model.net.config
    name = run.config.value("model.size") or f"{shape.layers}x{shape.width}"
    return TrainedRun(run, net, cost.n_body(shape), name)


def ladder_of(runs: list[TrainedRun], data: Data, most_users: int | None = None, seed: int = 0) -> Ladder:
    """Sort runs by size, with at most `most_users` users, drawn by the seed; UserError if they cannot be compared."""
    first, by_domain, own_metrics = runs[0].run, dict[str, list[TrainedRun]](), list[dict[str, Any]]()
    shared = _shared_by_runs(data.of(first))
    for trained in runs:
        run = trained.run
        for what, own in _shared_by_runs(data.of(run)).items():
            if own != (one := shared[what]):
                raise UserError(
                    f"{first.folder} and {run.folder} differ in their {what} ({one}, {own}): compare runs that agree"
                )
        by_domain.setdefault(run.config.value("data.only_domain") or "", []).append(trained)  # "": all domains
        own = run.config.nested["model"].get("metrics") or []
        check_trusted({"metrics": own}, data.trust, run.config_file)
        own_metrics += [each for each in (own if isinstance(own, list) else [own]) if each not in own_metrics]
    whole = by_domain.pop("", [])
    if not whole:
        raise UserError("--runs: every run is of one domain alone (data.only_domain): add runs of all domains")
    if data.of(whole[0].run).has_sets("test"):
        raise UserError(
            f"{first.config_file}: a test target is a set of items (data.split.targets window), but tasks rank single "
            "items: set data.split.test_targets there to first, last, random or all"
        )
    cut, domains = partial(_of_some_users, most_users=most_users, seed=seed), {}
    for name, mine in sorted(by_domain.items()):
        alone = [trained for trained in mine if trained.run.config.value("model.warm_start") is None]
        tuned = [trained for trained in mine if trained not in alone]
        domains[name] = DomainRuns(cut(data.of(mine[0].run).cuts), _by_size(alone), _by_size(tuned))
    split = cut(data.of(whole[0].run).cuts)
    return Ladder(split, shared["max_len"], _by_size(whole), domains, most_users, metrics_of(own_metrics))


def _shared_by_runs(data: SequenceDataModule) -> dict[str, Any]:
    """What all runs must have in common. The hash of the store is that of all its domains."""
    return {
        "store": Store(data.store.path, data.store.meta).hash[:16],
        "split": data.split,
        "max_len": data.max_len,
        "target_events": sorted(data.target_events or []),
        "cold_targets": data.cold_targets,
        "features": data.learned.identity,
    }


def _of_some_users(split: Split, most_users: int | None, seed: int) -> Split:
    if most_users is None:
        return split
    random, chosen_U = np.random.default_rng(seed), np.zeros(split.store.n_users, dtype=bool)
    for users in map(np.unique, (split.test_targets.users_T, split.held_out_targets.users_T)):
        chosen_U[random.permutation(users)[:most_users]] = True
    return split.of_users(chosen_U)


def _by_size(runs: Iterable[TrainedRun]) -> BySize:
    sizes: BySize = {}
    for run in sorted(runs, key=lambda run: run.n_body):
        same = sizes.setdefault(run.n_body, [])
        if same and _kind(run) != _kind(same[0]):
            raise UserError(
                f"{same[0].run.folder} and {run.run.folder} have the same N_body {run.n_body} and differ in their "
                "model options, their reduction of the data or their length: compare one kind of run at a time"
            )
        same.append(run)
    by_name: dict[str, TrainedRun] = {}
    for one, *_ in sizes.values():
        if (other := by_name.setdefault(one.name, one)) is not one:
            raise UserError(
                f"{other.run.folder} and {one.run.folder} are both of size {one.name}, but have N_body "
                f"{other.n_body:,} and {one.n_body:,}: compare one kind of block at a time"
            )
    return sizes


def _kind(run: TrainedRun) -> list[Any]:
    """The options that two runs of one size must share, so that only their seeds differ. Whether they started from a
    trained network counts, but not from which one: each seed has its own."""
    config = run.run.config
    model = config.nested["model"]
    model = {**model, "warm_start": model.get("warm_start") is not None, "metrics": None}
    return [model, config.nested["data"].get("reduction"), *(config.value(option) for option in _LENGTH)]
