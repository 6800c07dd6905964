"""Laws on public tables: the error on the held-out largest sizes; and the time of the 1,000 refits of `lrec scaling
compare`, in lrec and in scipy.

The folder holds the tables datablations_c4_182.csv, porian_*.csv and kyotakano_llm_df.csv.

    python benchmarks/laws.py --tables FOLDER
    python benchmarks/laws.py --refits
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
from scipy.optimize import least_squares

from lrec.laws.contrast import refits_of
from lrec.laws.descent import DELTA, Kind
from lrec.laws.fit import fit
from lrec.laws.loss_laws import LAWS
from lrec.laws.predict import holdout_report


def held_out(name: str, law: str, points: pl.DataFrame, objective: Kind = "huber") -> tuple[float, float]:
    """Print a row: the law's and the naive errors on the two largest sizes, and how many lie in their intervals."""
    fitted, report = holdout_report(LAWS[law], points, 2, objective)
    assert report is not None
    inside = sum(p.inside for p in report.points)
    best = float(fitted.points.group_by(fitted.columns).agg(pl.col("y").mean())["y"].min())  # type: ignore[arg-type]
    any_data = float(np.mean([100 * abs(best / p.actual - 1) for p in report.points]))
    errors = f"{report.mape:.2f} | {report.naive_mape:.2f} | {report.mape / report.naive_mape:.3f} | {any_data:.2f}"
    counts = f"{len(points)} | {report.extrapolation_factor:.1f} | {inside} of {len(report.points)}"
    print(f"| {name} | {law} | {objective} | {errors} | {counts} |", flush=True)
    return report.mape, report.naive_mape


def tables(folder: Path) -> None:
    """Hold out the two largest sizes of each table."""
    print(
        "| table | law | objective | error, % | naive, % | error / naive | naive, any data, % | points "
        "| extrapolated, times | inside |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    points = pl.read_csv(folder / "kyotakano_llm_df.csv").select(x="N", d="D", y="loss").cast(pl.Float64)
    objectives: tuple[Kind, ...] = ("huber", "lsq")
    for objective in objectives:
        held_out("Chinchilla", "chinchilla", points, objective)
    columns = {"x": "params_N", "d": "tokens_D", "u": "unique_tokens_U", "y": "val_loss"}
    points = pl.read_csv(folder / "datablations_c4_182.csv").select(**columns).cast(pl.Float64)
    for law in ("chinchilla", "kaplan", "repeated_data", "muennighoff", "overfitting"):
        held_out("data-constrained C4", law, points)
    pairs = pl.read_csv(folder / "porian_optimal_pairs.csv").drop_nulls()
    errors = [
        held_out(name.replace("|", " "), "lsrm", pairs.filter(config=name).select(x="flops", y="loss"))
        for name in pairs["config"].unique().sort()
    ]
    mean, naive = np.mean(errors, axis=0)
    print(f"| mean of {len(errors)} | lsrm | huber | {mean:.2f} | {naive:.2f} | {mean / naive:.3f} | | | | |")


def refits(by_scipy: int = 50) -> None:
    """1,000 refits of a ladder of five sizes and two seeds: all at once, and some of them one by one by scipy."""
    rng = np.random.default_rng(0)
    size = np.repeat(np.geomspace(2e11, 7e12, 5), 2)
    fitted = fit(LAWS["lsrm"], size, (3.8 + (1e11 / size) ** 0.2) * np.exp(0.003 * rng.standard_normal(10)))
    began = time.process_time()
    refits_of(fitted, 1000)
    between = time.process_time()
    low_T, high_T = fitted.problem.low_T, fitted.problem.high_T
    for _ in range(by_scipy):
        y_1N = fitted.curve(fitted.x_NV)[None] * np.exp(0.003 * rng.standard_normal((1, 10)))
        problem = replace(fitted.problem, y_SN=y_1N)
        for share in (None, 0.05, 0.5, 0.9):  # the floor starts at this share of the lowest loss
            start_T = fitted.theta_T.copy()
            if share is not None:
                start_T[0] = np.log(share * fitted.y_N.min())
            least_squares(
                lambda theta_T, problem=problem: problem.residuals(theta_T[None])[0],
                np.clip(start_T, low_T + 1e-10, high_T - 1e-10),
                lambda theta_T, problem=problem: problem.jacobian(theta_T[None])[0],
                bounds=(low_T, high_T),
                x_scale="jac",
                loss="huber",
                f_scale=DELTA,
                ftol=1e-10,
                xtol=1e-10,
                gtol=1e-10,
                max_nfev=100,
            )
    each = (time.process_time() - between) / by_scipy
    print(f"1,000 refits, processor time: {between - began:.1f} s at once, {1000 * each:.0f} s one by one by scipy")


def main() -> None:
    """Print the page's figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--refits", action="store_true")
    options = parser.parse_args()
    if options.tables is not None:
        tables(options.tables)
    if options.refits:
        refits()


if __name__ == "__main__":
    main()
