"""`lrec scaling plan`: what to train for a budget, a target loss or HR@10, or a size, and what to expect of it."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.special import stdtrit

from lrec.common.files import check_writable, finite, write_json
from lrec.common.pages import rendered
from lrec.common.text_tables import counted, on_terminal
from lrec.errors import UserError, check_range
from lrec.laws.analysis import FAILS, warnings
from lrec.laws.choosers import Choice, Chooser, DataChooser, SizeChooser, chooser_of
from lrec.laws.fit import Fit
from lrec.laws.fit_json import of_ten, read_fit
from lrec.laws.intervals import Prediction
from lrec.laws.law import MEANINGFUL, Array
from lrec.laws.metric_forecasts import outlook_metrics
from lrec.laws.predict import Predictor, above_floor, outlook, turns
from lrec.laws.table import means_by_size, metrics_in

HIT_RATES = {"hr10": "HR@10", "hr10_unseen": "HR@10_unseen"}  # options, and their metrics
FAR = 100.0  # a plan has a note if its size or data are this many times above the largest fitted, or below the smallest
NEARLY = 1.001  # a plan for a budget also has the cheapest choice with at most this many times the best expected loss
PEAK_FLOPS, MFU = 989e12, 0.4  # of an H100: dense bfloat16, and the share reached; used if the points have no speed


def plan_command(
    fit: Path,
    flops: float | None = None,
    loss: float | None = None,
    size: float | None = None,
    hours: float | None = None,
    hr10: float | None = None,
    hr10_unseen: float | None = None,
    price_per_hour: float | None = None,
    unique: float | None = None,
    epochs: float | None = None,
    mfu: float | None = None,
    peak_flops: float | None = None,
    out: Path | None = None,
    trust: bool = False,
) -> None:
    """Plan a run from all points of a fit: its size, data, passes, expected loss and metrics, FLOPs, hours and price.

    Args:
        fit: fit.json of lrec scaling fit or of a study.
        flops: Budget of training FLOPs; the size and data with the least loss are chosen.
        loss: Loss to reach with the fewest FLOPs.
        size: Size to plan for, in the unit of the fit's x.
        hours: Budget in wall-clock hours, at the speed of the largest trained runs.
        hr10: HR@10 to reach with the smallest size. It needs a forecast, or a law of size alone.
        hr10_unseen: HR@10_unseen to reach with the smallest size, like hr10.
        price_per_hour: Price of an hour of the hardware.
        unique: Number of unique interactions that you have. By default, it follows from the data and the fitted passes.
        epochs: Passes over the unique interactions. By default the best number in the range of the fitted runs.
        mfu: Share of the peak that training reaches (model FLOPs utilisation), 0.4 by default. Hours are then hours of
            a GPU. Without mfu and peak_flops, they follow from the speed of the largest trained runs, if it is known.
        peak_flops: Peak FLOP/s of a GPU. By default the dense bfloat16 peak of an H100.
        out: File for the plan. By default plan.json in the folder of the fit.
        trust: Import the law of the fit even if it is not lrec's own.
    """
    request = {"flops": flops, "loss": loss, "size": size, "hours": hours, "hr10": hr10, "hr10_unseen": hr10_unseen}
    given = {name: value for name, value in request.items() if value is not None}
    if len(given) != 1:
        raise UserError("name one of --flops, --loss, --size, --hours, --hr10 and --hr10_unseen")
    ((option, value),) = given.items()
    others = {"unique": unique, "epochs": epochs, "peak_flops": peak_flops, "price_per_hour": price_per_hour}
    for name, number in (request | others).items():
        check_range(f"--{name}", number, above=0, below=MEANINGFUL)
    check_range("--mfu", mfu, above=0, at_most=1)
    out = out or fit.with_name("plan.json")
    check_writable(out, "--out")
    if out.resolve() == fit.resolve():
        raise UserError(f"--out {out}: the plan would replace its own fit; name another file")
    fitted, predictor, content = read_fit(fit, trust)
    chooser = chooser_of(predictor, content["x"], unique, epochs)
    speed, source = _speed(fitted.points, mfu, peak_flops)
    flops = flops if hours is None else 3600 * speed * hours
    if option in HIT_RATES:
        size = _size_for(chooser, option, value)
    if flops is not None:
        try:
            choice = chooser.for_flops(flops)
        except UserError as error:
            raise UserError(f"--{option} {value:g}: {error}") from None
        if isinstance(chooser, SizeChooser):
            choice = _that_pays(chooser, choice)
    elif size is not None:
        choice = chooser.for_size(size)
    else:
        assert loss is not None
        choice = chooser.for_loss(loss)
        if choice.place[0] > FAR * float(predictor.points["x"].to_numpy().max()):
            raise UserError(f"--loss {loss:g}: not reached at {FAR:g} times the largest {content['x']} trained")
    planned = {"fit": str(fit), "source_hash": content["source_hash"], "request": given}
    planned |= {**_of(choice, speed), "flops_per_second": speed, "speed": source}
    planned["price"] = None if price_per_hour is None else price_per_hour * planned["hours"]
    planned |= _expected(fitted, predictor, content, chooser, choice)
    if not all(math.isfinite(loss) for loss in planned["loss"].values() if loss is not None):
        raise UserError(f"--{option} {value:g}: no finite loss is expected so far from the fitted runs; choose another")
    if flops is not None:
        if isinstance(chooser, DataChooser) and not planned["measured_runs"]:  # the law does not know what was measured
            nearly = planned["loss"]["predicted"] * NEARLY
            cheaper = chooser.for_loss(nearly, choice.flops)
            if cheaper.flops <= 0.99 * choice.flops:
                planned["cheapest"] = _of(cheaper, speed) | {"loss": {"predicted": nearly}}
        if choice.flops < 0.99 * flops:
            left = f"{1 - choice.flops / flops:.0%} of the budget is left, because it would not lower the loss"
            planned["notes"].append(left)
    result = finite(planned)
    write_json(out, result)
    what = predictor.name if content["method"] != content["law"] else fitted.law.formula
    print(f"{what}, from {counted(len(predictor.points), 'point')}\n\n{on_terminal(table(result, content))}\n\n{out}")


def _speed(points: pl.DataFrame, mfu: float | None, peak_flops: float | None) -> tuple[float, str]:
    """Training FLOP/s and their source: the largest runs, or a GPU if their times are unknown or an option is given."""
    if mfu is None and peak_flops is None and {"flops", "wall_s"} <= set(points.columns):
        known = points.drop_nulls(["flops", "wall_s"]).filter(pl.col("wall_s") > 0)
        if not known.is_empty():
            largest = known.filter(pl.col("x") == pl.col("x").max())
            measured = float(largest["flops"].sum()) / float(largest["wall_s"].sum())
            return measured, f"at the {measured:.3g} FLOP/s of the largest trained runs"
    share, peak = mfu or MFU, peak_flops or PEAK_FLOPS
    return share * peak, f"of a GPU at {share:.0%} of {peak / 1e12:.4g} TFLOP/s"


def _of(choice: Choice, speed: float) -> dict[str, float]:
    """A choice, and the hours that it takes."""
    known = {"N": choice.size, "D": choice.data, "U": choice.unique, "flops": choice.flops, "epochs": choice.epochs}
    return known | {"hours": choice.flops / speed / 3600}


def _expected(
    fit: Fit, predictor: Predictor, content: dict[str, Any], chooser: Chooser, choice: Choice
) -> dict[str, Any]:
    """The expected loss and metrics of a choice, and notes about it."""
    (loss,) = predictor.predict(np.array([choice.place]))
    measured = fit.points.filter(np.asarray(np.isclose(fit.x_NV, choice.place, rtol=1e-3, atol=0).all(1)))
    if not measured.is_empty():
        loss, ends = _of_runs(loss, fit, measured["y"].to_numpy()), {"low": None, "high": None}
        known = [name for name in metrics_in(measured) if measured[name].null_count() == 0]
        metrics = {name: {"predicted": float(measured[name].to_numpy().mean())} | ends for name in known}
    elif failed := [sentence for sentence in content["verdict"] if FAILS in sentence]:
        raise UserError(f"{failed[0]} So only sizes that were trained can be planned")
    else:
        of_size = len(choice.place) == 1
        loss = _at_size(predictor, loss) if of_size else above_floor(predictor, loss)
        expected = outlook_metrics(predictor.points, [loss], of_size and turns(predictor, outlook(predictor)))
        metrics = {name: asdict(each) for name, (each,) in expected.items()}
    doubled = chooser.doubled(choice) if isinstance(chooser, DataChooser) else None
    notes = _notes(fit, content, chooser, choice, loss)
    notes += [] if metrics else ["too few sizes have metrics, so none is expected"]
    found = {"loss": asdict(loss), "measured_runs": len(measured), "metrics": metrics}
    return found | {"cheapest": None, "doubled": doubled, "notes": notes}


def _at_size(predictor: Predictor, loss: Prediction) -> Prediction:
    """The loss: beyond all sizes that of the `outlook`, else no higher than the measured losses of smaller sizes."""
    means = means_by_size(predictor.points)
    largest = float(means["x"][-1])
    if loss.x > largest:
        return outlook(predictor, times=loss.x / largest)
    bound = min([loss.predicted, *means.filter(pl.col("x") <= loss.x)["y"]])
    return replace(loss, predicted=bound, low=min(loss.low, bound), mean_low=min(loss.mean_low, bound))


def _that_pays(chooser: SizeChooser, choice: Choice) -> Choice:
    """The choice, or the best trained size up to it if no lower loss is expected of the choice."""
    (loss,) = chooser.predictor.predict(np.array([choice.place]))
    expected = _at_size(chooser.predictor, loss).predicted
    means = means_by_size(chooser.predictor.points)
    best = means.filter(pl.col("x") <= choice.size, pl.col("y") <= expected).sort("y", "x")["x"].to_list()
    return chooser.for_size(best[0]) if best else choice


def _size_for(chooser: Chooser, option: str, wanted: float) -> float:
    """The smallest size with at least the `wanted` value of the option's metric, measured or expected."""
    metric = HIT_RATES[option]
    if not isinstance(chooser, SizeChooser) or metric not in chooser.predictor.points.columns:
        raise UserError(f"--{option} needs a forecast by size, or a law of size alone, from points with {metric}")
    predictor = chooser.predictor
    if found := means_by_size(predictor.points, metric).filter(pl.col(metric) >= wanted)["x"].to_list():
        return float(found[0])
    times_G = np.geomspace(1, FAR, 60)[1:]
    losses = [outlook(predictor, times=times) for times in times_G]
    expected = outlook_metrics(predictor.points, losses, turns(predictor, outlook(predictor)), [metric])
    if not expected:
        unknown = f"not measured, and too few sizes have an {metric} above 0 to expect more"
        raise UserError(f"--{option} {wanted:g}: {unknown}")
    expected_G = np.array([each.predicted for each in expected[metric]])
    if not (expected_G >= wanted).any():
        most = f"only {expected_G[-1]:.4g} is expected at {FAR:g} times the largest size"
        raise UserError(f"--{option} {wanted:g}: {most}")
    return float(means_by_size(predictor.points)["x"][-1] * times_G[(expected_G >= wanted).argmax()])


def _of_runs(loss: Prediction, fit: Fit, measured: Array) -> Prediction:
    """The prediction for the next run at a place with measured runs: their mean, and the fit's noise."""
    mean, n = float(np.mean(measured)), len(measured)
    unit = mean if fit.problem.objective.residuals == "log" else 1.0
    reach = float(stdtrit(fit.profile.dof, 0.95)) * fit.profile.sigma * unit
    curve, run = reach / math.sqrt(n), reach * math.sqrt(1 + 1 / n)
    lows = {"mean_low": max(mean - curve, 0.0), "low": max(mean - run, 0.0)}  # no loss is below zero
    return replace(loss, predicted=mean, cautious=None, mean_high=mean + curve, high=mean + run, **lows)


def _notes(fit: Fit, content: dict[str, Any], chooser: Chooser, choice: Choice, loss: Prediction) -> list[str]:
    notes = [sentence for sentence in content["verdict"] if FAILS in sentence]  # only a trained size gets this far
    for name in ("x",) if loss.d is None else ("x", "d"):
        value, fitted_N = getattr(loss, name), fit.points[name].to_numpy()
        if value > FAR * fitted_N.max():
            notes.append(f"{content[name]} is {value / fitted_N.max():.0f} times the largest that was fitted")
        if value < fitted_N.min() / FAR:
            notes.append(f"{content[name]} is a {fitted_N.min() / value:.0f}th of the smallest that was fitted")
    if isinstance(chooser, DataChooser) and chooser.used_up(choice):
        passes = chooser.most_epochs * chooser.repeats
        used_up = f"the data is used up: {passes:.4g} passes, the largest fitted number, limit the plan"
        notes.append(f"{used_up}; more unique data would lower the loss")
    if isinstance(chooser, SizeChooser):
        alone = "a law of size alone, or a forecast, holds only for these"
        notes.append(f"D, U and epochs are those of the fitted runs: {alone}")
    return notes + warnings(fit, None, content["method"] == content["law"], content["x"])  # the plan is from all points


def table(result: dict[str, Any], content: dict[str, Any]) -> str:
    """The plan as Markdown."""
    labels = {"N": content["x"], "D": "interactions processed, D", "U": "unique interactions, U", "epochs": "epochs"}
    labels |= {"flops": "training FLOPs", "hours": f"hours {result['speed']}", "price": "price"}
    metrics = {name: result["metrics"][name] for name in of_ten(result["metrics"])}
    shown = {"plan": result, "labels": labels, "y": content["y"], "metrics": metrics}
    return rendered("laws", "planned_run.md.j2", shown).rstrip()
