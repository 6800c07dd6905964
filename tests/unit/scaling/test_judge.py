"""What a table of points is said to show: roll-outs, laws side by side, and the verdict."""

import numpy as np
import polars as pl
import pytest

from lrec.scaling.fit import fit_points
from lrec.scaling.judge import rivals, roll_out, verdict
from lrec.scaling.laws import LAWS, Array
from lrec.scaling.predict import Holdout, holdout_report, predict

LSRM = LAWS["lsrm"]
SIZES = np.geomspace(1e4, 1e7, 8)


def points_of(y: Array) -> pl.DataFrame:
    return pl.DataFrame({"x": SIZES, "y": y})


def with_floor(noise: float = 0.001) -> pl.DataFrame:
    return points_of((4 + 60 * SIZES**-0.4) * np.exp(noise * np.random.default_rng(1).standard_normal(len(SIZES))))


def words(points: pl.DataFrame, holdout: int = 2) -> str:
    fitted, held_out = holdout_report(LSRM, points, holdout)
    return " ".join(
        verdict(fitted, held_out, rivals(LSRM, points, holdout), list(fitted.diagnostics.warnings), "N_body")
    )


def test_a_roll_out_predicts_every_next_size_from_the_smaller_ones_alone() -> None:
    points = with_floor()
    rolled = roll_out(LSRM, points)
    assert rolled is not None
    assert [step.x for step in rolled.steps] == pytest.approx(
        SIZES[4:]
    )  # four sizes are the fewest for three parameters
    for k, step in enumerate(rolled.steps, start=4):
        fitted = fit_points(LSRM, points.head(k))
        assert step.predicted == predict(fitted, SIZES[k : k + 1])[0].predicted
        assert step.naive_error_pct == pytest.approx(100 * (points["y"][:k].min() / points["y"][k] - 1))
    assert rolled.mape == pytest.approx(np.mean([abs(step.error_pct) for step in rolled.steps]))
    assert roll_out(LSRM, points.head(4)) is None


def test_the_law_that_made_the_points_comes_first() -> None:
    first, second = rivals(LSRM, with_floor(0.0003), 2)
    assert (first.name, second.name) == ("lsrm", "lsrm, E = 0")
    assert (first.n_parameters, second.n_parameters) == (3, 2)
    assert first.bic < second.bic - 10
    power = rivals(LSRM, points_of(9 * SIZES**-0.1 * np.exp(1e-3 * np.random.default_rng(0).standard_normal(8))), 2)
    by_bic = min(power, key=lambda rival: rival.bic)
    assert by_bic.name == "lsrm, E = 0"


def test_only_laws_of_the_points_variables_are_compared() -> None:
    grid = np.array([[n, d] for n in np.geomspace(1e4, 1e6, 4) for d in np.geomspace(1e5, 1e7, 4)])
    loss = LAWS["chinchilla"].loss({"E": 2.0, "A": 50.0, "B": 80.0, "a": 0.3, "b": 0.25}, grid)
    points = pl.DataFrame({"x": grid[:, 0], "d": grid[:, 1], "y": loss})
    found = rivals(LAWS["chinchilla"], points, 1)
    assert found[0].name == "chinchilla"
    assert {rival.law for rival in found} == {"chinchilla", "kaplan"}


def test_a_law_that_holds_is_said_to_hold_with_what_to_expect_of_ten_times_the_size() -> None:
    points = with_floor(0.0003)
    said = words(points)
    assert "The law holds over 3.0 decades of N_body" in said
    fitted, _ = holdout_report(LSRM, points, 2)
    (ahead,) = predict(fitted, [10 * SIZES[5]])
    assert f"expect {ahead.predicted:.4g} [{ahead.low:.4g}, {ahead.high:.4g}]" in said
    assert "nothing was held out" in words(points, holdout=0)


def test_a_law_that_fails_is_said_to_fail() -> None:
    loss = 4 + 60 * SIZES**-0.4
    loss[6:] = loss[5] * 1.001
    assert "The law does not hold" in words(points_of(loss))


def test_what_is_not_identified_or_not_monotone_is_said() -> None:
    fitted = fit_points(LSRM, with_floor())
    warnings = ["not identified: a could as well be anywhere", "not monotone: the mean loss rises"]
    said = " ".join(verdict(fitted, None, [], warnings, "N_body"))
    assert "a is not identified" in said
    assert "does not fall with every step" in said
    held_out: Holdout | None = None
    assert "not identified" not in " ".join(verdict(fitted, held_out, [], [], "N_body"))
