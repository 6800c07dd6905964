"""What changes are worth in parameters, on ladders of a known law."""

import math

import numpy as np
import pytest

from lrec.laws.equivalents import LadderCurve, Worth, noise_of
from lrec.laws.forecast import Beliefs

SIZES = np.array([1e3, 3e3, 1e4, 3e4, 1e5, 3e5])


def law(x: float | np.ndarray) -> float | np.ndarray:
    return 4 + 20 * x**-0.3


@pytest.fixture(scope="module")
def curve() -> LadderCurve:
    return LadderCurve(SIZES, law(SIZES))


@pytest.mark.parametrize("times", [0.4, 1.0, 3.0, 10.0])
def test_the_loss_of_a_size_is_worth_that_size(curve: LadderCurve, times: float) -> None:
    worth = curve.worth(1e4, float(law(times * 1e4)), 0.0)
    assert worth.times == pytest.approx(times, rel=0.08)  # straight lines join sizes a factor of three apart
    if times in (1.0, 3.0):  # sizes that were trained
        assert worth.times == pytest.approx(times, rel=0.005)


def test_the_interval_spans_the_losses_within_the_error(curve: LadderCurve) -> None:
    error = float(law(3e4) - law(1e5))
    worth = curve.worth(1e4, float(law(3e4)), error)
    assert worth.high == pytest.approx(10, rel=0.01)
    assert worth.low < worth.times == pytest.approx(3, rel=0.005)


def test_beyond_the_largest_size_the_forecast_decides_and_adds_its_own_doubt(curve: LadderCurve) -> None:
    worth = curve.worth(1e5, float(law(1e6)), 0.0)
    assert worth.low < 10 < worth.high
    assert curve.worth(1e5, float(law(1e5)), 0.0).high == pytest.approx(1, rel=0.005)


def test_a_loss_outside_the_curve_is_worth_infinitely_much_or_nothing(curve: LadderCurve) -> None:
    assert curve.worth(1e4, 1.0, 0.01).times == math.inf
    assert curve.worth(1e4, 9.0, 0.01) == Worth(0.0, 0.0, 0.0)


def test_two_changes_together_are_worth_the_product(curve: LadderCurve) -> None:
    together = curve.together(1e4, [Worth(2.0, 1.0, 4.0), Worth(3.0, 3.0, 3.0)])
    assert (together.times, together.low, together.high) == pytest.approx((6.0, 3.0, 12.0))
    assert curve.together(1e4, [Worth(math.inf, 2.0, math.inf), Worth(3.0, 3.0, 3.0)]).times == math.inf


def test_a_size_that_does_worse_than_a_smaller_one_is_worth_nothing(curve: LadderCurve) -> None:
    loss_S = law(SIZES)
    loss_S[3] += 0.5
    bumpy = LadderCurve(SIZES, loss_S)
    assert bumpy.loss(3e4) == pytest.approx(float(law(1e4)))
    assert bumpy.worth(1e3, float(law(1e4)), 0.0).times == pytest.approx(10, rel=0.01)


def test_noise_combines_repeated_runs_and_the_prior_belief() -> None:
    generator, beliefs = np.random.default_rng(0), Beliefs()
    losses = 5 * np.exp(0.01 * generator.standard_normal((200, 3)))
    found = noise_of(losses.tolist())
    assert found.sd == pytest.approx(0.01, rel=0.1)
    assert found.dof == pytest.approx(400 + beliefs.noise_dof)
    assert found.quantile == pytest.approx(1.649, abs=0.01)
    alone = noise_of([[5.0]])
    assert (alone.sd, alone.dof) == (beliefs.noise, beliefs.noise_dof)
