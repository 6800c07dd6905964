"""The split by time against an obvious reference, its leak check, and the batches of several targets per user."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lrec.data.batching.eval_batches import EvalBatches
from lrec.data.batching.train_batches import Ranks
from lrec.data.sources.movielens import MovieLensDataModule
from lrec.data.sources.synthetic import SyntheticDataModule
from lrec.data.splits.reduction import Reduction, training_part
from lrec.data.splits.rules import Split, Targets
from lrec.data.splits.temporal import GlobalTemporal
from lrec.data.store.prepare import RawInteractions, prepare_store
from lrec.data.store.store import Store
from lrec.errors import UserError
from lrec.evaluation.cases import cases_before

FIXTURE_ONCE = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Few times, so that many tie within and between users, also at the cuts.
TIMES = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=8)


def make_times(make_store, sequences: list[list[int]]) -> Store:
    """A store whose user i acts at times sequences[i]; the item at position p of user i is called i-p."""
    return make_store(
        [(f"{u:03}", f"{u:03}-{p:04}", t) for u, times in enumerate(sequences) for p, t in enumerate(sorted(times))]
    )


def as_pairs(targets: Targets) -> list[tuple[int, int]]:
    return list(zip(targets.users_T.tolist(), targets.positions_T.tolist(), strict=True))


CHOSEN = {"first": slice(0, 1), "last": slice(-1, None), "all": slice(None), "window": slice(0, 1)}


@FIXTURE_ONCE
@given(TIMES, st.integers(1, 8), st.integers(1, 4), st.sampled_from(list(CHOSEN)), st.sampled_from([None, *CHOSEN]))
def test_equals_the_reference(
    make_store, sequences: list[list[int]], first: int, gap: int, which: str, of_test: str | None
) -> None:
    second = first + gap
    expected: dict[str, list[tuple[int, int]]] = {"val": [], "test": []}
    train = []
    for user, times in enumerate(sequences):
        times = sorted(times)
        train.append(sum(t < first for t in times))
        for stage, begin, end in (("val", first, second), ("test", second, 10)):
            positions = [p for p, t in enumerate(times) if begin <= t < end and p > 0]
            chosen = CHOSEN[which if stage == "val" else of_test or which]
            expected[stage] += [(user, p) for p in positions[chosen]]
    rule = GlobalTemporal(first, second, which, test_targets=of_test)
    store = make_times(make_store, sequences)
    if not (sum(train) and expected["val"] and expected["test"]):
        with pytest.raises(UserError, match="the split leaves no"):
            rule(store)
        return
    split = rule(store)
    assert split.train_U.tolist() == train
    assert as_pairs(split.val_targets) == expected["val"]
    assert as_pairs(split.test_targets) == expected["test"]
    assert split.val_users.tolist() == sorted({user for user, _ in expected["val"]})
    assert split.test_users.tolist() == sorted({user for user, _ in expected["test"]})
    assert split.catalogue_V.tolist() == [row for row in range(len(store.items_N)) if store.times_N[row] < first]
    assert split.counts_V.tolist() == [1] * len(split.catalogue_V)
    part = training_part(split, Reduction())
    assert part.lengths_U.tolist() == train


def test_random_targets_are_drawn_by_user_and_seed(make_store) -> None:
    """One target per user, every item as often; a user's draw depends neither on other users nor on their number."""
    sequences = [[0, *range(10, 14), *range(20, 25)] for _ in range(400)]
    store = make_times(make_store, sequences)
    split = GlobalTemporal(10, 20, "random")(store)
    for targets, begin, number in ((split.val_targets, 1, 4), (split.test_targets, 5, 5)):
        assert targets.users_T.tolist() == list(range(400))
        counts = np.bincount(targets.positions_T - begin, minlength=number)
        assert len(counts) == number
        assert counts.min() > 0.7 * 400 / number
    assert np.corrcoef(split.val_U, split.test_U)[0, 1] < 0.15
    fewer = GlobalTemporal(10, 20, "random")(make_times(make_store, sequences[:100]))
    assert fewer.test_U.tolist() == split.test_U[:100].tolist()
    other = GlobalTemporal(10, 20, "random", seed=1)(store)
    assert 0.1 < (other.test_U == split.test_U).mean() < 0.3


def test_validation_by_the_last_item_and_by_users(make_store) -> None:
    """Training goes up to the test. The last item before the test validates, of all users or of some."""
    sequences = [[0, 1, 2, 6], [0, 5, 5, 7], [0, 1], [3], [6, 7], [0, 2, 3, 4]]
    store = make_times(make_store, sequences)
    split = GlobalTemporal(test_from=6, targets="all", validate_by="last_item")(store)
    assert split.train_U.tolist() == [2, 2, 2, 1, 0, 3]  # users with fewer than 3 items only train
    assert as_pairs(split.val_targets) == [(0, 2), (1, 2), (5, 3)]
    assert as_pairs(split.test_targets) == [(0, 3), (1, 3), (4, 1)]
    split = GlobalTemporal(test_from=6, targets="window", validate_by="users", held_out_users=2)(store)
    users = split.val_targets.users_T
    assert len(users) == 2
    assert split.val_targets.positions_T.tolist() == [len([t for t in sequences[u] if t < 6]) - 1 for u in users]
    assert split.train_U.tolist() == [0 if u in users else n for u, n in enumerate([3, 3, 2, 1, 0, 4])]
    assert as_pairs(split.test_targets) == [(0, 3), (1, 3), (4, 1)]
    assert split.sets_2.tolist() == [False, True]
    most = GlobalTemporal(test_from=6, validate_by="users", held_out_users=3)(store)
    assert set(users) < set(most.val_targets.users_T)
    with pytest.raises(UserError, match="nothing to train on"):
        GlobalTemporal(test_from=2, validate_by="users")(make_times(make_store, [[0, 1, 2]]))
    with pytest.raises(UserError, match="no validation target"):
        GlobalTemporal(test_from=2, validate_by="last_item")(make_times(make_store, [[0, 1, 2]]))


@FIXTURE_ONCE
@given(TIMES, st.floats(0.05, 0.6), st.floats(0.1, 0.3))
def test_shares_count_all_interactions_and_tear_no_ties(
    make_store, sequences: list[list[int]], first: float, gap: float
) -> None:
    store = make_times(make_store, sequences)
    try:
        split = GlobalTemporal(first, first + gap, "all")(store)
    except UserError:
        assume(False)
    everything = sorted(t for times in sequences for t in times)
    trained = int(split.train_U.sum())
    assert trained <= first * len(everything) + 1e-6
    assert everything[trained - 1] < everything[trained], "a tie is torn"
    below = [t for t in everything if t < everything[int(first * len(everything) + 1e-9)]]
    assert trained == len(below), "no more is held out than the tie needs"


def with_unit(folder: Path, unit: str, times: list[int]) -> Store:
    frame = pl.DataFrame({"user": ["u"] * len(times), "item": list("abcdef")[: len(times)], "time": times})
    return Store.open(
        prepare_store(folder, unit, {"unit": unit}, 0, lambda: RawInteractions(frame, {"time_unit": unit}))
    )


def test_dates_in_every_unit(tmp_path: Path) -> None:
    seconds = [1388534399, 1388534400, 1388534401, 1388620799, 1388620800, 1388620801]
    for unit, factor in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
        store = with_unit(tmp_path, unit, [t * factor for t in seconds])
        for rule in (
            GlobalTemporal("2014-01-01", "2014-01-02", "all"),
            GlobalTemporal("2014-01-01T02:00+02:00", "2014-01-02T00:00Z", "all"),
            GlobalTemporal("2013-12-31 23:59:59.5", "2014-01-02", "all"),
            GlobalTemporal(1388534400 * factor, 1388620800 * factor, "all"),
            GlobalTemporal("2014-01-01", 0.67, "all"),
            GlobalTemporal("20140101", "20140102000000", "all"),
            *[GlobalTemporal(20140101, 20140102, "all")] * (unit == "us"),  # the unit of dates
            *[GlobalTemporal(201401010000, 20140102000000, "all")] * (unit == "us"),
        ):
            split = rule(store)
            assert (split.train_U.tolist(), split.val_U.tolist(), split.test_U.tolist()) == ([1], [1], [4])
        with pytest.raises(UserError, match=r"\(validate_from 2014-01-01 00:00, test_from 2014-02-01 00:00\): a "):
            GlobalTemporal("2014-01-01", "2014-02-01")(store)
    with pytest.raises(UserError, match=r"no dates; give a share or a number"):
        GlobalTemporal("2014-01-01", "2014-01-02")(with_unit(tmp_path, "step", seconds))


@FIXTURE_ONCE
@given(TIMES, st.integers(1, 3), st.integers(1, 9))
def test_the_test_ends_at_a_time(make_store, sequences: list[list[int]], gap: int, until: int) -> None:
    """The test has the targets of [test_from, test_until); all else is as if the test had no end."""
    store = make_times(make_store, sequences)
    try:
        whole = GlobalTemporal(1, 1 + gap, "all")(store)
    except UserError:
        assume(False)
    within = [(u, p) for u, p in as_pairs(whole.test_targets) if sorted(sequences[u])[p] < until]
    rule = GlobalTemporal(1, 1 + gap, "all", test_until=until)
    if until <= 1 + gap or not within:
        with pytest.raises(UserError, match="must lie before split.test_until" if until <= 1 + gap else "no test"):
            rule(store)
        return
    split = rule(store)
    assert as_pairs(split.test_targets) == within
    assert as_pairs(split.val_targets) == as_pairs(whole.val_targets)
    assert split.train_U.tolist() == whole.train_U.tolist()


def test_a_test_as_long_as_a_duration(tmp_path: Path) -> None:
    day = 86_400
    seconds = [0, day, 2 * day, 2 * day + 7 * 3600 - 1, 2 * day + 7 * 3600, 9 * day]
    for unit, factor in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
        store = with_unit(tmp_path, unit, [t * factor for t in seconds])
        for until, n_targets in [("1s", 1), ("420m", 2), ("7h", 2), ("25201s", 3), ("1w", 3), ("8d", 4), (0.99, 3)]:
            split = GlobalTemporal(day * factor, "1970-01-03", "all", test_until=until)(store)
            assert split.test_targets_U.tolist() == [n_targets], (unit, until)
    with pytest.raises(UserError, match=r"test_until=7d: the data's times are no dates; give a share or a number"):
        GlobalTemporal(day, 2 * day, test_until="7d")(with_unit(tmp_path, "step", seconds))


def test_options_of_the_test_alone_do_not_change_the_data_hash() -> None:
    before = "GlobalTemporal(validate_from=0.8, test_from=0.9, targets='first')"
    assert GlobalTemporal().trained_on == before, "as it was before there were other options"
    assert GlobalTemporal(test_until="7d", test_targets="all", seed=3).trained_on == before
    others = [GlobalTemporal(validate_by="users", held_out_users=n) for n in (1, 2)]
    others += [GlobalTemporal(validate_by="last_item"), GlobalTemporal(0.7), GlobalTemporal(targets="last")]
    assert len({rule.trained_on for rule in others} | {before}) == 6


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((0.8, 0.9, "all", 1.0), "test_until must be a share"),
        ((0.8, 0.9, "all", "7 days"), "test_until=7 days is no ISO date .*, and no duration such as 7d"),
        ((0.0, 0.9), "validate_from must be a share"),
        ((0.8, 1.0), "test_from must be a share"),
        (("yesterday", 0.9), "validate_from=yesterday is no ISO date"),
        (("2014-02-30", 0.9), "no ISO date"),
    ],
)
def test_options_out_of_range(options: tuple, says: str) -> None:
    with pytest.raises(UserError, match=says):
        GlobalTemporal(*options)


def test_cuts_that_leave_a_part_empty(make_store) -> None:
    store = make_times(make_store, [[1, 2, 3, 4], [1, 2, 3, 4]])
    for options, says in [
        ((3, 3), "must lie before"),
        ((0.9, 0.8), "must lie before"),
        ((0.26, 0.49), "must lie before"),
        ((0, 3), "nothing to train on"),
        ((2, 9), "no test target"),
        ((5, 6), "no validation target"),
    ]:
        with pytest.raises(UserError, match=says):
            GlobalTemporal(*options)(store)
    with pytest.raises(UserError, match="have none: choose LastItems"):
        GlobalTemporal()(make_store([("u", "a"), ("u", "b")]))


def test_leaks_are_refused_by_time_too(make_store) -> None:
    split = GlobalTemporal(3, 5, "all")(make_times(make_store, [[0, 1, 3, 4, 5, 6], [0, 2, 2, 4, 6]]))
    assert split.train_U.tolist() == [2, 3]

    def shifted(**changes: list[int]) -> Split:
        return replace(split, **{name: np.array(values) for name, values in changes.items()})

    untimely = shifted(train_U=[4, 3], val_U=[-1, 3], val_targets_U=[0, 1])  # trains at 4, where another validates
    untimely.check_times(validation=False)  # both are before the test
    late = shifted(test_U=[3, 4], val_targets_U=[1, 1], test_targets_U=[1, 1])  # tests at 4, where another validates
    with pytest.raises(AssertionError, match="leak"):
        late.check_times(validation=False)
    for leak in (
        untimely,
        late,
        shifted(val_U=[1, 3], val_targets_U=[1, 1], train_U=[1, 3]),  # validates at 1, before another trains at 2
    ):
        leak.check()  # within each user the order is right
        with pytest.raises(AssertionError, match="leak"):
            leak.check_times()
    for name, values in [("train_U", [3, 3]), ("val_targets_U", [3, 1]), ("test_targets_U", [2, 2])]:
        with pytest.raises(AssertionError, match="leak"):
            shifted(**{name: values}).check()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_each_target_comes_after_everything_before_it(make_store, world: int) -> None:
    sequences = [[*range(20)], [0, 1, 12, 18, 19], [13, 14, 17], [3, 4, 5]]
    split = GlobalTemporal(10, 15, "all")(make_times(make_store, sequences))
    names = split.store.item_table["raw_id"].to_list()
    index = split.catalogue_index_I
    for targets in (split.val_targets, split.test_targets):
        loaders = [EvalBatches(split, targets, 6, Ranks(world, rank)) for rank in range(world)]
        found = []
        for batch in (batch for loader in loaders for batch in loader):
            for target, user in enumerate(batch.users_M.tolist()):
                if user < 0:
                    continue
                row, last = divmod(int(batch.positions_M[target]), batch.items_BL.shape[1])
                weight = int(batch.weights_M[target])
                read = batch.items_BL[row, : last + 1].tolist() if weight else []
                seen = batch.seen_items_S[batch.seen_targets_S == target].tolist()
                found.append((user, read, sorted(seen), weight))
        expected = []
        for user, position in as_pairs(targets):
            known = [int(index[names.index(f"{user:03}-{p:04}")]) for p in range(position)]
            known = [item for item in known if item >= 0]
            expected.append((user, known[-6:], sorted(known), int(bool(known))))
        assert sorted(found) == sorted(expected)


def test_the_loss_of_a_window_is_of_its_first_item_that_may_be_a_target(make_store) -> None:
    """The history ends before the window, whose items before the first target are not read."""
    sequences = [[*range(10), *range(30, 36)] for _ in range(4)]
    split = GlobalTemporal(20, 33, "window")(make_times(make_store, sequences))
    places_N = np.tile(np.arange(16), 4)
    users_N = np.repeat(np.arange(4), 16)
    # The first user has no target, and the second only the second item of each window.
    split = replace(split, target_N=(users_N > 0) & (places_N % 3 > (users_N == 1)))
    for targets, begin, sizes_U in (
        (split.val_targets, 10, split.val_targets_U),
        (split.test_targets, 13, split.test_targets_U),
    ):
        assert as_pairs(targets) == [(user, begin) for user in (1, 2, 3)]
        first = [begin + int(np.argmax(np.arange(begin, 16) % 3 > (user == 1))) for user in (1, 2, 3)]
        items_T = split.store.items_N[split.store.offsets_U1[1:4] + first]
        assert (split.store.items_N[split.rows_of(targets)] == items_T).all()
        whole = replace(split, train_U=np.diff(split.store.offsets_U1))  # so that the items of windows are known
        index_I = whole.catalogue_index_I
        (batch,) = EvalBatches(whole, targets, 50, sizes_T=sizes_U[targets.users_T])
        assert batch.users_M.tolist() == [1, 2, 3]
        assert batch.targets_M.tolist() == index_I[items_T].tolist()
        assert [int((batch.seen_targets_S == m).sum()) for m in range(3)] == [begin] * 3
        cases = cases_before(whole, *targets, 50)
        assert cases.targets_C.tolist() == index_I[items_T].tolist()
        assert cases.lengths_C.tolist() == [begin] * 3


def test_a_data_module_trains_and_tests_by_time(interactions_dir: Path, tmp_path: Path) -> None:
    rule = GlobalTemporal(targets="all")
    data = MovieLensDataModule(interactions_dir, version="latest-small", data_dir=tmp_path, split=rule)
    data.prepare_data()
    data.setup()
    times, split = data.store.times_N, data.cuts
    first, second = np.sort(times)[[int(0.8 * 100_836), int(0.9 * 100_836)]]
    assert data.item_counts_V.sum() == (times < first).sum()
    targets = len(split.val_targets.users_T), len(split.test_targets.users_T)
    firsts = times[data.store.offsets_U1[:-1]]
    between = (first <= times) & (times < second)
    assert targets[0] == between.sum() - ((first <= firsts) & (firsts < second)).sum()
    assert targets[1] == (times >= second).sum() - (firsts >= second).sum()
    assert sum(len(batch.users_M) for batch in data.test_dataloader()) == targets[1]


def test_the_synthetic_floor_follows_the_targets(tmp_path: Path) -> None:
    """All users act at the times 0 .. length - 1, so cutting by time equals cutting by position."""

    def floor(rule: GlobalTemporal) -> dict[str, float]:
        data = SyntheticDataModule(n_users=300, n_items=20, length=12, max_len=6, data_dir=tmp_path, split=rule)
        data.prepare_data()
        data.setup()
        return data.floor

    last_two = floor(GlobalTemporal(10, 11))
    data = SyntheticDataModule(n_users=300, n_items=20, length=12, max_len=6, data_dir=tmp_path)
    data.setup()
    assert last_two == pytest.approx(data.floor)
    # Every item is trained on, so each of the 300 users counts once per position.
    one, two = floor(GlobalTemporal(8, 9)), floor(GlobalTemporal(8, 10, "all"))
    assert two["val"] == pytest.approx((one["val"] + one["test"]) / 2)
