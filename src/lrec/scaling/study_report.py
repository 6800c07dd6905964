"""What a study leaves behind: fit.json, fit.png and report.md of each ladder, and the figure in TensorBoard."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lrec import cost
from lrec.files import replacing, write_text
from lrec.scaling.fit import Fit
from lrec.scaling.judge import rivals
from lrec.scaling.plots import fit_figure
from lrec.scaling.points import read_points, source_hash
from lrec.scaling.predict import Prediction, compare
from lrec.scaling.report import table, write_fit
from lrec.scaling.runs import Run, finished_point
from lrec.scaling.variants import variants_table

COLUMNS = ("HR@10", "NDCG@10", "HR@10_unseen", "NDCG@10_unseen")


@dataclass(frozen=True)
class Ladder:
    """The law of one fraction and variant: fitted to the small sizes, with predictions for the large ones."""

    name: str
    x: str
    source_hash: str
    fit: Fit
    predictions: tuple[Prediction, ...]


def write_report(out: Path, name: str, runs: list[Run], ladders: list[Ladder]) -> str:
    """Join the predictions with the large runs' losses, write everything under `out`, and return the report.

    The report holds no times, so that an interrupted study ends with the same one as an undisturbed study.
    """
    points = {run.name: finished_point(out / "runs" / run.name) or {} for run in runs}
    sections = [f"# Scaling study {name}"]
    if comparison := variants_table(runs, points):
        sections += ["## Variants", comparison]
    laws = {ladder.name: ladder for ladder in ladders}
    for ladder, mine in by_ladder(runs).items():
        if ladder:
            sections.append(f"## {ladder}")
        own = {run.name: points[run.name] for run in mine}
        sections += [_runs_table(mine, own), "\n".join(_findings(mine, own))]
        if ladder in laws:
            sections.append(_law(out, out / "fit" / ladder, mine, own, laws[ladder]))
    report = "\n\n".join(sections) + "\n"
    write_text(out / "report.md", report)
    return report


def by_ladder(runs: list[Run]) -> dict[str, list[Run]]:
    """The runs of each ladder."""
    ladders: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        ladders[run.ladder].append(run)
    return ladders


def _law(out: Path, folder: Path, runs: list[Run], points: dict[str, dict[str, Any]], ladder: Ladder) -> str:
    usable = [run for run in runs if points[run.name]["status"] != "diverged"]
    files = {run.name: out / "runs" / run.name / "points.jsonl" for run in usable}
    held_out = None
    if large := [files[run.name] for run in usable if run.held_out]:
        actual = read_points(large, ladder.x, "test_loss")
        reached = set(actual["x"].to_list())
        held_out = compare(ladder.fit, [p for p in ladder.predictions if p.x in reached], actual)
    every_point = read_points(list(files.values()), ladder.x, "test_loss")
    held_out_sizes = len(held_out.points) if held_out else 0
    judged = rivals(ladder.fit.law, every_point, held_out_sizes, ladder.fit.objective)
    content = write_fit(folder, ladder.fit, held_out, source_hash(every_point), ladder.x, "test_loss", judged=judged)
    figure = fit_figure(ladder.fit, held_out, _floor(points), ladder.x, "test_loss")
    with replacing(folder / "fit.png") as temporary:
        figure.savefig(temporary, format="png")
    _to_tensorboard(folder, figure)
    return "\n\n".join(
        [
            f"## {content['formula']}, {ladder.x}",
            f"![fit]({folder.relative_to(out)}/fit.png)",
            table(content),
        ]
    )


def _floor(points: dict[str, dict[str, Any]]) -> float | None:
    floor: float | None = (next(iter(points.values()))["floor"] or {}).get("test")
    return floor


def _to_tensorboard(folder: Path, figure: Any) -> None:
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(folder)) as writer:
        writer.add_figure("scaling/fit", figure)


def _runs_table(runs: list[Run], points: dict[str, dict[str, Any]]) -> str:
    head = ["size", "seed", "N_body", "D", "epochs", "val loss", "test loss", *COLUMNS]
    lines = ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    for run in runs:
        point = points[run.name]
        size = run.size + (" (held out)" if run.held_out else "")
        cells = [size, str(run.seed), f"{point['N_body']:,}", f"{point['D']:,}", f"{point['epochs']:.2f}"]
        if point["status"] == "diverged":
            cells += ["diverged"] + [""] * (len(COLUMNS) + 1)
        else:
            cells += [f"{point['val_loss']:.4f}", f"{point['test_loss']:.4f}"]
            cells += [f"{point['metrics'][f'test/{column}']:.4f}" for column in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    tested = next((p for p in points.values() if p["status"] != "diverged"), None)
    if tested is not None:
        cells = ["popularity", "", "", "", "", "", f"{tested['metrics']['test/popularity/loss']:.4f}"]
        cells += [f"{tested['metrics'][f'test/popularity/{column}']:.4f}" for column in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _findings(runs: list[Run], points: dict[str, dict[str, Any]]) -> list[str]:
    """What the table says, in words: monotone or not, the best size, over-fitting, the floor."""
    losses: dict[int, list[float]] = defaultdict(list)
    sizes = {}
    for run in runs:
        point = points[run.name]
        if point["status"] != "diverged":
            losses[point["N_body"]].append(point["test_loss"])
            sizes[point["N_body"]] = run.size
    means = {n: sum(values) / len(values) for n, values in sorted(losses.items())}
    order = list(means)
    rises = [f"{sizes[small]} to {sizes[large]}" for small, large in pairwise(order) if means[large] >= means[small]]
    best = min(means, key=lambda n: means[n])
    findings = [
        f"- The mean test loss rises with size from {', '.join(rises)}: not monotone."
        if rises
        else "- The mean test loss falls with every step in size.",
        f"- Best size: {sizes[best]}, mean test loss {means[best]:.4f}.",
    ]
    diverged = [run.name for run in runs if points[run.name]["status"] == "diverged"]
    if diverged:
        findings.append(f"- Diverged and left out: {', '.join(diverged)}.")
    if (floor := _floor(points)) is not None:
        below = [run.name for run in runs if (points[run.name]["test_loss"] or floor) < floor]
        verdict = f"below it: {', '.join(below)}" if below else "every run lies above it"
        findings.append(
            f"- Floor (Bayes-optimal loss on the same targets with the same context): {floor:.4f}; {verdict}."
        )
    return findings


def print_plan(runs: list[Run], jobs: int) -> None:
    """The runs with their expected hours, memory and disk. Prepares the data: the catalogue's size decides the cost.

    Hours are those of one core and of all epochs, at a third of its rate of float32 matrix products, and ten seconds to
    start a run; memory is that of a float32 step on one process (`cost.memory`) plus a gibibyte for the process; disk
    counts two checkpoints.
    """
    from lrec.lightning_cli import datamodule_of

    rate = _matmul_rate()
    counts: dict[float, tuple[int, int]] = {}
    print(f"{'run':<32}{'N_body':>12}{'N_total':>12}{'hours':>9}{'GiB':>7}{'disk GiB':>10}")
    total = 0.0
    for run in runs:
        if run.fraction not in counts:
            data = datamodule_of(run.options)
            data.prepare_data()
            data.setup("fit")
            counts[run.fraction] = (data.n_items, data.U)
        n_items, unique = counts[run.fraction]
        config = run.net_config(n_items)
        targets = unique * (run.options["trainer"]["max_epochs"] or 1000)
        hours = (10 + 3 * targets * sum(cost.flops_per_interaction(config)) / rate) / 3600
        step = cost.memory(config, positions=run.options["data"]["init_args"]["targets_per_step"])
        memory, disk = 1 + step.total / 2**30, 24 * cost.n_total(config) / 2**30
        total += hours
        sizes = f"{cost.n_body(config):>12,}{cost.n_total(config):>12,}"
        print(f"{run.name:<32}{sizes}{hours:>9.3f}{memory:>7.1f}{disk:>10.2f}")
    print(f"{len(runs)} runs, at most {total:.2f} hours of one core, {total / jobs:.2f} with {jobs} side by side")


def _matmul_rate() -> float:
    """Float32 FLOPs per second of one core's matrix products, measured in processor time: other load counts little."""
    import time

    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a = torch.ones(1024, 1024)
    a @ a
    started = time.process_time()
    for _ in range(5):
        a @ a
    seconds = time.process_time() - started
    torch.set_num_threads(threads)
    return 5 * 2 * 1024**3 / seconds
