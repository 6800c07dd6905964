"""Standard errors over users, against the textbook's formulas."""

import numpy as np
import polars as pl
import pytest

from lrec.evaluation.standard_errors import paired, standard_error

USERS, STEPS = 200, 5


def losses(seed: int, shift: float = 0.0) -> pl.DataFrame:
    """Losses that differ more between users than for any other reason."""
    generator, noise = np.random.default_rng(0), np.random.default_rng(seed)
    loss = generator.normal(5, 1, (USERS, 1)) + noise.normal(shift, 0.1, (USERS, STEPS))
    user, step = np.divmod(np.arange(USERS * STEPS), STEPS)
    return pl.DataFrame({"user": user, "step": step, "loss": loss.ravel()})


def test_targets_of_a_user_count_as_one_draw() -> None:
    table = losses(1)
    means_U = table["loss"].to_numpy().reshape(USERS, STEPS).mean(1)
    assert standard_error(table) == pytest.approx(means_U.std() / USERS**0.5)
    naive = table["loss"].to_numpy().std() / (USERS * STEPS) ** 0.5
    assert standard_error(table) > 2 * naive


def test_pairs_do_without_the_spread_of_users() -> None:
    small, large = [losses(1), losses(2)], [losses(3, shift=-0.02).sample(fraction=1.0, shuffle=True, seed=0)]
    difference, error = paired(small, large)
    assert difference == pytest.approx(-0.02, abs=3 * error)
    assert error < 0.1 * standard_error(large[0])
    per_user = (
        large[0].sort("user", "step")["loss"].to_numpy()
        - (small[0]["loss"].to_numpy() + small[1]["loss"].to_numpy()) / 2
    )
    assert error == pytest.approx(per_user.reshape(USERS, STEPS).mean(1).std() / USERS**0.5)


def test_every_target_of_a_user_counts() -> None:
    """All test targets have step 0, so a user with several has rows that differ only in the loss."""
    small = pl.DataFrame({"user": [0] * 9 + [1], "step": [0] * 10, "loss": [float(n) for n in range(10)]})
    large = small.with_columns(pl.col("loss") + pl.Series([0.1] * 9 + [-0.5]))
    seeds = [large.with_columns(pl.col("loss") + shift) for shift in (-1, 1)]
    difference, error = paired([small], seeds)
    assert difference == pytest.approx(0.04)
    assert error == pytest.approx((2 * 0.54**2) ** 0.5 / 10)


def test_the_last_digit_does_not_depend_on_the_order_of_threads() -> None:
    sides = [losses(1), losses(2)], [losses(3)]
    assert len({standard_error(sides[0][0]) for _ in range(50)}) == 1
    assert len({paired(*sides) for _ in range(50)}) == 1
