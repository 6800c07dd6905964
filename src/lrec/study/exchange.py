"""`lrec scaling exchange`: what to change next. It compares single changes of a finished study, called steps, in
equivalent parameters and in hours: twice the users, a longer history, more passes, times, or another loss.

Each step is trained at one size of the ladder, and compared with the study's own runs of that size, target by target.
The result of two steps together is predicted, and the prediction is written, before any such pair is trained.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrec.common.files import check_folder, locked, read_json, sibling, undamaged, write_json, write_text
from lrec.common.pages import rendered
from lrec.common.pictures import alt_text, save_figure
from lrec.common.text_tables import counted, on_terminal
from lrec.errors import UserError
from lrec.evaluation.standard_errors import paired
from lrec.laws.equivalents import REACH, Worth, noise_of
from lrec.run import dotted, run_of_study
from lrec.study import budget
from lrec.study.figures import exchange_figure
from lrec.study.grid import PlannedRun
from lrec.study.launch import lock_of
from lrec.study.options import Study, ladder_n_body
from lrec.study.processes import start_server
from lrec.study.record import Record
from lrec.study.steps import SIZE, Ladder, Options
from lrec.study.work import Work

AGAIN = "again"  # the step that only changes the seed: it shows the noise, and how fast this machine is now
BEYOND = {math.inf: "more than shown", 0.0: "less than shown"}
LEAST_HOURS = 0.05  # least additional time of a step, as a share of the base's: less cannot be measured


class Priced(NamedTuple):
    """A step and its results. The results of a step that only changes the size come from the ladder."""

    options: Options
    gain: float  # nats
    half: float  # half of the 90 % interval of the gain
    worth: Worth
    hours: float  # of the clock
    hours_more: float  # than the base
    hours_by_size: float  # more than the base, of the size with the same loss; nan if the ladder does not show it
    metric_more: float  # difference of the ladder's metric from the base


def exchange(
    study: Path,
    steps: dict[str, dict[str, Any]] | None = None,
    size: str | None = None,
    combine: tuple[str, ...] = (),
    out: Path | None = None,
    jobs: int = 1,
    cores: int | None = None,
    budget_hours: float | None = None,
    dry_run: bool = False,
) -> None:
    """Compare what single changes of a study gain and cost: more parameters, users, history or passes, another loss.

    Args:
        study: Folder of a finished study, with its runs.
        steps: The changes: for each name, its options of lrec fit, as in {time: {model.architecture.time: past}}. By
            default about twice the parameters, twice the users (if the study trained on a share of them), twice the
            history, twice the passes, times if the data have them, and the loss NextItems if runs make several passes.
        size: Size of the ladder at which the steps are trained; by default the largest fitted size.
        combine: Steps to train together after their prediction is written, joined by +, as in [time+passes x2].
        out: Folder of the results; by default STUDY-exchange.
        jobs: Number of runs at the same time, each with an equal share of the cores.
        cores: Cores for all runs together; by default all cores.
        budget_hours: Hours of a core or of a GPU; if the runs may take more, none starts.
        dry_run: Print the runs with their hours, memory and disk, and stop.
    """
    folder = out or sibling(study, "exchange")
    check_folder(folder, "--out")
    if folder.resolve() == study.resolve():
        raise UserError(f"--out {folder} is the folder of the study: choose another")
    ladder = Ladder(study, size)
    chosen = ladder.offered() if steps is None else {name: dotted(options) for name, options in steps.items()}
    if wrong := [name for name in chosen if "+" in name or name == AGAIN]:
        raise UserError(f"--steps {wrong[0]!r}: the name of a step must not contain + and must not be {AGAIN}")
    least, most = ladder.sizes[0], REACH * ladder.sizes[-1]
    for name, options in chosen.items():
        if [*options] == [SIZE] and not least <= ladder_n_body(options[SIZE]) <= most:
            reach = f"the ladder tells the loss of sizes from {least:,.0f} to {most:,.0f} parameters only"
            raise UserError(f"--steps {name!r}: {reach}: choose another {SIZE}")
    seed = 100 + max(run.seed for run in ladder.runs)
    alone = {AGAIN: ladder.planned(AGAIN, {"seed_everything": seed, "data.seed": seed})[:1]}
    alone |= {name: ladder.planned(name, options) for name, options in chosen.items() if [*options] != [SIZE]}
    judged = _judged(folder, ladder, chosen)
    named = {frozenset(name.split("+")): name for name in (*combine, *judged)}.values()  # its steps have any order
    together = judged | {name: ladder.planned(name, _joined(name, chosen)) for name in named if name not in judged}
    runs = [run for planned in (*alone.values(), *together.values()) for run in planned]
    if len({run.name for run in runs}) < len(runs):
        raise UserError("--steps, --combine: two are the same, or their names differ only in signs: name others")
    ladder.check_targets(runs)
    of_runs: dict[str, Any] = {"jobs": jobs, "cores": cores, "budget_hours": budget_hours, "dry_run": dry_run}
    of_steps = Study(folder.name, out=folder, sizes=[ladder.size], holdout=0, law=None, fractions=(1.0,), **of_runs)
    record = Record(of_steps, runs)
    budget.check(of_steps, (of_steps, record.runs))
    if dry_run:
        return
    start_server()
    with locked(lock_of(folder), f"another lrec scaling exchange is under way in {folder}: wait for it"):
        record.enter(None, ())
        work = Work(of_steps)
        work.train(record, [run for run in record.runs if run.variant in alone], "steps")
        rates = Rates(ladder, chosen, folder, alone)
        report = _write(rates, judged)  # with predictions for the combinations that are trained next
        if len(together) > len(judged):
            work.train(record, [run for run in record.runs if run.variant in together], "combinations")
            report = _write(rates, together)
        print(f"{on_terminal(report, folder)}\n\n{folder / 'exchange.md'}")


def _joined(name: str, steps: Mapping[str, Options]) -> dict[str, Any]:
    """The options of several steps together; UserError if a step is unknown, or if two change the same option."""
    parts = name.split("+")
    if unknown := [part for part in parts if part not in steps]:
        raise UserError(f"--combine {name}: {unknown[0]!r} is none of the steps: {', '.join(steps)}")
    joined = {option: value for part in parts for option, value in steps[part].items()}
    if len(joined) < sum(len(steps[part]) for part in parts):
        raise UserError(f"--combine {name}: two of them change the same option")
    return joined


def _judged(folder: Path, ladder: Ladder, steps: Mapping[str, Options]) -> dict[str, list[PlannedRun]]:
    """The runs of combinations that an earlier call trained with the same steps, and whose losses are still there."""
    with undamaged(file := folder / "exchange.json"):
        earlier = read_json(file) or {}
        if (earlier.get("study"), earlier.get("size")) != (ladder.name, ladder.size):
            return {}
        same = {name for name, step in earlier["steps"].items() if step["options"] == steps.get(name)}
        trained = [name for name, each in earlier["combinations"].items() if "actual" in each]
    names = [name for name in trained if {*name.split("+")} <= same]
    planned = {name: ladder.planned(name, _joined(name, steps)) for name in names}
    files = {name: [run_of_study(folder, run.name).target_losses_file for run in planned[name]] for name in names}
    return {name: planned[name] for name in names if all(file.is_file() for file in files[name])}


class Rates:
    """What each step is worth at a size, and what several are expected to be worth together."""

    def __init__(
        self, ladder: Ladder, steps: Mapping[str, Options], folder: Path, trained: Mapping[str, list[PlannedRun]]
    ) -> None:
        self.ladder, self.folder = ladder, folder
        self.base, again = ladder.results[ladder.size], ladder.results_of(folder, trained[AGAIN])
        self.loss, self.hours = self.base.loss, again.hours
        alike = {size: results.loss_R for size, results in ladder.results.items()}
        alike[ladder.size] = np.concatenate([self.base.loss_R, again.loss_R])
        self.noise = noise_of([loss_R.tolist() for loss_R in alike.values()])
        priced = {name: self._priced(options, trained.get(name)) for name, options in steps.items()}
        by_nats_an_hour = sorted(priced.items(), key=lambda step: -step[1].gain / step[1].hours_more)
        self.steps = dict(by_nats_an_hour)

    @property
    def cheapest(self) -> str | None:
        """The step with the most nats per hour, among those whose gain has its whole 90 % interval above zero."""
        return next((name for name, step in self.steps.items() if step.gain > step.half), None)

    def _priced(self, options: Options, runs: Sequence[PlannedRun] | None) -> Priced:
        """The results of a step's runs; without runs, those that the ladder has for another size."""
        n_body, curve = self.ladder.n_body, self.ladder.curve
        if runs is None:
            x = float(ladder_n_body(options[SIZE]))
            gain, half, times = curve.loss(n_body) - curve.loss(x), self._half(2), x / n_body
            worth = Worth(times, times, times)
            hours, trained = self.hours * self.ladder.hours_at(x), self.ladder.results.get(options[SIZE])
            metric_more = math.nan if trained is None else trained.metric - self.base.metric
        else:
            came = self.ladder.results_of(self.folder, runs)
            difference, error = paired(self.base.tables, came.tables)
            gain, half = -difference, self._half(2 / len(runs), error)
            worth = curve.worth(n_body, curve.loss(n_body) + difference, half)
            hours, metric_more = came.hours, came.metric - self.base.metric
        shown = 0 < worth.times < math.inf
        by_size = self.hours * (self.ladder.hours_at(worth.times * n_body) - 1) if shown else math.nan
        more = max(hours - self.hours, LEAST_HOURS * self.hours)
        return Priced(options, gain, half, worth, hours, more, by_size, metric_more)

    def _half(self, runs: float, error: float = 0.0) -> float:
        """Half of a 90 % interval, from `runs` times the variance of the seed's noise, and from a standard error."""
        return self.noise.quantile * math.hypot(error, math.sqrt(runs) * self.noise.sd * self.loss)

    def expected(self, name: str) -> dict[str, float]:
        """The expected loss, with its 90 % interval, and hours of a new run with several steps; nothing if these, or
        one of them, are worth more, or less, than the ladder shows."""
        steps, n_body, curve = [self.steps[part] for part in name.split("+")], self.ladder.n_body, self.ladder.curve
        worth = curve.together(n_body, [step.worth for step in steps])
        if not all(0 < each.times < math.inf for each in (worth, *(step.worth for step in steps))):
            return {}
        middle, most, least = (self.loss + curve.loss(n_body * each) - curve.loss(n_body) for each in worth)
        noise, hours = self._half(1), self.hours * math.prod(step.hours / self.hours for step in steps)
        return {"times": worth.times, "predicted": middle, "low": least - noise, "high": most + noise, "hours": hours}

    def combined(self, together: Mapping[str, list[PlannedRun]]) -> dict[str, dict[str, float]]:
        """The prediction for every two steps, and the results of the steps that were trained together."""
        options = {name: step.options.keys() for name, step in self.steps.items()}
        pairs = [each for each in combinations(options, 2) if options[each[0]].isdisjoint(options[each[1]])]
        trained = {frozenset(name.split("+")): name for name in together}  # the steps of a name have any order
        apart = [trained.get(frozenset(pair), "+".join(pair)) for pair in pairs]
        found = {name: self.expected(name) for name in dict.fromkeys([*apart, *together])}
        for name, runs in together.items():
            came, each = self.ladder.results_of(self.folder, runs), found[name]
            each |= {"actual": came.loss, "took": came.hours}
            if "predicted" in each:
                inside = each["low"] <= came.loss <= each["high"]
                each |= {"error_pct": 100 * (each["predicted"] / came.loss - 1), "inside": inside}
        return found


def _write(rates: Rates, together: Mapping[str, list[PlannedRun]]) -> str:
    """Write exchange.json, exchange.png and exchange.md; return the text of exchange.md."""
    ladder, base = rates.ladder, rates.base
    steps = {name: step._asdict() | {"worth": step.worth._asdict()} for name, step in rates.steps.items()}
    content: dict[str, Any] = {"study": ladder.name, "size": ladder.size, "N_body": ladder.n_body}
    content |= {"targets": len(base.tables[0]), "loss": base.loss, "hours": rates.hours}
    content |= {"metric": ladder.metric, ladder.metric: base.metric}
    content |= {"noise": rates.noise._asdict(), "steps": steps, "cheapest": rates.cheapest}
    content["combinations"] = rates.combined(together)
    write_json(rates.folder / "exchange.json", content)
    finding = "No step has a gain that is surely above zero: buy none of them"
    if rates.cheapest is not None:
        gain, hours = rates.steps[rates.cheapest].gain, float(f"{rates.steps[rates.cheapest].hours_more:.2g}")
        finding = f"Buy {rates.cheapest} next: {gain:.3f} nats for {counted(hours, 'hour')}"
    figure = exchange_figure({name: step.worth for name, step in rates.steps.items()}, finding, rates.cheapest)
    save_figure(rates.folder / "exchange.png", figure)
    shown = {"found": content, "finding": finding, "alt": alt_text(figure)}
    report = rendered("study", "exchange.md.j2", shown, times=lambda n: BEYOND.get(n, f"{n:.3g}"))
    write_text(rates.folder / "exchange.md", report)
    return report
