"""Laws of a metric given the loss: what HR@10 or NDCG@10 to expect at a loss, from runs that have both."""

from contextlib import suppress
from dataclasses import dataclass
from itertools import product

import numpy as np
import polars as pl

from lrec.errors import UserError
from lrec.laws.fit import Fit, fit_points
from lrec.laws.intervals import Prediction
from lrec.laws.law import Array, Law, Values, by_column, stack
from lrec.laws.table import METRICS


class Logistic(Law):
    """A metric between b and b + m that falls as the loss rises: b + m / (1 + exp(k (L/L0 - 1)))."""

    name = "logistic"
    formula = "metric(L) = b + m/(1 + exp(k (L/L0 - 1)))"
    variables = ("L",)
    parameters = ("b", "m", "L0", "k")
    shape_bounds = ((0.3, 3.0), (0.5, 200.0))  # the midpoint in units of the mean loss
    shape_starts = ((0.8, 1.0, 1.2), (3.0, 10.0, 30.0))

    def log_basis(self, shape_GH: Array, z_NV: Array) -> Array:
        middle_G1, k_G1 = by_column(shape_GH)
        return stack(0.0, -np.logaddexp(0.0, k_G1 * (np.exp(z_NV[:, 0]) / middle_G1 - 1)))

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        (b, m), (middle, k) = coefficients_K, shape_H
        return {"b": float(b), "m": float(m), "L0": float(middle * unit_V[0]), "k": float(k)}

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        return [p["b"], p["m"]], [p["L0"] / unit_V[0], p["k"]]


class Linear(Law):
    """A metric that falls in proportion to the loss, m (1 - L/L0), and is 0 from L0 on."""

    name = "linear"
    formula = "metric(L) = m (1 - L/L0)"
    variables = ("L",)
    parameters = ("m", "L0")
    shape_bounds = ((0.5, 50.0),)  # in units of the mean loss
    shape_starts = ((1.05, 1.2, 1.5, 3.0, 10.0),)
    has_floor = False

    def log_basis(self, shape_GH: Array, z_NV: Array) -> Array:
        return stack(np.log(np.maximum(1 - np.exp(z_NV[:, 0]) / shape_GH, 1e-9)))

    def named(self, coefficients_K: Array, shape_H: Array, unit_V: Array) -> dict[str, float]:
        return {"m": float(coefficients_K[0]), "L0": float(shape_H[0] * unit_V[0])}

    def internal(self, p: Values, unit_V: Array) -> tuple[list[float], list[float]]:
        return [p["m"]], [p["L0"] / unit_V[0]]


METRIC_LAWS: dict[str, Law] = {law.name: law for law in (Linear(), Logistic())}


@dataclass(frozen=True)
class Expected:
    """A metric expected at a predicted loss; low and high hold both the loss's interval and the link's own.

    An end is None where it lies at losses that no fitted run had: a link says nothing there.
    """

    metric: str
    predicted: float
    low: float | None
    high: float | None


def fit_links(points: pl.DataFrame) -> dict[str, Fit]:
    """For each of `METRICS` that the points have, the better law of it given the loss, by AICc.

    Runs at which a metric is 0 say nothing of its logarithm and are left out; so are metrics with too few other runs.
    """
    found: dict[str, list[Fit]] = {}
    for metric, law in product(METRICS, METRIC_LAWS.values()):
        if metric in points.columns:
            own = points.select(x="y", y=metric).drop_nulls().filter(pl.col("y") > 0)
            with suppress(UserError):  # too few losses, or too close together, for this law
                found.setdefault(metric, []).append(fit_points(law, own, "lsq"))
    return {metric: min(links, key=lambda link: link.aicc) for metric, links in found.items() if links}


def expected_metrics(links: dict[str, Fit], loss: Prediction) -> list[Expected]:
    """What the links make of a predicted loss within the fitted ones: the higher the loss, the lower the metric."""
    expected = []
    for metric, link in links.items():
        margin = 0.02 * float(link.x_N.max() - link.x_N.min())
        least, most = float(link.x_N.min()) - margin, float(link.x_N.max()) + margin
        if not least <= loss.predicted <= most:
            continue
        at_high, at, at_low = link.profile.predict([loss.high, loss.predicted, max(loss.low, 1e-9)])
        low = None if loss.high > most else min(at_high.low, at.predicted)
        high = None if loss.low < least else max(at_low.high, at.predicted)
        expected.append(Expected(metric, at.predicted, low, high))
    return expected
