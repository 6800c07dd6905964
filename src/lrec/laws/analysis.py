"""The analysis of a table of points: a prediction, the fit of a law, held-out errors, roll-outs and a verdict in words.
fit.json, the reports and the figures show the results of an analysis. They do not analyse again."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from functools import partial

import numpy as np
import polars as pl

from lrec.common.text_tables import counted, rows_table
from lrec.errors import UserError
from lrec.laws.fit import Fit, fit_points
from lrec.laws.forecast import Forecast
from lrec.laws.intervals import OUTLYING, Judged, Prediction
from lrec.laws.loss_laws import LAWS
from lrec.laws.metric_forecasts import judged_metrics
from lrec.laws.predict import AHEAD, Comparison, Predictor, outlook, predictor_of, roll_out, tested, turns
from lrec.laws.table import flops_per_interaction, has_lengths, points_of_most_data

DESCRIBES = "lsrm"  # a forecast also gets the fit of this law, which describes the points
FLOORLESS = ("lsrm", "kaplan")  # laws that are also compared without their floor, as in Kaplan et al.
FAILS = "does not hold"
"""The verdict says this if the best or the median loss of the small sizes is the better prediction of the held-out
sizes, or if too few held-out sizes are within their intervals."""
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


@dataclass(eq=False)
class Analysis:
    """A forecast or a fit of the small sizes, judged by its errors on the held-out sizes (`predict.holdout_report`).
    `of_all` is the same method, but from all points. `fit` describes the small sizes by a law; if a law was chosen, it
    is the predictor. `names` maps y, and those of the columns x, d and u that the predictor uses, to the caller's
    names. `metrics` has the predicted and actual metrics of the held-out sizes by name."""

    predictor: Predictor
    holdout: Comparison | None
    points: pl.DataFrame  # all points, including the held-out ones
    names: Mapping[str, str]
    with_others: InitVar[bool] = True  # whether the predictor is compared with laws of the same variables
    floor: InitVar[float | None] = None

    def __post_init__(self, with_others: bool, floor: float | None) -> None:
        predictor, holdout, points, x = self.predictor, self.holdout, self.points, self.names["x"]
        self.of_all, self.names = predictor, {column: self.names[column] for column in (*predictor.columns, "y")}
        largest = points_of_most_data(predictor.points)
        self.fit = predictor if isinstance(predictor, Fit) else fit_points(LAWS[DESCRIBES], largest)
        is_law, self.unidentified = self.fit is predictor, unidentified(predictor)
        self.warnings = warnings(self.fit, holdout, predicts=is_law)
        if holdout:
            self.of_all = predictor_of(self.fit.law if is_law else None, points, self.fit.problem.objective)
        self.methods = compare_methods(predictor, self.fit, holdout, points) if with_others else []
        self.of_all.floor = floor or 0.0
        self.outlook = outlook(self.of_all)
        self.verdict = verdict(predictor, holdout, self.methods, self.outlook, x)
        self.metrics = {} if holdout is None else judged_metrics(predictor.points, holdout.points, points)

    def tested(self, metric: str) -> list[Judged]:
        """The predicted and actual metric of the held-out sizes. If runs have several lengths, only of the longest."""
        judged = self.metrics.get(metric, ())
        most = max((each.d or 0 for each in judged), default=0) if has_lengths(self.points) else 0
        return [each for each in judged if (each.d or 0) >= most]


def compare_methods(predictor: Predictor, fit: Fit, holdout: Comparison | None, points: pl.DataFrame) -> list[Method]:
    """Roll out the predictor and every law of the same variables that can be fitted. The best method is the first. A
    law of size, data and unique data is also compared with laws of size and data. Progress goes to stderr."""
    found = []
    if isinstance(predictor, Forecast):
        found.append(Method(predictor.name, None, holdout.mape if holdout else None, roll_out(Forecast, points)))
        points = points_of_most_data(points)
    held_out = pl.col("x") > predictor.points["x"].max()
    small, large = points.filter(~held_out), points.filter(held_out)
    n = len(fit.law.variables)
    alike = [law for law in (LAWS | {fit.law.name: fit.law}).values() if min(n, 2) <= len(law.variables) <= n]
    floors: tuple[Mapping[str, float], ...] = ({}, {"E": 0.0})
    for law, fixed in [(law, fixed) for law in alike for fixed in floors if not fixed or law.name in FLOORLESS]:
        name = f"{law.name}, E = 0" if fixed else law.name
        if len(law.variables) > 1:
            print(f"rolling out {name}", file=sys.stderr, flush=True)
        fitted_to = partial(fit_points, law, objective=fit.problem.objective, fixed=fixed)
        try:
            fitted = fitted_to(small)
        except UserError:  # too few settings for the law's parameters
            continue
        missed = tested(fitted, large).mape if len(large) else None
        found.append(Method(name, fitted, missed, roll_out(fitted_to, points)))
    return sorted(found, key=lambda method: np.inf if method.rollout is None else method.rollout.mape)


def doublings(forecast: Forecast, x: str) -> list[str]:
    """The expected losses for twice the size, run and both, and the cheapest way down; nothing without lengths."""
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


def unidentified(fit: Predictor) -> list[str]:
    """Parameters that ended on a bound, and exponents whose interval spans `LOOSE` times or reaches a bound."""
    if not isinstance(fit, Fit):
        return []
    hits, k = fit.diagnostics.bound_hits, fit.law.n_coefficients
    (low_H, high_H), (least_H, most_H) = fit.profile.shape_ends, (fit.problem.low_T[k:], fit.problem.high_T[k:])
    loose_H = (high_H - low_H >= np.log(LOOSE)) | (low_H <= least_H + 1e-3) | (high_H >= most_H - 1e-3)
    names = np.array(fit.law.parameters[k:])[loose_H & (least_H < most_H)].tolist()
    return [*hits, *(name for name in names if name not in (*hits, *fit.law.tied))]


def warnings(fit: Fit, holdout: Comparison | None, predicts: bool = True) -> list[str]:
    """Warnings from the points and, if the fit also `predicts`, from its search, intervals and held-out sizes."""
    found, points = [], fit.points
    if where := rises(points, fit.columns):
        same = " at the same data" if len(fit.columns) > 1 else ""
        found.append(f"not monotone: the mean loss rises with x{same} from {where}")
    if (n_sizes := points["x"].n_unique()) < 5:
        few = f"only {counted(n_sizes, 'size')}: the exponent is hardly determined"
        found.append(f"{few}; trust the intervals, not the point")
    if "overfitted" in points.columns and (count := int(points["overfitted"].sum())):
        rose = f"the validation loss of {count} of {len(points)} runs rose again after its best value"
        other = "with stronger regularisation, the curve may be different"
        found.append(f"over-fitting: {rose}, which the fit uses; {other}")
    if not predicts:
        return found
    hits = fit.diagnostics.bound_hits
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
    if round(holdout.mape, 2) > round(holdout.naive_mape, 2):  # as printed: for equal losses, both are about 1e-14
        return f"The {what} {FAILS}: {figures}. The no-gain baseline is better."
    # A single loss that is far too low makes the no-gain baseline, which expects this loss, as bad as the forecast.
    median = float(np.median(predictor.points["y"].to_numpy()))
    median_mape = float(np.mean([abs(100 * (median / p.actual - 1)) for p in holdout.points]))
    if round(holdout.mape, 2) > round(median_mape, 2):
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
