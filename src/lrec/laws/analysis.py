"""The analysis of a table of points: a prediction, the fit of a law, held-out errors, roll-outs and a verdict.
fit.json, the reports and the figures show the results of an analysis. They do not analyse again."""

import sys
from collections.abc import Mapping
from functools import partial

import numpy as np
import polars as pl

from lrec.errors import UserError
from lrec.laws.fit import Fit, fit_points
from lrec.laws.forecast import Forecast
from lrec.laws.intervals import Judged
from lrec.laws.loss_laws import LAWS
from lrec.laws.metric_forecasts import judged_metrics
from lrec.laws.predict import Comparison, Predictor, predictor_of, roll_out, tested
from lrec.laws.table import has_lengths, points_of_most_data
from lrec.laws.verdict import Method, data_warnings, outlook, unidentified, verdict, warnings

DESCRIBES = "lsrm"  # a forecast also gets the fit of this law, which describes the points
FLOORLESS = ("lsrm", "kaplan")  # laws that are also compared without their floor, as in Kaplan et al.


class Analysis:
    """A forecast or a fit of the small sizes, judged by its errors on the held-out sizes (`predict.holdout_report`).
    `of_all` is the same method, but from all points. `fit` describes the small sizes by a law; if a law was chosen, it
    is the predictor. `names` maps y, and those of the columns x, d and u that the predictor uses, to the caller's
    names. `metrics` has the predicted and actual metrics of the held-out sizes by name."""

    def __init__(
        self,
        predictor: Predictor,
        holdout: Comparison | None,
        points: pl.DataFrame,
        names: Mapping[str, str],
        with_others: bool = True,
        floor: float | None = None,
    ) -> None:
        """`points` are all points, including the held-out ones. `with_others` compares the predictor with laws of the
        same variables."""
        self.predictor, self.of_all, self.holdout, self.points = predictor, predictor, holdout, points
        self.names = {column: names[column] for column in (*predictor.columns, "y")}
        largest = points_of_most_data(predictor.points)
        self.fit = predictor if isinstance(predictor, Fit) else fit_points(LAWS[DESCRIBES], largest)
        is_law, self.unidentified = self.fit is predictor, unidentified(predictor)
        self.warnings = warnings(self.fit, holdout) if is_law else data_warnings(self.fit)
        if holdout:
            self.of_all = predictor_of(self.fit.law if is_law else None, points, self.fit.problem.objective)
        self.methods = compare_methods(predictor, self.fit, holdout, points) if with_others else []
        self.of_all.floor = floor or 0.0
        self.outlook = outlook(self.of_all)
        self.verdict = verdict(predictor, holdout, self.methods, self.outlook, names["x"])
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
