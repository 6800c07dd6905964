"""`lrec scaling fit`: points in; fit.json, fit.png (in TensorBoard too), report.md and a table out."""

from pathlib import Path

from lrec.figures import save_figure
from lrec.files import check_writable, write_text
from lrec.laws.agreement import agreement_figure
from lrec.laws.analysis import analyse
from lrec.laws.figures import fit_figure
from lrec.laws.forms import law_named
from lrec.laws.objective import Kind, Objective, Residuals
from lrec.laws.report import markdown, settings_word, table, write_fit
from lrec.study.points import read_points


def fit_command(
    points: list[Path],
    law: str = "lsrm",
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
        law: Law to fit: lsrm, L(x) = E + (x0/x)^a, of size and data chinchilla and kaplan, and of size, data and
            unique data repeated_data, muennighoff and overfitting; or one of your own by its class path.
        holdout: Number of largest sizes to hold out and predict.
        x: Column of what is scaled: N_body, N_total, D, flops or any other.
        d: Column of the interactions processed, for laws of size and data.
        u: Column of the unique interactions, for laws of repeated data.
        y: Column of the loss in nats.
        objective: Sum of Huber terms with delta 1e-3 (huber), of absolute values (lad) or of squares (lsq) of the
            residuals.
        residuals: Of the logarithm of the loss (log) or of the loss itself (level).
        floor: Least possible loss, drawn into the figure.
        compare: Roll out every law of the same variables and put them side by side; laws of size and data take minutes.
        out: Folder for fit.json, fit.png and report.md.
    """
    chosen = law_named(law)
    check_writable(out / "fit.json", "--out")
    others = dict(zip(("d", "u"), (d, u)[: len(chosen.variables) - 1], strict=False))
    table_read = read_points(points, x, y, **others)
    names = {"x": x, "d": d, "u": u, "y": y}
    analysis = analyse(chosen, table_read, holdout, names, Objective(objective, residuals), compare)
    content = write_fit(out, analysis)
    shown = analysis.fit, analysis.holdout
    one = len(chosen.variables) == 1
    save_figure(out / "fit.png", fit_figure(*shown, floor, x, y) if one else agreement_figure(*shown, x, y))
    write_text(out / "report.md", markdown(content))
    counted = f"{content['n_points']} points of {content['n_sizes']} {settings_word(content)}"
    print(f"{content['formula']}, {counted}\n\n{table(content)}\n\n{out}")
