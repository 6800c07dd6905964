"""The results of a forecast or a fit, its held-out sizes and the methods compared with it, in words."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from lrec.common.text_tables import counted, rows_table
from lrec.laws.fit import Fit
from lrec.laws.forecast import Forecast
from lrec.laws.intervals import OUTLYING, Prediction
from lrec.laws.mixture import LADDER
from lrec.laws.predict import Comparison, Predictor
from lrec.laws.table import flops_per_interaction, longest, points_of_most_data

FAILS = "does not hold"
"""The verdict says this if the best or the median loss of the small sizes is the better prediction of the held-out
sizes, or if too few held-out sizes are within their intervals."""
AHEAD = 10.0  # the outlook is for this many times the largest size
MOSTLY = 0.7  # a law or forecast holds fully only if at least this share of the held-out sizes is within the intervals
RISES_SHOWN = 4  # a warning lists the sizes of at most this many steps
LOOSE = 4.0  # an exponent, or R*, whose interval spans this factor is not identified


@dataclass(frozen=True)
class Method:
    """A law with its fixed parameters, or the forecast, compared with other methods on the same points."""

    name: str
    fit: Fit | None  # fit of a law to all but the held-out sizes; None for the forecast
    holdout_mape: float | None
    rollout: Comparison | None  # None if there were too few sizes


def outlook(predictor: Predictor, times: float = AHEAD) -> Prediction:
    """The loss at `times` the largest size, with the most data that this size had. It is never below the predictor's
    floor. If the loss `turns`, it is also not below the loss of the largest size."""
    largest, means = _reached(predictor)
    ahead = predictor.predict(np.array([[times * largest[0], *largest[1:]]]))[0]
    rise = max(means[-1] / ahead.predicted, 1.0) if turns(predictor, ahead) else 1.0
    return above_floor(predictor, ahead, rise)


def above_floor(predictor: Predictor, expected: Prediction, rise: float = 1.0) -> Prediction:
    """A prediction with no loss below the predictor's floor, and with `rise` times all losses except the low ends."""
    losses = {name: loss for name, loss in vars(expected).items() if name not in ("x", "d", "u") and loss is not None}
    times = dict.fromkeys(losses, rise) | {"low": 1.0, "mean_low": 1.0}
    return replace(expected, **{name: max(times[name] * loss, predictor.floor) for name, loss in losses.items()})


def turns(predictor: Predictor, ahead: Prediction) -> bool:
    """Whether two sizes larger than the best size did worse, or a larger size is expected to be no better than the
    best: a loss that has risen may not fall again. The sizes of a long curve are taken in `LADDER` groups, because the
    noise of so many losses says little of where they are the lowest."""
    losses = np.array(_reached(predictor)[1])
    means = [group.mean() for group in np.array_split(losses, min(len(losses), LADDER))]
    return len(means) - int(np.argmin(means)) > 2 or ahead.predicted >= min(means)


def _reached(predictor: Predictor) -> tuple[tuple[float, ...], list[float]]:
    """The variables of the largest of the longest runs (of a forecast only those on the most data), and the mean loss
    of each size at its data, sorted by size."""
    points = predictor.points
    points = points_of_most_data(points) if isinstance(predictor, Forecast) else longest(points)
    means = points.group_by(predictor.columns).agg(pl.col("y").mean()).sort(predictor.columns).rows()
    largest = means[-1][:-1]
    return largest, [row[-1] for row in means if row[1:-1] == largest[1:]]


def doublings(forecast: Forecast, x: str) -> list[str]:
    """A table of the expected losses for twice the largest size, twice the longest run, and both, and the cheapest way
    to lower the loss. It is empty if the forecast has no lengths."""
    if forecast.columns != ("x", "d"):
        return []
    points = forecast.points
    size, length = (float(points[name].to_numpy().max()) for name in ("x", "d"))
    again = "u" in points.columns and length > 1.001 * float(points["u"].to_numpy().max())
    longer_run = "twice the passes" if again else "twice the data"
    times = {"the same": (1, 1), f"twice {x}": (2, 1), longer_run: (1, 2), "both": (2, 2)}
    flops = flops_per_interaction(points)
    rows = [["compared with the largest", "loss", "90 % low", "90 % high", "fall", "FLOPs"]]
    per_flop: dict[str, float] = {}
    here, _, longer, _ = predictions = forecast.predict(np.array([*times.values()]) * [size, length])
    if turns(forecast, outlook(forecast)):  # as in the outlook, size brings nothing
        predictions = [here, here, longer, longer]
    for (name, (larger, more)), p in zip(times.items(), predictions, strict=True):
        cost, fall = float(more * flops(larger * size) / flops(size)), here.predicted - p.predicted
        rows.append([name, *(f"{loss:.4f}" for loss in (p.predicted, p.low, p.high)), f"{fall:.4f}", f"{cost:.2f}"])
        if cost > 1:
            per_flop[name] = fall / (cost - 1)
    best, falls = max(per_flop, key=per_flop.__getitem__), max(per_flop.values()) > 0
    largest = f"The largest fall of the loss per FLOP is expected from {best}."
    cheapest = largest if falls else "None of them is expected to lower the loss."
    return ["### Twice as much of size and data", rows_table(rows, text=(0,)), cheapest]


def rises(points: pl.DataFrame, columns: Sequence[str]) -> str:
    """The steps from one size to the next, at the same data, over which the mean loss rises, in words."""
    size, *data = columns
    means = points.group_by(columns).agg(pl.col("y").mean()).sort(*data, size)
    same = pl.all_horizontal(pl.col(name) == pl.col(name).shift() for name in data) if data else pl.lit(True)
    rise = means.with_columns(before=pl.col(size).shift()).filter(same & (pl.col("y") > pl.col("y").shift()))
    steps = rise.select("before", size).rows()
    some = ", ".join(f"{small:.4g} to {large:.4g}" for small, large in dict.fromkeys(steps[:RISES_SHOWN]))
    return some if len(steps) <= RISES_SHOWN else f"{some} and in {len(steps) - RISES_SHOWN} more steps"


def data_warnings(fit: Fit) -> list[str]:
    """Warnings that follow from the points alone, whatever predicts from them."""
    warnings, points = [], fit.points
    if where := rises(points, fit.columns):
        same = " at the same data" if len(fit.columns) > 1 else ""
        warnings.append(f"not monotone: the mean loss rises with x{same} from {where}")
    if (n_sizes := points["x"].n_unique()) < 5:
        few = f"only {counted(n_sizes, 'size')}: the exponent is hardly determined"
        warnings.append(f"{few}; trust the intervals, not the point")
    if "overfitted" in points.columns and (count := int(points["overfitted"].sum())):
        rose = f"the validation loss of {count} of {len(points)} runs rose again after its best value"
        other = "with stronger regularisation, the curve may be different"
        warnings.append(f"over-fitting: {rose}, which the fit uses; {other}")
    return warnings


def unidentified(fit: Predictor) -> list[str]:
    """Parameters that ended on a bound, and exponents whose interval spans `LOOSE` times or reaches a bound."""
    if not isinstance(fit, Fit):
        return []
    hits, k = fit.diagnostics.bound_hits, fit.law.n_coefficients
    (low_H, high_H), (least_H, most_H) = fit.profile.shape_ends, (fit.problem.low_T[k:], fit.problem.high_T[k:])
    loose_H = (high_H - low_H >= np.log(LOOSE)) | (low_H <= least_H + 1e-3) | (high_H >= most_H - 1e-3)
    names = np.array(fit.law.parameters[k:])[loose_H & (least_H < most_H)].tolist()
    return [*hits, *(name for name in names if name not in (*hits, *fit.law.tied))]


def warnings(fit: Fit, holdout: Comparison | None) -> list[str]:
    """Warnings from the points, from the fit's search and intervals, and from the held-out sizes."""
    found, hits = data_warnings(fit), fit.diagnostics.bound_hits
    if hits:
        found.append(f"not identified: {', '.join(hits)} ended on a bound")
    for name in unidentified(fit)[len(hits) :]:
        between = "may have any value between {:.3g} and {:.3g}".format(*fit.profile.parameters[name])
        found.append(f"not identified: {name} {between}; report predictions with their intervals, not the parameter")
    if off := fit.profile.outliers:
        far = f"are over {2 * OUTLYING:g} standard deviations off the fit and have little weight in its intervals"
        found.append(f"outliers: {off} of {len(fit.points)} points {far}; look at the residuals")
    if holdout is not None and holdout.extrapolation_factor > 100:
        found.append(f"the law is extrapolated {holdout.extrapolation_factor:.0f} times beyond its largest size")
    return found


def verdict(
    predictor: Predictor, holdout: Comparison | None, methods: Sequence[Method], ahead: Prediction, x: str
) -> list[str]:
    """Sentences on the held-out sizes, the `outlook`, the roll-outs, and the parameters that are `unidentified`."""
    sentences = [_held(predictor, holdout, x), _expected(ahead, x)]
    if len(predictor.columns) == 1:
        later = [] if holdout is None else [(p.x, p.actual) for p in holdout.points]
        every = pl.DataFrame([*predictor.points.select("x", "y").rows(), *later], schema=["x", "y"], orient="row")
        if where := rises(every, ["x"]):
            sentences.append(f"The mean loss rises with {x} from {where}: a power law can only describe the trend.")
    if steps := next((method.rollout for method in methods if method.name == predictor.name), None):
        errors = f"the mean error is {steps.mape:.2f} % (no-gain baseline: {steps.naive_mape:.2f} %)"
        errors += f", and {steps.inside} of {len(steps.points)} are within their interval"
        sentences.append(f"In roll-outs, which predict each size from the smaller ones, {errors}.")
    rolled = [method for method in methods if method.rollout]
    if len(rolled) > 1:
        by_bic = min((method for method in methods if method.fit), key=lambda method: method.fit.bic)  # type: ignore[union-attr]
        agree = "and BIC agrees" if rolled[0] is by_bic else f"but BIC prefers {by_bic.name}"
        sentences.append(f"Of the methods compared, {rolled[0].name} predicts the next size best, {agree}.")
    if unsure := unidentified(predictor):
        plural = "are" if len(unsure) > 1 else "is"
        sentences.append(f"{', '.join(unsure)} {plural} not identified: use predictions with their intervals instead.")
    return sentences


def _held(predictor: Predictor, holdout: Comparison | None, x: str) -> str:
    sizes_N = predictor.points["x"].to_numpy()
    decades = np.log10(sizes_N.max() / sizes_N.min())
    what = "law" if isinstance(predictor, Fit) else predictor.name
    if holdout is None:
        rests = f"The {what} is fitted to {decades:.1f} decades of {x}"
        return f"{rests}; nothing was held out, so it is unknown whether it holds for larger sizes."
    inside, n = holdout.inside, len(holdout.points)
    figures = f"for held-out sizes up to {holdout.extrapolation_factor:.3g} times the largest fitted size, "
    figures += f"the mean error is {holdout.mape:.2f} % (no-gain baseline: {holdout.naive_mape:.2f} %), "
    figures += f"and {inside} of {n} are within the 90 % interval"
    if holdout.mape > holdout.naive_mape:
        return f"The {what} {FAILS}: {figures}. The no-gain baseline is better."
    # A single loss that is far too low makes the no-gain baseline, which expects this loss, as bad as the forecast.
    median = float(np.median(predictor.points["y"].to_numpy()))
    median_mape = float(np.mean([abs(100 * (median / p.actual - 1)) for p in holdout.points]))
    if holdout.mape > median_mape:
        return f"The {what} {FAILS}: {figures}; the median loss of the small sizes is off by only {median_mape:.2f} %."
    well, mostly = holdout.mape <= holdout.naive_mape / 2, inside >= MOSTLY * n
    if not (mostly or (well and inside >= n / 2)):
        return f"The {what} {FAILS}: {figures}, which are too few."
    reached = decades + np.log10(holdout.extrapolation_factor)
    return f"The {what} holds{'' if well and mostly else ' in part'} over {reached:.1f} decades of {x}: {figures}."


def _expected(p: Prediction, x: str) -> str:
    data = ", ".join(f"{name} {value:.4g}" for name, value in (("D", p.d), ("U", p.u)) if value is not None)
    where = f"At {AHEAD:g} times the largest {x}{' with ' + data if data else ''}"
    sentence = f"{where}, if all sizes are fitted, expect {p.predicted:.4g} [{p.low:.4g}, {p.high:.4g}] for a new run"
    return sentence + ("." if p.cautious is None else f"; a cautious value is {p.cautious:.4g}.")
