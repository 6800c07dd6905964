"""What a table of points says of a law: fitted, held to account and judged, all of it once.

fit.json, the reports and the figures show an analysis; they compute nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from lrec.laws.fit import Fit
from lrec.laws.law import Law
from lrec.laws.objective import Kind, Objective
from lrec.laws.points import source_hash
from lrec.laws.predict import Holdout, holdout_report
from lrec.laws.profile import Prediction
from lrec.laws.rivals import Rival, rivals
from lrec.laws.verdict import outlook, unidentified, verdict, warnings


@dataclass(frozen=True)
class Analysis:
    """A fit, and all that is said of it.

    Attributes:
        fit: Of the small sizes; `fit.profile` has the intervals.
        names: What the caller calls the columns x, d and u, as far as the law has them, and y.
        source_hash: Of every point, held-out ones included.
        holdout: The held-out sizes, None if there are none.
        rivals: The laws compared, the best rolled out first; empty where none were.
        outlook: What to expect far beyond the fitted sizes, by method.
        unidentified: Parameters that the points do not determine.
        warnings: What a reader should know, in sentences.
        verdict: What all of it comes to, in sentences.
    """

    fit: Fit
    names: Mapping[str, str]
    source_hash: str
    holdout: Holdout | None
    rivals: tuple[Rival, ...]
    outlook: Mapping[str, Prediction]
    unidentified: tuple[str, ...]
    warnings: tuple[str, ...]
    verdict: tuple[str, ...]


def analyse(
    law: Law,
    points: pl.DataFrame,
    holdout: int,
    names: Mapping[str, str],
    objective: Objective | Kind = "huber",
    with_rivals: bool = True,
) -> Analysis:
    """Fit all but the `holdout` largest sizes, predict these, and judge."""
    return judge(*holdout_report(law, points, holdout, objective), points, names, with_rivals)


def judge(
    fit: Fit, holdout: Holdout | None, points: pl.DataFrame, names: Mapping[str, str], with_rivals: bool = True
) -> Analysis:
    """Judge a fit by what became of its predictions.

    Args:
        fit: Of the small sizes.
        holdout: Its predictions and what came (`predict.compare`), None where nothing is held out.
        points: All points, held-out ones included.
        names: As in `Analysis`; further ones are ignored.
        with_rivals: Whether to roll out every law of the same variables, which takes minutes for those of several.
    """
    columns = (*fit.law.columns, "y")
    judged = rivals(fit, holdout, points) if with_rivals else []
    ahead, unsure = outlook(fit), unidentified(fit)
    return Analysis(
        fit=fit,
        names={column: names[column] for column in columns},
        source_hash=source_hash(points, columns),
        holdout=holdout,
        rivals=tuple(judged),
        outlook=ahead,
        unidentified=tuple(unsure),
        warnings=tuple(warnings(fit, holdout)),
        verdict=tuple(verdict(fit, holdout, judged, ahead, unsure, names["x"])),
    )
