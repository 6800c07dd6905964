"""Intervals of the tasks: they agree with theory, are paired, and are the same from the same seed."""

import numpy as np
import pytest

from lrec.tasks.intervals import UserResamples, estimate
from lrec.tasks.results import Group, Section


def gain(kind: str, *draws_SR: np.ndarray, sizes: tuple[float, ...] = (1e3, 1e4)) -> np.ndarray:
    """Draws of the slope or the ratio of a metric with these draws for each size."""
    by_name = {f"{size:.0f}": size for size in sizes}
    draws = {name: {"HR@10": draws_R} for name, draws_R in zip(by_name, draws_SR, strict=True)}
    section = Section("Any", by_name, {"all": Group(3, 3, draws)})
    return {"slope": section.slope, "ratio": section.ratio}[kind]("all", "HR@10")


def test_the_interval_of_a_mean_agrees_with_theory() -> None:
    random = np.random.default_rng(0)
    values_C = random.normal(3.0, 2.0, 900)
    found = estimate(UserResamples(np.arange(900), 1).mean(values_C, np.arange(900)))
    half = 1.96 * values_C.std() / 30
    assert found.value == pytest.approx(values_C.mean())
    assert found.low == pytest.approx(values_C.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values_C.mean() + half, abs=0.15 * half)


def test_users_are_drawn_not_cases() -> None:
    """A hundred cases of the same user say no more than one."""
    random = np.random.default_rng(0)
    values_U = random.normal(size=50)
    alone = UserResamples(np.arange(50), 1).mean(values_U, np.arange(50))
    users_C = np.repeat(np.arange(50), 100)
    repeated = UserResamples(users_C, 1).mean(np.repeat(values_U, 100), users_C)
    np.testing.assert_allclose(alone, repeated, rtol=1e-9)


def test_draws_are_means_over_the_users_drawn() -> None:
    users_C, values_C = np.array([4, 4, 9, 7, 7, 7]), np.array([1.0, 2.0, 5.0, np.nan, 0.0, 7.0])
    resamples = UserResamples(users_C, 3)
    draws_R = resamples.mean(values_C, users_C)
    random = np.random.default_rng(3)
    mine = {4: [1.0, 2.0], 7: [0.0, 7.0], 9: [5.0]}
    for draw in range(1, 20):
        drawn = [value for user in random.integers(0, 3, 3) for value in mine[[4, 7, 9][user]]]
        assert draws_R[draw] == pytest.approx(np.mean(drawn))
    assert draws_R[0] == pytest.approx(3.0)


def test_the_same_seed_gives_the_same_draws_and_another_does_not() -> None:
    values_C = np.random.default_rng(0).random(40)
    one, same, other = (UserResamples(np.arange(40), seed).mean(values_C, np.arange(40)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one[1:], other[1:])


def test_paired_sizes_share_what_is_hard_for_both() -> None:
    """Two sizes that differ by a constant have a slope without uncertainty, however much the users differ."""
    hard_C = np.random.default_rng(0).normal(size=200)
    resamples = UserResamples(np.arange(200), 0)
    draws_SR = [resamples.mean(hard_C + more, np.arange(200)) for more in (0.0, 0.1, 0.2)]
    found = estimate(gain("slope", *draws_SR, sizes=(1e3, 1e4, 1e5)))
    assert found == pytest.approx((0.1, 0.1, 0.1))


def test_coverage_counts_items_once_and_its_interval_holds_it() -> None:
    random = np.random.default_rng(0)
    top_CK = random.zipf(1.5, (60, 5)).clip(max=80) - 1
    draws_R = UserResamples(np.arange(60), 0).coverage(top_CK, np.arange(60), 80)
    assert draws_R[0] == len(np.unique(top_CK)) / 80
    assert estimate(draws_R).low < draws_R[0] < estimate(draws_R).high


def test_a_draw_without_a_list_has_no_coverage() -> None:
    """Of 40 users, 5 or 1 have a case of the group, and always the same list."""
    for cases, ends in (5, 0.25), (1, np.nan):
        draws_R = UserResamples(np.arange(40), 0).coverage(np.arange(cases * 2).reshape(-1, 2) % 2, np.arange(cases), 8)
        assert np.isnan(draws_R).any()
        assert estimate(draws_R) == pytest.approx((0.25, ends, ends), nan_ok=True)


def test_a_ratio_over_zero_is_unbounded_and_zero_over_zero_undefined() -> None:
    draws_R = gain("ratio", np.array([0.0, *[2.0, 1.0] * 20, 0.0]), np.array([1.0, *[1.0, 2.0] * 20, 0.0]))
    assert estimate(draws_R) == (np.inf, 0.5, 2.0)
    assert np.isnan(estimate(gain("ratio", np.zeros(3), np.zeros(3)))).all()


def test_an_interval_of_a_few_defined_draws_is_undefined() -> None:
    """With the hit of one user among three, every ratio that is defined is the same."""
    small_C, large_C, users_C = np.array([0.5, 0, 0]), np.array([1.0, 0, 0]), np.arange(3)
    resamples = UserResamples(users_C, 0)
    found = estimate(gain("ratio", resamples.mean(small_C, users_C), resamples.mean(large_C, users_C)))
    assert found.value == 2
    assert np.isnan([found.low, found.high]).all()
    assert found.signed() == "+2.0000 [undefined]"


def test_equal_sizes_have_no_slope() -> None:
    """Sizes with equal draws neither gain nor lose, not even by an error of rounding."""
    draws_SR = np.tile([1.0, 1.0, 0.5, 0.75], (3, 1))
    assert gain("slope", *draws_SR, sizes=(192, 768, 3072)).tolist() == [0, 0, 0, 0]
