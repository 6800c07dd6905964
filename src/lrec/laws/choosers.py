"""Choosers say what to train for a budget of FLOPs, a target loss or a size. Each kind of law has its chooser.

N: the size (the fit's x). D: interactions processed. U: unique interactions. Epochs: D/U. C: training FLOPs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from scipy.optimize import minimize_scalar

from lrec.errors import UserError
from lrec.laws.fit import Fit
from lrec.laws.law import Array
from lrec.laws.predict import Predictor, outlook
from lrec.laws.table import flops_per_interaction, means_by_size, points_of_most_data


@dataclass(frozen=True)
class Choice:
    """What to train. A value is NaN if the law says nothing about it."""

    size: float
    data: float
    unique: float
    flops: float
    place: tuple[float, ...]  # the values of the variables of the law

    @property
    def epochs(self) -> float:
        """Passes over the unique data."""
        return self.data / self.unique


class DataChooser:
    """Chooses N, D and U by a law of size and data. The number of passes over the data stays in the fitted range. Some
    laws count unique interactions as their data. Each of these is then processed as often as in the fitted runs
    (`repeats`). In this class, data and D are the law's data, but a `Choice` has the interactions processed. Without
    `unique`, U follows from D and the lowest fitted number of passes. Without `epochs`, the best number is chosen."""

    def __init__(self, fit: Fit, unique: float | None = None, epochs: float | None = None) -> None:
        points, passes_N = fit.points, np.maximum(_passes(fit.points), 1.0)
        self.fit, self.unique, self.epochs, flops_of = fit, unique, epochs, flops_per_interaction(points)
        self.tells_repeats = len(fit.law.variables) == 3
        self.least_epochs, self.most_epochs = float(min(passes_N, default=1)), float(max(passes_N, default=1))
        self.repeats = float((points["processed"] / points["d"]).median()) if "processed" in points.columns else 1.0  # type: ignore[arg-type]
        self._per_datum = lambda size: self.repeats * flops_of(size)
        self._most_data = np.inf if unique is None else unique * self.most_epochs
        # A plan has at least one parameter and one interaction; less if the points count in millions or billions.
        self._least_size, self._least_data = np.minimum(1.0, fit.x_NV[:, :2].min(0) / 1000)
        if self._most_data < self._least_data:
            raise UserError(f"--unique {unique:g}: too few to plan for")
        if epochs is None:
            return
        self.epochs = epochs / self.repeats
        if not self.least_epochs * (1 - 1e-9) <= self.epochs <= self.most_epochs * (1 + 1e-9):
            least, most = self.least_epochs * self.repeats, self.most_epochs * self.repeats
            raise UserError(
                f"--epochs {epochs:g}: the law was fitted to runs of {least:.4g} to {most:.4g} passes over their data, "
                "and holds only for this range; train runs with this number of passes, or change --epochs and --unique"
            )
        if unique is None:
            raise UserError("--epochs: also give the number of unique interactions with --unique")
        self._most_data = unique * self.epochs

    def loss(self, size: Array | float, data: Array | float, unique: Array | float | None = None) -> Array:
        """The law's loss at N, D and U, which broadcast. By default, U is D / `least_epochs`, at most `self.unique`."""
        variables = np.broadcast_arrays(size, data, self._unique_of(data) if unique is None else unique)
        places = np.stack(variables[: len(self.fit.law.variables)], axis=-1)
        return self.fit.curve(places.reshape(-1, places.shape[-1])).reshape(places.shape[:-1])

    def for_flops(self, flops: float) -> Choice:
        """The N and D with the lowest loss within a budget and the allowed epochs. Some of it may be left over."""
        if self.epochs is not None:
            data, spent = self._most_data, f"{self.epochs * self.repeats:g} x {self.unique:g} interactions"
            return self._choice(_affordable(lambda size: data * self._per_datum(size), flops, spent), data)

        def data_at(size: Array | float) -> Array:
            most = np.minimum(flops / self._per_datum(size), self._most_data)
            return self._best_data(*np.atleast_1d(size, most))

        size_G = np.geomspace(self._least_size, max(flops / self._least_data, 10.0), 500)
        size_G = size_G[data_at(size_G) >= self._least_data]
        if not len(size_G):
            raise UserError("too few to plan for")
        best = int(self.loss(size_G, data_at(size_G)).argmin())
        found = minimize_scalar(
            lambda log_size: self.loss(np.exp(log_size), data_at(np.exp(log_size))).item(),
            bounds=np.log(size_G[[max(best - 1, 0), min(best + 1, len(size_G) - 1)]]),
            method="bounded",
            options={"xatol": 1e-10},
        )
        size = float(np.exp(found.x))
        return self._choice(size, data_at(size).item())

    def for_loss(self, loss: float, most: float | None = None) -> Choice:
        """The best N and D for the lowest C that reaches the loss. C is at most `most`."""
        most = most or 1e6 * float((self._per_datum(self.fit.x_N) * self.fit.x_NV[:, 1]).max())

        def reached(flops: float) -> float:
            return max(self.loss(*self.for_flops(flops).place[:2]).item(), self.fit.floor)

        least = _bisect(lambda flops: reached(flops) - loss, 1e3 * self._least_size * self._least_data, most)
        if least is None:
            allowed = ", with the data and epochs allowed" if self.unique else ""
            try:
                there = f"the law gives {reached(most):.4g} there{allowed}"
            except UserError as error:  # `unique` and `epochs` ask for more
                there = f"they are {error}"
            most_flops = f"{most:.2g} FLOPs, a million times the largest fitted run"
            raise UserError(f"--loss {loss:g}: not reached with {most_flops}; {there}") from None
        return self.for_flops(least)

    def for_size(self, size: float) -> Choice:
        """Choose D for a size: with `unique`, by the best or given epochs, otherwise so that N is compute-optimal."""
        if self.unique is not None:
            return self._choice(size, self._best_data(*np.atleast_1d(size, self._most_data)).item())
        enough = _bisect(lambda flops: size - self.for_flops(flops).size, size * self._least_data, 1e12 * size**2)
        if enough is None:
            raise UserError(f"--size {size:g}: no amount of data makes it compute-optimal; give the data with --unique")
        return self._choice(size, enough / float(self._per_datum(size)))

    def doubled(self, choice: Choice) -> dict[str, float]:
        """The loss with twice the parameters, with twice the data (all new), and with twice the passes over the data,
        if the law tells passes from new data and was fitted to as many passes."""
        (n, d), u = choice.place[:2], choice.unique
        losses = {"parameters": float(self.loss(2 * n, d, u)), "data": float(self.loss(n, 2 * d, 2 * u))}
        if self.tells_repeats and 2 * d / u <= self.most_epochs * (1 + 1e-9):
            losses["epochs"] = float(self.loss(n, 2 * d, u))
        return {name: max(loss, self.fit.floor) for name, loss in losses.items()}

    def used_up(self, choice: Choice) -> bool:
        """Whether the largest fitted number of passes limits the plan. False if `epochs` is given."""
        return self.epochs is None and 0.999 * self._most_data < choice.place[1]

    def _unique_of(self, data: Array | float) -> Any:
        needed = np.asarray(data) / self.least_epochs
        return needed if self.unique is None else np.minimum(needed, self.unique)

    def _best_data(self, size_G: Array, most_G: Array) -> Array:
        """The D, at most `most_G`, with the lowest loss at each N: all of it, unless more passes raise the loss."""
        if self.unique is None or self.epochs is not None or not self.tells_repeats:
            return most_G
        # Equal steps in the logarithm of the passes, up to the allowed maximum.
        least_G = np.minimum(self.unique * self.least_epochs, most_G)
        data_GK = least_G[:, None] * (most_G / least_G)[:, None] ** np.linspace(0, 1, 401)
        data_GK[:, -1] = most_G
        return data_GK[np.arange(len(size_G)), self.loss(size_G[:, None], data_GK).argmin(1)]

    def _choice(self, size: float, data: float) -> Choice:
        unique, flops = float(self._unique_of(data)), data * float(self._per_datum(size))
        return Choice(size, data * self.repeats, unique, flops, (size, data, unique)[: len(self.fit.columns)])


class SizeChooser:
    """Chooses a size by a forecast or a law of size alone, which holds only for the data and passes of its runs."""

    def __init__(self, predictor: Predictor, unique: float | None = None, epochs: float | None = None) -> None:
        self.predictor, points = predictor, points_of_most_data(predictor.points)
        self._flops_of, passes_N = flops_per_interaction(points), _passes(points)
        self.unique = float(points["u"].max()) if "u" in points.columns else np.nan  # type: ignore[arg-type]
        self.data = float(np.median(passes_N)) * self.unique if len(passes_N) else np.nan
        if epochs is not None:
            raise UserError("--epochs: a law of size alone holds for the passes of the runs it was fitted to")
        if unique is not None and not abs(unique / self.unique - 1) <= 0.01:
            known = "unknown data" if np.isnan(self.unique) else f"{self.unique:g} unique interactions"
            way_out = "fit a law of N, D and U, such as --law chinchilla or overfitting, to runs on several fractions"
            holds = f"a law of size alone holds for the data it was fitted on ({known})"
            raise UserError(f"--unique {unique:g}: {holds}; {way_out}")

    def for_size(self, size: float) -> Choice:
        return Choice(size, self.data, self.unique, self.data * float(self._flops_of(size)), (size,))

    def for_loss(self, loss: float) -> Choice:
        return self.for_size(_least(self.predictor, loss))

    def for_flops(self, flops: float) -> Choice:
        if np.isnan(self.data):
            raise UserError("the points have no values of D and U; plan with --size or --loss")
        spent = f"any size on {self.data:g} interactions"
        return self.for_size(_affordable(lambda size: self.data * self._flops_of(size), flops, spent))


@dataclass(frozen=True)
class FlopsChooser:
    """Reads a law of FLOPs. Such a law does not say how to spend them."""

    predictor: Predictor

    def for_flops(self, flops: float) -> Choice:
        return Choice(np.nan, np.nan, np.nan, flops, (flops,))

    def for_loss(self, loss: float) -> Choice:
        return self.for_flops(_least(self.predictor, loss))

    def for_size(self, size: float) -> Choice:
        raise UserError(f"--size {size:g}: this is a law of FLOPs, without sizes; plan with --flops or --loss")


Chooser = DataChooser | SizeChooser | FlopsChooser


def chooser_of(predictor: Predictor, x: str, unique: float | None = None, epochs: float | None = None) -> Chooser:
    """The chooser for the variables of a law or forecast. `x` is the caller's name of the first variable."""
    if isinstance(predictor, Fit) and len(predictor.law.variables) > 1:
        return DataChooser(predictor, unique, epochs)
    if x in ("D", "U"):
        raise UserError(f"the fit is a law of {x} alone: plans need a law of size, of FLOPs, or of size and data")
    if x not in ("flops", "C"):
        return SizeChooser(predictor, unique, epochs)
    if unique is not None or epochs is not None:
        raise UserError("--unique, --epochs: a law of FLOPs alone says nothing about the data; leave them out")
    return FlopsChooser(predictor)


def _passes(points: pl.DataFrame) -> Array:
    """How often each run saw its unique data. Runs for which this is unknown are left out."""
    return (points["d"] / points["u"]).drop_nulls().to_numpy() if {"d", "u"} <= set(points.columns) else np.zeros(0)


def _least(predictor: Predictor, loss: float) -> float:
    """The smallest trained x that reaches a loss or, if none does, the smallest larger x that is expected to."""
    means = means_by_size(predictor.points)
    if reached := means.filter(pl.col("y") <= loss)["x"].to_list():
        return float(reached[0])
    found = _bisect(lambda times: outlook(predictor, times=times).predicted - loss, 1.0, 1e6)
    if found is None:
        least = f"{outlook(predictor, times=1e6).predicted:.4g} at a million times the largest fitted value"
        raise UserError(f"--loss {loss:g}: not reached; the expected loss is {least}, and never less than the floor")
    return found * float(means["x"].to_numpy()[-1])


def _affordable(cost: Callable[[float], float], flops: float, spent: str) -> float:
    """The size whose cost is the budget; UserError if the budget does not even pay for a size of 1."""
    size = _bisect(lambda size: flops - cost(size), 1.0, max(flops, 10.0))
    if size is None or cost(1.0) > flops:
        raise UserError(f"too few for {spent}")
    return size


def _bisect(function: Callable[[float], float], low: float, high: float) -> float | None:
    """The place where a falling function reaches zero, by bisection in the logarithm; None if it stays above zero. A
    function is above zero where it raises a UserError, because FLOPs are too few."""

    def is_above(place: float) -> bool:
        try:
            return function(place) > 0
        except UserError:
            return True

    if is_above(high):
        return None
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if is_above(middle) else (low, middle)
    return high
