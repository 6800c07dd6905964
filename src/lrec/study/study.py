"""A scaling study: train the small sizes, fit a law, write the prediction, only then train the large sizes, and judge.

Started again, a study goes on where it stopped: finished runs are kept, an unfinished one is resumed, and a larger grid
trains only what is new.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from lrec import cost
from lrec.errors import UserError
from lrec.files import write_json
from lrec.laws.fit import fit_points
from lrec.laws.forms import LAWS
from lrec.laws.points import source_hash
from lrec.laws.predict import predict
from lrec.signals import TRY_AGAIN, on_signals
from lrec.study import budget
from lrec.study.cluster import train_on_cluster
from lrec.study.grid import Grid, combined
from lrec.study.launch import Limits, Outcome, Run, finished_point, outcome_of, train
from lrec.study.points import read_points
from lrec.study.progress import LiveTable, runs_table
from lrec.study.record import Book, changed_options
from lrec.study.report import Ladder, by_ladder, write_report
from lrec.study.sweep import middle, sweep_runs, tune


def study(
    name: str,
    configs: list[str],
    sizes: list[str],
    out: Path | None = None,
    seeds: tuple[int, ...] = (1,),
    holdout_seeds: tuple[int, ...] = (1,),
    size_seeds: dict[str, tuple[int, ...]] | None = None,
    fractions: tuple[float, ...] = (1.0,),
    reduce: Literal["users", "interactions", "recent"] = "users",
    holdout: int = 2,
    options: dict[str, Any] | None = None,
    rules: dict[str, Any] | None = None,
    size_options: dict[str, dict[str, Any]] | None = None,
    variants: dict[str, dict[str, Any]] | None = None,
    starts_from: dict[str, str] | None = None,
    grid: dict[str, Any] | None = None,
    sweep: dict[str, Any] | None = None,
    sweep_sizes: list[str] | None = None,
    law: str | None = "lsrm",
    x: Literal["N_body", "N_total"] = "N_body",
    y: Literal["test_loss", "trajectory_loss"] = "test_loss",
    jobs: int = 1,
    cores: int | None = None,
    memory_gib: float | None = None,
    budget_hours: float | None = None,
    budget_disk_gib: float | None = None,
    retries: int = 0,
    skip: tuple[str, ...] = (),
    restart: tuple[str, ...] = (),
    cluster: dict[str, Any] | None = None,
    dry_run: bool = False,
    status: bool = False,
) -> None:
    """Train a ladder of sizes, fit a law to the small ones and predict the large ones before they are trained.

    Args:
        name: Name of the study.
        configs: Configuration files that every run is composed of, as for lrec fit --config.
        sizes: Entries of the ladder.
        out: Folder of the study; studies/NAME by default.
        seeds: Seeds of the fitted sizes, a run each.
        holdout_seeds: Seeds of the held-out sizes, a run each.
        size_seeds: Seeds of single sizes, in place of these.
        fractions: Shares of the training data; each has a ladder and a fit of its own.
        reduce: What a fraction is a share of; users, interactions, or the most recent part of each history.
        holdout: Number of largest sizes that are predicted instead of fitted.
        options: Options of lrec fit that all runs share, nested or by dotted name such as trainer.max_epochs.
        rules: Options that follow the size, each as [factor, exponent]: factor * N_body ** exponent, to four digits.
        size_options: Further options by size.
        variants: Further options by name of a variant; all runs are trained once in each variant, and compared.
        starts_from: Variants whose runs start from the best network of another variant's run of the same size and seed.
        grid: Lists of values of any options, such as trainer.max_epochs; each combination is a variant.
        sweep: Lists of values of options to tune: the best at each fitted size by val/loss become a rule of the size
            before anything else is trained. Its runs are a study of their own, OUT-sweep.
        sweep_sizes: Sizes that tune; all fitted ones by default.
        law: Law to fit to each fraction and variant; lsrm is L(x) = E + (x0/x)^a; none: no fit, with holdout 0.
        x: Parameters the law counts.
        y: Loss that is fitted: of the test targets, or of those and of the split's trajectories.
        jobs: Runs side by side, each with an equal share of the cores.
        cores: Cores of all runs together; all there are by default.
        memory_gib: Memory of all runs together, in GiB, as --dry_run expects it; a run waits until there is room.
        budget_hours: Hours of a core. A study that may take more does not start; once they are spent, all stops.
        budget_disk_gib: Disk, in GiB. A study that may take more does not start.
        retries: How often a run that fails is started again by itself; it goes on from its last checkpoint.
        skip: Names of runs to leave out.
        restart: Names of runs to train again from the beginning.
        cluster: Train on a cluster as an array of jobs: parameters of submitit's AutoExecutor, such as
            {timeout_min: 600, slurm_partition: gpu, gpus_per_node: 1}; {cluster: local} tries it without a cluster.
        dry_run: Print the runs with their hours, memory and disk, and stop.
        status: Print the runs with their states and losses so far, and stop.
    """
    whole = Grid(
        configs,
        sizes,
        seeds,
        holdout_seeds,
        size_seeds or {},
        fractions,
        reduce,
        holdout,
        options or {},
        rules or {},
        size_options or {},
        combined(variants or {"": {}}, grid or {}),
        starts_from or {},
    )
    limits = Limits(jobs, _cores() if cores is None else cores, memory_gib, retries)
    sweep = sweep or {}
    _check(whole, law, limits)
    out, judged_by = out or Path("studies") / name, {"law": str(law), "x": x, "y": y}
    tuning = None
    if sweep:
        sweep_out = out.with_name(f"{out.name}-sweep")
        tuning = Book(sweep_out, sweep_out.name, sweep_runs(whole, sweep, sweep_sizes), judged_by)
    planned = replace(whole, rules=whole.rules | middle(sweep))
    book = Book(out, name, planned.runs(), judged_by)
    books = [each for each in (tuning, book) if each is not None]
    _check_names([*restart, *skip], books)
    if status:
        print("\n\n".join(runs_table(each.runs, each.folder, each.state) for each in books))
        return
    costs: list[budget.Cost] = []
    if dry_run or (memory_gib, budget_hours, budget_disk_gib) != (None, None, None):
        costs = [cost for each in books for cost in budget.plan(each.runs, each.folder, limits.threads)]
        if dry_run:
            print(budget.plan_table(costs, limits))
        budget.check(costs, memory_gib, budget_hours, budget_disk_gib)
    if dry_run:
        return

    work = _Work(books, limits, {cost.run: cost.memory_gib for cost in costs}, budget_hours, cluster)
    tuned = None
    if tuning is not None:
        work.train(tuning, tuning.enter(restart, skip))
        tuned = tune(tuning.runs, tuning.folder, sweep)
        write_json(tuning.out / "rules.json", tuned._asdict())
        book = Book(out, name, replace(whole, rules=whole.rules | tuned.rules).runs(), judged_by)
    runs = book.enter(restart, skip)
    work.train(book, [run for run in runs if not run.held_out])
    ladders: list[Ladder] = []
    unfit: dict[str, str] = {}
    for ladder, mine in by_ladder(runs).items():
        if law is None:
            break
        try:
            ladders.append(_fit_ladder(out, mine, law, x, y))
        except UserError as error:  # too few of its runs did not diverge
            unfit[ladder] = str(error)
    runs = [run for run in runs if not (run.held_out and run.ladder in unfit)]
    if holdout and ladders:
        _write_prediction(out, ladders, runs)
        work.train(book, [run for run in runs if run.held_out])
    print(write_report(out, name, runs, ladders, unfit, tuned))
    if unfit and not ladders:
        raise UserError(next(iter(unfit.values())))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(grid: Grid, law: str | None, limits: Limits) -> None:
    for option, value in (("jobs", limits.jobs), ("cores", limits.cores)):
        if value < 1:
            raise UserError(f"--{option} must be at least 1, got {value}")
    if limits.retries < 0:
        raise UserError(f"--retries must be at least 0, got {limits.retries}")
    if law is None:
        if grid.holdout:
            raise UserError(f"--holdout {grid.holdout}: without a law nothing is predicted, set it to 0")
        return
    if law not in LAWS:
        raise UserError(f"--law: {law!r} is none of {', '.join(LAWS)}")
    if len(LAWS[law].variables) > 1:
        raise UserError(
            f"--law {law}: a study fits laws of the size alone; give its points to lrec scaling fit for others"
        )
    needed = len(LAWS[law].parameters) + 1
    if not 0 <= grid.holdout <= len(grid.sizes) - needed:
        raise UserError(
            f"the law {law} needs at least {needed} fitted sizes (its parameters + 1): "
            f"{len(grid.sizes)} sizes with --holdout {grid.holdout} leave {len(grid.sizes) - grid.holdout}"
        )


def _check_names(names: list[str], books: list[Book]) -> None:
    known = {run.name for book in books for run in book.runs}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"{unknown[0]} is none of the study's runs, which --status true lists")


class _Work:
    """Trains the runs of a book, here or on a cluster, and says on the terminal what became of each."""

    def __init__(
        self,
        books: list[Book],
        limits: Limits,
        memory_gib: dict[str, float],
        budget_hours: float | None,
        cluster: dict[str, Any] | None,
    ) -> None:
        self.books, self.limits, self.memory_gib = books, limits, memory_gib
        self.budget_hours, self.cluster = budget_hours, cluster
        self.interrupted = False

    def train(self, book: Book, runs: list[Run]) -> None:
        """Train what is not finished; UserError where a run failed or was stopped; exit 75 on a signal."""
        known = [(run, outcome) for run in runs if (outcome := outcome_of(book.folder / run.name)) is not None]
        finished = [run for run, _ in known]
        done = 0
        failed: list[str] = []
        for run, outcome in chain(known, self._start(book, [run for run in runs if run not in finished])):
            book.note(run, outcome)
            done += outcome.point is not None
            kind = "held out" if run.held_out else "fitted"
            print(f"[{done}/{len(runs)} {kind}] {run.name}: {_in_words(outcome)}", flush=True)
            if outcome.status == "failed":
                failed.append(f"run {run.name} failed: {outcome.reason}")
        if failed:
            more = f"; so did {len(failed) - 1} more, see {book.path}" if len(failed) > 1 else ""
            raise UserError(f"{failed[0]}{more}. Start the study again to retry, or leave runs out with --skip")
        if done < len(runs):
            left = f"{len(runs) - done} of {len(runs)} runs are not finished; start the study again to go on"
            if self.interrupted:
                print(f"lrec: interrupted: {left}", file=sys.stderr)
                sys.exit(TRY_AGAIN)
            why = f"--budget_hours {self.budget_hours:g} are spent" if self._budget_is_spent() else "told to stop"
            raise UserError(f"{why}: {left}")

    def _start(self, book: Book, runs: list[Run]) -> Iterator[tuple[Run, Outcome]]:
        if self.cluster is not None:
            yield from train_on_cluster(runs, book.folder, book.name, self.limits, self.cluster)
            return
        table = LiveTable()

        def watch() -> bool:
            table.draw(runs, book.folder)
            return not (self.interrupted or self._budget_is_spent())

        with on_signals(self._note_interruption):
            for ended in train(runs, book.folder, book.name, self.limits, self.memory_gib, watch):
                table.clear()
                yield ended
        table.clear()

    def _note_interruption(self, *_: object) -> None:
        """A signal to stop is for the runs too: `watch` passes it on."""
        self.interrupted = True

    def _budget_is_spent(self) -> bool:
        if self.budget_hours is None:
            return False
        hours = (budget.spent_hours(book.runs, book.folder, self.limits.threads) for book in self.books)
        return sum(hours) >= self.budget_hours


def _in_words(outcome: Outcome) -> str:
    if outcome.point is None:
        return outcome.status
    loss = "diverged" if outcome.point["test_loss"] is None else f"test loss {outcome.point['test_loss']:.4f}"
    return f"{loss}, {outcome.point['wall_s']:.0f} s"


def _fit_ladder(out: Path, runs: list[Run], law: str, x: str, y: str) -> Ladder:
    """Fit the small sizes of one ladder and predict its large ones; no large run is read."""
    points = read_points([out / "runs" / run.name / "points.jsonl" for run in runs if not run.held_out], x, y)
    fitted = fit_points(LAWS[law], points)
    example = finished_point(out / "runs" / next(run.name for run in runs if not run.held_out))
    assert example is not None
    large = sorted({_count(run, x, example) for run in runs if run.held_out})
    return Ladder(runs[0].ladder, x, y, source_hash(points), fitted, tuple(predict(fitted, large)) if large else ())


def _count(run: Run, x: str, example: dict[str, Any]) -> int:
    """The parameters a run will have, from its size and from the catalogue that a finished run found."""
    config = run.net_config(n_items=example["N_head"] // example["d_model"])
    return cost.n_body(config) if x == "N_body" else cost.n_total(config)


def _write_prediction(out: Path, ladders: list[Ladder], runs: list[Run]) -> None:
    """Commit to the prediction while the large runs are unread.

    One that is there for the same points and held-out runs stays. One that rests on others (the study was extended)
    is kept under a number, and the new one names the held-out runs that were trained before it.
    """
    path = out / "prediction.json"
    held_out = [run for run in runs if run.held_out]
    prediction = {
        "ladders": [
            {
                "ladder": ladder.name,
                "law": ladder.fit.law.name,
                "x": ladder.x,
                "y": ladder.y,
                "source_hash": ladder.source_hash,
                "parameters": ladder.fit.parameters,
                "predictions": [asdict(point) for point in ladder.predictions],
            }
            for ladder in ladders
        ],
        "held_out_runs": {run.name: run.options for run in held_out},
        "trained_before": [run.name for run in held_out if (out / "runs" / run.name / "points.jsonl").is_file()],
    }
    if path.is_file():
        if _same_prediction(json.loads(path.read_text(encoding="utf-8")), prediction):
            return
        number = 1 + len(list(out.glob("prediction-*.json")))
        path.rename(out / f"prediction-{number}.json")
    write_json(path, prediction)


def _same_prediction(earlier: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether they rest on the same points and are for the same runs; the last digits may differ between machines."""
    rest_on = [
        [{name: ladder[name] for name in ("ladder", "law", "x", "y", "source_hash")} for ladder in each["ladders"]]
        for each in (earlier, now)
    ]
    runs, others = now["held_out_runs"], earlier["held_out_runs"]
    return (
        rest_on[0] == rest_on[1]
        and runs.keys() == others.keys()
        and not any(changed_options(others[name], runs[name]) for name in runs)
    )
