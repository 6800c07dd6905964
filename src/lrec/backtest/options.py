"""What a backtest trains: networks of each size at each origin; the networks are variants of a study without a law."""

from dataclasses import asdict, dataclass, field, fields, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lrec.data.datasets import datamodule_of
from lrec.data.splits.reduction import Reduction
from lrec.data.splits.temporal import check_cut, count_before, cut_time
from lrec.data.store.store import TIME_UNITS, Store, seconds_in, time_text
from lrec.errors import UserError, check_range
from lrec.study.grid import PlannedRun, changed, planned_runs
from lrec.study.options import Runs, Study
from lrec.study.update import trained_on

MOST_VALIDATE, VALIDATE = 1024, 20  # validation users: 1 in 20 users known at an origin, at most 1024
Update = Literal["none", "warm", "full"]
Windows = dict[int, tuple[int, int]]  # by number from 1: begin and end (exclusive) of each window


@dataclass(frozen=True)
class Backtest(Runs):
    """Train at several times (origins), test on the windows after each, and compare sizes and ages of networks.

    Windows follow one after the other; the last one ends with the data, or at `until`. A network learns only from what
    lies before its origin. New networks are tested on all windows from their origin on. Other networks are tested on
    the window that begins at their origin.

    Attributes:
        sizes: Names of sizes, or shapes such as 2x96, from the smallest to the largest.
        every: Time from one origin to the next: 12h, 7d, 4w.
        horizon: Length of a window; by default the same as every.
        folds: Number of origins.
        until: End of the last window: an ISO date, a Unix time in the log's unit, or a share of all interactions; by
            default the end of the data. Later interactions are left out.
        train_from: Start of training, given like until; by default the start of the data. Earlier interactions train no
            network, but the replay of a warm update has whole histories, and baselines count them too.
        update: What happens at later origins. none: the networks of the first origin stay as they are; warm: they
            are trained a little more on new interactions; full: new networks are trained on all interactions.
        out: Folder of the backtest; backtests/NAME by default.
        seeds: Seeds of every network; each seed is a run.
    """

    name: str = "backtest"
    sizes: list[str] = field(default_factory=lambda: ["3k", "98k"])
    every: str = "7d"
    horizon: str | None = None
    folds: int = 8
    until: int | float | str | None = None
    train_from: int | float | str | None = None
    update: tuple[Update, ...] = ("none", "warm", "full")
    out: Path | None = None
    seeds: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        check_range("--folds", self.folds, at_least=2)
        if not self.update:
            raise UserError("--update []: name at least one of none, warm and full")
        for option, duration in (("every", self.every), ("horizon", self.length)):
            if not seconds_in(duration):
                raise UserError(f"--{option} {duration} is no duration such as 30m, 12h, 7d or 2w")
        check_cut("--until", self.until)
        check_cut("--train_from", self.train_from)
        study = self.study({})  # checks the options that it shares with a study
        for option in study.given:
            if f"{option}.".startswith("data.split."):
                raise UserError(f"{option}: a backtest sets data.split itself: leave this option out")
        object.__setattr__(self, "sizes", study.ladder)  # from the smallest to the largest, however they were given

    @property
    def folder(self) -> Path:
        return self.out or Path("backtests") / self.name

    @property
    def length(self) -> str:
        """Length of a window."""
        return self.horizon or self.every

    def lasting(self, folds: int) -> str:
        """The time that this number of folds takes, such as 21d."""
        return f"{int(self.every[:-1]) * folds}{self.every[-1]}"

    def study(self, variants: dict[str, dict[str, Any]], starts_from: dict[str, str] | None = None) -> Study:
        """The study that trains these variants."""
        mine: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(Runs)}
        mine |= {"sizes": self.sizes, "out": self.folder, "seeds": self.seeds, "starts_from": starts_from or {}}
        return Study(**mine, variants=variants, fractions=(1.0,), holdout=0, law=None)


def network_of(update: Update, origin: int) -> str:
    """Name of the variant that serves at an origin, counted from 1."""
    return "full-1" if update == "none" or origin == 1 else f"{update}-{origin}"


def origin_of(network: str) -> int:
    """Origin of a variant by its name, counted from 1."""
    return int(network.rpartition("-")[2])


def open_store(backtest: Backtest) -> tuple[Store, list[str] | None]:
    """The store, prepared, and the types of event that may be targets (None: all); UserError if the store has no
    dates, or if data.k_core selects by future interactions."""
    runs = planned_runs(replace(backtest.study({}), seeds=backtest.seeds[:1]))
    for run in runs if "warm" in backtest.update or backtest.train_from is not None else ():
        for share, usual in asdict(Reduction()).items():
            if (value := run.config.value(f"data.reduction.{share}", usual)) != usual:
                why = "--train_from and --update warm set data.reduction themselves"
                way_out = "leave this option out, or give --update '[none, full]' and no --train_from"
                raise UserError(f"data.reduction.{share} {value}: {why}: {way_out}")
    data = datamodule_of(runs[0].options)
    data.prepare_data()
    store = data.open_store()
    if data.k_core:
        raise UserError(f"data.k_core={data.k_core} selects by future interactions too: a backtest needs data.k_core 0")
    if store.time_unit not in TIME_UNITS:
        raise UserError("a backtest needs times that are dates, and the data have none (--data.time_column)")
    return store, data.target_events


def windows_of(backtest: Backtest, store: Store, types: list[str] | None) -> Windows:
    """The windows in the store's unit of time. Each begins at an origin; the last ends with the data, or at `until`.
    UserError if a window has no target. Targets are events of these types (None: all) after a user's first one."""
    assert store.times_N is not None
    every = cut_time(store, "--every", backtest.every)
    length = cut_time(store, "--horizon", backtest.length)
    begin, end = int(store.times_N.min()), int(store.times_N.max()) + 1
    if backtest.until is not None:
        end = cut_time(store, "--until", backtest.until)
    origins = [end - length - every * ahead for ahead in reversed(range(backtest.folds))]
    windows = {number: (at, at + length) for number, at in enumerate(origins, start=1)}
    if origins[0] <= begin:
        asked = f"--folds {backtest.folds} of --every {backtest.every}"
        raise UserError(f"{asked} begin before the data: choose fewer or shorter ones")
    may_be_N = np.ones(len(store.times_N), dtype=bool) if types is None else store.of_types(types)
    may_be_N[store.offsets_U1[:-1]] = False
    for number, (begin, end) in windows.items():
        if not (may_be_N & (store.times_N >= begin) & (store.times_N < end)).any():
            window = f"window {number} of --folds {backtest.folds}, from {time_text(begin, store.time_unit)},"
            target = f"{' or '.join(types or ['interaction'])} of a user with an earlier interaction"
            raise UserError(f"{window} has no {target}: choose other windows, or another end (--until)")
    return windows


def planned(backtest: Backtest, store: Store, windows: Windows) -> tuple[Study, list[PlannedRun]]:
    """The study of every network that the updates need, and its runs. A network learns from all interactions before its
    origin, except those of validation users, and is tested on the window that begins there. A warm network learns from
    what is new since the previous origin, as in `lrec update`."""
    splits, part = dict[int, dict[str, Any]](), dict[str, Any]()
    if backtest.train_from is not None:
        since, (first, _) = cut_time(store, "--train_from", backtest.train_from), windows[1]
        if since >= first:
            begins = time_text(first, store.time_unit)
            raise UserError(f"--train_from {backtest.train_from} must lie before the first origin, {begins}")
        part = {"data.reduction": {"users": 0, "since": since}}
    for number, (begin, end) in windows.items():
        known = int(np.count_nonzero(count_before(store, begin) >= 2))
        if known < 2:  # one is for validation
            at = time_text(begin, store.time_unit)
            raise UserError(f"fewer than two users have two interactions before {at}, origin {number}: begin later")
        split: dict[str, Any] = {"class_path": "lrec.GlobalTemporal", "validate_by": "users", "targets": "all"}
        split["held_out_users"] = min(MOST_VALIDATE, max(known // VALIDATE, 1))
        split |= {"test_from": begin, "test_until": end}
        splits[number] = {f"data.split.{option}": value for option, value in split.items()} | part
    networks = {each: [network_of(each, k) for k in windows] for each in backtest.update}
    variants = {network: splits[origin_of(network)] for network in chain.from_iterable(networks.values())}
    study = backtest.study(variants, {later: earlier for earlier, later in pairwise(networks.get("warm", []))})
    runs = planned_runs(study)
    for place, run in enumerate(runs):
        if run.starts_from:
            since, _ = windows[origin_of(run.variant) - 1]
            runs[place] = replace(run, options=changed(run.options, trained_on(run.config, since)))
    return study, runs
