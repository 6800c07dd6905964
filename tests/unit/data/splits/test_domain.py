"""One domain of a data set: it has the parts of the whole split, each with only the domain's interactions."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.splits.reduction import DomainStore, Reduction, of_domain, training_part
from lrec.data.splits.rules import LastItems, Split
from lrec.errors import UserError

RULE = LastItems(trajectory=4, held_out_users=0.4)


@pytest.fixture
def whole(make_store) -> Split:
    random = np.random.default_rng(0)
    rows = []
    for user in range(80):
        for time in range(int(random.integers(1, 70))):
            domain = "abc"[random.choice(3, p=[0.6, 0.3, 0.1])]
            rows.append((f"{user:02}", f"{domain}{random.integers(12):02}", time, domain))
    return RULE(make_store(rows))


def test_each_part_is_the_whole_parts_interactions_with_the_domain(whole: Split) -> None:
    store = whole.store
    raw_id, domain_I = store.item_table["raw_id"].to_list(), store.item_table["domain"].to_list()
    for domain in "abc":
        split = of_domain(whole, domain)
        trained = set()
        for user in range(store.n_users):
            items = store.items_N[store.offsets_U1[user] : store.offsets_U1[user + 1]].tolist()
            kept = [place for place, item in enumerate(items) if domain_I[item] == domain]
            own = split.store.items_N[split.store.offsets_U1[user] : split.store.offsets_U1[user + 1]].tolist()
            assert own == [items[place] for place in kept]
            training = [place for place in kept if place < whole.train_U[user]]
            assert split.train_U[user] == len(training)
            trained |= {raw_id[items[place]] for place in training}
            for first, number, mine, mine_number in (
                (whole.val_U, whole.val_targets_U, split.val_U, split.val_targets_U),
                (whole.test_U, whole.test_targets_U, split.test_U, split.test_targets_U),
            ):
                targets = [place for place in kept if first[user] >= 0 and 0 <= place - first[user] < number[user]]
                assert mine_number[user] == len(targets)
                assert mine[user] == (kept.index(targets[0]) if targets else -1)
            assert (split.trajectory_U[user] < 0) == (whole.trajectory_U[user] < 0)
        assert {raw_id[item] for item in split.catalogue_V} == trained
        assert (split.held_out_U == whole.held_out_U).all()
        counts, of_whole = (dict(zip(s.catalogue_V.tolist(), s.counts_V.tolist(), strict=True)) for s in (split, whole))
        assert counts == {item: count for item, count in of_whole.items() if domain_I[item] == domain}
        assert len(split.test_users)
        training_part(split, Reduction(recent=0.5))


def test_a_held_out_user_without_the_domains_items_has_no_target(make_store) -> None:
    rows = [(f"{user}", f"{'aab'[user]}{n % 7}", n, "aab"[user]) for user in range(3) for n in range(60)]
    split = LastItems()(make_store(rows))
    split = of_domain(replace(split, held_out_U=np.array([False, True, True]), train_U=split.train_U * [1, 0, 0]), "a")
    users_T, positions_T = split.held_out_targets
    assert (users_T.tolist(), positions_T.tolist()) == ([1], [59])


def test_a_worker_gets_the_domains_store(whole: Split) -> None:
    store = of_domain(whole, "b").store
    again = pickle.loads(pickle.dumps(store))
    assert isinstance(again, DomainStore)
    np.testing.assert_array_equal(again.items_N, store.items_N)
    assert len({store.hash, whole.store.hash, of_domain(whole, "a").store.hash}) == 3


def test_a_test_without_a_target_is_refused(tmp_path: Path) -> None:
    """Every user's last item is of the other domain."""
    rows = [(f"u{user}", f"{'aaaab'[n]}{(user + n) % 3}", "aaaab"[n]) for user in range(5) for n in range(5)]
    pl.DataFrame(rows, ["user", "item", "domain"], orient="row").write_csv(tmp_path / "log.csv")
    options = {"domain_column": "domain", "only_domain": "a", "data_dir": tmp_path, "max_len": 4}
    data = InteractionsDataModule(tmp_path / "log.csv", time_column=None, recent_popularity=1, **options)
    data.prepare_data()
    data.setup("fit")
    assert sum(len(batch.users_M) for batch in data.val_dataloader()) == 5
    with pytest.raises(UserError, match="no user has a test target"):
        data.test_dataloader()


def test_an_unknown_domain_is_refused_with_those_there_are(whole: Split, make_lengths) -> None:
    with pytest.raises(UserError, match="only_domain 'd': choose one of a, b, c"):
        of_domain(whole, "d")
    with pytest.raises(UserError, match="only_domain 'a': the data have no domains"):
        of_domain(RULE(make_lengths([5, 6])), "a")
