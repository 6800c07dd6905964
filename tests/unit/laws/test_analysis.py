"""What an analysis says about a table of points: roll-outs, laws side by side, and the verdict."""

from dataclasses import replace
from functools import cache

import numpy as np
import polars as pl
import pytest

from lrec.errors import UserError
from lrec.laws.analysis import Analysis, Method, compare_methods, unidentified, verdict, warnings
from lrec.laws.fit import Fit, fit_points
from lrec.laws.forecast import Forecast
from lrec.laws.intervals import Prediction, Profile
from lrec.laws.law import Array, Law
from lrec.laws.loss_laws import LAWS
from lrec.laws.predict import holdout_report, outlook, roll_out, turns

LSRM = LAWS["lsrm"]
SIZES = np.geomspace(1e4, 1e7, 8)


def points_of(y: Array) -> pl.DataFrame:
    return pl.DataFrame({"x": SIZES, "y": y})


def with_floor(noise: float = 0.001) -> pl.DataFrame:
    return points_of((4 + 60 * SIZES**-0.4) * np.exp(noise * np.random.default_rng(1).standard_normal(len(SIZES))))


def of_size_and_data() -> pl.DataFrame:
    grid = np.array([[n, d] for n in (1e4, 1e5, 1e6) for d in np.geomspace(1e5, 1e7, 4)])
    loss = LAWS["chinchilla"].loss({"E": 2.0, "A": 50.0, "B": 80.0, "a": 0.3, "b": 0.25}, grid)
    loss *= np.exp(1e-4 * np.random.default_rng(0).standard_normal(len(loss)))
    return pl.DataFrame({"x": grid[:, 0], "d": grid[:, 1], "y": loss})


def of_law(points: pl.DataFrame) -> Fit:
    return fit_points(LSRM, points)


def words(points: pl.DataFrame, holdout: int = 2) -> str:
    found = Analysis(*holdout_report(LSRM, points, holdout), points, {"x": "N_body", "y": "test_loss"})
    return " ".join(found.verdict)


@cache
def words_of_a_law_that_holds() -> str:
    return words(with_floor(0.0003))


def methods_of(law: Law, points: pl.DataFrame, holdout: int) -> list[Method]:
    fitted, held_out = holdout_report(law, points, holdout)
    assert isinstance(fitted, Fit)
    return compare_methods(fitted, fitted, held_out, points)


def test_a_roll_out_predicts_every_next_size_from_the_smaller_ones_alone() -> None:
    points = with_floor()
    rolled = roll_out(of_law, points)
    assert rolled is not None
    # Four sizes are the fewest for three parameters.
    assert [step.x for step in rolled.points] == pytest.approx(SIZES[4:])
    for k, step in enumerate(rolled.points, start=4):
        fitted = fit_points(LSRM, points.head(k))
        assert step.predicted == fitted.predict(SIZES[k : k + 1])[0].predicted
        assert step.naive_error_pct == pytest.approx(100 * (points["y"][:k].min() / points["y"][k] - 1))
    assert rolled.mape == pytest.approx(np.mean([abs(step.error_pct) for step in rolled.points]))
    assert roll_out(of_law, points.head(4)) is None


def test_a_roll_out_goes_by_factors_and_not_by_every_size() -> None:
    sizes = np.geomspace(1e4, 1e6, 200)
    made = []

    def counted(points: pl.DataFrame) -> Forecast:
        made.append(len(points))
        return Forecast(points)

    rolled = roll_out(counted, pl.DataFrame({"x": sizes, "y": 4 + 60 * sizes**-0.4}))
    assert rolled is not None
    assert len(rolled.points) > 150
    assert len(made) < 9


def test_the_law_that_made_the_points_comes_first() -> None:
    first, second = methods_of(LSRM, with_floor(0.0003), 2)
    assert (first.name, second.name) == ("lsrm", "lsrm, E = 0")
    assert (first.fit.problem.n_free, second.fit.problem.n_free) == (3, 2)
    assert first.fit.bic < second.fit.bic - 10
    power = methods_of(LSRM, points_of(9 * SIZES**-0.1 * np.exp(1e-3 * np.random.default_rng(0).standard_normal(8))), 2)
    for criterion in ("bic", "aicc"):
        assert min(power, key=lambda method: getattr(method.fit, criterion)).name == "lsrm, E = 0"


@pytest.mark.slow
def test_only_laws_of_the_points_variables_are_compared() -> None:
    found = methods_of(LAWS["chinchilla"], of_size_and_data(), 1)
    assert found[0].name == "chinchilla"
    assert {method.fit.law.name for method in found} == {"chinchilla", "kaplan"}


def test_a_law_that_holds_is_said_to_hold_with_what_to_expect_of_ten_times_the_size() -> None:
    points, said = with_floor(0.0003), words_of_a_law_that_holds()
    assert "The law holds over 3.0 decades of N_body" in said
    assert "predicts the next size best" in said
    # From the largest size, fitted to all sizes, also to those held out.
    (ahead,) = fit_points(LSRM, points).predict([10 * SIZES[7]])
    assert "At 10 times the largest N_body, if all sizes are fitted, expect" in said
    assert f"expect {ahead.predicted:.4g} [{ahead.low:.4g}, {ahead.high:.4g}] for a new run." in said
    assert "nothing was held out" in words(points, holdout=0)


def test_points_of_one_setting_count_as_much_merged_as_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    size = np.repeat(SIZES, 5)
    loss = (4 + 60 * size**-0.4) * np.exp(1e-3 * np.random.default_rng(0).standard_normal(len(size)))
    loss[3] *= 1.02  # an outlier, which hardly counts
    fitted = fit_points(LSRM, pl.DataFrame({"x": size, "y": loss}))
    nearly_the_same = fitted.problem.z_NV + 1e-12 * np.arange(len(size))[:, None]
    problems = fitted.problem, replace(fitted.problem, z_NV=nearly_the_same)
    monkeypatch.setattr("lrec.laws.intervals.AT_ONCE", 200)
    merged, apart = (Profile(problem, fitted.theta_T) for problem in problems)
    for one, other in zip(merged.predict([1e5, 1e8]), apart.predict([1e5, 1e8]), strict=True):
        for name in ("predicted", "mean_low", "mean_high", "low", "high"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-9)
    assert merged.parameters == {name: pytest.approx(end, rel=1e-6) for name, end in apart.parameters.items()}


def test_an_outlier_hardly_widens_a_robust_fits_intervals_and_gets_a_warning() -> None:
    size = np.repeat(SIZES, 3)
    loss = (4 + 60 * size**-0.4) * np.exp(1e-3 * np.random.default_rng(0).standard_normal(24))
    clean = outlook(fit_points(LSRM, pl.DataFrame({"x": size, "y": loss})))
    loss[-3] *= 1.05
    points = pl.DataFrame({"x": size, "y": loss})
    robust, squares = fit_points(LSRM, points), fit_points(LSRM, points, "lsq")
    ahead, by_squares = outlook(robust), outlook(squares)
    assert ahead.low < clean.predicted < ahead.high
    assert clean.high - clean.low < ahead.high - ahead.low < (by_squares.high - by_squares.low) / 2
    (said,) = [warning for warning in warnings(robust, None) if warning.startswith("outliers")]
    assert "1 of 24 points" in said
    assert not any(warning.startswith("outliers") for warning in warnings(squares, None))


def test_noise_on_a_long_curve_is_not_taken_for_a_loss_that_stopped_falling() -> None:
    size = np.geomspace(1e4, 1e6, 200)
    loss = (2 + 2 * (1e4 / size) ** 0.25) * np.exp(np.random.default_rng(3).normal(0, 0.005, len(size)))
    assert np.argmin(loss) < len(loss) - 2
    assert outlook(Forecast(pl.DataFrame({"x": size, "y": loss, "may_stop": False}))).predicted < loss.min()
    rising = loss * np.maximum(size / 4e5, 1) ** 0.1
    ahead = outlook(Forecast(pl.DataFrame({"x": size, "y": rising, "may_stop": False})))
    assert ahead.predicted == pytest.approx(rising[-1])


def test_a_largest_network_far_below_the_curve_does_not_mean_that_the_loss_stopped_falling() -> None:
    """Large networks may learn something that small ones do not show, as in decks of cards."""
    size = np.array([768, 3072, 4800, 12288, 23232, 49152, 221952, 836352.0])
    loss = np.array([5.310, 4.894, 4.841, 4.747, 4.703, 4.636, 4.558, 4.341])
    forecast = Forecast(pl.DataFrame({"x": size, "y": loss, "d": 3e6, "may_stop": False}))
    assert forecast.predict([1e7])[0].predicted == pytest.approx(loss[-1])  # the curve of all sizes lies above it
    assert not turns(forecast, outlook(forecast))


def test_the_outlook_of_a_law_of_size_and_data_is_at_the_most_data() -> None:
    fitted = fit_points(LAWS["chinchilla"], of_size_and_data())
    ahead = outlook(fitted)
    assert (ahead.x, ahead.d) == (1e7, 1e7)
    assert "10 times the largest N_body with D 1e+07, if all sizes are fitted, expect" in " ".join(
        verdict(fitted, None, [], ahead, "N_body")
    )


def test_a_law_that_fails_is_said_to_fail_and_where_the_loss_rises() -> None:
    loss = 4 + 60 * SIZES**-0.4
    loss[6:] = loss[5] * np.array([1.001, 1.002])
    said = words(points_of(loss))
    assert "The law does not hold" in said
    assert "The mean loss rises with N_body from 1.389e+06 to 3.728e+06" in said
    assert "rises" not in words_of_a_law_that_holds()


@pytest.mark.parametrize("law", [None, pytest.param(LSRM, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({6: 1.0, 7: 1.0}, "0 of 2 are within the 90 % interval, which are too few."),
        ({6: 0.41}, "1 of 2 are within the 90 % interval, which are too few."),  # a loss typed ten times too low
        ({5: 0.42}, "the median loss of the small sizes is off by only 10.99 %."),
    ],
)
def test_what_missed_by_far_does_not_hold_even_in_part(law: Law | None, bad: dict[int, float], said: str) -> None:
    loss = np.full(8, 5.0) if len(bad) > 1 else with_floor()["y"].to_numpy().copy()
    for at, value in bad.items():
        loss[at] = value
    points = points_of(loss)
    found = Analysis(*holdout_report(law, points, 2), points, {"x": "N_body", "y": "test_loss"}, with_others=False)
    assert "does not hold: " in found.verdict[0]
    assert said in found.verdict[0]


def test_one_of_two_inside_with_half_of_naives_error_holds_in_part() -> None:
    loss = 4 + 60 * SIZES**-0.4
    loss[7] *= 0.99
    said = words(points_of(loss))
    assert "The law holds in part over 3.0 decades" in said
    assert "1 of 2 are within the 90 % interval." in said


def test_one_held_out_size_and_one_step_are_said_in_the_singular() -> None:
    points = points_of(4 + 60 * SIZES**-0.4)[:5]
    found = Analysis(*holdout_report(None, points, 1), points, {"x": "N_body", "y": "test_loss"}, with_others=True)
    said = " ".join(found.verdict)
    assert "and 1 of 1 is within the 90 % interval" in said
    assert "and 1 of 1 is within its interval" in said


@pytest.mark.parametrize(
    ("held_out", "end"), [(0, "there are 3: add sizes$"), (1, "there are 2: add sizes or hold out")]
)
def test_fewer_sizes_can_be_held_out_only_if_some_are(held_out: int, end: str) -> None:
    with pytest.raises(UserError, match=end):
        holdout_report(None, points_of(4 + 60 * SIZES**-0.4)[:3], held_out)


def test_a_forecast_of_equal_losses_is_not_said_to_fail() -> None:
    points = points_of(np.full(8, 3.0))
    found = Analysis(*holdout_report(None, points, 2), points, {"x": "N_body", "y": "test_loss"}, with_others=False)
    assert "The forecast holds in part over" in found.verdict[0]
    assert "the mean error is 0.00 % (no-gain baseline: 0.00 %)" in found.verdict[0]


@pytest.mark.parametrize("law", [None, pytest.param(LSRM, marks=pytest.mark.slow)])
def test_no_figure_ahead_contradicts_larger_sizes_or_a_known_floor(law: Law | None) -> None:
    names = {"x": "N_body", "y": "test_loss"}

    def ahead_of(loss: Array, floor: float | None = None) -> Prediction:
        points = points_of(np.asarray(loss))
        found = Analysis(*holdout_report(law, points, 2), points, names, with_others=False, floor=floor)
        return found.outlook

    for rising in (np.linspace(2.691, 3, 8), np.array([5, 4.5, 4.2, 4, 3.9, 4.1, 4.3, 4.5])):
        ahead = ahead_of(rising)
        assert rising[-1] == pytest.approx(ahead.predicted)
        assert ahead.low < ahead.predicted < ahead.high
        assert law is not None or ahead.cautious == pytest.approx(rising[-1])
    # One size that is a little worse by chance does not limit the forecast.
    falling = 4 + 60 * SIZES**-0.2
    falling[7] = falling[6] * 1.001
    assert ahead_of(falling).predicted < 0.95 * falling[6]
    floored = ahead_of(9 * SIZES**-0.05, floor=4.2)
    assert min(floored.predicted, floored.low, floored.mean_low, floored.cautious or 5) >= 4.2


@pytest.mark.parametrize(
    ("loss", "unknown"),
    [(9 * SIZES**-0.1, ["E"]), (4 + 60 * SIZES**-0.4, []), (np.where(SIZES < 2e4, 5.0, 4.0), ["x0", "a"])],
)
def test_what_the_points_do_not_determine_is_named(loss: Array, unknown: list[str]) -> None:
    noise = np.exp(3e-4 * np.random.default_rng(5).standard_normal(8))
    fitted = fit_points(LSRM, points_of(loss * noise))
    assert unidentified(fitted) == unknown
    said = " ".join(verdict(fitted, None, [], outlook(fitted), "N_body"))
    assert ("not identified" in said) == bool(unknown)
    assert ", ".join(unknown) in said
    for name in unknown:
        assert any("not identified" in warning and name in warning for warning in warnings(fitted, None))
