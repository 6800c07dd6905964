"""Extrapolation of dense learning curves: the forecast, and functional forms of the literature.

    python benchmarks/extrapolation.py --data FOLDER/extrapolation.csv
    python benchmarks/extrapolation.py --simulated

The table has a row for each point of a curve (domain, task, model, examples, loss, known). Points with known = 1 may be
fitted. The others, with up to 2.2 times the examples, are predicted (the benchmark of Alabdulmohsin et al., arXiv
2209.06640). The forms are fitted by least squares of the logarithm: the best fit of many starts. BNSL has one break.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import polars as pl
from scipy.optimize import least_squares

from lrec.laws.fit import fit_points
from lrec.laws.forecast import Forecast
from lrec.laws.loss_laws import LAWS

Array = np.ndarray
Method = Callable[[pl.DataFrame, Array], Array]
"""From the known points and x to low, prediction and high, (X, 3). Without an interval, all three are equal."""
Form = Callable[[Array, Array], Array]
STARTS = 20
LOGIT = np.linspace(-30.0, 30.0, 6001)


@dataclass(frozen=True, eq=False)
class Curve:
    """What is known of a curve, and what is to be predicted."""

    family: str
    known: pl.DataFrame
    x: Array
    loss: Array


def curves(path: Path) -> Iterator[Curve]:
    """The curves, in the order of the table; x is an amount of data, so a curve may stop falling."""
    for (domain, task, _), rows in pl.read_csv(path).group_by("domain", "task", "model", maintain_order=True):
        points = rows.sort("examples").select(x="examples", y="loss", may_stop=pl.lit(True), known="known")
        hidden = points.filter(pl.col("known") == 0)
        yield Curve(
            {"inet": "ImageNet", "cal": "Caltech"}.get(str(task).split("_")[0], str(domain)),
            points.filter(pl.col("known") == 1).drop("known"),
            hidden["x"].to_numpy(),
            hidden["y"].to_numpy(),
        )


# ---- forms: ln of the loss at t = ln(x / the largest known x)


def power(p: Array, t: Array) -> Array:
    """M1, a x^-b: ln a, ln b."""
    return p[0] - np.exp(p[1]) * t


def with_floor(p: Array, t: Array) -> Array:
    """M2, a x^-b + c: ln a, ln b, ln c."""
    return np.logaddexp(p[0] - np.exp(p[1]) * t, p[2])


def shifted(p: Array, t: Array) -> Array:
    """M3, a (1/x + d)^b: ln a, ln b, ln d."""
    return p[0] + np.exp(p[1]) * np.logaddexp(-t, p[2])


def sigmoid(p: Array, t: Array) -> Array:
    """M4, (y - c) / (y0 - y)^s = a x^-b, solved for the logit of (y - c) / (y0 - c): ln of a, b, c, y0 - c, s."""
    left = LOGIT + (np.exp(p[4]) - 1) * np.logaddexp(0, LOGIT) + (1 - np.exp(p[4])) * p[3]
    logit = np.interp(p[0] - np.exp(p[1]) * t, left, LOGIT)
    return np.logaddexp(p[2], p[3] - np.logaddexp(0, -logit))


def broken(p: Array, t: Array) -> Array:
    """BNSL with one break, c + a x^-b (1 + (x/d)^(1/f))^(-g f): ln a, b, ln c, ln d, ln f, g."""
    f = np.exp(p[4])
    return np.logaddexp(p[2], p[0] - p[1] * t - p[5] * f * np.logaddexp(0, (t - p[3]) / f))


def fitted(
    form: Callable[[Array, Array], Array], starts: Callable[[Array, Array], list[tuple[float, float]]]
) -> Method:
    """Least squares of ln y from `STARTS` starts between the bounds that `starts` gives for t and ln y."""

    def method(known: pl.DataFrame, x: Array) -> Array:
        t, ln_y = np.log(known["x"].to_numpy() / known["x"].max()), np.log(known["y"].to_numpy())
        low, high = np.array(starts(t, ln_y)).T
        best = min(
            (
                least_squares(lambda p: np.clip(form(p, t) - ln_y, -50, 50), start, method="trf", max_nfev=200)
                for start in np.random.default_rng(0).uniform(low, high, (STARTS, len(low)))
            ),
            key=lambda found: found.cost,
        )
        return point(np.exp(form(best.x, np.log(x / known["x"].max()))))

    return method


def point(loss: Array) -> Array:
    """A prediction without an interval."""
    return np.stack([loss] * 3, 1)


def by_forecast(known: pl.DataFrame, x: Array) -> Array:
    """The default forecast."""
    return np.array([[p.low, p.predicted, p.high] for p in Forecast(known).predict(x)])


def of_independent_points(known: pl.DataFrame, x: Array) -> Array:
    """The forecast as if each point were a separate run, as on a ladder."""
    with patch("lrec.laws.forecast.LADDER", len(known)):
        return by_forecast(known, x)


def by_law(known: pl.DataFrame, x: Array) -> Array:
    """E + (x0/x)^a with its profile."""
    return np.array([[p.low, p.predicted, p.high] for p in fit_points(LAWS["lsrm"], known).profile.predict(x)])


def _level(ln_y: Array) -> tuple[float, float]:
    return float(ln_y[-1]) - 1, float(ln_y[-1]) + 0.3


METHODS: dict[str, Method] = {
    "naive": lambda known, x: point(np.full(len(x), known["y"].min())),
    "M1, a x^-b": fitted(power, lambda t, y: [_level(y), (-3, 0)]),
    "M2, a x^-b + c": fitted(with_floor, lambda t, y: [_level(y), (-3, 0), (y[-1] - 4, y[-1])]),
    "M3, a (1/x + d)^b": fitted(shifted, lambda t, y: [_level(y), (-3, 0), (t[0], 3)]),
    "M4, (y - c) / (y0 - y)^s = a x^-b": fitted(
        sigmoid, lambda t, y: [(-3, 1), (-3, 0.5), (y[-1] - 4, y[-1]), (-1, 0.5), (-2, 1)]
    ),
    "BNSL, one break": fitted(
        broken, lambda t, y: [_level(y), (0, 1), (y[-1] - 4, y[-1]), (t[0], 1), (-3, 0.5), (-0.5, 0.5)]
    ),
    "E + (x0/x)^a, the law": by_law,
    "the forecast, points taken for independent": of_independent_points,
    "**the forecast**": by_forecast,
}

HEAD = (
    "| method | mean RMSLE | ImageNet | Caltech | NMT | worse than naive | inside, by points | by curves "
    "| mean half-width % | Winkler |\n|---|---|---|---|---|---|---|---|---|---|"
)


def row(name: str, method: Method, of: list[Curve]) -> str:
    """A row of the table; errors and widths are means over curves, of each curve's mean over hidden points."""
    error, no_gain, inside, width, winkler = [], [], [], [], []
    for curve in of:
        low, middle, high = 100 * method(curve.known, curve.x).T / curve.loss
        error.append(np.sqrt((np.log(middle / 100) ** 2).mean()))
        no_gain.append(np.sqrt((np.log(curve.known["y"].min() / curve.loss) ** 2).mean()))
        inside.append((low <= 100) & (high >= 100))
        width.append((high - low).mean() / 2)
        winkler.append((high - low + 20 * np.maximum(low - 100, 0) + 20 * np.maximum(100 - high, 0)).mean())
    errors, family = np.array(error), np.array([curve.family for curve in of])
    cells = [f"{errors.mean():.4f}", *(f"{errors[family == f].mean():.4f}" for f in ("ImageNet", "Caltech", "NMT"))]
    cells.append(f"{(errors > np.array(no_gain)).sum()} of {len(of)}")
    if max(width) > 0:
        by_curve = np.mean([share.mean() for share in inside])
        cells += [f"{np.concatenate(inside).mean():.2f}", f"{by_curve:.2f}"]
        cells += [f"{np.mean(width):.1f}", f"{np.mean(winkler):.1f}"]
    else:
        cells += [""] * 4
    return f"| {name} | {' | '.join(cells)} |"


SIMULATED: dict[str, Callable[[Array], Array]] = {
    "x^-0.15": lambda x: (x / 1e6) ** -0.15,
    "1 + 20 x^-0.25": lambda x: 1 + 20 * x**-0.25,
}


def simulated(repeats: int = 40) -> None:
    """Coverage at 2 and 4 times the largest of 40 x, with 2 % of AR(1) noise along ln x."""
    print("| curve | noise forgotten over | points taken for independent | the forecast |\n|---|---|---|---|")
    x = np.append(np.geomspace(1e4, 1e6, 40), [2e6, 4e6])
    for name, curve in SIMULATED.items():
        for length in (0.5, 1.5):
            inside: dict[Method, list[float]] = {of_independent_points: [], by_forecast: []}
            for repeat in range(repeats):
                loss = curve(x) * np.exp(0.02 * autocorrelated(x, length, np.random.default_rng(repeat)))
                known = pl.DataFrame({"x": x[:40], "y": loss[:40], "may_stop": True})
                for method, held in inside.items():
                    low, _, high = method(known, x[40:]).T
                    held.append(float(((low < loss[40:]) & (loss[40:] < high)).mean()))
            print(f"| {name} | {length} | " + " | ".join(f"{np.mean(held):.2f}" for held in inside.values()) + " |")


def autocorrelated(x: Array, length: float, rng: np.random.Generator) -> Array:
    """AR(1) of variance 1: the correlation falls by e over `length` of ln x."""
    noise, share = rng.standard_normal(len(x)), np.exp(-np.diff(np.log(x)) / length)
    for n, kept in enumerate(share):
        noise[n + 1] = kept * noise[n] + np.sqrt(1 - kept**2) * noise[n + 1]
    return noise


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--simulated", action="store_true")
    parser.add_argument("--methods", nargs="*", default=())
    options = parser.parse_args()
    if options.simulated:
        simulated()
    if options.data is None:
        return
    every = list(curves(options.data))
    print(f"{len(every)} curves\n\n{HEAD}")
    for name, method in METHODS.items():
        if not options.methods or any(word in name for word in options.methods):
            print(row(name, method, every), flush=True)


if __name__ == "__main__":
    main()
