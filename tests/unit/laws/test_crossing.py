"""Curves with a known crossing: it is found, its interval holds it about as often as it says."""

import numpy as np
import polars as pl
import pytest

from lrec.laws.crossing import contrast
from lrec.laws.fit import Fit, fit_points
from lrec.laws.forms import law_named

SIZES = np.repeat(np.geomspace(3e3, 3e6, 7), 2)


def ladder(floor: float, scale: float, exponent: float, noise: float, seed: int) -> Fit:
    """Points of floor + (scale / N) ** exponent, each off by about `noise`, and their law."""
    random = np.random.default_rng(seed)
    loss = (floor + (scale / SIZES) ** exponent) * np.exp(noise * random.standard_normal(len(SIZES)))
    return fit_points(law_named("lsrm"), pl.DataFrame({"x": SIZES, "y": loss}))


# 2 + (1e4 / N) ** 0.2 and 2 + (S / N) ** 0.4 cross where (1e4 / N) ** 0.2 = (S / N) ** 0.4: N = S² / 1e4.
CROSSING = 1e5
STEEP = (2.0, (1e4 * CROSSING) ** 0.5, 0.4)
FLAT = (2.0, 1e4, 0.2)


def test_without_noise_the_crossing_is_exact() -> None:
    found = contrast(ladder(*FLAT, 1e-6, 0), ladder(*STEEP, 1e-6, 1))
    assert found.crossing == pytest.approx(CROSSING, rel=0.01)
    assert found.crossing_low <= found.crossing <= found.crossing_high < 1.1 * CROSSING
    assert found.exponent == pytest.approx(-0.2, abs=1e-3)
    assert found.told_apart
    assert found.lower_before  # the flat one, of small sizes


@pytest.mark.slow
def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = []
    for seed in range(12):
        found = contrast(ladder(*FLAT, 0.003, seed), ladder(*STEEP, 0.003, 100 + seed))
        assert found.crossing is not None
        held.append(found.crossing_low <= CROSSING <= found.crossing_high)
    assert np.mean(held) > 0.6


def test_curves_that_do_not_cross_have_no_crossing() -> None:
    found = contrast(ladder(2.0, 1e4, 0.2, 1e-4, 0), ladder(2.5, 1e4, 0.2, 1e-4, 1))
    assert found.crossing is None
    assert found.lower_before
    assert found.share == 0
    assert not found.told_apart
    assert found.times == np.inf  # 2.5 is more than the first's loss at the largest size


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_what_the_second_needs_for_the_loss_of_the_first(factor: float) -> None:
    found = contrast(ladder(2.0, 1e4, 0.2, 1e-6, 0), ladder(2.0, factor * 1e4, 0.2, 1e-6, 1))
    assert found.reached == SIZES.max()
    assert found.times == pytest.approx(factor, rel=0.01)
    assert found.times_low <= found.times <= found.times_high
    assert found.times_high < 1.1 * found.times_low
