"""`lrec scaling fit`: reads points, writes fit.json, fit.png (also to TensorBoard) and report.md, prints a table."""

from pathlib import Path

from lrec.common.files import check_writable, write_text
from lrec.common.pictures import alt_text, save_figure
from lrec.common.text_tables import on_terminal
from lrec.errors import check_range
from lrec.laws.analysis import Analysis
from lrec.laws.descent import Kind, Objective, Residuals
from lrec.laws.figures import agreement_figure, fit_figure
from lrec.laws.fit_json import markdown, points_of, table, write_fit
from lrec.laws.predict import holdout_report, method_named
from lrec.study.points import read_points


def fit_command(
    points: list[Path],
    law: str = "forecast",
    holdout: int = 2,
    x: str = "N_body",
    d: str = "D",
    u: str = "U",
    y: str = "test_loss",
    objective: Kind = "huber",
    residuals: Residuals = "log",
    floor: float | None = None,
    compare: bool = True,
    out: Path = Path("fit"),
) -> None:
    """Fit a scaling law to points, predict the held-out largest sizes and compare.

    Args:
        points: Files (.jsonl, .csv, .tsv, .parquet) or folders of runs (every points.jsonl under them).
        law: forecast, which combines many curves and learns from data samples if the points have them. Or a law: lsrm,
            L(x) = E + (x0/x)^a; chinchilla or kaplan, of size and data; repeated_data, muennighoff or overfitting, of
            size, data and unique data; or a law of your own, by its class path.
        holdout: Number of largest sizes to hold out and predict.
        x: Column of what is scaled: N_body, N_total, D, flops or any other.
        d: Column of the interactions processed, for laws of size and data.
        u: Column of the unique interactions, for laws of repeated data.
        y: Column of the loss in nats.
        objective: What the fit minimises: the sum of the residuals' Huber terms with delta 1e-3 (huber), of their
            absolute values (lad) or of their squares (lsq).
        residuals: Residuals of the logarithm of the loss (log) or of the loss itself (level).
        floor: Least possible loss. No loss below it is expected, and the figure shows it.
        compare: Predict each size from the smaller ones with every law of the same variables, and print the errors.
        out: Folder for fit.json, fit.png and report.md.
    """
    method = method_named(law)
    check_writable(out / "fit.json", "--out")
    variables = 1 if method is None else len(method.variables)
    of_law = (d if variables > 1 else None, u if variables > 2 else None)
    table_read = read_points(points, x, y, *of_law, shares=method is None)
    check_range("--floor", floor, at_least=0, at_most=float(table_read["y"].to_numpy().min()))
    predictor, held_out = holdout_report(method, table_read, holdout, Objective(objective, residuals))
    names = {"x": x, "d": d, "u": u, "y": y}
    analysis = Analysis(predictor, held_out, table_read, names, compare, floor)
    content = write_fit(out, analysis)
    shown = analysis.fit, analysis.holdout
    of_size = len(analysis.fit.law.variables) == 1
    figure = fit_figure(analysis.predictor, *shown, floor, x, y) if of_size else agreement_figure(*shown, x, y)
    save_figure(out / "fit.png", figure)
    write_text(out / "report.md", markdown(content, alt_text(figure)))
    title = content["formula"] if method else f"forecast, described by {content['formula']}"
    print(f"{title}, {points_of(content)}\n\n{on_terminal(table(content))}\n\n{out}")
