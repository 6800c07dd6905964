"""Writes and reads fit.json, and shows its content as report.md and as the table on the terminal."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from lrec.common.files import json_hash, write_json
from lrec.common.text_tables import counted, rows_table
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
    """The content of fit.json as Markdown tables and the verdict."""
    parameters = [["parameter", "value", "90 % low", "90 % high"]]
    for name, p in content["parameters"].items():
        ends = [parameter_text(p[end], UNBOUNDED) for end in ("low", "high")]
        parameters.append([name, parameter_text(p["value"]), *ends])
    blocks = [rows_table(parameters, text=(0,))]
    if content["holdout"]:
        blocks += [*_held_out(content), *_metrics(content)]
    if len(content["comparison"]) > 1:
        rows = [["method", "parameters", "roll-out error", "no gain", "within", "held-out error", "AICc", "BIC"]]
        blocks.append(rows_table(rows + [_method_row(method) for method in content["comparison"]], text=(0,)))
    blocks.append(" ".join(content["verdict"]))
    blocks += [f"Warning: {warning}." for warning in content["diagnostics"]["warnings"]]
    return "\n\n".join(blocks)


def _held_out(content: dict[str, Any]) -> list[str]:
    holdout, cautious = content["holdout"], ["cautious"] if content["method"] == Forecast.name else []
    places = [name for name in ("x", "d", "u") if name in content]
    judged = [(["" if p[name] is None else f"{p[name]:.4g}" for name in places], p) for p in holdout["points"]]
    return [
        rows_table(_judged([content[name] for name in places], judged, *cautious)),
        f"Mean absolute error: {holdout['mape']:.2f} %. The no-gain baseline, which expects the loss of the best "
        f"small model, has an error of {holdout['naive_mape']:.2f} %. The largest held-out size is "
        f"{holdout['extrapolation_factor']:.1f} times the largest fitted size.",
    ]


def _metrics(content: dict[str, Any]) -> list[str]:
    """A table of predicted and actual metrics at the held-out sizes: only k = 10, only each size's most data."""
    judged, shown = [], of_ten(content["metrics"])
    for name in shown:
        by_data = sorted(content["metrics"][name], key=lambda p: (p["d"] or 0, p["u"] or 0))
        most = {p["x"]: p for p in by_data}
        judged += [([name, f"{x:.4g}"], most[x]) for x in sorted(most)]
    return [rows_table(_judged(["metric", content["x"]], judged), text=(0,))] if shown else []


def _judged(places: list[str], judged: list[tuple[list[str], dict[str, Any]]], *more: str) -> list[list[str]]:
    """The rows of a table: names of places, then each place with its prediction, actual value and errors."""
    rows = [[*places, "predicted", "90 % low", "90 % high", *more, "actual", "error", "within", "no-gain error"]]
    for place, p in judged:
        figures = [f"{p[key]:.4f}" for key in ("predicted", "low", "high", *more, "actual")]
        errors = [f"{p['error_pct']:+.2f} %", "yes" if p["inside"] else "no", f"{p['naive_error_pct']:+.2f} %"]
        rows.append([*place, *figures, *errors])
    return rows


def of_ten(metrics: Iterable[str]) -> list[str]:
    """The metrics at k = 10, and all metrics without a k."""
    return [name for name in metrics if "@" not in name or re.search("@10(_|$)", name)]


def _method_row(method: dict[str, Any]) -> list[str]:
    rolled, held_out, steps = method["rollout"], method["holdout_mape"], ["", "", ""]
    if rolled:
        inside = f"{rolled['inside']} of {len(rolled['steps'])}"
        steps = [f"{rolled['mape']:.2f} %", f"{rolled['naive_mape']:.2f} %", inside]
    criteria = ["" if method[key] is None else f"{method[key]:.1f}" for key in ("aicc", "bic")]
    missed = "" if held_out is None else f"{held_out:.2f} %"
    return [method["law"], str(method["n_parameters"] or ""), *steps, missed, *criteria]


def markdown(content: dict[str, Any], alt: str) -> str:
    """A short report of the content of fit.json. It includes fit.png; `alt` says what this figure shows."""
    d, title, law = content["diagnostics"], content["formula"], f"Fitted: {content['formula']}"
    if content["method"] == Forecast.name:
        title = "Forecast"
        law = "The forecast does not use a single law; the parameters belong to "
        law += f"{content['formula']}, which describes the points"
    # It is infinite, and so null in fit.json, if the points say nothing about a parameter.
    condition = "infinite" if d["condition_number"] is None else f"{d['condition_number']:.3g}"
    return f"""# {title}

{law}.

{content["y"]} by {content["x"]}: {points_of(content)}, objective {content["objective"]}, \
R² {content["r2"]:.4f}. All intervals are 90 % intervals. The intervals of predictions are for a new run.

![{alt}](fit.png)

{table(content)}

Search: {d["share_agreeing"]:.0%} of {d["starts"]} starts agree; gradient {d["gradient_norm"]:.1e}; condition number \
{condition}. \
The noise of a run is {100 * content["noise"]["sigma"]:.2f} % ({content["noise"]["dof"]} degrees of freedom).
"""


def points_of(content: dict[str, Any]) -> str:
    """How many points there are, and at how many distinct places."""
    place = "setting" if "d" in content or "u" in content else "size"
    return f"{counted(content['n_points'], 'point')} of {counted(content['n_sizes'], place)}"


def finite(value: Any) -> Any:
    """The value as JSON can store it, with null for a number that is not finite."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)
