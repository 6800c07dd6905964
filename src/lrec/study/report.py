"""Writes the results of a study: report.html, report.md, fit.json, and figures, which TensorBoard shows too."""

import math
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import polars as pl
from scipy.stats import ttest_1samp

from lrec.common.files import read_json, write_text
from lrec.common.pages import as_html, rendered, within_a_page
from lrec.common.pictures import alt_text, save_figure, show_text
from lrec.common.text_tables import rows_table
from lrec.evaluation.standard_errors import paired
from lrec.laws.analysis import Analysis, doublings
from lrec.laws.figures import fit_figure
from lrec.laws.fit_json import of_ten, table, write_fit
from lrec.laws.forecast import Forecast
from lrec.laws.predict import compare
from lrec.run import Point, run_of_study
from lrec.study.answer import Answer, answer_of, metric_of
from lrec.study.dial import as_text
from lrec.study.figures import answer_figure, compute_figure, iso_flop_figure, repetition_figure
from lrec.study.grid import PlannedRun, of_all_data
from lrec.study.options import PLAN, STEP, Study
from lrec.study.points import read_points, read_target_losses
from lrec.study.prediction import LadderFit, by_ladder
from lrec.study.tuning import LR, Tuned

# Names of lrec's own metrics, of baselines and of validation. All other metrics are the user's own.
LRECS = r".*/|(HR|NDCG|MRR|coverage|popularity|(micro_)?recall|precision|MAP)@\d+(_\w+)?$|(loss(_se)?|targets\w*)$"
COLUMNS = ("HR@10", "NDCG@10", "HR@10_unseen", "NDCG@10_unseen")
VARIANTS = {"test loss": "test/loss", "NDCG@10": "test/NDCG@10", "NDCG@10_unseen": "test/NDCG@10_unseen"}
CONFIDENCE = 0.95
MISTUNED = 0.02  # nats that a wrong rate or step may cost without a warning
OUT_OF_LINE = 0.08  # nats above the line through a size's neighbours; ladders tuned by hand have up to 0.08 (go, decks)
COUNTING = ("markov", "item-graph")  # baselines that count which item follows which


def write_report(
    study: Study,
    runs: list[PlannedRun],
    ladders: list[LadderFit],
    unfit: Mapping[str, str],
    tuned: Tuned | None = None,
    ngrams: Mapping[str, float] = {},
    late: Sequence[str] = (),
) -> str:
    """Compare the predictions with the large runs, write everything into the study's folder, and return report.md.
    Except for times, a study that was interrupted ends with the same report as one that was not.

    `unfit` has the reason for each ladder without a law, `ngrams` the test loss of each n-gram model, and `late` the
    large runs for which there was no time.
    """
    out = study.folder
    points = {run.name: run_of_study(out, run.name).result or Point() for run in runs}
    mistuned, of_tuning = _tuning(runs, tuned) if tuned else ([], [])
    diverged = [run.name for run in runs if points[run.name].diverged]
    warned = [f"**Diverged and left out: {', '.join(diverged)}.** A lower {LR} may help."] if diverged else []
    warned += [*_under_trained(runs, points, ngrams, tuned is not None), *_out_of_line(runs, points), *mistuned]
    if late:
        again = f"they would take more than --hours {study.hours:g}. Start the same study again to train them."
        warned.append(f"**Not trained: {', '.join(late)}**, as {again}")
    sections = ["## Plan", as_text(plan)] if (plan := read_json(out / PLAN)) else []
    sections += [*of_tuning, *variants_table(runs, points)]
    for folder in ("fit", "figures"):  # some may be of ladders and variants that the study no longer has
        shutil.rmtree(out / folder, ignore_errors=True)
    sections += _figures(out, runs, points)
    laws, answers = {ladder.name: ladder for ladder in ladders}, list[tuple[float, Answer, Analysis]]()
    for ladder, mine in by_ladder(runs).items():
        longest, floor = of_all_data(mine), (points[mine[0].name].floor or {}).get("test")
        sections += [f"## {ladder or 'Runs'}", _runs_table(mine, points), _findings(longest, points, floor)]
        if ngrams and longest[0] == of_all_data(runs)[0]:
            counted = " and ".join(f"{loss:.4f} by {name}s" for name, loss in ngrams.items())
            sections.append(f"Without a network, counts of these runs' training data have a test loss of {counted}.")
        sections += _noise(out, longest, points)
        if ladder in unfit:
            sections.append(f"No law: {unfit[ladder]}")
        if ladder in laws:
            judged, analysis = _law(study, mine, points, laws[ladder], floor)
            sections += judged
            if isinstance(analysis.of_all, Forecast):
                sections += doublings(analysis.of_all, study.x)
            said = [sentence.replace("**", "") for sentence in (*warned, *judged[3:])]
            of_variant = [r for r in runs if r.variant == longest[0].variant and r.fraction <= longest[0].fraction]
            if found := answer_of(study, analysis, of_variant, points, said):
                answers.append((longest[0].fraction, found, analysis))
    metric = metric_of(points.values())
    shown, short = dict[str, Any](name=study.name, metric=metric), list[str]()
    if answers:  # of the ladders with the most data, the one whose largest network is the best, or the first of these
        _, shown["answer"], of_answer = max(answers, key=lambda each: (each[0], each[1].columns[0].value))
        short = [rendered("study", "answer.md.j2", shown | {"table": rows_table(shown["answer"].rows, text=(0,))})]
        figure = answer_figure(of_answer, metric, shown["answer"].finding)
        shown |= {"picture": within_a_page(figure), "alt": alt_text(figure)}
    report = "\n\n".join([f"# Scaling study {study.name}", *warned, *short, *sections]) + "\n"
    write_text(out / "report.md", report)
    if short:
        show_text(out / "figures" / "answer", "\n\n".join([*warned, *short]))
    no_answer = "no law was fitted" if study.law is None else "too few sizes, or not the largest, have a hit"
    shown["reason"] = next(iter(unfit.values()), no_answer)
    shown["details"] = as_html("\n\n".join([*warned, *sections]))
    write_text(out / "report.html", rendered("study", "report.html.j2", shown))
    return report


def _under_trained(
    runs: list[PlannedRun], points: Mapping[str, Point], ngrams: Mapping[str, float], is_tuned: bool
) -> list[str]:
    """A warning if most fitted sizes have a higher loss than a counting baseline. n-grams are compared only with the
    ladder on whose data they were counted, the first, and only if its largest fitted size loses to them too: their
    tables hold more than the smallest networks can, even after long training."""
    whole = of_all_data(runs)
    counted = whole[0].ladder
    fitted = [(run.ladder, points[run.name]) for run in whole if not (run.held_out or points[run.name].diverged)]
    losing: dict[str, list[str]] = defaultdict(list)  # for each baseline, the sizes that lose most to it
    of_counted = [(point.N_body, point.test_loss or math.inf) for ladder, point in fitted if ladder == counted]
    largest = max(of_counted, default=(0, -math.inf))[1]
    ahead_of_all = {name: loss for name, loss in ngrams.items() if loss < largest}
    for ladder, point in fitted:
        losses = {name: point.metric(f"test/{name}/loss") for name in COUNTING}
        losses |= ahead_of_all if ladder == counted else {}
        ahead = {name: loss for name, loss in losses.items() if loss < (point.test_loss or 0)}
        if ahead:
            losing[min(ahead, key=ahead.__getitem__)].append(point.size)
    sizes, lost = {point.size for _, point in fitted}, set().union(*losing.values())
    if 2 * len(lost) <= len(sizes):
        return []
    whom = " and ".join(f"{name} ({', '.join(dict.fromkeys(mine))})" for name, mine in losing.items())
    steps = min(point.step for _, point in fitted)
    way_out = "" if is_tuned else ", smaller steps (data.targets_per_step) or a tuned learning rate (--tune '[lr]')"
    return [
        "**Under-trained: slopes describe training, not size.** "
        f"{len(lost)} of {len(sizes)} fitted sizes have a higher test loss than {whom}, after {steps:,} steps or more. "
        f"More targets{way_out} may help."
    ]


def _law(
    study: Study, runs: list[PlannedRun], points: Mapping[str, Point], ladder: LadderFit, floor: float | None
) -> tuple[list[str], Analysis]:
    """The prediction of a ladder, its result, and a warning if large runs were trained before the prediction."""
    out, every_point, held_out = study.folder, ladder.fit.points, None
    floor = floor if study.y == "test_loss" else None
    finished = [run for run in runs if not points[run.name].diverged]
    if any(run.held_out for run in finished):
        files = [run_of_study(out, run.name).points_file for run in finished]
        of_ladder = read_points(files, study.x, study.y, shares=isinstance(ladder.fit, Forecast))
        if "horizon" in of_ladder.columns:  # as predicted, even if early stopping ended the fitted runs sooner
            of_ladder = of_ladder.drop("d").join(every_point.select("horizon", "d").unique(), on="horizon")
        actual = of_ladder.filter(~pl.col("x").is_in(every_point["x"].implode()))
        reached = set(actual.select(ladder.fit.columns).iter_rows())
        held_out = compare(ladder.fit, [p for p in ladder.predictions if p.at in reached], actual)
        every_point = pl.concat([every_point, actual], how="diagonal")
    names = {"x": study.x, "d": "D", "u": "U", "y": study.y}
    analysis = Analysis(ladder.fit, held_out, every_point, names, floor=floor)
    folder = out / "fit" / ladder.name
    content = write_fit(folder, analysis)
    figure = fit_figure(analysis.predictor, analysis.fit, held_out, floor, study.x, study.y)
    save_figure(folder / "fit.png", figure)
    heading = f"## {content['formula'] if content['method'] == content['law'] else 'Forecast'}, {study.x}"
    sections = [heading, f"![{alt_text(figure)}]({folder.relative_to(out)}/fit.png)", table(content)]
    written = read_json(out / "prediction.json", {"trained_before": []})
    if mine := [run.name for run in runs if run.name in written["trained_before"]]:
        earlier = "; prediction-*.json are the earlier predictions" if any(out.glob("prediction-*.json")) else ""
        sections.append(f"Not a prediction: {', '.join(mine)} had been trained before it was written{earlier}.")
    return sections, analysis


def _figures(out: Path, runs: list[PlannedRun], points: Mapping[str, Point]) -> list[str]:
    """Save figures of the loss against compute, at equal compute and against epochs for each variant; return links."""
    links = []
    finished = [run for run in runs if not points[run.name].diverged]
    for variant in dict.fromkeys(run.variant for run in finished):
        every = [(run.fraction, run_of_study(out, run.name).points) for run in finished if run.variant == variant]
        most = max(fraction for fraction, _ in every)
        whole = [points_of_run for fraction, points_of_run in every if fraction == most]
        drawn = {"compute": compute_figure(whole), "iso_flop": iso_flop_figure(whole)}
        for name, figure in (drawn | {"repetition": repetition_figure([each for _, each in every])}).items():
            if figure is not None:
                path = out / "figures" / variant / f"{name}.png"
                save_figure(path, figure)
                links.append(f"![{alt_text(figure)}]({path.relative_to(out)})")
    note = "Validation losses of all evaluations. Before the end of a run, its learning rate has not fallen yet."
    return ["## Compute and repetition", note, *links] if links else []


def _tuning(runs: list[PlannedRun], tuned: Tuned) -> tuple[list[str], list[str]]:
    """A warning if the trials show that runs have a wrong learning rate. A section with the best trials, the rule and
    options that follow from them, and what the runs' rates and steps may cost."""
    rows = [["size", "targets", "trials", "lr", "targets_per_step", "dropout", "val loss"]]
    for size, targets in dict.fromkeys((trial.size, trial.targets) for trial in tuned.trials):
        trials = [trial for trial in tuned.trials if (trial.size, trial.targets) == (size, targets)]
        best = min(trials, key=lambda trial: math.inf if trial.loss is None else trial.loss)
        setting = (f"{best.setting.lr:g}", f"{best.setting.targets_per_step:,}", f"{best.setting.dropout:g}")
        rows.append([size, f"{targets:,}", str(len(trials)), *setting, f"{best.loss:.4f}"])
    chosen = [
        f"{option} = {factor:.4g} N_body^{exponent:.3g}" + "".join(f" share^{each:.3g}" for each in of_share)
        for option, (factor, exponent, *of_share) in tuned.rules.items()
    ]
    chosen += [f"{option} = {value:g}" for option, value in tuned.options.items()]
    whole = of_all_data(runs)
    worst = max(whole, key=tuned.cost)
    cost = f"These learning rates and steps are expected to cost at most {tuned.cost(worst):.3f} nats ({worst.name})."
    step, tried = worst.config.value(STEP), [trial.setting.targets_per_step for trial in tuned.trials]
    if not min(tried) <= step <= max(tried):
        had = f"trials had {min(tried):,} to {max(tried):,} targets per step, not {step:,}"
        cost += f" This cost is extrapolated: {had}."
    for size, end in tuned.at_an_end.items():
        cost += f" The best rate tried for {size} is the {end} one, so a rate beyond it may be better."
    if tuned.left_out:
        cost += f" The hours left no time for trials of {', '.join(tuned.left_out)}."
    missed = [run for run in whole if tuned.cost(run) > MISTUNED and tuned.is_off(run)]
    named = ", ".join(f"{run.name} (by {tuned.cost(run):.2f} nats)" for run in missed)
    why = "Their losses describe the rate or the step, not the size: leave them out (--skip)."
    section = ["## Tuned by validation loss", rows_table(rows, text=(0,)), f"{', '.join(chosen)}. {cost}"]
    return [f"**Mistuned: {named}.** {why}"] if missed else [], section


def _noise(out: Path, runs: list[PlannedRun], points: Mapping[str, Point]) -> list[str]:
    """Standard errors over users, and paired differences between sizes, if runs have the loss on each target."""
    losses: dict[str, list[pl.DataFrame]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: points[run.name].N_body):
        path = run_of_study(out, run.name).target_losses_file
        if not points[run.name].diverged and path.is_file():
            losses[run.size].append(read_target_losses(path))
    if len(losses) < 2:
        return []
    parts = {"test": pl.col("step") == 0}
    error = max(points[run.name].test_loss_se or 0 for run in runs)
    note = f"The standard error of a test loss, over users, is at most {error:.4f}"
    if next(iter(losses.values()))[0]["step"].max() != 0:
        parts["test and trajectory"] = pl.lit(True)
        error = max(points[run.name].trajectory_loss_se or 0 for run in runs)
        note += f"; with the targets of the trajectories, it is at most {error:.4f}"
    rows = [["step in size", *(f"difference in {part} loss" for part in parts)]]
    for small, large in pairwise(losses):
        rows.append([f"{small} to {large}"])
        for part in parts.values():
            one, other = ([table.filter(part) for table in losses[size]] for size in (small, large))
            rows[-1].append("{:+.4f} ± {:.4f}".format(*paired(one, other)))
    note += ". Each difference is computed user by user, and its standard error stands after ±."
    return [rows_table(rows, text=(0,)), note]


def _runs_table(runs: list[PlannedRun], points: Mapping[str, Point]) -> str:
    mine = [points[run.name] for run in runs]
    extra = ["with trajectory"] if any(point.trajectory_loss is not None for point in mine) else []
    names = dict.fromkeys(name.removeprefix("test/") for point in mine for name in point.metrics)
    own = [name for name in names if not re.match(LRECS, name) and not name.endswith("_se")]
    columns = (*COLUMNS, *of_ten(own))
    rows = [["size", "seed", "N_body", "D", "epochs", "val loss", "test loss", *extra, *columns]]
    for run, point in zip(runs, mine, strict=True):
        size = run.size + (" (held out)" if run.held_out else "")
        row = [size, str(run.seed), f"{point.N_body:,}", f"{point.D:,}", f"{point.epochs:.2f}"]
        losses = [point.val_loss, point.test_loss, *([point.trajectory_loss] if extra else [])]
        row += ["" if loss is None else f"{loss:.4f}" for loss in losses]
        row += [f"{point.metric(f'test/{column}'):.4f}" for column in columns]
        rows.append([*row[:5], "diverged", *[""] * len(row[6:])] if point.diverged else row)
    if finished := [point for point in mine if not point.diverged]:
        point = finished[0]  # all have the same baselines
        found = (re.fullmatch("test/([^/]+)/loss", name) for name in point.metrics)
        known = {name[1]: loss for name in found if name and math.isfinite(loss := point.metric(name[0]))}
        for name in dict.fromkeys(["popularity", *sorted(known, key=known.__getitem__)[:1]]):  # and the best one
            row = [name, *[""] * 5, f"{point.metric(f'test/{name}/loss'):.4f}", *[""] * len(extra)]
            rows.append(row + [f"{point.metric(f'test/{name}/{column}'):.4f}" for column in columns])
    return rows_table(rows, text=(0,))


def _findings(runs: list[PlannedRun], points: Mapping[str, Point], floor: float | None) -> str:
    """The table in words: whether the loss falls with size, the best size, and the floor."""
    means, findings = _mean_losses(runs, points), list[str]()
    if len(means) > 1:
        rises = [f"{small} to {large}" for small, large in pairwise(means) if means[large] >= means[small]]
        course = f"rises with size from {', '.join(rises)}: not monotone" if rises else "falls with every step in size"
        best = min(means, key=means.__getitem__)
        findings = [f"- The mean test loss {course}.", f"- Best size: {best}, mean test loss {means[best]:.4f}."]
    if means and floor is not None:
        below = ", ".join(run.name for run in runs if (points[run.name].test_loss or floor) < floor)
        what = f"Floor (Bayes-optimal loss on the same targets with the same context): {floor:.4f}"
        findings.append(f"- {what}; {f'below it: {below}' if below else 'every run lies above it'}.")
    return "\n".join(findings)


def _mean_losses(runs: list[PlannedRun], points: Mapping[str, Point]) -> dict[str, float]:
    """The mean test loss over the seeds of each size, in order of N_body."""
    losses: dict[str, list[float]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: points[run.name].N_body):
        if (loss := points[run.name].test_loss) is not None:
            losses[run.size].append(loss)
    return {size: mean(values) for size, values in losses.items()}


def _out_of_line(runs: list[PlannedRun], points: Mapping[str, Point]) -> list[str]:
    """A warning for each size whose loss is too high between its neighbours, in the ladders with all data."""
    warned = list[str]()
    for ladder, mine in by_ladder(of_all_data(runs)).items():
        losses, n_body = _mean_losses(mine, points), {run.size: points[run.name].N_body for run in mine}
        for small, size, large in zip(losses, [*losses][1:], [*losses][2:], strict=False):
            if not n_body[small] < n_body[size] < n_body[large]:
                continue
            # The loss above the line through the neighbours; the line is straight in ln N_body.
            place = math.log(n_body[size] / n_body[small]) / math.log(n_body[large] / n_body[small])
            excess = losses[size] - (1 - place) * losses[small] - place * losses[large]
            above = f"**Out of line: {size}**{ladder and f' of {ladder}'} is {excess:.2f} nats above its neighbours."
            if excess > OUT_OF_LINE:
                warned.append(f"{above} The cause is its seed or an option, not its size: see docs/study.md.")
    return warned


def variants_table(runs: list[PlannedRun], points: dict[str, Point]) -> list[str]:
    """A table with a row per fraction, size and variant, and the differences that exceed the noise between seeds; empty
    if there is one variant. Cells are means over the seeds ± standard deviation. Differences are from the first
    variant, over the seeds that finished in both, ± standard error; a paired t-test at 95 % compares them with the
    noise. A variant of another domain has other targets, so it has no differences."""
    variants = list(dict.fromkeys(run.variant for run in runs))
    if len(variants) < 2:
        return []
    base = variants[0]
    domains = {run.variant: run.config.value("data.only_domain") for run in runs}
    finished: dict[tuple[float, str, str], dict[int, Point]] = defaultdict(dict)  # the inner key is the seed
    longest = max(run.horizon for run in runs)
    for run in runs:
        if run.horizon == longest and not points[run.name].diverged:
            finished[run.fraction, run.size, run.variant][run.seed] = points[run.name]
    titles = [title for metric in VARIANTS for title in (metric, f"against {base}")]
    rows = [["fraction", "size", "variant", "seeds", *titles]]
    compared, standing_out = 0, []
    for (fraction, size), variant in product(dict.fromkeys((run.fraction, run.size) for run in runs), variants):
        by_seed, comparable = finished[fraction, size, variant], variant != base and domains[variant] == domains[base]
        others = finished[fraction, size, base] if comparable else {}
        rows.append([f"{fraction:g}", size, variant, str(len(by_seed))])
        for title, name in VARIANTS.items():
            values = {seed: point.metric(name) for seed, point in by_seed.items()}
            differences = [value - others[seed].metric(name) for seed, value in values.items() if seed in others]
            rows[-1] += [_mean([*values.values()]), _mean(differences, "+", of_mean=True)]
            if len(differences) > 1:
                compared += 1
                if ttest_1samp(differences, 0).pvalue < 1 - CONFIDENCE:
                    standing_out.append(f"{title} of {variant} at {size} ({mean(differences):+.4f})")
    note = (
        f"Of {compared} differences from {base}, these exceed the noise between seeds (paired t-test, 95 %; "
        f"{(1 - CONFIDENCE) * compared:.1f} are expected by chance alone): {'; '.join(standing_out) or 'none'}."
    )
    if not compared:
        note = "No difference has two seeds, so none can be compared with the noise between seeds."
    return ["## Variants", rows_table(rows, text=(2,)), note]


def _mean(values: list[float], sign: str = "", of_mean: bool = False) -> str:
    """Mean ± standard deviation, or ± standard error. One value has no deviation; without values, the cell is empty."""
    if len(values) < 2:
        return "".join(f"{value:{sign}.4f}" for value in values)
    return f"{mean(values):{sign}.4f} ± {stdev(values) / (math.sqrt(len(values)) if of_mean else 1):.4f}"
