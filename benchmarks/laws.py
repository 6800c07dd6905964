"""Laws on public tables: error on held-out largest sizes, the two routes of a fit beside each other, and how long 1,000
bootstrap refits take, here and by scipy.

Tables (datablations_c4_182.csv, porian_*.csv, kyotakano_llm_df.csv, curves.jsonl) lie in the folder named.

    python benchmarks/laws.py --tables FOLDER
    python benchmarks/laws.py --routes FOLDER
    python benchmarks/laws.py --refits
"""

import argparse
import json
import time
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
from scipy.optimize import minimize

from lrec.errors import UserError
from lrec.laws.bootstrap import bootstrap
from lrec.laws.descent import descend
from lrec.laws.fit import by_descent, by_trust_region, fit, search_of
from lrec.laws.forms import LAWS
from lrec.laws.objective import Kind
from lrec.laws.predict import holdout_report
from lrec.laws.vertex import polished


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


def public_tables(folder: Path) -> dict[str, list[pl.DataFrame]]:
    """By law: the tables it is fitted to."""
    columns = {"x": "params_N", "d": "tokens_D", "u": "unique_tokens_U", "y": "val_loss"}
    repeats = pl.read_csv(folder / "datablations_c4_182.csv").select(**columns).cast(pl.Float64)
    chinchilla = pl.read_csv(folder / "kyotakano_llm_df.csv").select(x="N", d="D", y="loss").cast(pl.Float64)
    pairs = pl.read_csv(folder / "porian_optimal_pairs.csv").drop_nulls()
    budgets = [own.select(x="flops", y="loss") for _, own in pairs.group_by("config", maintain_order=True)]
    curves = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    one = budgets + [pl.DataFrame({"x": curve["x"], "y": curve["loss"]}) for curve in curves]
    return (
        {"lsrm": one}
        | {law: [chinchilla, repeats] for law in ("chinchilla", "kaplan")}
        | {law: [repeats] for law in ("repeated_data", "muennighoff", "overfitting")}
    )


def routes(folder: Path) -> None:
    """A row for each law and objective: how far the second route ends above the first, and the time of both."""
    print("| law | objective | fits | higher by > 1e-6 | lower by > 1e-6 | highest | descent, s | trust region, s |")
    print("|---|---|---|---|---|---|---|---|")
    kinds: tuple[Kind, ...] = ("huber", "lad", "lsq")
    for law, kind in product(LAWS, kinds):
        above, seconds = [], []
        for points in public_tables(folder)[law]:
            try:
                start, start_ST = search_of(LAWS[law], points, kind)
            except UserError:  # too few sizes
                continue
            began = time.perf_counter()
            first_T, _ = by_descent(start, start_ST)
            between = time.perf_counter()
            second_T = by_trust_region(start, start_ST)
            seconds.append([between - began, time.perf_counter() - between])
            ends = [polished(start.problem(), end_T) if kind == "lad" else end_T for end_T in (first_T, second_T)]
            first, second = start.problem().values(np.array(ends))
            above.append(second / max(first, 1e-15) - 1)
        above_F, (descent, trust) = np.array(above), np.sum(seconds, axis=0)
        counts = f"{len(above)} | {(above_F > 1e-6).sum()} | {(above_F < -1e-6).sum()} | {above_F.max():.1e}"
        print(f"| {law} | {kind} | {counts} | {descent:.2f} | {trust:.2f} |", flush=True)


def chinchillas() -> tuple[np.ndarray, np.ndarray]:
    """245 points about Chinchilla's law, of five parameters."""
    rng = np.random.default_rng(0)
    x = np.exp(rng.uniform(np.log([5e7, 1e9]), np.log([1.6e10, 3e11]), size=(245, 2)))
    truth = {"E": 1.8, "A": 480.0, "B": 2100.0, "a": 0.35, "b": 0.37}
    return x, LAWS["chinchilla"].loss(truth, x) * np.exp(0.005 * rng.standard_normal(245))


def speed() -> None:
    """1,000 refits to 245 points."""
    objectives: tuple[Kind, ...] = ("huber", "lad", "lsq")
    for objective in objectives:
        started, used = time.perf_counter(), time.process_time()
        fitted = fit(LAWS["chinchilla"], *chinchillas(), objective)
        between = time.perf_counter()
        bootstrap(fitted, refits=1000)
        ended = time.perf_counter()
        print(
            f"{objective}: fit {between - started:.1f} s, 1,000 refits {ended - between:.1f} s, "
            f"{time.process_time() - used:.1f} s of processor time for both",
            flush=True,
        )


def refits(starts: int = 100) -> None:
    """The same descents from the law's grid of starts: all at once by `descend`, one by one by scipy's L-BFGS-B."""
    points = pl.DataFrame(dict(zip(("x", "d"), chinchillas()[0].T, strict=True)) | {"y": chinchillas()[1]})
    start, start_ST = search_of(LAWS["chinchilla"], points)
    start_ST = np.tile(start_ST, (4, 1))[:starts]
    problem = start.problem()
    began = time.perf_counter()
    ours_S = descend(problem, start_ST).value_S
    between = time.perf_counter()

    def value(theta_T: np.ndarray) -> tuple[float, np.ndarray]:
        value_S, gradient_ST, *_ = problem.at(theta_T[None], np.zeros(1, dtype=int), problem.objective.smallest_delta)
        return float(value_S[0]), gradient_ST[0]

    bounds = list(zip(start.low_T, start.high_T, strict=True))
    tight = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 5000, "maxfun": 50000}
    ends = [minimize(value, theta_T, jac=True, method="L-BFGS-B", bounds=bounds, options=tight) for theta_T in start_ST]
    theirs_S = np.array([end.fun for end in ends])
    ended = time.perf_counter()
    best = min(ours_S.min(), theirs_S.min())
    for name, value_S, seconds in (("descend", ours_S, between - began), ("L-BFGS-B", theirs_S, ended - between)):
        reached = (value_S < 1.001 * best).mean()
        print(f"{name}: {seconds:.2f} s for {len(value_S)} starts, {reached:.0%} of them at the optimum")


def main() -> None:
    """Print the page's figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path)
    parser.add_argument("--routes", type=Path)
    parser.add_argument("--refits", action="store_true")
    options = parser.parse_args()
    if options.tables is not None:
        tables(options.tables)
    if options.routes is not None:
        routes(options.routes)
    if options.refits:
        speed()
        refits()


if __name__ == "__main__":
    main()
