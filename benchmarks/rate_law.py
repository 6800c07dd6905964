"""The law of the best rate and batch on a table of runs: fitted to small sizes with little data, judged at the largest.

python benchmarks/rate_law.py --table steplaw_dense.csv
"""

import argparse
from pathlib import Path

import numpy as np
import polars as pl
from scipy.interpolate import griddata

from lrec.laws.rate_law import RateLaw


def judge(law: RateLaw, table: pl.DataFrame, largest: int) -> list[tuple[float, float]]:
    """Print a row for each setting of the largest sizes; returns how far its choice is above the best, in per cent."""
    print("| N | D | rate | best rates | batch | best batches | expected cost, % | nearest run, % | between runs, % |")
    print("|" + "---|" * 9)
    found = []
    settings = table.select("x", "d").unique().sort("x", "d")
    for n, d in settings.filter(pl.col("x").is_in(settings["x"].unique().sort().tail(largest).implode())).rows():
        choice, cell = law.choose(n, d), table.filter(pl.col("x") == n, pl.col("d") == d)
        at, chosen = np.log(cell.select("rate", "batch").to_numpy()), np.log([choice.rate, choice.batch])
        above = cell["y"].to_numpy() / float(np.nanmin(cell["y"].to_numpy())) - 1
        nearest, sane = int(((at - chosen) ** 2).sum(1).argmin()), above < 0.1
        between = griddata(at[sane], above[sane], chosen[None]).item()
        found.append((100 * above[nearest], 100 * between))
        print(
            f"| {n:.3g} | {d:.3g} | {choice.rate:.5f} | {choice.rate_low:.5f} to {choice.rate_high:.5f} | "
            f"{choice.batch:.0f} | {choice.batch_low:.0f} to {choice.batch_high:.0f} | {100 * choice.cost:.2f} | "
            f"{100 * above[nearest]:.2f} | {100 * between:.2f} |"
        )
    return found


def main() -> None:
    """Print the page's figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path, required=True, help="columns N, D, lr, bs and loss")
    parser.add_argument("--most_size", type=float, default=2.69e8, help="largest size that is fitted")
    parser.add_argument("--most_data", type=float, default=2e10, help="most data that is fitted")
    parser.add_argument("--share", type=float, default=1.0, help="of the fitted runs")
    parser.add_argument("--largest", type=int, default=2, help="sizes that are judged")
    options = parser.parse_args()
    table = pl.read_csv(options.table).select(x="N", d="D", rate="lr", batch="bs", y="loss")
    fitted = table.filter(pl.col("x") <= options.most_size, pl.col("d") <= options.most_data)
    for seed in range(1 if options.share == 1 else 3):
        law = RateLaw(fitted.sample(fraction=options.share, seed=seed))
        print(f"\n{', '.join(f'{name} {value:.3f}' for name, value in law.parameters.items())}\n")
        worst = np.max(judge(law, table, options.largest), axis=0)
        print(f"\nworst: {worst[0]:.2f} % at the nearest run, {worst[1]:.2f} % between runs")


if __name__ == "__main__":
    main()
