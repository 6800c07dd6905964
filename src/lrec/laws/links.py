"""From loss to metric: what HR@10 or NDCG@10 to expect at a loss, from runs that have both."""

from dataclasses import dataclass

import polars as pl

from lrec.errors import UserError
from lrec.laws.fit import Fit, fit_points
from lrec.laws.forms import LINKS
from lrec.laws.points import METRICS
from lrec.laws.profile import Prediction


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
    links = {}
    for metric in METRICS:
        if metric not in points.columns:
            continue
        own = points.select(x="y", y=metric).drop_nulls().filter(pl.col("y") > 0)
        found = []
        for law in LINKS.values():
            try:
                found.append(fit_points(law, own, "lsq"))
            except UserError:  # too few losses, or too close together, for this law
                continue
        if found:
            links[metric] = min(found, key=lambda link: link.aicc)
    return links


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
