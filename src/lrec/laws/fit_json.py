"""Writes and reads fit.json, and shows its content as report.md and as the table on the terminal."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from lrec.common.files import finite, json_hash, write_json
from lrec.common.pages import rendered
from lrec.common.text_tables import counted
from lrec.errors import UserError
from lrec.laws.analysis import Analysis, Method
from lrec.laws.descent import Objective
from lrec.laws.fit import Fit, fit_points
from lrec.laws.forecast import Forecast
from lrec.laws.law import UNBOUNDED, parameter_text
from lrec.laws.loss_laws import LAWS, law_named, name_of
from lrec.laws.predict import Predictor
from lrec.laws.table import points_of_most_data, source_hash
from lrec.options.class_paths import check_trusted


def write_fit(out: Path, analysis: Analysis) -> dict[str, Any]:
    """Write `out`/fit.json, whole or not at all, and return its content. A number that is not finite becomes null."""
    fit, holdout, points = analysis.fit, analysis.holdout, analysis.predictor.points
    later = analysis.points.filter(pl.col("x") > points["x"].max())
    fitted = {name: (value, *fit.profile.parameters[name]) for name, value in fit.parameters.items()}
    content: dict[str, Any] = {
        "method": analysis.predictor.name if isinstance(analysis.predictor, Forecast) else name_of(fit.law),
        "law": name_of(fit.law),
        "formula": fit.law.formula,
        **analysis.names,
        "parameters": {name: dict(zip(("value", "low", "high"), of, strict=True)) for name, of in fitted.items()},
        "objective": fit.problem.objective.kind,
        "residuals": fit.problem.objective.residuals,
        "objective_value": fit.value,
        "n_points": len(points),
        "n_sizes": len(points.select(analysis.predictor.columns).unique()),
        "x_range": [points["x"].min(), points["x"].max()],
        "r2": fit.r2,
        "noise": {"sigma": fit.profile.sigma, "dof": fit.profile.dof},
        "diagnostics": asdict(fit.diagnostics) | {"warnings": analysis.warnings, "unidentified": analysis.unidentified},
        "holdout": holdout and asdict(holdout) | {"mape": holdout.mape, "naive_mape": holdout.naive_mape},
        "metrics": {name: [asdict(each) for each in judged] for name, judged in analysis.metrics.items()},
        "floor": analysis.of_all.floor,
        "outlook": asdict(analysis.outlook),
        "verdict": analysis.verdict,
        "comparison": [_method_content(method) for method in analysis.methods],
        "source_hash": source_hash(analysis.points, list(analysis.names)),
        "points": points.drop("file", "row", strict=False).to_dicts(),
        "held_out_points": later.drop("file", "row", strict=False).to_dicts(),
    }
    content = finite(content)
    content["content_hash"] = json_hash(content)
    write_json(out / "fit.json", content)
    return content


def _method_content(method: Method) -> dict[str, Any]:
    rolled, fit = method.rollout, method.fit
    steps = [asdict(step) for step in rolled.points] if rolled else []
    errors = rolled and {"mape": rolled.mape, "naive_mape": rolled.naive_mape, "inside": rolled.inside, "steps": steps}
    criteria = {"n_parameters": fit and fit.problem.n_free, "bic": fit and fit.bic, "aicc": fit and fit.aicc}
    return {"law": method.name, **criteria, "holdout_mape": method.holdout_mape, "rollout": errors}


def read_fit(path: Path, trust: bool = False) -> tuple[Fit, Predictor, dict[str, Any]]:
    """The fit of the law, the predictor, and the content that `write_fit` wrote. Both are fitted again to all points,
    including the held-out ones. `trust` imports a law that is not lrec's own. UserError if the file is missing,
    damaged, edited, or without points."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        whole = content.pop("content_hash") == json_hash(content)
        name, objective = content["law"], Objective(content["objective"], content["residuals"])
        law = None if "." in name else LAWS[name]
        forecasts = content["method"] == Forecast.name
        points = pl.DataFrame(content["points"] + content.get("held_out_points", []), infer_schema_length=None)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; lrec scaling fit writes one") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: not a fit.json with its points; write it again with lrec scaling fit") from error
    if not whole:
        raise UserError(f"{path} is damaged, or was edited: write it again with lrec scaling fit")
    if law is None:
        check_trusted({"class_path": name}, trust, path)
        law = law_named(name)
    fitted = fit_points(law, points_of_most_data(points) if forecasts else points, objective)
    predictor: Predictor = Forecast(points) if forecasts else fitted
    predictor.floor = content.get("floor", 0.0)
    return fitted, predictor, content


def table(content: dict[str, Any]) -> str:
    """The content of fit.json as Markdown tables and the verdict. Of metrics, only those at k = 10 are shown."""
    shown: dict[str, Any] = {"fit": content, "cautious": content["method"] == Forecast.name, "unbounded": UNBOUNDED}
    shown["places"] = [name for name in ("x", "d", "u") if name in content]
    by_data = partial(sorted, key=lambda p: (p["d"] or 0, p["u"] or 0))
    shown["metrics"] = {name: by_data(content["metrics"][name]) for name in of_ten(content["metrics"])}
    return rendered("laws", "fit_table.md.j2", shown, parameter=parameter_text).rstrip()


def markdown(content: dict[str, Any], alt: str) -> str:
    """A short report of the content of fit.json. It includes fit.png; `alt` says what this figure shows."""
    shown = {"fit": content, "forecasts": content["method"] == Forecast.name, "points": points_of(content), "alt": alt}
    return rendered("laws", "fit.md.j2", shown | {"table": table(content)})


def of_ten(metrics: Iterable[str]) -> list[str]:
    """The metrics at k = 10, and all metrics without a k."""
    return [name for name in metrics if "@" not in name or re.search("@10(_|$)", name)]


def points_of(content: dict[str, Any]) -> str:
    """How many points there are, and at how many distinct places."""
    place = "setting" if "d" in content or "u" in content else "size"
    return f"{counted(content['n_points'], 'point')} of {counted(content['n_sizes'], place)}"
