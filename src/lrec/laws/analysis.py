"""What a table of points says: predicted, described by a law, held to account and judged, all of it once.

fit.json, the reports and the figures show an analysis; they compute nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from lrec.laws.diagnostics import data_warnings
from lrec.laws.fit import Fit, fit_points
from lrec.laws.forms import LAWS
from lrec.laws.law import Law
from lrec.laws.objective import Kind, Objective
from lrec.laws.points import points_of_most_data, source_hash
from lrec.laws.predict import Holdout, Predictor, holdout_report
from lrec.laws.profile import Prediction
from lrec.laws.rivals import Rival, rivals
from lrec.laws.verdict import outlook, unidentified, verdict, warnings

DESCRIBES = "lsrm"
"""The law that describes the points beside a forecast."""


@dataclass(frozen=True)
class Analysis:
    """A predictor, a law that describes, and all that is said of them.

    Attributes:
        predictor: The forecast, or `fit` itself where a law was asked for.
        fit: Of the law to the small sizes (with all the data, beside a forecast); `fit.profile` has its intervals.
        names: What the caller calls the columns x, d and u, as far as they count, and y.
        source_hash: Of every point, held-out ones included.
        holdout: The held-out sizes, None if there are none.
        rivals: The methods compared, the best rolled out first; empty where none were.
        outlook: What to expect far beyond the fitted sizes.
        unidentified: Parameters of the law that the points do not determine.
        warnings: What a reader should know, in sentences.
        verdict: What all of it comes to, in sentences.
    """

    predictor: Predictor
    fit: Fit
    names: Mapping[str, str]
    source_hash: str
    holdout: Holdout | None
    rivals: tuple[Rival, ...]
    outlook: Prediction
    unidentified: tuple[str, ...]
    warnings: tuple[str, ...]
    verdict: tuple[str, ...]


def analyse(
    method: Law | None,
    points: pl.DataFrame,
    holdout: int,
    names: Mapping[str, str],
    objective: Objective | Kind = "huber",
    with_rivals: bool = True,
) -> Analysis:
    """Fit all but the `holdout` largest sizes by a law, or without one by the forecast, predict these, and judge."""
    return judge(*holdout_report(method, points, holdout, objective), points, names, with_rivals)


def judge(
    predictor: Predictor,
    holdout: Holdout | None,
    points: pl.DataFrame,
    names: Mapping[str, str],
    with_rivals: bool = True,
) -> Analysis:
    """Judge a forecast or a fit by what became of its predictions.

    Args:
        predictor: Of the small sizes.
        holdout: Its predictions and what came (`predict.compare`), None where nothing is held out.
        points: All points, held-out ones included.
        names: As in `Analysis`; further ones are ignored.
        with_rivals: Whether to roll out every law of the same variables.
    """
    columns = (*predictor.columns, "y")
    if isinstance(predictor, Fit):
        fit = predictor
        unsure, warned = unidentified(fit), warnings(fit, holdout)
    else:
        fit = fit_points(LAWS[DESCRIBES], points_of_most_data(predictor.points))
        unsure, warned = [], data_warnings(fit.law, fit.points, fit.x_NV, fit.y_N)
    judged = rivals(predictor, fit, holdout, points) if with_rivals else []
    ahead = outlook(predictor)
    return Analysis(
        predictor=predictor,
        fit=fit,
        names={column: names[column] for column in columns},
        source_hash=source_hash(points, columns),
        holdout=holdout,
        rivals=tuple(judged),
        outlook=ahead,
        unidentified=tuple(unsure),
        warnings=tuple(warned),
        verdict=tuple(verdict(predictor, holdout, judged, ahead, unsure, names["x"])),
    )
