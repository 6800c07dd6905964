"""What corruption may and may not do to a history."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrec.evaluation.cases import Cases
from lrec.tasks.robustness import CORRUPTIONS, MIX_RATE, RATES, REACH, corrupted, mix_items

N_ITEMS = 40
HISTORIES = st.lists(st.lists(st.integers(0, N_ITEMS - 1), min_size=1, max_size=15), min_size=1, max_size=8)


def cases_of(histories: list[list[int]]) -> Cases:
    return Cases(
        users_C=np.arange(len(histories)),
        positions_C=np.array([len(h) for h in histories]),
        items_N=np.concatenate([np.array(h, dtype=np.int64) for h in histories]),
        lengths_C=np.array([len(h) for h in histories]),
        targets_C=np.zeros(len(histories), dtype=np.int64),
    )


def histories_of(cases: Cases) -> list[list[int]]:
    return [part.tolist() for part in np.split(cases.items_N, cases.starts_C[1:])]


def is_part(short: list[int], long: list[int]) -> bool:
    """Whether `short` is `long` with some items left out."""
    rest = iter(long)
    return all(item in rest for item in short)


@settings(max_examples=60, deadline=None)
@given(HISTORIES, st.sampled_from(RATES), st.integers(0, 99))
def test_each_kind_does_what_it_says(histories: list[list[int]], rate: float, seed: int) -> None:
    cases = cases_of(histories)
    made = {name: f(cases, rate, N_ITEMS, np.random.default_rng(seed)) for name, f in CORRUPTIONS.items()}
    for name, after in made.items():
        assert (after.users_C == cases.users_C).all(), name
        assert (after.lengths_C >= 1).all(), name
        assert len(after.items_N) == after.lengths_C.sum()
        assert after.items_N.min() >= 0
        assert after.items_N.max() < N_ITEMS
        assert (after.blank_N is not None) == (name == "blanked")
    blank_N = made["blanked"].blank_N
    assert blank_N is not None
    assert (np.bincount(cases.case_N[~blank_N], minlength=len(cases)) >= 1).all(), "none is blank as a whole"
    for before, deleted, inserted, shuffled in zip(
        histories, *(histories_of(made[name]) for name in ("deleted", "inserted", "shuffled")), strict=True
    ):
        assert is_part(deleted, before)
        assert is_part(before, inserted)
        assert len(inserted) <= 2 * len(before)
        assert sorted(shuffled) == sorted(before)


def test_rates_are_rates_and_nest() -> None:
    cases = cases_of([list(range(40)) for _ in range(400)])
    groups = corrupted(cases, N_ITEMS, 1000, seed=4)
    replaced = {rate: groups[f"replaced {rate}"].items_N != cases.items_N for rate in RATES}
    for rate, changed_N in replaced.items():
        assert changed_N.mean() == pytest.approx(rate * (1 - 1 / N_ITEMS), abs=0.02)
        assert groups[f"blanked {rate}"].blank_N.mean() == pytest.approx(rate, abs=0.02)
        assert len(groups[f"deleted {rate}"].items_N) == pytest.approx((1 - rate) * len(cases.items_N), rel=0.02)
        assert len(groups[f"inserted {rate}"].items_N) == pytest.approx((1 + rate) * len(cases.items_N), rel=0.02)
    assert (replaced[0.5] | ~replaced[0.1]).all(), "what a lower rate corrupts a higher one does too"


def test_the_mix_is_half_replaced_and_half_blanked() -> None:
    cases = cases_of([list(range(40)) for _ in range(400)])
    mixed = mix_items(cases, MIX_RATE, N_ITEMS, np.random.default_rng(0))
    changed_N = mixed.items_N != cases.items_N
    assert mixed.blank_N is not None
    assert not (changed_N & mixed.blank_N).any()
    assert mixed.blank_N.mean() == pytest.approx(0.15, abs=0.01)
    assert changed_N.mean() == pytest.approx(0.15 * (1 - 1 / N_ITEMS), abs=0.01)


def test_shuffling_is_local() -> None:
    cases = cases_of([list(range(40)) for _ in range(200)])
    after = CORRUPTIONS["shuffled"](cases, 0.5, N_ITEMS, np.random.default_rng(0))
    moves_N = np.abs(after.items_N - np.tile(np.arange(40), 200))
    assert 0 < moves_N.mean() < REACH
    assert moves_N.max() <= 2 * REACH, "an item moves by less than 3, and others that pass it add as many again"


def test_a_shuffled_item_takes_its_event_with_it_but_not_its_time() -> None:
    cases = cases_of([list(range(20)) for _ in range(30)])
    times_N = np.arange(len(cases.items_N))
    events_N = np.stack([cases.items_N + 100, -cases.items_N], axis=1)
    cases = replace(cases, times_N=times_N, events_N=events_N)
    after = CORRUPTIONS["shuffled"](cases, 0.5, N_ITEMS, np.random.default_rng(0))
    assert after.times_N is not None
    assert after.events_N is not None
    np.testing.assert_array_equal(after.events_N, np.stack([after.items_N + 100, -after.items_N], axis=1))
    np.testing.assert_array_equal(after.times_N, times_N)


def test_the_same_seed_gives_the_same_corruption() -> None:
    cases = cases_of([list(range(20)) for _ in range(30)])
    one, same, other = (corrupted(cases, N_ITEMS, 12, seed) for seed in (1, 1, 2))
    for name in one:
        np.testing.assert_array_equal(one[name].items_N, same[name].items_N)
        assert (one[name].lengths_C <= 12).all()
    assert not np.array_equal(one["replaced 0.5"].items_N, other["replaced 0.5"].items_N)
