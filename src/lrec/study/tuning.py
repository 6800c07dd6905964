"""The tuning before a study's ladder: short trials, and a law of the best learning rate over all of them.

A trial is a run of one size on a share of the data. A walk starts at the configured values and tries their neighbours,
a factor of two away. Then it tries the neighbours of the best setting, until it has tried all of them. So the user
gives no range, and the best value is never at the end of a range. Only validation losses decide.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import cached_property
from itertools import product
from math import inf, isfinite, log
from typing import Any, Literal, NamedTuple

import polars as pl

from lrec.common.files import json_hash, read_json, sibling, undamaged, write_json
from lrec.errors import UserError
from lrec.laws.rate_law import RateLaw
from lrec.run import dotted, run_of_study
from lrec.study.grid import PlannedRun, epochs_alone, planned_runs
from lrec.study.options import EPOCHS, STEP, Study, ladder_n_body
from lrec.study.record import Record
from lrec.study.work import TRIAL, Work

LR = "model.optimizer.lr"
BRANCHES = [f"{branch}.{end}" for branch, end in product(("attention", "residual"), ("first", "last"))]
DROPOUTS = [f"model.dropout.{where}" for where in ("embedding", *BRANCHES)]  # tuned as one number

# Shares of the study's data in the first and the second walk. A trial has at least LEAST_STEPS steps, if a quarter of
# the data allows this: on games of Go, the best rate of runs of 150 steps falls to an eighth from width 20 to 112, but
# the best rate of runs of 1,300 steps stays the same (benchmarks/transfer.md).
SHARES, LEAST_STEPS = (1 / 16, 1 / 4), 1000
# The rate and the step of the smaller held-out size are tried on half of the data. How the best rate changes with the
# amount of data differs from log to log, and more for large networks: on decks it falls as D^-0.6, on Go it rises. And
# with one pass, large networks learn better in smaller steps than small networks, but with three passes, not.
HALF = 1 / 2
# A run of the ladder has this many steps, if the data allow: with fewer, large and small sizes differ in how far their
# training has come, and `fit` warns.
WANTED_STEPS = 2000
LEAST_N_BODY = 3000  # of the size that tunes the step, if the ladder has such a size
MOST_DROPOUT = 0.5
# Planned trials of a walk over the rate and the step (or dropout), of a walk over the rate alone, and of the walk on
# half of the data. The walk of a large size ends there: its trials are expensive, and smaller sizes also tell its rate.
# After three rates, the best may be the lowest one: on decks, a network of 1.8m parameters had 4.87, 4.77 and 5.03.
WALKED, RATED, HALVED = 10, 4, 5


@dataclass(frozen=True)
class Setting:
    """What a trial tries."""

    lr: float
    targets_per_step: int
    dropout: float

    @classmethod
    def of(cls, run: PlannedRun) -> "Setting":
        return cls(*(run.config.value(option) for option in (LR, STEP, DROPOUTS[0])))


class Place(NamedTuple):
    """How far a trial is from the start of its walk: doublings of rate and step, tenths of dropout."""

    lr: int = 0
    targets_per_step: int = 0
    dropout: int = 0

    def of(self, start: Setting) -> Setting:
        """The setting at this place. The rate grows with the root of the step, which suits another step best."""
        lr = start.lr * 2 ** (self.lr + self.targets_per_step / 2)
        step = round(start.targets_per_step * 2.0**self.targets_per_step)
        return Setting(float(f"{lr:.4g}"), step, round(start.dropout + self.dropout / 10, 2))

    def and_around(self, axes: Iterable[str]) -> "list[Place]":
        return [self, *(self._replace(**{axis: getattr(self, axis) + by}) for axis in axes for by in (-1, 1))]


@dataclass(frozen=True)
class Trial:
    size: str
    n_body: int
    targets: int  # D, unless it stopped early
    setting: Setting
    loss: float | None  # the lowest validation loss; None if the trial diverged


@dataclass(frozen=True)
class Tuned:
    rules: dict[str, list[float]]  # rules in the size: the rate (also in the share of the data), and the tuned step
    options: dict[str, Any]  # the dropout of all sizes, if it was tuned
    targets: int  # D of a run of the ladder
    scaled: bool  # whether the model has the scaled parametrisation, whose best rate hardly depends on the size
    trials: list[Trial]
    left_out: Sequence[str] = ()  # sizes without trials of their own, for which the study's hours had no time

    def applied_to(self, study: Study) -> Study:
        return replace(study, rules=study.rules | self.rules, options=dotted(study.options) | self.options)

    @cached_property
    def law(self) -> RateLaw:
        return law_of(self.trials, self.scaled)

    def cost(self, run: PlannedRun) -> float:
        """How many nats the run's loss is expected to lie above the loss with the best rate and step."""
        loss = min(trial.loss for trial in self.trials if trial.loss is not None)
        lr, step = run.config.value(LR), run.config.value(STEP)
        return loss * self.law.cost(ladder_n_body(run.size), self.targets, lr, step)

    @property
    def at_an_end(self) -> dict[str, Literal["lowest", "highest"]]:
        """The sizes whose best trial, on the most data, has the lowest or highest rate that was tried for its step."""
        found: dict[str, Literal["lowest", "highest"]] = {}
        for size in dict.fromkeys(trial.size for trial in self.trials):
            most = max(trial.targets for trial in self.trials if trial.size == size)
            mine = [trial for trial in self.trials if (trial.size, trial.targets) == (size, most)]
            best = min(mine, key=lambda trial: inf if trial.loss is None else trial.loss).setting
            rates = {t.setting.lr for t in mine if t.setting.targets_per_step == best.targets_per_step}
            if len(rates) > 1 and best.lr in (min(rates), max(rates)):
                found[size] = "lowest" if best.lr == min(rates) else "highest"
        return found

    def is_off(self, run: PlannedRun) -> bool:
        """Whether a run's rate lies outside the 90 % interval of the best rate."""
        best = self.law.choose(ladder_n_body(run.size), self.targets, run.config.value(STEP))
        return not best.rate_low <= run.config.value(LR) <= best.rate_high


def shares_of_trials(targets: int, step: int) -> list[float]:
    """The shares of the first and the second walk, or of the only walk; with two digits, as in the names of runs."""
    least = min(LEAST_STEPS * step / targets, SHARES[-1])
    return list(dict.fromkeys(float(f"{max(share, least):.2g}") for share in SHARES))


def all_walks(small: str, middle: str, large: str, held_out: list[str], shares: list[float]) -> list[tuple[str, float]]:
    """The walks of a tuning, in their order: a size, fitted or held out, and its share of a run's data."""
    halved = (held_out or [large])[0]
    rated = [(size, HALF if size == halved else shares[0]) for size in (large, middle, *held_out) if size != small]
    return [*product([small], shares), *rated]


def law_of(trials: Iterable[Trial], scaled: bool) -> RateLaw:
    """The law of the rate, fitted to trials, and moved towards the best trial of a large size on the most data. Of each
    size and amount of data, it uses those with the best dropout. UserError if a loss is 0."""
    names = ["x", "d", "rate", "batch", "dropout", "y"]
    rows = [(each.n_body, each.targets, *astuple(each.setting), each.loss) for each in trials if each.loss is not None]
    runs = pl.DataFrame(rows, schema=names, orient="row")
    if (perfect := runs.filter(pl.col("y") <= 0)).height:
        why = "each next item is certain, so a larger network cannot be better"
        raise UserError(f"--tune: a trial of {min(perfect['x']):,} parameters has a validation loss of 0: {why}")
    best = pl.col("dropout").sort_by("y").first().over("x", "d")
    runs = runs.filter(pl.col("dropout") == best)
    size, data, rate, step = runs.sort("d", "y", descending=[True, False]).row(0)[:4]
    return RateLaw(runs, scaled).towards(size, data, rate, step)


def walk(
    losses_of: Callable[[list[Place]], Sequence[float]],
    axes: Iterable[str],
    allowed: Callable[[Place], bool],
    most: float = inf,
) -> dict[Place, float]:
    """The losses of the tried places, with all neighbours of the best one unless `most` trials end the walk before."""
    known: dict[Place, float] = {}
    best = Place()
    while wanted := [place for place in best.and_around(axes) if place not in known and allowed(place)]:
        if known and len(known) + len(wanted) > most:
            break
        known |= zip(wanted, losses_of(wanted), strict=True)
        best = min(known, key=known.__getitem__)
    return known


def rules_of(law: RateLaw, sizes: Sequence[int], targets: int, least: float, most: float) -> dict[str, list[float]]:
    """Rules that give two sizes the law's steps, limited to `least` .. `most`, and the law's rates for these steps. The
    rate also follows the share of the data, which is 1 for `targets`."""
    steps = [max(min(law.choose(size, targets).batch, most), least) for size in sizes]
    rates = [law.choose(size, targets, step).rate for size, step in zip(sizes, steps, strict=True)]
    of_share = log(rates[0] / law.choose(sizes[0], targets / 2, steps[0]).rate) / log(2)
    rules = {LR: [*_through(sizes, rates), of_share], STEP: _through(sizes, steps)}
    return {option: [float(f"{number:.6g}") for number in rule] for option, rule in rules.items()}


def _through(sizes: Sequence[float], values: Sequence[float]) -> list[float]:
    """Factor and exponent of the power of the size that has these two values."""
    exponent = log(values[1] / values[0]) / log(sizes[1] / sizes[0]) if sizes[0] != sizes[1] else 0.0
    return [values[0] / sizes[0] ** exponent, exponent]


class Tuner:
    """Plans, trains and reads the trials of a study. They are the runs of a second study beside it."""

    def __init__(self, study: Study) -> None:
        alone: dict[str, Any] = {"law": None, "holdout": 0, "starts_from": {}, "grid": {}, "size_seeds": {}, "tune": ()}
        alone |= {"seeds": study.seeds[:1], "variants": {"": dotted(next(iter(study.every_variant.values())))}}
        alone |= {"horizons": (1.0,), "options": study.given}  # includes the schedule
        folder = sibling(study.folder, "tuning")
        self.study, self.study_of_trials = study, replace(study, name=folder.name, out=folder, **alone)
        self._file = folder / "tuned.json"
        large = [size for size in study.fitted if ladder_n_body(size) >= LEAST_N_BODY] or study.fitted[-1:]
        self._small, self._middle = large[0], large[len(large) // 2]
        self._whole, self._trials = self._whole_of(self._small), list[Trial]()
        self._start, config = Setting.of(self._whole), self._whole.config
        if (epochs := epochs_alone(config)) is None:
            raise UserError(f"--tune: trials are a share of a run: set its length by --options.{EPOCHS} alone")
        self._epochs, self._least_step = epochs, 2 * config.value("data.max_len")
        self._scaled = config.value("model.parametrisation") == "scaled"
        self._dropouts = DROPOUTS if "dropout" in study.tune else []

    def _whole_of(self, size: str) -> PlannedRun:
        return planned_runs(replace(self.study_of_trials, sizes=[size], fractions=(self.study.most,)))[0]

    @cached_property
    def _targets(self) -> int:
        """D of a run of the ladder."""
        return self._whole.open_data().U * self._epochs

    @cached_property
    def _walks(self) -> list[tuple[str, float]]:
        study, shares = self.study, shares_of_trials(self._targets, self._start.targets_per_step)
        return [*dict.fromkeys(all_walks(self._small, self._middle, study.fitted[-1], study.held_out, shares))]

    @property
    def runs_so_far(self) -> list[PlannedRun]:
        with undamaged(file := self.study_of_trials.folder / "study.json"):
            return [PlannedRun(**run) for run in read_json(file, {"grid": {"runs": []}})["grid"]["runs"]]

    @property
    def first_runs(self) -> list[PlannedRun]:
        """The trials that are certain: those of walks whose start is the best place."""
        return [run for size, share in self._walks for run in self._first_of(size, share, self._start)]

    def _first_of(self, size: str, share: float, start: Setting) -> list[PlannedRun]:
        """The trials of a walk that are certain."""
        places = Place().and_around(self._axes(size, share))
        return self._planned(size, share, start, [place for place in places if self._allowed(place, start, share)])

    @property
    def kept(self) -> Tuned | None:
        """An earlier result, perhaps with other sizes, if no trial is to be trained again; it needs no data."""
        kept = read_json(self._file, {})
        if not kept or {run.name for run in self.runs_so_far} & {*self.study.restart}:
            return None
        with undamaged(self._file):
            trials = [Trial(**trial | {"setting": Setting(**trial["setting"])}) for trial in kept["trials"]]
            same = kept.pop("of") == self._key(trials[0].size, kept.pop("ladder"))
            return Tuned(**kept | {"trials": trials}) if same else None

    def tuned(self, work: Work) -> Tuned:
        """The result of the tuning, from its file if there is one for this study."""
        if kept := self.kept:
            record = Record(self.study_of_trials, self.runs_so_far)
            record.check_data(record.runs)
            work.records[record.folder] = record  # their hours count in the budget
            return kept
        tuned, ladder = self._tune(work), self.study.ladder
        write_json(self._file, {"of": self._key(self._small, ladder), "ladder": ladder} | asdict(tuned))
        return tuned

    def _key(self, small: str, ladder: list[str]) -> str:
        """What a tuning with this ladder and small size depends on. A ladder that has grown keeps the rules of its
        tuning: with other rules, its finished runs would have other options."""
        return json_hash([self._whole_of(small).config.trained_with, self.study.most, self.study.tune, ladder])

    def _tune(self, work: Work) -> Tuned:
        """Train the trials that are not finished, and derive rules and dropout from all trials. Trials of a large size
        for which the study's hours have no time are left out: smaller sizes also tell its rate."""
        at, left_out = self._start, list[str]()
        for size, share in self._walks:
            start = at if size == self._small else self._start_of(size, share, at)
            if size != self._small and not self._has_time(work, size, share, start):
                print(f"left out, as --hours {self.study.hours:g} leave no time: trials of {size}", flush=True)
                left_out.append(size)
            else:
                at = self._walk(work, size, share, start)
        least, most = self._least_step, self._targets / WANTED_STEPS
        if "targets_per_step" not in self.study.tune:
            least = most = at.targets_per_step
        ends = [ladder_n_body(self.study.ladder[end]) for end in (0, -1)]
        rules = rules_of(law_of(self._trials, self._scaled), ends, self._targets, least, most)
        rules[LR][0] /= self.study.most ** rules[LR][2]
        if "targets_per_step" not in self.study.tune:
            del rules[STEP]
        options = dict.fromkeys(self._dropouts, at.dropout)
        return Tuned(rules, options, self._targets, self._scaled, self._trials, left_out)

    def _start_of(self, size: str, share: float, at: Setting) -> Setting:
        """Where the walk of a large size starts, after walks that ended at `at`."""
        step = min(at.targets_per_step, self._start.targets_per_step)  # the smaller one gives a trial more steps
        law = law_of(self._trials, self._scaled)
        return replace(at, lr=law.choose(ladder_n_body(size), share * self._targets, step).rate, targets_per_step=step)

    def _has_time(self, work: Work, size: str, share: float, start: Setting) -> bool:
        """Whether the study's hours leave time for the walk and for the ladder after it."""
        trials = self._first_of(size, share, start)
        ladder = planned_runs(self.study)
        fitted, held_out = ([run for run in ladder if run.held_out == is_so] for is_so in (False, True))
        return work.has_time_for((self.study_of_trials, trials), (self.study, fitted), (self.study, held_out))

    def _axes(self, size: str, share: float) -> list[str]:
        """What a walk tunes. With few users, the largest fitted size overfits as a larger one does with all users."""
        tunes_step = size == self._small or share == HALF
        tunes = {"lr": True, "targets_per_step": tunes_step, "dropout": size == self.study.fitted[-1]}
        return [name for name in self.study.tune if tunes[name]]

    def _walk(self, work: Work, size: str, share: float, start: Setting) -> Setting:
        def losses_of(places: list[Place]) -> list[float]:
            runs = self._planned(size, share, start, places)
            mine = {run.name: run for run in runs}
            known = {run.name: run for run in self.runs_so_far} | mine
            record, restart = Record(self.study_of_trials, [*known.values()]), mine.keys() & {*self.study.restart}
            entered = record.enter(restart, ())
            if restart:  # if the study is stopped now, the earlier result must not come back
                self._file.unlink(missing_ok=True)
            work.train(record, [run for run in entered if run.name in mine], TRIAL)
            trials = [self._trial(run) for run in runs]
            self._trials += trials
            return [inf if trial.loss is None else trial.loss for trial in trials]

        axes = self._axes(size, share)
        of_large = WALKED if "dropout" in axes else HALVED if "targets_per_step" in axes else RATED
        most = inf if size == self._small else of_large
        losses = walk(losses_of, axes, lambda place: self._allowed(place, start, share), most)
        best = min(losses, key=losses.__getitem__)
        if not isfinite(losses[best]):
            raise UserError(f"--tune: every trial of {size} diverged: begin at a smaller {LR} than {start.lr:g}")
        return best.of(start)

    def _allowed(self, place: Place, start: Setting, share: float) -> bool:
        setting = place.of(start)
        few = place.targets_per_step > 0 and share * self._targets < LEAST_STEPS * setting.targets_per_step / 3
        much = place.dropout != 0 and not 0 <= setting.dropout <= MOST_DROPOUT
        return self._least_step <= setting.targets_per_step and not few and not much

    def _planned(self, size: str, share: float, start: Setting, places: list[Place]) -> list[PlannedRun]:
        """Trials on a share of the users, with as many passes as a run has, because dropout only helps with repeats."""
        fraction = float(f"{self.study.most * share:.2g}")
        variants, (options,) = {}, self.study_of_trials.variants.values()
        for setting in (place.of(start) for place in places):
            name = f"lr-{setting.lr:.15g}-targets_per_step-{setting.targets_per_step:.15g}"
            name += f"-dropout-{setting.dropout:.15g}" if self._dropouts else ""
            tried = {LR: setting.lr, STEP: setting.targets_per_step} | dict.fromkeys(self._dropouts, setting.dropout)
            variants[name] = options | tried | {"points.test": False}
        trials = planned_runs(replace(self.study_of_trials, sizes=[size], fractions=(fraction,), variants=variants))
        return [replace(trial, ladder=f"{fraction:g}") for trial in trials]  # of the same data

    def _trial(self, run: PlannedRun) -> Trial:
        points = run_of_study(self.study_of_trials.folder, run.name).points
        losses = [point.val_loss for point in points if point.val_loss is not None and not points[-1].diverged]
        targets = round(self._targets * run.fraction / self.study.most)
        return Trial(run.size, ladder_n_body(run.size), targets, Setting.of(run), min(losses, default=None))
