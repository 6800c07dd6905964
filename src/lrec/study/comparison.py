"""`lrec scaling compare`: the ladders of several studies, recipes or data sets in one figure."""

import json
from pathlib import Path
from typing import Literal

from lrec.errors import UserError
from lrec.figures import save_figure
from lrec.files import check_folder, write_json
from lrec.laws.fit import Fit, fit_points
from lrec.laws.forms import law_named
from lrec.laws.law import parameter_text
from lrec.run import Run, run_of_study
from lrec.study.figures import studies_figure
from lrec.study.points import read_points
from lrec.tables import on_terminal, rows_table


def compare(
    studies: list[Path],
    law: str = "lsrm",
    x: Literal["N_body", "N_total"] = "N_body",
    y: Literal["test_loss", "trajectory_loss"] = "test_loss",
    out: Path = Path("compare"),
) -> None:
    """Draw the points and laws of several studies into one figure.

    Args:
        studies: Folders of studies; each fraction and variant of a study is a ladder of its own.
        law: Law of the size alone to fit to the sizes that each study fitted, by name or class path.
        x: Parameters the law counts.
        y: Loss.
        out: Folder for compare.png and compare.json.
    """
    check_folder(out, "--out")
    chosen = law_named(law)
    if len(chosen.variables) > 1:
        raise UserError(f"--law: {law!r} is no law of the size alone")
    ladders: dict[str, tuple[Fit, list[tuple[float, float]]]] = {}
    for folder in studies:
        for name, runs in _ladders(folder).items():
            points = read_points([run.points_file for run, held_out in runs if not held_out], x, y)
            large = [run.result for run, held_out in runs if held_out]
            held_out = [(float(getattr(p, x)), float(getattr(p, y))) for p in large if p is not None and not p.diverged]
            ladders[name] = fit_points(chosen, points), held_out
    save_figure(out / "compare.png", studies_figure(ladders, x, y))
    content = {
        name: {
            "parameters": fitted.parameters,
            "points": [list(point) for point in zip(fitted.x_N.tolist(), fitted.y_N.tolist(), strict=True)],
            "held_out": held_out,
        }
        for name, (fitted, held_out) in ladders.items()
    }
    write_json(out / "compare.json", {"law": law, "formula": chosen.formula, "x": x, "y": y, "ladders": content})
    rows = [["ladder", *chosen.parameters]]
    rows += [[name, *map(parameter_text, fitted.parameters.values())] for name, (fitted, _) in ladders.items()]
    print(f"{chosen.formula}\n\n{on_terminal(rows_table(rows, text=(0,)))}\n\n{out / 'compare.png'}")


def _ladders(folder: Path) -> dict[str, list[tuple[Run, bool]]]:
    """The finished runs of a study's ladders and whether each is held out, by the study's folder and the ladder's
    name."""
    path = folder / "study.json"
    if not path.is_file():
        raise UserError(f"--studies {folder}: no study there (no study.json)")
    study = json.loads(path.read_text(encoding="utf-8"))
    ladders: dict[str, list[tuple[Run, bool]]] = {}
    for run in study["grid"]["runs"]:
        trained = run_of_study(folder, run["name"])
        if trained.result is not None:
            name = " ".join(part for part in (str(folder), run["ladder"]) if part)
            ladders.setdefault(name, []).append((trained, run["held_out"]))
    if not ladders:
        raise UserError(f"--studies {folder}: no run of it is finished")
    return ladders
