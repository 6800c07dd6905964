"""A scaling study: train the small sizes, fit a law, write the prediction, only then train the large sizes, and judge.

Started again, a study resumes where it stopped: finished runs are kept, an unfinished one is resumed, and a larger grid
trains only what is new.
"""

import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from lrec.common.files import check_folder, locked, write_json
from lrec.common.start_stop import TRY_AGAIN, on_signals
from lrec.common.text_tables import counted, lasting, on_terminal
from lrec.errors import UserError
from lrec.study import budget
from lrec.study.cluster import as_local_jobs, check_accelerators, train_on_cluster
from lrec.study.dial import as_text, plan_of, with_plan
from lrec.study.grid import PlannedRun, planned_runs
from lrec.study.launch import Outcome, lock_of, outcome_of, train
from lrec.study.options import PLAN, Study
from lrec.study.prediction import LadderFit, by_ladder, fit_ladder, write_prediction
from lrec.study.processes import start_server
from lrec.study.record import Record
from lrec.study.report import write_report
from lrec.study.status import Live, runs_table
from lrec.study.tuning import Tuned, Tuner

LATEST = 1.1  # of a study's hours: what would end later does not begin


def run_study(study: Study) -> None:
    """Train a ladder of sizes, fit a law to the small ones and predict the large ones before they are trained.

    Args:
        study: What is trained, and how.
    """
    check_folder(study.folder, "--out")
    if not (study.dry_run or study.status or study.cluster):
        start_server()
    plan = plan_of(study) if study.sizes is None else None
    if plan is not None:
        print(as_text(plan), flush=True)
        study = with_plan(study, plan)
    record = Record(study, planned_runs(study))
    tuner = Tuner(study) if study.tune else None
    trials = tuner.runs_so_far if tuner else []
    every_run = [*trials, *record.runs]
    names = {run.name for run in every_run}
    if unknown := [name for name in (*study.restart, *study.skip) if name not in names]:
        raise UserError(f"{unknown[0]} is none of the study's runs, which --status true lists")
    if study.cluster is not None:
        check_accelerators(every_run, study.cluster)
    if study.status:
        if tuner and trials:
            print(runs_table(trials, tuner.study_of_trials.folder / "runs", {}), end="\n\n")
        print(runs_table(record.runs, record.folder, record.state))
        return
    costs: list[budget.Cost] = []
    if study.dry_run or (study.memory_gib, study.budget_hours, study.budget_disk_gib) != (None, None, None):
        costs = budget.plan(tuner.study_of_trials, tuner.first_runs) if tuner else []
        costs += budget.plan(study, record.runs)
        if study.dry_run:
            print(budget.plan_table(costs, study))
        budget.check(costs, study)
    to_train = [run for run in record.runs if record.trained(run).result is None]
    if to_train and (few := few_steps(max(to_train, key=lambda run: run.horizon))):
        print(few)
    if study.dry_run:
        return
    taken = f"another study is under way in {study.folder}: wait for its end, or choose another --out"
    with locked(lock_of(study.folder.absolute()), taken):
        if plan is not None:
            write_json(study.folder / PLAN, plan)
        _carry_out(study, tuner, record, Work(study, {cost.run.name: cost.memory_gib for cost in costs}))


def few_steps(run: PlannedRun) -> str | None:
    """A sentence where a run takes fewer steps than it should, if loss is to tell sizes apart."""
    from lrec.training import lightning_options

    if run.config.value("trainer.max_time") is not None:
        return None
    return lightning_options.few_steps(*budget.limits(run.config), run.open_data())


def _carry_out(study: Study, tuner: Tuner | None, record: Record, work: "Work") -> None:
    tuned = None
    if tuner is not None:
        tuned = _tune(tuner, work)
        study = tuned.applied_to(study)
        record = Record(study, planned_runs(study))
    runs = record.enter(study.restart, study.skip)
    record.check_data(runs)
    work.train(record, [run for run in runs if not run.held_out], "fitted")
    ladders, unfit = list[LadderFit](), dict[str, str]()
    for ladder, mine in by_ladder(runs).items() if study.law is not None else ():
        fitted = counted(sum(not run.held_out for run in mine), "run")
        print(f"fitting {fitted}{ladder and f' of {ladder}'}", flush=True)
        try:
            ladders.append(fit_ladder(study, mine, runs))
        except UserError as error:  # too few of its runs did not diverge
            unfit[ladder] = str(error)
    runs = [run for run in runs if not (run.held_out and run.ladder in unfit)]
    if study.holdout and ladders:
        if late := work.too_long(record, [run for run in runs if run.held_out]):
            print(f"left out, as they would take more than --hours {study.hours:g}: {', '.join(late)}", flush=True)
            runs = [run for run in runs if run.name not in late]
        write_prediction(study.folder, ladders, runs)
        work.train(record, [run for run in runs if run.held_out], "held out")
    print("writing the report", flush=True)
    report = write_report(study.folder, study.name, runs, ladders, unfit, tuned, study)
    print(f"{on_terminal(report, study.folder)}\n\n{study.folder / 'report.html'}")
    if unfit and not ladders:
        raise UserError(next(iter(unfit.values())))


def _tune(tuner: Tuner, work: "Work") -> Tuned:
    known = {run.name: run for run in tuner.runs_so_far}

    def train(runs: list[PlannedRun]) -> None:
        names = {run.name for run in runs}
        known.update({run.name: run for run in runs})
        record = Record(tuner.study_of_trials, list(known.values()))
        entered = record.enter(names & set(work.study.restart), ())
        record.check_data(entered)
        work.train(record, [run for run in entered if run.name in names], "trial")

    tuned = tuner.kept or tuner.tune(train)
    tuner.keep(tuned)
    return tuned


class Work:
    """Trains the runs of a record, here or on a cluster, and says on the terminal what became of each."""

    def __init__(self, study: Study, memory_gib: dict[str, float]) -> None:
        self.study, self.memory_gib = study, memory_gib
        self.records: dict[Path, Record] = {}  # by folder, the latest
        self.interrupted = False
        self._began, self._slower = time.monotonic(), 1.0  # what runs took, as a share of what was expected

    def train(self, record: Record, runs: list[PlannedRun], kind: str) -> None:
        """Train what is not finished; UserError where a run failed or was stopped; exit 75 on a signal."""
        self.records[record.folder] = record
        known = [(run, outcome) for run in runs if (outcome := outcome_of(record.trained(run))) is not None]
        finished = [run for run, _ in known]
        left_s, spent_s, of_s = self._expected(record, [run for run in runs if run not in finished]), 0.0, 0.0
        done, failed = 0, list[str]()
        for run, outcome in chain(known, self._start(record, [run for run in runs if run not in finished])):
            record.note(run, outcome)
            became = outcome.status
            if (point := outcome.point) is not None:
                done += 1
                losses = {"test loss": point.test_loss, "val loss": point.val_loss}  # a trial is not tested
                found = [f"{name} {loss:.4f}" for name, loss in losses.items() if loss is not None]
                loss = "diverged" if point.diverged else found[0]
                became = f"{loss}, {point.wall_s:.0f} s"
            if (expected_s := left_s.pop(run.name, None)) is not None and outcome.point is not None:
                spent_s, of_s = spent_s + outcome.point.wall_s, of_s + expected_s
                self._slower = spent_s / of_s
                if left_s:
                    became += f"; the others about {lasting(self._slower * sum(left_s.values()) / self.study.jobs)}"
            print(f"[{done}/{len(runs)} {kind}] {run.name}: {became}", flush=True)
            if outcome.status == "failed":
                failed.append(f"run {run.name} failed: {outcome.reason}")
        if failed:
            more = f"; so did {len(failed) - 1} more, see {record.path}" if len(failed) > 1 else ""
            raise UserError(f"{failed[0]}{more}. Start the study again to retry, or leave runs out with --skip")
        if done < len(runs):
            left = f"not finished: {len(runs) - done} of {counted(len(runs), 'run')}; start the study again to continue"
            if self.interrupted:
                print(f"lrec: interrupted: {left}", file=sys.stderr)
                sys.exit(TRY_AGAIN)
            why = f"--budget_hours {self.study.budget_hours:g} are spent" if self._budget_is_spent() else "told to stop"
            raise UserError(f"{why}: {left}")

    def _expected(self, record: Record, runs: list[PlannedRun]) -> dict[str, float]:
        """Seconds that runs are expected to take, where the study has so many hours."""
        if self.study.hours is None:
            return {}
        return {cost.run.name: 3600 * cost.hours / self.study.threads for cost in budget.plan(record.study, runs)}

    def too_long(self, record: Record, runs: list[PlannedRun]) -> list[str]:
        """Names of the largest of the runs that the study's hours do not allow any more."""
        expected, late = (
            self._expected(record, [run for run in runs if record.trained(run).result is None]),
            list[str](),
        )
        allowed_s = LATEST * 3600 * (self.study.hours or 0) - (time.monotonic() - self._began)
        while (
            expected
            and self._slower * max(max(expected.values()), sum(expected.values()) / self.study.jobs) > allowed_s
        ):
            late.append(max(expected, key=expected.__getitem__))
            del expected[late[-1]]
        return late

    def _start(self, record: Record, runs: list[PlannedRun]) -> Iterator[tuple[PlannedRun, Outcome]]:
        live = Live(runs, record.folder)
        if not self.study.is_here:
            for ended in train_on_cluster(record.study, runs, live.show):
                live.clear()
                yield ended
            return
        carry_out = as_local_jobs(record.study) if self.study.cluster else None

        def watch() -> bool:
            live.show()
            return not (self.interrupted or self._budget_is_spent())

        with on_signals(self._note_interruption):
            for ended in train(record.study, runs, self.memory_gib, watch, carry_out):
                live.clear()
                yield ended
        live.clear()

    def _note_interruption(self, *_: object) -> None:
        self.interrupted = True  # for the runs too: `watch` passes it on

    def _budget_is_spent(self) -> bool:
        if self.study.budget_hours is None:
            return False
        hours = (budget.spent_hours(each.study, each.runs) for each in self.records.values())
        return sum(hours) >= self.study.budget_hours
