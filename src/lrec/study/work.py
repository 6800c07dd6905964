"""Trains the runs of a study, here or on a cluster, and prints their progress."""

import math
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from pathlib import Path
from threading import Event

from lrec.common.start_stop import TRY_AGAIN, on_signals
from lrec.common.text_tables import counted, lasting
from lrec.errors import UserError
from lrec.study import budget
from lrec.study.cluster import as_local_jobs, train_on_cluster
from lrec.study.grid import PlannedRun
from lrec.study.launch import Outcome, outcome_of, train
from lrec.study.options import Study
from lrec.study.record import Record
from lrec.study.status import Live

TRIAL = "trial"
LATEST = 1.1  # times a study's hours; a run that would end later does not start


class Work:
    """Trains the runs of a record, here or on a cluster, and prints the result of each."""

    def __init__(self, study: Study) -> None:
        self.study, self.interrupted = study, Event()
        self.records: dict[Path, Record] = {}  # the latest of each folder
        self._began, self._slower = time.monotonic(), 1.0  # time that runs took / time that was expected
        self._tried = 0  # trials so far; their final number is not known yet

    def noting_signals(self) -> AbstractContextManager[None]:
        """Let a signal stop the runs, and between runs keep the next ones from starting."""
        return on_signals(lambda *_: self.interrupted.set()) if self.study.is_here else nullcontext()

    def train(self, record: Record, runs: list[PlannedRun], kind: str) -> None:
        """Train the runs that are not finished. UserError if a run failed or was stopped; exit code 75 on a signal."""
        self.records[record.folder] = record
        known = [(run, outcome) for run in runs if (outcome := outcome_of(record.trained(run))) is not None]
        names = {run.name for run, _ in known}
        waiting = [run for run in runs if run.name not in names]
        left_s, spent_s, of_s, failed, done = self._expected(record.study, waiting), 0.0, 0.0, list[str](), 0
        for run, outcome in chain(known, self._start(record, waiting)):
            record.note(run, outcome)
            became, expected_s = outcome.status, left_s.pop(run.name, None)
            if (point := outcome.point) is not None:
                done += 1
                losses = {"test loss": point.test_loss, "val loss": point.val_loss}  # trials have no test loss
                loss = next((f"{name} {loss:.4f}" for name, loss in losses.items() if loss is not None), "")
                became = f"{'diverged' if point.diverged else loss}, {point.wall_s:.0f} s"
                if expected_s is not None:
                    spent_s, of_s = spent_s + run.own * point.wall_s, of_s + expected_s
                    self._slower = spent_s / of_s
                    if left_s and kind != TRIAL:
                        rest_s = self._slower * sum(left_s.values()) / self.study.n_jobs
                        became += f"; the rest: about {lasting(rest_s)}"
            self._tried += kind == TRIAL
            place = f"{kind} {self._tried}" if kind == TRIAL else f"{done}/{len(runs)} {kind}"
            if self.study.hours:
                became += f"; {lasting(time.monotonic() - self._began)} of {self.study.hours:g} h"
            print(f"[{place}] {run.name}: {became}", flush=True)
            if outcome.status == "failed":
                failed.append(f"run {run.name} failed: {outcome.reason}")
        if failed:
            more = f"; so did {len(failed) - 1} more, see {record.path}" if len(failed) > 1 else ""
            skip = ", or leave runs out with --skip" if kind in ("fitted", "held out") else ""  # only a study has it
            raise UserError(f"{failed[0]}{more}. Start the same command again to retry{skip}")
        if done < len(runs):
            unfinished = f"not finished: {len(runs) - done} of {counted(len(runs), 'run')}"
            left = f"{unfinished}; start the same command again to continue"
            if self.interrupted.is_set():
                print(f"lrec: interrupted: {left}", file=sys.stderr)
                sys.exit(TRY_AGAIN)
            why = f"--budget_hours {self.study.budget_hours:g} are spent" if self._budget_is_spent() else "told to stop"
            raise UserError(f"{why}: {left}")

    def _expected(self, study: Study, runs: list[PlannedRun]) -> dict[str, float]:
        """Seconds that each run is expected to take; empty if the study has no --hours."""
        costs = [] if self.study.hours is None else budget.plan(study, runs)
        return {cost.run.name: 3600 * cost.hours / (cost.gpus or self.study.threads) for cost in costs}

    def _fit_in(self, *parts: Collection[float]) -> bool:
        """Whether the study's hours leave time for these expected seconds of runs, one part after the other."""
        left_s = LATEST * 3600 * (self.study.hours or math.inf) - (time.monotonic() - self._began)
        longest = (max(*each_s, sum(each_s) / self.study.n_jobs) for each_s in parts if each_s)
        return self._slower * sum(longest) <= left_s

    def has_time_for(self, *parts: tuple[Study, list[PlannedRun]]) -> bool:
        """Whether the study's hours leave time for the runs of these studies, one part after the other."""
        return self._fit_in(*(self._expected(study, runs).values() for study, runs in parts))

    def too_long(self, record: Record, runs: list[PlannedRun]) -> list[str]:
        """Names of the largest runs, for which the study's hours leave too little time, and of runs that need them."""
        to_train, late = [run for run in runs if record.trained(run).result is None], list[str]()
        left_s = self._expected(record.study, to_train)
        while left_s and not self._fit_in(left_s.values()):
            late.append(max(left_s, key=left_s.__getitem__))
            for run in sorted(runs, key=lambda run: run.wave):
                if {run.starts_from, run.goes_on_from} & {*late} and run.name not in late:
                    late.append(run.name)
            left_s = {name: seconds for name, seconds in left_s.items() if name not in late}
        return late

    def _start(self, record: Record, runs: list[PlannedRun]) -> Iterator[tuple[PlannedRun, Outcome]]:
        live, study, here = Live(runs, record.folder), record.study, self.study.is_here

        def watch() -> bool:
            live.show()
            return not (self.interrupted.is_set() or self._budget_is_spent())

        jobs = as_local_jobs(study) if here and study.cluster else None
        with self.noting_signals():
            for ended in train(study, runs, watch, jobs) if here else train_on_cluster(study, runs, live.show):
                live.clear()
                yield ended
        live.clear()

    def _budget_is_spent(self) -> bool:
        hours = self.study.budget_hours
        spent = (sum(budget.hours_by_run(each.study, each.runs).values()) for each in self.records.values())
        return hours is not None and hours <= sum(spent)  # without a budget, no points are read
