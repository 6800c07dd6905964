"""Laws on public tables: error on held-out largest sizes; and how long 1,000 bootstrap refits take.

Tables (datablations_c4_182.csv, porian_optimal_pairs.csv, kyotakano_llm_df.csv) lie in the folder named.

    python benchmarks/laws.py --tables FOLDER
"""

import argparse
import time
from pathlib import Path

import numpy as np
import polars as pl

from lrec.laws.bootstrap import bootstrap
from lrec.laws.fit import fit
from lrec.laws.forms import LAWS
from lrec.laws.objective import Kind
from lrec.laws.predict import holdout_report


def held_out(name: str, law: str, points: pl.DataFrame, objective: Kind = "huber") -> tuple[float, float]:
    """Print a row: the law's and the naive errors on the two largest sizes, and how many lie in their intervals."""
    fitted, report = holdout_report(LAWS[law], points, 2, objective)
    assert report is not None
    inside = sum(p.inside for p in report.points)
    best = float(fitted.points.group_by(fitted.law.columns).agg(pl.col("y").mean())["y"].min())  # type: ignore[arg-type]
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


def speed() -> None:
    """1,000 refits of Chinchilla's law, of five parameters, to 245 points."""
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(np.log([5e7, 1e9]), np.log([1.6e10, 3e11]), size=(245, 2)))
    truth = {"E": 1.8, "A": 480.0, "B": 2100.0, "a": 0.35, "b": 0.37}
    y = LAWS["chinchilla"].loss(truth, x) * np.exp(0.005 * rng.standard_normal(245))
    objectives: tuple[Kind, ...] = ("huber", "lsq")
    for objective in objectives:
        started, used = time.perf_counter(), time.process_time()
        fitted = fit(LAWS["chinchilla"], x, y, objective)
        between = time.perf_counter()
        bootstrap(fitted, refits=1000)
        ended = time.perf_counter()
        print(
            f"{objective}: fit {between - started:.1f} s, 1,000 refits {ended - between:.1f} s, "
            f"{time.process_time() - used:.1f} s of processor time for both",
            flush=True,
        )


def main() -> None:
    """Print the page's figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path)
    options = parser.parse_args()
    if options.tables is not None:
        tables(options.tables)
    speed()


if __name__ == "__main__":
    main()
