"""Coverage of the prediction intervals: how often the truth lies inside a nominal 90 % interval.

Losses are drawn from L = 4 + 1.2 N^-0.12 with independent log-normal noise, at sizes spaced evenly in log N between 1e5
and 1e7 parameters. The law is fitted, and predicts the curve and a new run at 8 and 88 times the largest size.

    python benchmarks/interval_coverage.py --repeats 1000
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np

from lrec.laws.fit import fit
from lrec.laws.loss_laws import LAWS

FACTORS = (8.0, 88.0)
ROWS = ((4, 1), (6, 1), (8, 1), (12, 1), (4, 3), (6, 3))
"""Sizes, and seeds of each."""


def curve(x: np.ndarray) -> np.ndarray:
    """The law the losses are drawn around."""
    return 4 + 1.2 * x**-0.12


def covered(n_sizes: int, n_seeds: int, repeat: int, noise: float = 0.003) -> np.ndarray:
    """One draw, a column for each of `FACTORS`.

    Rows: whether the mean curve (0) and a new run (1) are inside, and half the width of a new run's interval, in % (2).
    """
    rng = np.random.default_rng([n_sizes, n_seeds, repeat])
    x = np.repeat(np.geomspace(1e5, 1e7, n_sizes), n_seeds)
    fitted = fit(LAWS["lsrm"], x, curve(x) * np.exp(noise * rng.standard_normal(len(x))))
    new_x = 1e7 * np.array(FACTORS)
    run = curve(new_x) * np.exp(noise * rng.standard_normal(len(new_x)))
    inside = [
        (p.mean_low <= c <= p.mean_high, p.low <= r <= p.high, 100 * (p.high - p.low) / 2 / c)
        for p, c, r in zip(fitted.predict(new_x), curve(new_x), run, strict=True)
    ]
    return np.array(inside, dtype=float).T


def main() -> None:
    """Print a row for each way of sampling sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    print("| sizes | seeds | curve 8x | curve 88x | run 8x | run 88x | half-width 8x, % | half-width 88x, % |")
    print("|---|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(options.workers) as pool:
        for n_sizes, n_seeds in ROWS:
            draw = partial(covered, n_sizes, n_seeds)
            draws = np.array(list(pool.map(draw, range(options.repeats), chunksize=10)))
            shares, widths = draws[:, :2].mean(0).ravel(), np.median(draws[:, 2], axis=0)
            cells = [f"{share:.3f}" for share in shares] + [f"{width:.2f}" for width in widths]
            print(f"| {n_sizes} | {n_seeds} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
