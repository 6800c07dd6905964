"""What a study tunes before its ladder: walks by factors of two on little data, and a law of the rate over all trials.

A trial is a run of one size on a share of the data. A walk starts at the configured values and tries the neighbours of
the best so far until none is left, so that no range has to be given, and no end of a range can be the best. Validation
losses alone decide.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from math import inf, isfinite, log
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from lrec.common.files import json_hash, read_json, write_json
from lrec.errors import UserError
from lrec.laws.rate_law import RateLaw
from lrec.run import dotted, run_of_study
from lrec.study.grid import PlannedRun, planned_runs
from lrec.study.options import Study, ladder_n_body
from lrec.study.record import Record
from lrec.study.work import TRIAL, Work

if TYPE_CHECKING:
    from lrec.data.datamodule import SequenceDataModule

LR, STEP = "model.optimizer.lr", "data.targets_per_step"
BRANCHES = [f"{branch}.{end}" for branch, end in product(("attention", "residual"), ("first", "last"))]
DROPOUTS = [f"model.dropout.{where}" for where in ("embedding", *BRANCHES)]  # one number here

# Shares of the study's data of the first walk and the second; and the steps that a trial has at the least, where these
# are no more than the second share: on games of Go the best rate of 150 steps falls to an eighth from width 20 to 112,
# that of 1,300 steps stays where it is (benchmarks/transfer.md).
SHARES, LEAST_STEPS = (1 / 16, 1 / 4), 1000
# Steps of a ladder's runs, where the data allow: with fewer, sizes differ by how far they have come, and fit warns.
WANTED_STEPS = 2000
LEAST_N_BODY = 3000  # of the size that the walks are taken with, where the ladder has one as large
MOST_DROPOUT = 0.5
# Trials of a walk in the rate and the step or dropout, and of one in the rate alone: so many are planned. The walk of a
# large size ends there, as each of its trials is dear and its rate is also known from the smaller sizes.
WALKED, RATED = 10, 4


class Setting(NamedTuple):
    """What a trial tries."""

    lr: float
    targets_per_step: int
    dropout: float


class Place(NamedTuple):
    """How far a trial is from where its walk began: doublings of rate and step, tenths of dropout."""

    lr: int = 0
    targets_per_step: int = 0
    dropout: int = 0

    def of(self, start: Setting) -> Setting:
        """The rate follows the root of the step, so that another step is tried at the rate that suits it."""
        lr = start.lr * 2 ** (self.lr + self.targets_per_step / 2)
        step = round(start.targets_per_step * 2.0**self.targets_per_step)
        return Setting(float(f"{lr:.4g}"), step, round(start.dropout + self.dropout / 10, 2))

    def and_around(self, axes: Iterable[str]) -> "list[Place]":
        return [self, *(self._replace(**{axis: getattr(self, axis) + by}) for axis in axes for by in (-1, 1))]


class Trial(NamedTuple):
    """A trial that has been trained."""

    size: str
    n_body: int
    targets: int  # D, unless it stopped early
    setting: Setting
    loss: float | None  # the least validation loss; None where it diverged


@dataclass(frozen=True)
class Tuned:
    """What the trials of a study say."""

    rules: dict[str, list[float]]  # the rate, by size and share
    options: dict[str, Any]  # step and dropout of all sizes, where they are tuned
    targets: int  # of a run of the study proper: D
    scaled: bool  # whether rates are shares that the parametrisation has for the size
    trials: list[Trial]

    def applied_to(self, study: Study) -> Study:
        return replace(study, rules=study.rules | self.rules, options=dotted(study.options) | self.options)

    @cached_property
    def law(self) -> RateLaw:
        return law_of(self.trials, self.scaled)

    def cost(self, run: PlannedRun) -> float:
        """Nats that a run's rate and step are expected to cost, compared with the best there are."""
        loss = min(trial.loss for trial in self.trials if trial.loss is not None)
        return loss * self.law.cost(ladder_n_body(run.size), self.targets, *self._tried(run))

    def is_off(self, run: PlannedRun) -> bool:
        """Whether a run's rate is none of those that may be the best."""
        lr, step = self._tried(run)
        best = self.law.choose(ladder_n_body(run.size), self.targets, step)
        return not best.rate_low <= lr <= best.rate_high

    def _tried(self, run: PlannedRun) -> tuple[float, int]:
        return run.config.value(LR), run.config.value(STEP)


def shares_of_trials(targets: int, step: int) -> list[float]:
    """Of the first walk and the second, or of the only one; to two digits, as they stand in names."""
    least = min(LEAST_STEPS * step / targets, SHARES[-1])
    return list(dict.fromkeys(float(f"{max(share, least):.2g}") for share in SHARES))


def law_of(trials: Iterable[Trial], scaled: bool) -> RateLaw:
    """The law of the rate from trials; of those of one size and amount of data, the ones with the best dropout."""
    rows = [(trial.n_body, trial.targets, *trial.setting, trial.loss) for trial in trials if trial.loss is not None]
    runs = pl.DataFrame(rows, schema=["x", "d", "rate", "batch", "dropout", "y"], orient="row")
    best = pl.col("dropout").sort_by("y").first().over("x", "d")
    return RateLaw(runs.filter(pl.col("dropout") == best), scaled)


def walk(
    losses_of: Callable[[list[Place]], Sequence[float]],
    axes: Iterable[str],
    allowed: Callable[[Place], bool],
    most: float = inf,
) -> dict[Place, float]:
    """The loss at every place that was tried: the neighbours of the best along the axes are among them, unless these
    would be more than `most` trials."""
    known: dict[Place, float] = {}
    best = Place()
    while wanted := [place for place in best.and_around(axes) if place not in known and allowed(place)]:
        if known and len(known) + len(wanted) > most:
            break
        known |= zip(wanted, losses_of(wanted), strict=True)
        best = min(known, key=known.__getitem__)
    return known


class Tuner:
    """Plans the trials of a study, runs of a study of their own, and reads them."""

    def __init__(self, study: Study) -> None:
        alone: dict[str, Any] = {"law": None, "holdout": 0, "starts_from": {}, "grid": {}, "size_seeds": {}}
        self._options = dotted(next(iter(study.every_variant.values())))
        alone |= {"seeds": study.seeds[:1], "tune": (), "variants": {"": self._options}}
        alone |= {"horizons": (1.0,), "options": study.given}  # that of wsd among them
        folder = study.folder.with_name(f"{study.folder.name}-tuning")
        self.study = study
        self.study_of_trials = replace(study, name=folder.name, out=folder, **alone)
        self._most = max(study.every_fraction)
        large = [size for size in study.fitted if ladder_n_body(size) >= LEAST_N_BODY] or study.fitted[-1:]
        # Dropout is tried with the largest fitted size: on a share of the users it matters as for larger ones on all.
        self._small, *self._others = dict.fromkeys((large[0], large[-1], large[len(large) // 2], *study.held_out))
        whole = planned_runs(replace(self.study_of_trials, sizes=[self._small], fractions=(self._most,)))[0]
        self._epochs = int(whole.config.value("trainer.max_epochs", -1))
        if self._epochs < 1:
            raise UserError("--tune: trials are a share of a run: say by --options.trainer.max_epochs how long one is")
        self._start = Setting(*(whole.config.value(option) for option in (LR, STEP, DROPOUTS[0])))
        self._scaled = whole.config.value("model.parametrisation") == "scaled"
        self._whole, self._trials = whole, list[Trial]()

    @cached_property
    def _data(self) -> "SequenceDataModule":
        return self._whole.open_data()

    @property
    def _least_step(self) -> int:
        return 2 * self._data.max_len

    @property
    def _targets(self) -> int:
        """Of a run of the study proper: D."""
        return self._data.U * self._epochs

    @cached_property
    def _shares(self) -> list[float]:
        return shares_of_trials(self._targets, self._start.targets_per_step)

    @property
    def runs_so_far(self) -> list[PlannedRun]:
        """The trials that its folder tells of."""
        record = read_json(self.study_of_trials.folder / "study.json", {"grid": {"runs": []}})
        return [PlannedRun(**run) for run in record["grid"]["runs"]]

    @property
    def first_runs(self) -> list[PlannedRun]:
        """The trials that are made in any case: of walks that end where they began."""
        rounds = [(self._small, share, self._axes(self._small)) for share in self._shares]
        rounds += [(size, self._shares[0], self._axes(size)) for size in self._others]
        runs = list[PlannedRun]()
        for size, share, axes in rounds:
            places = [place for place in Place().and_around(axes) if self._allowed(place, self._start, share)]
            runs += self._planned(size, share, [place.of(self._start) for place in places])
        return runs

    @property
    def kept(self) -> Tuned | None:
        """What tuning the same study has come to, which holds without its data too."""
        kept = read_json(self.study_of_trials.folder / "tuned.json", {})
        if kept.pop("of", None) != self._key:
            return None
        trials = [Trial(**trial | {"setting": Setting(**trial["setting"])}) for trial in kept["trials"]]
        return Tuned(**kept | {"trials": trials})

    def tuned(self, work: Work) -> Tuned:
        """What tuning comes to, or has come to."""
        tuned = self.kept or self._tune(work)
        trials = [trial._asdict() | {"setting": trial.setting._asdict()} for trial in tuned.trials]
        content = {"of": self._key, **asdict(tuned), "trials": trials}
        write_json(self.study_of_trials.folder / "tuned.json", content)
        return tuned

    @property
    def _key(self) -> str:
        return json_hash([self._whole.config.trained_with, self._most, self.study.tune, self.study.ladder])

    def _tune(self, work: Work) -> Tuned:
        """Train the trials that are not finished, and read what follows from all."""
        self._known = {run.name: run for run in self.runs_so_far}
        best = self._start
        for share in self._shares:
            best = self._walk(work, self._small, share, best)
        # With the smaller of the two steps, of which a trial has more.
        at = best._replace(targets_per_step=min(best.targets_per_step, self._start.targets_per_step))
        for size in self._others:
            law = law_of(self._trials, self._scaled)
            lr = law.choose(ladder_n_body(size), self._shares[0] * self._targets, at.targets_per_step).rate
            at = at._replace(dropout=self._walk(work, size, self._shares[0], at._replace(lr=lr)).dropout)
        options: dict[str, Any] = {}
        law = law_of(self._trials, self._scaled)
        if "targets_per_step" in self.study.tune:  # the best for all the data and the middle size, of steps enough
            middle = ladder_n_body(self.study.fitted[len(self.study.fitted) // 2])
            best_step = min(law.choose(middle, self._targets).batch, self._targets / WANTED_STEPS)
            options[STEP] = max(int(best_step // 64) * 64, self._least_step)
        if "dropout" in self.study.tune:
            options |= dict.fromkeys(DROPOUTS, at.dropout)
        rule = self._rule(law, options.get(STEP, best.targets_per_step))
        return Tuned({LR: rule}, options, self._targets, self._scaled, self._trials)

    def _rule(self, law: RateLaw, step: int) -> list[float]:
        """The law's rates as factor and exponents of N_body and of the share, through the ends of the ladder at the
        study's largest share."""
        smallest, largest = ladder_n_body(self.study.ladder[0]), ladder_n_body(self.study.ladder[-1])
        lowest, highest = (law.choose(n_body, self._targets, step).rate for n_body in (smallest, largest))
        exponent = log(highest / lowest) / log(largest / smallest)
        of_share = log(lowest / law.choose(smallest, self._targets / 2, step).rate) / log(2)
        rule = (lowest / (smallest**exponent * self._most**of_share), exponent, of_share)
        return [float(f"{number:.6g}") for number in rule]

    def _axes(self, size: str) -> list[str]:
        """What a size tries: the small one the step, the largest fitted one dropout, and all the rate."""
        only = {"targets_per_step": self._small, "dropout": self.study.fitted[-1]}
        return [name for name in self.study.tune if only.get(name, size) == size]

    def _walk(self, work: Work, size: str, share: float, start: Setting) -> Setting:
        """The best setting that a walk from `start` finds."""

        def losses_of(places: list[Place]) -> list[float]:
            settings = [place.of(start) for place in places]
            runs = self._planned(size, share, settings)
            names = {run.name for run in runs}
            self._known |= {run.name: run for run in runs}
            record = Record(self.study_of_trials, list(self._known.values()))
            entered = record.enter(names & set(work.study.restart), ())
            record.check_data(entered)
            work.train(record, [run for run in entered if run.name in names], TRIAL)
            trials = [self._trial(run, setting) for run, setting in zip(runs, settings, strict=True)]
            self._trials += trials
            return [inf if trial.loss is None else trial.loss for trial in trials]

        axes = self._axes(size)
        most = inf if size == self._small else WALKED if len(axes) > 1 else RATED
        losses = walk(losses_of, axes, lambda place: self._allowed(place, start, share), most)
        best = min(losses, key=losses.__getitem__)
        if not isfinite(losses[best]):
            raise UserError(f"--tune: every trial of {size} diverged: begin at a smaller {LR} than {start.lr:g}")
        return best.of(start)

    def _allowed(self, place: Place, start: Setting, share: float) -> bool:
        setting = place.of(start)
        few = place.targets_per_step > 0 and share * self._targets < LEAST_STEPS * setting.targets_per_step / 3
        return self._least_step <= setting.targets_per_step and not few and 0 <= setting.dropout <= MOST_DROPOUT

    def _planned(self, size: str, share: float, settings: list[Setting]) -> list[PlannedRun]:
        """Trials on a share of the users, whose data they see as often as a run will: dropout is of no use before."""
        fraction = float(f"{self._most * share:.2g}")
        variants = {}
        for setting in settings:
            named = {LR: setting.lr, STEP: setting.targets_per_step}
            if "dropout" in self.study.tune:
                named |= {"dropout": setting.dropout}
            name = "-".join(f"{option.rsplit('.')[-1]}-{value:g}" for option, value in named.items())
            dropouts = dict.fromkeys(DROPOUTS, named.pop("dropout")) if "dropout" in named else {}
            variants[name] = self._options | named | dropouts | {"points.test": False}
        trials = planned_runs(replace(self.study_of_trials, sizes=[size], fractions=(fraction,), variants=variants))
        return [replace(trial, ladder=f"{fraction:g}") for trial in trials]  # of the same data

    def _trial(self, run: PlannedRun, setting: Setting) -> Trial:
        points = run_of_study(self.study_of_trials.folder, run.name).points
        losses = [point.val_loss for point in points if point.val_loss is not None]
        loss = None if points[-1].diverged else min(losses, default=None)
        targets = round(self._targets * run.fraction / self._most)
        return Trial(run.size, points[-1].N_body, targets, setting, loss)
