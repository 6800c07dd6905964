"""`lrec scaling plan`: what to train for a budget of FLOPs, a target loss or a size, and what to expect of it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lrec.errors import UserError
from lrec.files import check_writable, write_json
from lrec.laws.choosers import Choice, Chooser, DataChooser, SizeChooser, chooser_of
from lrec.laws.fit import Fit
from lrec.laws.links import Expected, expected_metrics, fit_links
from lrec.laws.profile import Prediction
from lrec.laws.report import read_fit
from lrec.tables import rows_table

FAR = 100.0
"""This many times above the largest fitted size or amount of data, or below the smallest, a plan says so."""


def plan_command(
    fit: Path,
    flops: float | None = None,
    loss: float | None = None,
    size: float | None = None,
    unique: float | None = None,
    epochs: float | None = None,
    mfu: float = 0.4,
    peak_flops: float = 989e12,
    out: Path | None = None,
    trust: bool = False,
) -> None:
    """Plan a run from a fitted law: its size, data, passes, expected loss and metrics, FLOPs and GPU-hours.

    Args:
        fit: fit.json of lrec scaling fit or of a study.
        flops: Budget of training FLOPs; the size and data with the least loss are chosen.
        loss: Loss to reach with the fewest FLOPs.
        size: Size, in the unit of the fit's x.
        unique: Unique interactions there are; as many as one pass needs by default.
        epochs: Passes over them; by default whatever is best, but never more than the law was fitted at.
        mfu: Share of the peak that training reaches (model FLOPs utilisation).
        peak_flops: FLOP/s of a GPU; an H100's dense bfloat16 by default.
        out: File for the plan; plan.json beside the fit by default.
        trust: Import the law that the fit names where it is not lrec's own.
    """
    request = {"flops": flops, "loss": loss, "size": size}
    given = {name: value for name, value in request.items() if value is not None}
    if len(given) != 1:
        raise UserError("name one of --flops, --loss and --size")
    for name, value in (request | {"unique": unique, "epochs": epochs, "mfu": mfu, "peak_flops": peak_flops}).items():
        if value is not None and not (np.isfinite(value) and value > 0):
            raise UserError(f"--{name} {value:g}: must be a positive number")
    if mfu > 1:
        raise UserError(f"--mfu {mfu:g}: a share of the peak, at most 1, is expected")
    out = out or fit.with_name("plan.json")
    check_writable(out, "--out")
    fitted, content = read_fit(fit, trust)
    chooser = chooser_of(fitted, content, unique, epochs)
    ((name, value),) = given.items()
    choice: Choice = getattr(chooser, f"for_{name}")(value)
    result = _result(fitted, content, chooser, choice, mfu, peak_flops)
    result = {"fit": str(fit), "source_hash": content["source_hash"], "request": given} | result
    write_json(out, result)
    print(f"{fitted.law.formula}, fitted to {content['n_points']} points\n\n{table(result, content)}\n\n{out}")


def _result(
    fit: Fit,
    content: dict[str, Any],
    chooser: Chooser,
    choice: Choice,
    mfu: float,
    peak_flops: float,
) -> dict[str, Any]:
    at = {"x": choice.size or choice.flops, "N": choice.size, "D": choice.data, "U": choice.unique}
    where = [at[name] for name in fit.law.variables]
    (loss,) = fit.profile.predict(np.array([where], dtype=float))
    metrics = expected_metrics(fit_links(fit.points), loss)
    result = {
        "N": choice.size,
        "D": choice.data,
        "U": choice.unique,
        "flops": choice.flops,
        "epochs": choice.epochs,
        "mfu": mfu,
        "peak_flops": peak_flops,
        "gpu_hours": None if choice.flops is None else choice.flops / (mfu * peak_flops) / 3600,
        "loss": asdict(loss),
        "metrics": [asdict(metric) for metric in metrics],
        "doubled": None,
        "data_limited_from": None,
        "notes": _notes(fit, content, chooser, choice, loss, metrics),
    }
    if isinstance(chooser, DataChooser):
        result |= {"doubled": chooser.doubled(choice), "data_limited_from": chooser.data_limited_from(choice)}
    return result


def _notes(
    fit: Fit,
    content: dict[str, Any],
    chooser: Chooser,
    choice: Choice,
    loss: Prediction,
    metrics: list[Expected],
) -> list[str]:
    notes = []
    for name, value in (("x", loss.x), ("d", loss.d)):
        if value is None or name not in fit.points.columns:
            continue
        smallest, largest = float(fit.points[name].min()), float(fit.points[name].max())  # type: ignore[arg-type]
        if value > FAR * largest:
            notes.append(f"{content[name]} is {value / largest:.0f} times the largest that was fitted")
        if value < smallest / FAR:
            notes.append(f"{content[name]} is a {smallest / value:.0f}th of the smallest that was fitted")
    if isinstance(chooser, DataChooser) and chooser.used_up(choice):
        notes.append(
            f"the data is used up: {chooser.most_epochs:.4g} passes, the most that was fitted, bound the plan; "
            "more unique data would lower the loss"
        )
    if isinstance(chooser, SizeChooser):
        notes.append("D, U and epochs are those of the fitted runs: a law of size alone holds for these")
    if not metrics:
        notes.append("the points have no metrics, so none is expected")
    return notes + list(content["diagnostics"]["warnings"])


def table(result: dict[str, Any], content: dict[str, Any]) -> str:
    """The plan as Markdown."""
    loss = result["loss"]
    rows = [["", "plan"]]
    rows += [
        [label, f"{result[key]:.4g}"]
        for label, key in (
            (str(content["x"]) if result["N"] else "", "N"),
            ("interactions processed, D", "D"),
            ("unique interactions, U", "U"),
            ("epochs", "epochs"),
            ("training FLOPs", "flops"),
            (f"GPU-hours at {result['mfu']:.0%} of {result['peak_flops'] / 1e12:.4g} TFLOP/s", "gpu_hours"),
        )
        if result[key] is not None
    ]
    rows.append([f"{content['y']}", f"{loss['predicted']:.4f}"])
    rows.append(["  90 % of the curve", f"{loss['mean_low']:.4f} to {loss['mean_high']:.4f}"])
    rows.append(["  90 % of a new run", f"{loss['low']:.4f} to {loss['high']:.4f}"])
    for metric in result["metrics"]:
        rows.append([metric["metric"], f"{metric['predicted']:.4f} ({metric['low']:.4f} to {metric['high']:.4f})"])
    for what, doubled in (result["doubled"] or {}).items():
        rows.append([f"with twice the {what}", f"{doubled:.4f} ({doubled - loss['predicted']:+.4f})"])
    blocks = [rows_table(rows)]
    if result["data_limited_from"]:
        blocks.append(
            f"With this data, doubling it lowers the loss more than doubling the parameters from "
            f"{content['x']} = {result['data_limited_from']:.3g} on."
        )
    return "\n\n".join([*blocks, *(f"Note: {note}." for note in result["notes"])])
