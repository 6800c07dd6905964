"""What a study leaves behind: report.md, fit.json and figures, also in TensorBoard."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import polars as pl

from lrec.common.figures import alt_text, save_figure
from lrec.common.files import write_text
from lrec.common.text_tables import rows_table
from lrec.evaluation.standard_errors import paired
from lrec.laws.analysis import judge
from lrec.laws.figures import fit_figure
from lrec.laws.predict import compare
from lrec.laws.report import table, write_fit
from lrec.run import Point, run_of_study
from lrec.study.figures import compute_figure, iso_flop_figure, repetition_figure
from lrec.study.grid import PlannedRun
from lrec.study.points import read_points
from lrec.study.prediction import LadderFit, by_ladder
from lrec.study.sweep import Tuned
from lrec.study.variants import variants_table

# Figures of lrec's own metrics, of baselines and of validation; all others are those of the user's metrics.
LRECS = r".*/|(HR|NDCG|MRR|coverage|popularity)@\d+(_unseen)?(_se)?$|(loss|loss_se|targets\w*)$"
COLUMNS = ("HR@10", "NDCG@10", "HR@10_unseen", "NDCG@10_unseen")


def write_report(
    out: Path,
    name: str,
    runs: list[PlannedRun],
    ladders: list[LadderFit],
    unfit: Mapping[str, str],
    tuned: Tuned | None = None,
) -> str:
    """Join the predictions with the large runs' losses, write everything under `out`, and return the report.

    `unfit` says of ladders why no law could be fitted to them.

    The report holds no times, so that an interrupted study ends with the same one as an undisturbed study.
    """
    points = {run.name: run_of_study(out, run.name).result or Point() for run in runs}
    sections = [f"# Scaling study {name}"]
    if tuned is not None:
        sections.append(_tuned(tuned))
    if comparison := variants_table(runs, points):
        sections += ["## Variants", comparison]
    sections += _figures(out, runs, points)
    laws = {ladder.name: ladder for ladder in ladders}
    for ladder, mine in by_ladder(runs).items():
        sections.append(f"## {ladder or 'Runs'}")
        own = {run.name: points[run.name] for run in mine}
        sections += [_runs_table(mine, own), "\n".join(_findings(mine, own))]
        if noise := _noise(out, mine, own):
            sections.append(noise)
        if ladder in unfit:
            sections.append(f"No law: {unfit[ladder]}")
        if ladder in laws:
            sections.append(_law(out, out / "fit" / ladder, mine, own, laws[ladder]))
    report = "\n\n".join(sections) + "\n"
    write_text(out / "report.md", report)
    return report


def _law(out: Path, folder: Path, runs: list[PlannedRun], points: dict[str, Point], ladder: LadderFit) -> str:
    usable = [run for run in runs if not points[run.name].diverged]
    files = {run.name: run_of_study(out, run.name).points_file for run in usable}
    held_out = None
    if large := [files[run.name] for run in usable if run.held_out]:
        actual = read_points(large, ladder.x, ladder.y, shares=True).drop("wall_s", strict=False)
        reached = set(actual["x"].to_list())
        held_out = compare(ladder.fit, [p for p in ladder.predictions if p.x in reached], actual)
    fitted = ladder.fit.points
    every_point = fitted if held_out is None else pl.concat([fitted, actual], how="diagonal")
    analysis = judge(ladder.fit, held_out, every_point, {"x": ladder.x, "u": "U", "y": ladder.y})
    content = write_fit(folder, analysis)
    floor = _floor(points) if ladder.y == "test_loss" else None
    figure = fit_figure(analysis.predictor, analysis.fit, held_out, floor, ladder.x, ladder.y)
    save_figure(folder / "fit.png", figure)
    return "\n\n".join(
        [
            f"## {content['formula'] if content['method'] == content['law'] else 'Forecast'}, {ladder.x}",
            f"![{alt_text(figure)}]({folder.relative_to(out)}/fit.png)",
            table(content),
            *_trained_before(out, [run.name for run in runs]),
        ]
    )


def _floor(points: dict[str, Point]) -> float | None:
    floor: float | None = (next(iter(points.values())).floor or {}).get("test")
    return floor


def _figures(out: Path, runs: list[PlannedRun], points: Mapping[str, Point]) -> list[str]:
    """Loss against compute, at equal compute and against epochs, for each variant; links to them."""
    links = []
    for variant in dict.fromkeys(run.variant for run in runs):
        mine = [run for run in runs if run.variant == variant and not points[run.name].diverged]
        if not mine:
            continue
        every = [run_of_study(out, run.name).points for run in mine]
        most = max(run.fraction for run in mine)
        whole = [evaluations for run, evaluations in zip(mine, every, strict=True) if run.fraction == most]
        folder = out / "figures" / variant
        drawn = {
            "compute": compute_figure(whole),
            "iso_flop": iso_flop_figure(whole),
            "repetition": repetition_figure(every),
        }
        for name, figure in drawn.items():
            if figure is not None:
                save_figure(folder / f"{name}.png", figure)
                links.append(f"![{alt_text(figure)}]({(folder / name).relative_to(out)}.png)")
    note = "Validation losses of all evaluations; those within a run come before its learning rate has fallen."
    return ["## Compute and repetition", note, *links] if links else []


def _tuned(tuned: Tuned) -> str:
    """What was tuned on the fitted sizes, and the rules that all sizes follow."""
    options = list(tuned.rules)
    rows = [["size", *options, "val loss"]]
    for size, best in tuned.best.items():
        rows.append([size, *(f"{best[o]:g}" for o in options), f"{best['val/loss']:.4f}"])
    table = rows_table(rows, text=(0,))
    rules = [f"- {o} = {factor:.4g} N_body^{exponent:.4g}" for o, (factor, exponent) in tuned.rules.items()]
    return "\n".join(["## Tuned by validation loss", "", table, "", *rules, *(f"- Warning: {e}." for e in tuned.edges)])


def _trained_before(out: Path, names: list[str]) -> list[str]:
    """A warning where the prediction in force is none."""
    path = out / "prediction.json"
    trained = json.loads(path.read_text(encoding="utf-8"))["trained_before"] if path.is_file() else []
    mine = [name for name in trained if name in names]
    if not mine:
        return []
    earlier = "; prediction-*.json are what was written before" if any(out.glob("prediction-*.json")) else ""
    return [f"Not a prediction: when it was written, {', '.join(mine)} had been trained{earlier}."]


def _noise(out: Path, runs: list[PlannedRun], points: dict[str, Point]) -> str:
    """Standard errors over users, and every step in size paired over them, where runs have losses by target."""
    losses: dict[str, list[pl.DataFrame]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: points[run.name].N_body):
        path = run_of_study(out, run.name).target_losses_file
        if not points[run.name].diverged and path.is_file():
            losses[run.size].append(pl.read_parquet(path, glob=False))
    if len(losses) < 2:
        return ""
    with_trajectory = next(iter(losses.values()))[0]["step"].max() != 0
    parts = {"test": pl.col("step") == 0} | ({"test and trajectory": pl.lit(True)} if with_trajectory else {})
    head = ["step in size", *(f"difference in {part} loss" for part in parts)]
    rows = [head]
    for small, large in pairwise(losses):
        cells = [f"{small} to {large}"]
        for chosen in parts.values():
            sides = ([table.filter(chosen) for table in losses[size]] for size in (small, large))
            cells.append("{:+.4f} ± {:.4f}".format(*paired(*sides)))
        rows.append(cells)
    own = [points[run.name] for run in runs]
    error = max(point.test_loss_se for point in own if point.test_loss_se is not None)
    note = f"A test loss has a standard error of {error:.4f} at most, users being drawn"
    if with_trajectory:
        error = max(point.trajectory_loss_se for point in own if point.trajectory_loss_se is not None)
        note += f"; with the trajectories' targets, {error:.4f}"
    return "\n".join(
        [
            rows_table(rows, text=(0,)),
            "",
            f"{note}. Differences are paired over users, ± their standard error.",
        ]
    )


def _runs_table(runs: list[PlannedRun], points: dict[str, Point]) -> str:
    with_trajectory = any(point.trajectory_loss is not None for point in points.values())
    extra = ["with trajectory"] if with_trajectory else []
    columns = (*COLUMNS, *_own_metrics(points))
    rows = [["size", "seed", "N_body", "D", "epochs", "val loss", "test loss", *extra, *columns]]
    for run in runs:
        point = points[run.name]
        size = run.size + (" (held out)" if run.held_out else "")
        cells = [size, str(run.seed), f"{point.N_body:,}", f"{point.D:,}", f"{point.epochs:.2f}"]
        if point.diverged:
            cells += ["diverged"] + [""] * (len(columns) + len(extra) + 1)
        else:
            losses = [point.val_loss, point.test_loss, *([point.trajectory_loss] if extra else [])]
            cells += ["" if loss is None else f"{loss:.4f}" for loss in losses]
            cells += [f"{point.metric(f'test/{column}'):.4f}" for column in columns]
        rows.append(cells)
    tested = next((point for point in points.values() if not point.diverged), None)
    if tested is not None:
        cells = ["popularity", "", "", "", "", "", f"{tested.metric('test/popularity/loss'):.4f}", *([""] * len(extra))]
        rows.append(cells + [f"{tested.metric(f'test/popularity/{column}'):.4f}" for column in columns])
    return rows_table(rows, text=(0,))


def _own_metrics(points: dict[str, Point]) -> list[str]:
    """The figures of the user's metrics that the runs were tested with; of several k, those of 10."""
    tested = dict.fromkeys(name.removeprefix("test/") for point in points.values() for name in point.metrics)
    own = [name for name in tested if not re.match(LRECS, name) and not name.endswith("_se")]
    return [name for name in own if "@" not in name or name.removesuffix("_unseen").endswith("@10")]


def _findings(runs: list[PlannedRun], points: dict[str, Point]) -> list[str]:
    """What the table says, in words: monotone or not, the best size, over-fitting, the floor."""
    losses: dict[int, list[float]] = defaultdict(list)
    sizes = {}
    for run in runs:
        point = points[run.name]
        if point.test_loss is not None:
            losses[point.N_body].append(point.test_loss)
            sizes[point.N_body] = run.size
    diverged = [run.name for run in runs if points[run.name].diverged]
    left_out = [f"- Diverged and left out: {', '.join(diverged)}."] if diverged else []
    means = {n: sum(values) / len(values) for n, values in sorted(losses.items())}
    if not means:
        return left_out
    findings = [*_of_sizes(means, sizes), *left_out]
    if (floor := _floor(points)) is not None:
        below = [run.name for run in runs if (points[run.name].test_loss or floor) < floor]
        verdict = f"below it: {', '.join(below)}" if below else "every run lies above it"
        findings.append(
            f"- Floor (Bayes-optimal loss on the same targets with the same context): {floor:.4f}; {verdict}."
        )
    return findings


def _of_sizes(means: dict[int, float], names: dict[int, str]) -> list[str]:
    """Whether larger is better, of mean losses by N_body, ascending; nothing of one size alone."""
    if len(means) < 2:
        return []
    rises = [f"{names[small]} to {names[large]}" for small, large in pairwise(means) if means[large] >= means[small]]
    best = min(means, key=lambda n: means[n])
    return [
        f"- The mean test loss rises with size from {', '.join(rises)}: not monotone."
        if rises
        else "- The mean test loss falls with every step in size.",
        f"- Best size: {names[best]}, mean test loss {means[best]:.4f}.",
    ]
