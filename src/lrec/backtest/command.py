"""`lrec backtest`: train networks at several times, test each on later windows, and report gains of size by age."""

import polars as pl

from lrec.backtest.findings import Findings, figures_of
from lrec.backtest.options import Backtest, open_store, origin_of, planned, windows_of
from lrec.backtest.report import write_report
from lrec.backtest.windows import of_baselines, of_network, tested
from lrec.common.files import check_folder, locked
from lrec.common.text_tables import on_terminal, rows_table
from lrec.data.store.store import time_text
from lrec.errors import UserError
from lrec.run import Point
from lrec.study import budget
from lrec.study.cluster import check_accelerators
from lrec.study.launch import lock_of
from lrec.study.processes import start_server
from lrec.study.record import Record
from lrec.study.status import runs_table
from lrec.study.work import Work


def backtest(options: Backtest) -> None:
    """Train at several times, test on the windows that follow, and write a report; the same command continues it.

    Args:
        options: What is trained, and when.
    """
    if not options.status:  # which may be of a backtest that only others can write to
        check_folder(options.folder, "--out")
    if not (options.dry_run or options.status or options.cluster):
        start_server()
    store, types = open_store(options)
    windows = windows_of(options, store, types)
    study, runs = planned(options, store, windows)
    study.say_what_is_replaced()
    record = Record(study, runs)
    if unknown := {*options.restart} - record.state.keys():
        raise UserError(f"--restart: {min(unknown)} is none of the backtest's runs: --status true lists them")
    check_accelerators(study, record.runs)
    if options.status:
        print(runs_table(record.runs, record.folder, record.state))
        return
    if options.dry_run:
        times = [[str(k), *(time_text(time, store.time_unit) for time in each)] for k, each in windows.items()]
        print(on_terminal(rows_table([["window", "begins", "ends"], *times])), end="\n\n")
    budget.check(study, (study, record.runs))
    if options.dry_run:
        return
    with locked(lock_of(study.folder), f"another backtest is under way in {study.folder}: wait for its end"):
        runs = record.enter(options.restart, ())
        Work(study).train(record, runs, "network")
        served = dict[tuple[str, str, int], tuple[Point, pl.DataFrame]]()
        for run in runs:
            print(f"testing {run.name}", flush=True)
            origin, trained = origin_of(run.variant), record.trained(run)
            assert trained.result is not None
            last = max(windows) if run.variant.startswith("full") else origin  # only networks trained anew age
            table = tested(trained, {k: windows[k] for k in range(origin, last + 1)}, of_network)
            served[run.variant, run.size, run.seed] = trained.result, figures_of(table)
        first = {origin_of(run.variant): record.trained(run) for run in reversed(runs)}
        beside = {k: figures_of(tested(first[k], {k: windows[k]}, of_baselines)) for k in sorted(first)}
        print("writing the report", flush=True)
        report = write_report(store, windows, Findings(options, served), beside)
    print(f"{on_terminal(report, study.folder)}\n\n{study.folder / 'report.html'}")
