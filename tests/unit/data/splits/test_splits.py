"""Splits and reductions against obvious references."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrec.data.splits.reduction import Reduction, training_part
from lrec.data.splits.rules import LastItems, ranges
from lrec.errors import UserError
from lrec.training.target_losses import targets

FIXTURE_ONCE = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LENGTHS = st.lists(st.integers(1, 70), min_size=1, max_size=12).map(lambda lengths: [*lengths, 2])


def parts(n: int, trajectory: int, threshold: int) -> tuple[list[int], int, int, int]:
    """Positions of training, validation, test and trajectory of a user with n items; -1 for none."""
    positions = list(range(n))
    first = -1
    if trajectory and n > threshold:
        positions, first = positions[:-trajectory], n - trajectory
    if len(positions) < 3:
        return positions, -1, -1, first
    return positions[:-2], positions[-2], positions[-1], first


@FIXTURE_ONCE
@given(LENGTHS, st.sampled_from([(0, 15), (10, 15), (5, 7)]))
def test_last_items_equals_the_reference(make_lengths, lengths: list[int], options: tuple[int, int]) -> None:
    store = make_lengths(lengths)
    split = LastItems(trajectory=options[0], trajectory_min_length=options[1])(store)
    catalogue = set()
    for user, n in enumerate(lengths):
        train, val, test, trajectory = parts(n, *options)
        assert split.train_U[user] == len(train)
        assert (split.val_U[user], split.test_U[user], split.trajectory_U[user]) == (val, test, trajectory)
        assert (user in split.val_users, user in split.test_users) == (val >= 0, test >= 0)
        catalogue |= set(store.items_N[store.offsets_U1[user] + np.array(train, dtype=int)].tolist())
    assert split.catalogue_V.tolist() == sorted(catalogue)
    index = split.catalogue_index_I
    assert [index[item] for item in split.catalogue_V] == list(range(len(catalogue)))
    assert (np.delete(index, split.catalogue_V) == -1).all()


def test_held_out_users_train_validate_and_test_nowhere(make_lengths) -> None:
    lengths = [60] * 100 + [50] * 100
    store = make_lengths(lengths)
    small, large = (LastItems(held_out_users=share)(store) for share in (0.2, 0.5))
    assert 8 <= small.held_out_U.sum() <= 35
    assert not small.held_out_U[100:].any(), "only users with more than 50 interactions"
    assert (large.held_out_U | ~small.held_out_U).all(), "smaller shares nest in larger ones"
    held_out = np.flatnonzero(small.held_out_U)
    assert (small.train_U[held_out] == 0).all()
    assert (small.test_U[held_out] == 59).all()
    assert not np.isin(held_out, [*small.val_users, *small.test_users]).any()
    tasks = LastItems(trajectory=10, held_out_users=0.2)(store).counts
    assert tasks["trajectory"] == 10 * (200 - tasks["held-out users"])
    assert len(small.catalogue_V) == small.train_U.sum(), "each item of these users is theirs alone"


def test_counts_are_those_of_the_training_part(make_store) -> None:
    store = make_store([("u", item, t) for t, item in enumerate("aabca")])
    split = LastItems()(store)
    assert store.item_table["raw_id"].gather(split.catalogue_V).to_list() == ["a", "b"]
    assert split.counts_V.tolist() == [2, 1]


@FIXTURE_ONCE
@given(LENGTHS, st.floats(0.01, 1))
def test_recent_keeps_the_last_share_of_each_user(make_lengths, lengths: list[int], share: float) -> None:
    store = make_lengths(lengths)
    split = LastItems()(store)
    part = training_part(split, Reduction(recent=share))
    for user, n in enumerate(lengths):
        train = parts(n, 0, 15)[0]
        kept = train[len(train) - int(np.ceil(len(train) * share - 1e-9)) :]
        places = part.starts_U[user] + np.arange(part.lengths_U[user])
        assert (places - store.offsets_U1[user]).tolist() == kept


def test_shares_of_interactions_are_exact_nested_and_ordered(make_lengths) -> None:
    store = make_lengths([40, 3, 2, 25, 60])
    split = LastItems()(store)
    kept = {}
    for share in (0.1, 0.5, 0.9):
        part = training_part(split, Reduction(interactions=share))
        assert len(part.rows) == np.ceil(split.train_U.sum() * share)
        assert (np.diff(part.rows) > 0).all()
        for user in range(5):
            places = part.starts_U[user] + np.arange(part.lengths_U[user])
            positions = part.rows[places] - store.offsets_U1[user]
            assert ((positions >= 0) & (positions < split.train_U[user])).all()
            assert part.items(places).tolist() == store.items_N[part.rows[places]].tolist()
        kept[share] = set(part.rows.tolist())
    assert kept[0.1] < kept[0.5] < kept[0.9]


def test_shares_of_users_nest(make_lengths) -> None:
    split = LastItems()(make_lengths([5] * 200))
    kept = [set(np.flatnonzero(training_part(split, Reduction(users=share)).lengths_U)) for share in (0.1, 0.5, 1.0)]
    assert kept[0] < kept[1] < kept[2]
    assert 5 <= len(kept[0]) <= 40
    assert len(kept[2]) == 200


def test_leaks_are_refused(make_lengths) -> None:
    split = LastItems()(make_lengths([6, 7, 8]))
    for name, value in [("train_U", 5), ("val_U", 5), ("test_U", 6), ("test_U", 9)]:
        positions = getattr(split, name).copy()
        positions[0] = value
        with pytest.raises(AssertionError, match="leak"):
            replace(split, **{name: positions}).check()
    part = training_part(split, Reduction())
    with pytest.raises(AssertionError, match="leak"):
        replace(part, lengths_U=part.lengths_U + 1).check()
    with pytest.raises(AssertionError, match="leak"):
        replace(part, starts_U=part.starts_U + 1).check()


@pytest.mark.parametrize(
    "make",
    [
        lambda: LastItems(trajectory=-1),
        lambda: LastItems(trajectory=10, trajectory_min_length=11),
        lambda: LastItems(held_out_users=1.5),
        lambda: Reduction(users=0),
        lambda: Reduction(recent=1.1),
        lambda: Reduction(interactions=-0.5),
    ],
)
def test_options_out_of_range(make) -> None:
    with pytest.raises(UserError, match=r"split\.|reduction\."):
        make()


def test_nothing_to_train_on(make_lengths) -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        LastItems(held_out_users=1.0)(make_lengths([60, 60]))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5))))
def test_ranges(pairs: list[tuple[int, int]]) -> None:
    starts, lengths = (np.array([pair[side] for pair in pairs], dtype=np.int64) for side in (0, 1))
    assert ranges(starts, lengths).tolist() == [s + i for s, n in pairs for i in range(n)]


def test_all_test_targets_and_some_trajectories_are_measured(make_lengths, monkeypatch: pytest.MonkeyPatch) -> None:
    split = LastItems(trajectory=4, trajectory_min_length=7)(make_lengths([5, *[9] * 20, 5]))
    tests = len(split.test_targets.users_T)
    assert tests == 22
    every = targets(split, split.test_targets)
    monkeypatch.setattr("lrec.training.target_losses.MOST_TRAJECTORIES", 6)
    some, again = (targets(split, split.test_targets) for _ in range(2))
    assert len(every[0]) == tests + 4 * 20
    assert len(some[0]) == tests + 4 * 6
    pairs = [list(zip(*(part.tolist() for part in chosen), strict=True)) for chosen in (every, some, again)]
    assert pairs[1] == pairs[2]
    assert pairs[0][:tests] == pairs[1][:tests]
    assert set(pairs[1]) <= set(pairs[0])
    assert {position for _, position in pairs[1][tests:]} == {5, 6, 7, 8}


def test_items_of_a_trajectory_that_are_no_targets_are_not_measured(make_lengths) -> None:
    split = LastItems(trajectory=4, trajectory_min_length=7)(make_lengths([9] * 20))
    store = split.store
    even_N = np.arange(len(store.items_N)) % 2 == 0
    split = replace(split, target_N=even_N)
    users, positions = targets(split, split.test_targets)
    assert even_N[store.offsets_U1[users] + positions].all()
    assert len(users) == np.count_nonzero(even_N[store.offsets_U1[np.arange(20)] + 4]) + 2 * 20


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=9), min_size=1, max_size=6), st.integers(0, 9))
@FIXTURE_ONCE
def test_new_rows_train_with_the_rows_before_them(make_store, times: list[list[int]], since: int) -> None:
    """Kept: the share of a user, or the rows from a time on (if any) with two before them, whichever is longer."""
    store = make_store([(f"u{u}", f"i{p}", t) for u, ts in enumerate(times) for p, t in enumerate(sorted(ts))])
    split = LastItems()(store)
    for recent in (0.5, 1.0):
        part = training_part(split, Reduction(recent=recent, since=since, before=2))
        for user, n in enumerate(split.train_U):
            rows = np.arange(store.offsets_U1[user], store.offsets_U1[user] + n)
            shares = rows[n - int(np.ceil(n * recent)) :]
            new = rows[store.times_N[rows] >= since]
            kept = max(shares, rows[max(n - len(new) - 2, 0) :] if len(new) else [], key=len)
            assert part.starts_U[user] + np.arange(part.lengths_U[user]) == pytest.approx(kept)


def test_no_new_row_is_left_out_of_a_share_of_the_interactions(make_lengths) -> None:
    split = LastItems()(make_lengths([20] * 10))
    rows = split.store.offsets_U1[:-1, None] + np.arange(18)
    kept = [training_part(split, Reduction(interactions=share, since=12, before=30)).rows for share in (0.25, 0.5)]
    for share, mine in zip((0.25, 0.5), kept, strict=True):
        assert mine is not None
        old_N = split.store.times_N[mine] < 12
        assert mine[~old_N].tolist() == rows[:, 12:].ravel().tolist()
        assert np.count_nonzero(old_N) == share * 10 * 12
    assert set(kept[0]) < set(kept[1])
