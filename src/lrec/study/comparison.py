"""`lrec scaling compare`: the ladders of several studies, recipes, architectures or data sets in one figure."""

import math
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from lrec.common.files import check_folder, read_json, undamaged, write_json
from lrec.common.pictures import save_figure
from lrec.common.text_tables import on_terminal, rows_table
from lrec.errors import UserError
from lrec.laws.contrast import FURTHEST, Contrast, contrast
from lrec.laws.fit import Fit, fit_points
from lrec.laws.law import UNBOUNDED, parameter_text
from lrec.laws.loss_laws import law_named
from lrec.run import run_of_study
from lrec.study.figures import studies_figure
from lrec.study.points import read_points


def compare(
    studies: list[Path],
    law: str = "lsrm",
    x: Literal["N_body", "N_total", "flops"] = "N_body",
    y: Literal["test_loss", "trajectory_loss"] = "test_loss",
    out: Path = Path("compare"),
) -> None:
    """Draw the points and laws of several studies into one figure; say where they cross and what the same loss costs.

    Compare architectures with `--x flops`, at equal compute: at equal N_body, one may cost more than another.

    Args:
        studies: Folders of studies, or files of points. Each fraction and variant of a study is a separate ladder, and
            so is each file.
        law: Law of the size alone, by name or class path. It is fitted to the fitted sizes of each ladder.
        x: What the law counts: parameters, or the FLOPs of a run.
        y: Which loss is fitted.
        out: Folder for compare.png and compare.json.
    """
    check_folder(out, "--out")
    chosen = law_named(law)
    if len(chosen.variables) > 1:
        raise UserError(f"--law: {law!r} is not a law of the size alone")
    if not studies:
        raise UserError("--studies: name at least one study or file of points")
    ladders: dict[str, tuple[Fit, list[tuple[float, float]]]] = {}
    data: dict[str, set[str]] = {}
    for path in studies:
        for name, (files, large, data[name]) in _ladders(path).items():
            try:
                held_out = _points(large, x, y).select("x", "y").rows() if large else []
                ladders[name] = fit_points(chosen, _points(files, x, y)), held_out
            except UserError as error:
                raise UserError(str(error) if str(error).startswith(f"{files[0]}") else f"{name}: {error}") from error
    contrasts, said = list[dict[str, Any]](), list[str]()
    for one, two in combinations(ladders, 2):
        try:
            found = contrast(ladders[one][0], ladders[two][0])
            values, words = asdict(found), _in_words(found, chosen.parameters[chosen.n_coefficients], x)
        except UserError as error:  # it says why there is no contrast
            values, words = {"unknown": str(error)}, str(error)
        contrasts.append({"ladders": (one, two), **values})
        differ = data[one] and data[two] and data[one] != data[two]
        said.append(f"{one} against {two}: {words}" + ". Their data differ (log, split or reduction)" * bool(differ))
    crossings = [each["crossing"] for each in contrasts if each.get("crossing")]
    save_figure(out / "compare.png", studies_figure(ladders, x, y, crossings))
    rows, content = [["ladder", *chosen.parameters]], dict[str, Any]()
    for name, (fitted, held_out) in ladders.items():
        intervals, pairs = fitted.profile.parameters, np.column_stack([fitted.x_N, fitted.y_N]).tolist()
        content[name] = {"parameters": fitted.parameters, "intervals": intervals, "points": pairs, "held_out": held_out}
        rows.append([name])
        for parameter, value in fitted.parameters.items():
            low, high = (parameter_text(end, UNBOUNDED) for end in intervals[parameter])
            rows[-1].append(f"{parameter_text(value)} [{low}, {high}]")
    about = {"law": law, "formula": chosen.formula, "x": x, "y": y}
    write_json(out / "compare.json", about | {"ladders": content, "contrasts": contrasts})
    table = on_terminal(rows_table(rows, text=(0,)))
    print("\n\n".join([chosen.formula, table, *said, str(out / "compare.png")]))


def _in_words(found: Contrast, exponent: str, x: str) -> str:
    difference = f"{found.exponent:+.3g} [{found.exponent_low:.3g}, {found.exponent_high:.3g}]"
    exponents = f"{exponent} differs by {difference}, {'' if found.told_apart else 'not '}distinguishable from 0"
    first = "The first is lower" if found.lower_before else "The first is higher"
    where = f"{first} at every size; the curves cross in {found.share:.0%} of the refits"
    if found.crossing is not None:
        low = "below the sizes" if not found.crossing_low else f"{found.crossing_low:.3g}"
        high = "beyond ten times the largest" if found.crossing_high == math.inf else f"{found.crossing_high:.3g}"
        where = f"{first} up to {x} {found.crossing:.3g} [{low}, {high}], but not above"
    elif found.lower_before is None:
        where = "The curves are equal"
    not_found = {0.0: f"below {1 / FURTHEST:g}", math.inf: f"above {FURTHEST:g}"}
    times, low, high = (not_found.get(n, f"{n:.2f}") for n in (found.times, found.times_low, found.times_high))
    reached = f"For the loss that the first has at {x} {found.reached:.3g}, the second needs {times} times the {x}"
    return f"{exponents}. {where}. {reached} [{low}, {high}]"


def _points(files: list[Path], x: str, y: str) -> pl.DataFrame:
    points = read_points(files, "N_body" if x == "flops" else x, y)
    if x != "flops":
        return points
    if "flops" not in points.columns:
        raise UserError(f"{files[0]}: --x flops is for points that lrec wrote")
    return points.with_columns(x=points["flops"])  # every run counts, even if one with fewer FLOPs is better


def _ladders(path: Path) -> dict[str, tuple[list[Path], list[Path], set[str]]]:
    """The ladders of a study or file, by name: files with the points to fit, files of held-out runs that did not
    diverge, and the hashes of the data as far as they are known."""
    if path.is_file():
        return {str(path): ([path], [], set())}
    record = read_json(path / "study.json")
    if record is None:
        raise UserError(f"--studies {path}: no study there (no study.json), and not a file of points either")
    ladders: dict[str, tuple[list[Path], list[Path], set[str]]] = {}
    with undamaged(path / "study.json"):
        longest = max((run.get("horizon", 1.0) for run in record["grid"]["runs"]), default=1.0)
        for run in record["grid"]["runs"]:
            trained = run_of_study(path, run["name"])
            if trained.result is not None:
                files, large, hashes = ladders.setdefault(f"{path} {run['ladder']}".rstrip(), ([], [], set()))
                hashes |= {trained.result.data_hash} - {""}
                if not run["held_out"]:
                    files.append(trained.points_file)
                elif run.get("horizon", 1.0) == longest and not trained.diverged:
                    large.append(trained.points_file)
    if not ladders:
        raise UserError(f"--studies {path}: none of its runs is finished here: start the study again")
    return ladders
