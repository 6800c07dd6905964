"""The split by user: every user belongs to one part. A held-out user's items, except the first, are all targets."""

import pytest

from lrec.data.splits.reduction import Reduction, training_part
from lrec.data.splits.rules import UserSplit
from lrec.errors import UserError


def make_users(make_store, lengths: list[int]):
    return make_store([(f"{u:04}", f"i{p % 7}", p) for u, length in enumerate(lengths) for p in range(length)])


def test_parts_are_disjoint_whole_users(make_store) -> None:
    lengths = [1 + user % 9 for user in range(3000)]
    split = UserSplit(validation=0.2, test=0.3)(make_users(make_store, lengths))
    targets = {name: getattr(split, f"{name}_targets") for name in ("val", "test")}
    val, test = (set(targets[name].users_T.tolist()) for name in ("val", "test"))
    train = set(split.train_U.nonzero()[0].tolist())
    assert not val & test
    assert not train & (val | test)
    assert train | val | test | {user for user, length in enumerate(lengths) if length == 1} == set(range(3000))
    assert len(val) / 3000 == pytest.approx(0.2 * 8 / 9, abs=0.03)
    assert len(test) / 3000 == pytest.approx(0.3 * 8 / 9, abs=0.03)
    for part in targets.values():
        expected = [(user, place) for user in sorted(set(part.users_T.tolist())) for place in range(1, lengths[user])]
        assert list(zip(part.users_T.tolist(), part.positions_T.tolist(), strict=True)) == expected
    assert split.train_U[sorted(train)].tolist() == [lengths[user] for user in sorted(train)]
    half = training_part(split, Reduction(users=0.5))
    assert set(half.lengths_U.nonzero()[0].tolist()) < train


def test_a_larger_share_holds_the_users_of_a_smaller_one(make_store) -> None:
    store = make_users(make_store, [5] * 200)
    small, large = (UserSplit(validation=share, test=0.1)(store).val_users.tolist() for share in (0.1, 0.3))
    assert set(small) < set(large)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((0.0, 0.1), r"split.validation must be above 0 and below 1, got 0.0"),
        ((0.1, 1.0), r"split.test must be above 0 and below 1, got 1.0"),
        ((0.5, 0.5), r"leave no user to train on"),
    ],
)
def test_impossible_shares_are_refused(options: tuple[float, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        UserSplit(*options)


def test_a_part_without_users_is_refused(make_store) -> None:
    with pytest.raises(UserError, match=r"split.validation 0.0001: no target in 20 users; increase it"):
        UserSplit(validation=0.0001)(make_users(make_store, [5] * 20))
