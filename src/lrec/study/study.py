"""A scaling study: train the small sizes, fit a law, write the prediction, then train the large sizes, and compare.

If a study is started again, it continues where it stopped: finished runs are kept, unfinished runs are resumed. If its
grid is larger now, only the new runs are trained.
"""

from contextlib import suppress

from lrec.common.files import check_folder, locked, write_json
from lrec.common.text_tables import counted, on_terminal
from lrec.errors import UserError
from lrec.study import budget
from lrec.study.cluster import check_accelerators
from lrec.study.dial import as_text, plan_of, with_plan
from lrec.study.grid import limits, of_all_data, planned_runs
from lrec.study.launch import lock_of
from lrec.study.options import PLAN, Study
from lrec.study.prediction import LadderFit, by_ladder, fit_ladder, write_prediction
from lrec.study.processes import start_server
from lrec.study.record import Record
from lrec.study.report import write_report
from lrec.study.status import runs_table
from lrec.study.tuning import Tuner
from lrec.study.work import Work


def run_study(study: Study) -> None:
    """Train a ladder of sizes, fit a law to the small ones and predict the large ones before they are trained.

    Args:
        study: What is trained, and how.
    """
    if not study.status:  # which may be of a study that only others can write to
        check_folder(study.folder, "--out")
    if not (study.dry_run or study.status or study.cluster):
        start_server()
    study.say_what_is_replaced()
    plan = plan_of(study) if study.sizes is None else None
    if plan is not None:
        print(as_text(plan), flush=True)
        study = with_plan(study, plan)
    if others := {*study.size_options, *study.size_seeds} - {*study.ladder}:
        print(f"not used: --size_options and --size_seeds of {', '.join(sorted(others))}, which --sizes does not name")
    record = Record(study, planned_runs(study))
    tuner = Tuner(study) if study.tune else None
    trials = tuner.runs_so_far if tuner else []
    if unknown := ({*study.restart} - {run.name for run in trials} | {*study.skip}) - record.state.keys():
        raise UserError(f"{min(unknown)} is none of the study's runs: --status true lists them")
    if both := {*study.restart} & {*study.skip}:
        raise UserError(f"{min(both)} is named by --restart and by --skip, which would only remove it: name it once")
    check_accelerators(study, [*trials, *record.runs])
    if study.status:
        if tuner and trials:
            print(runs_table(trials, tuner.study_of_trials.folder / "runs", {}), end="\n\n")
        print(runs_table(record.runs, record.folder, record.state))
        return
    of_trials = [(tuner.study_of_trials, trials if tuner.kept else tuner.first_runs)] if tuner else []
    runs = [run for run in record.runs if run.name not in study.skip]
    if all(run.held_out for run in runs):
        raise UserError("no run of a fitted size is left: skip fewer runs")
    budget.check(study, *of_trials, (study, runs))
    to_train = [run for run in runs if record.trained(run).result is None]
    if to_train and "targets_per_step" not in study.tune:
        from lrec.training.lightning_options import few_steps

        longest = max(to_train, key=lambda run: run.horizon)
        timed = longest.config.value("trainer.max_time") is not None
        if not timed and (few := few_steps(*limits(longest.config), longest.open_data())):
            print(few)
    if study.dry_run:
        return
    taken = f"another study is under way in {study.folder}: wait for its end, or choose another --out"
    work = Work(study)
    with locked(lock_of(study.folder), taken), work.noting_signals():
        if plan is not None:
            write_json(study.folder / PLAN, plan)
        _carry_out(study, tuner, record, work)


def _carry_out(study: Study, tuner: Tuner | None, record: Record, work: Work) -> None:
    tuned = tuner.tuned(work) if tuner else None
    if tuned:
        study = tuned.applied_to(study)
        record = Record(study, planned_runs(study))
    runs = record.enter(study.restart, study.skip)
    work.train(record, [run for run in runs if not run.held_out], "fitted")
    ladders, unfit = list[LadderFit](), dict[str, str]()
    for ladder, mine in by_ladder(runs).items() if study.law is not None else ():
        fitted = counted(sum(not run.held_out for run in mine), "run")
        print(f"fitting {fitted}{ladder and f' of {ladder}'}", flush=True)
        try:
            ladders.append(fit_ladder(study, mine, runs))
        except UserError as error:  # too many of its runs diverged
            unfit[ladder] = str(error)
    runs = [run for run in runs if not (run.held_out and run.ladder in unfit)]
    late = list[str]()
    if study.holdout and ladders:
        write_prediction(study, ladders, runs)  # also of runs that are left out now, and trained at a later start
        if late := work.too_long(record, [run for run in runs if run.held_out]):
            print(f"left out, as they would take more than --hours {study.hours:g}: {', '.join(late)}", flush=True)
            runs = [run for run in runs if run.name not in late]
        work.train(record, [run for run in runs if run.held_out], "held out")
    print("writing the report", flush=True)
    from lrec.evaluation.ngrams import losses_of_test  # imports torch

    ngrams = dict[str, float]()  # test losses of n-grams; empty if the data are gone
    with suppress(UserError):
        ngrams = losses_of_test(of_all_data(runs)[0].open_data())
    report = write_report(study, runs, ladders, unfit, tuned, ngrams, late)
    print(f"{on_terminal(report, study.folder)}\n\n{study.folder / 'report.html'}")
    if unfit and not ladders:
        raise UserError(next(iter(unfit.values())))
