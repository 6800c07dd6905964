"""Options tuned on small sizes and turned into rules of the size, before any run of the study proper."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrec.errors import UserError
from lrec.study.grid import Grid, combined, dotted, ladder_n_body
from lrec.study.launch import Run, points_of


class Tuned(NamedTuple):
    """What a sweep came to.

    Attributes:
        rules: factor and exponent of each option, by dotted name: least squares of log value on log N_body.
        best: Of each size, its best values, by option, and the validation loss they reached.
        edges: What to tell the user: best values at an end of the range that was tried.
    """

    rules: dict[str, list[float]]
    best: dict[str, dict[str, float]]
    edges: list[str]


def sweep_runs(grid: Grid, values: dict[str, Any], sizes: list[str] | None) -> list[Run]:
    """A run for every combination of values at each size that tunes; first seed, all data, first variant.

    Args:
        grid: The study's.
        values: The values of each option, nested or by dotted name.
        sizes: Sizes that tune; those that are fitted by default.
    """
    fitted = [size for size in grid.ladder if size not in grid.held_out]
    chosen = fitted if sizes is None else sizes
    if outside := [size for size in chosen if size not in fitted]:
        raise UserError(f"--sweep_sizes {outside[0]}: choose among the sizes that are fitted, {', '.join(fitted)}")
    for option, several in dotted(values).items():
        if not (isinstance(several, list) and several and all(isinstance(v, int | float) and v > 0 for v in several)):
            raise UserError(f"--sweep.{option}: {several!r} is not a list of positive numbers")
    variant = next(iter(grid.variants.values()))
    tuning = replace(
        grid,
        starts_from={},
        sizes=chosen,
        seeds=grid.seeds[:1],
        size_seeds={},
        fractions=(1.0,),
        holdout=0,
        variants=combined({"": variant}, values),
    )
    return tuning.runs()


def middle(values: dict[str, Any]) -> dict[str, list[float]]:
    """Rules that give every size the middle value: what is planned with before the sweep has run."""
    return {option: [sorted(several)[len(several) // 2], 0.0] for option, several in dotted(values).items()}


def tune(runs: list[Run], folder: Path, values: dict[str, Any]) -> Tuned:
    """The rules that follow from the sweep's runs, by their best validation loss; test losses are not looked at."""
    axes = dotted(values)
    losses: dict[str, dict[tuple[float, ...], float]] = {}
    for run in runs:
        reached = [p["val_loss"] for p in points_of(folder / run.name) if p["val_loss"] is not None]
        if reached and points_of(folder / run.name)[-1]["status"] != "diverged":
            chosen = tuple(_value(run, option) for option in axes)
            losses.setdefault(run.size, {})[chosen] = min(reached)
    if not losses:
        raise UserError("--sweep: every run diverged; try smaller values")
    best, edges = {}, []
    for size, by_values in losses.items():
        at = min(by_values, key=lambda chosen: by_values[chosen])
        best[size] = dict(zip(axes, at, strict=True)) | {"val/loss": by_values[at]}
        for option, value in zip(axes, at, strict=True):
            if len(axes[option]) > 1 and value in (min(axes[option]), max(axes[option])):
                edges.append(f"{option} {value:g} at {size} is an end of the range tried: try values beyond it")
    log_n = np.log([ladder_n_body(size) for size in best])
    rules = {}
    for option in axes:
        log_value = np.log([best[size][option] for size in best])
        exponent = np.polyfit(log_n, log_value, 1)[0] if len(best) > 1 else 0.0
        factor = np.exp(log_value.mean() - exponent * log_n.mean())
        rules[option] = [float(f"{factor:.6g}"), float(f"{exponent:.6g}")]
    return Tuned(rules, best, edges)


def _value(run: Run, option: str) -> float:
    return float(dotted(run.options)[option.replace("data.", "data.init_args.", 1)])
