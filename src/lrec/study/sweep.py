"""Options tuned on small sizes and turned into rules of the size, before any run of the study proper."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrec.errors import UserError
from lrec.run import Run, dotted
from lrec.study.grid import PlannedRun
from lrec.study.options import Study, combined, ladder_n_body


class Tuned(NamedTuple):
    rules: dict[str, list[float]]  # factor and exponent of each option: least squares of log value on log N_body
    best: dict[str, dict[str, float]]  # of each size, its best values, by option, and the validation loss they reached
    edges: list[str]  # sentences on best values at an end of the range that was tried


def sweep_of(study: Study) -> Study:
    """A study in OUT-sweep: a run for every combination of the sweep's values at each size that tunes, of the first
    seed and variant and the largest fraction."""
    chosen = study.fitted if study.sweep_sizes is None else study.sweep_sizes
    if outside := [size for size in chosen if size not in study.fitted]:
        fitted = ", ".join(study.fitted)
        raise UserError(f"--sweep_sizes {outside[0]}: choose among the sizes that are fitted, {fitted}")
    for option, several in dotted(study.sweep).items():
        if not (isinstance(several, list) and several and all(isinstance(v, int | float) and v > 0 for v in several)):
            raise UserError(f"--sweep.{option}: {several!r} is not a list of positive numbers")
    folder = study.folder.with_name(f"{study.folder.name}-sweep")
    variants = combined({"": next(iter(study.every_variant.values()))}, study.sweep)
    one_ladder: dict[str, Any] = {"law": None, "holdout": 0, "starts_from": {}, "grid": {}}
    one_ladder |= {"seeds": study.seeds[:1], "size_seeds": {}, "fractions": (max(study.every_fraction),)}
    return replace(study, name=folder.name, out=folder, sizes=chosen, variants=variants, **one_ladder)


def with_middle_values(study: Study) -> Study:
    """The study with the middle value of each swept option: what is planned with before the sweep has run."""
    middle = {option: [sorted(values)[len(values) // 2], 0.0] for option, values in dotted(study.sweep).items()}
    return replace(study, rules=study.rules | middle)


def tune(runs: list[PlannedRun], folder: Path, values: dict[str, Any]) -> Tuned:
    """The rules that follow from the sweep's runs, by their best validation loss; test losses are not looked at."""
    axes = dotted(values)
    losses: dict[str, dict[tuple[float, ...], float]] = {}
    for run in runs:
        points = Run(folder / run.name).points
        reached = [point.val_loss for point in points if point.val_loss is not None]
        if reached and not points[-1].diverged:
            chosen = tuple(float(run.config.value(option)) for option in axes)
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
        log_value = np.log([values[option] for values in best.values()])
        exponent = np.polyfit(log_n, log_value, 1)[0] if len(best) > 1 else 0.0
        factor = np.exp(log_value.mean() - exponent * log_n.mean())
        rules[option] = [float(f"{factor:.6g}"), float(f"{exponent:.6g}")]
    return Tuned(rules, best, edges)
