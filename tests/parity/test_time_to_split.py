"""MovieLens-1M cut by time, against the counts and figures of time-to-split (arXiv 2507.16289, commit 5a33f9f).

The counts are those of its notebooks and CSVs. The figures of popularity were computed with Pandas, by its protocol:
the best items of the last 7 days before the cut, without the history; ties in the order in which items first occur in
those days.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lrec.data.batching.eval_batches import EvalBatches
from lrec.data.sources.movielens import MovieLensDataModule
from lrec.data.splits.rules import Split, Targets
from lrec.data.splits.temporal import GlobalTemporal
from lrec.evaluation.baselines import Baselines
from lrec.evaluation.evaluator import Evaluation
from lrec.evaluation.metrics import METRICS
from lrec.ranking.best_items import Pairs
from lrec.ranking.common_order import CommonOrder

# The first seconds after its cuts: the quantiles 0.9 of all times (978,132,488) and of those before (975,962,083.1).
VALIDATE_FROM, TEST_FROM = 975_962_084, 978_132_489
DAYS = 7 * 86_400


@pytest.fixture(scope="module")
def data(real_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> MovieLensDataModule:
    data = MovieLensDataModule(
        real_data("ml-1m_ratings.dat.xz"),
        data_dir=tmp_path_factory.mktemp("stores"),
        k_core=5,
        max_len=128,
        repeats="not_in_a_row",
    )
    data.prepare_data()
    return data


def cut(data: MovieLensDataModule, **options: object) -> Split:
    return GlobalTemporal(VALIDATE_FROM, TEST_FROM, **options)(data.open_store())  # type: ignore[arg-type]


def before_the_test(split: Split) -> np.ndarray:
    """How many interactions each user has before the test."""
    assert split.store.times_N is not None
    return np.add.reduceat(split.store.times_N < TEST_FROM, split.store.offsets_U1[:-1], dtype=np.int64)


@pytest.mark.slow
def test_counts(data: MovieLensDataModule) -> None:
    split = cut(data, targets="all")
    statistics = split.store.statistics
    assert [statistics[name] for name in ("users", "items", "interactions")] == [6_040, 3_416, 999_611]
    assert split.counts["training"] == 809_685
    assert ((split.train_U > 0).sum(), len(split.catalogue_V)) == (5_453, 3_411)
    assert (len(split.val_users), split.counts["validation"]) == (1_046, 89_407)
    assert (len(split.test_users), split.counts["test"]) == (1_209, 99_932)
    assert (before_the_test(split)[split.test_users] > 0).sum() == 1_180, "warm users"
    for targets in ("first", "last", "random", "window"):
        split = cut(data, targets=targets)
        sets = " sets" * (targets == "window")
        assert (split.counts[f"validation{sets}"], split.counts[f"test{sets}"]) == (1_046, 1_209)
    last = cut(data, validate_by="last_item")
    assert last.train_U[last.val_users].sum() == 893_637, "two users of 2 rows, which it leaves out, train too"
    assert last.train_U.sum() == 893_641
    users = cut(data, validate_by="users")
    assert users.counts["validation"] == 1_024
    assert ((users.train_U > 0) | (users.val_U > 0)).sum() == 6_011, "it takes 1,024 others, by another draw"


def popularity(split: Split, own_ties: bool) -> dict[str, float]:
    """Figures of the popularity in the last 7 days of the training part, on the test targets."""
    store, baselines = split.store, Baselines(split, torch.device("cpu"), "7d")
    users = np.repeat(np.arange(store.n_users), split.train_U)
    rows = np.concatenate([np.arange(b, b + n) for b, n in zip(store.offsets_U1[:-1], split.train_U, strict=True)])
    assert store.times_N is not None
    recent = store.times_N[rows] > store.times_N[rows].max() - DAYS
    users, items = users[recent], split.catalogue_index_I[store.items_N[rows[recent]]]
    by_user = np.argsort(store.raw_user_ids.cast(int).to_numpy()[users], kind="stable")
    first_V = np.full(len(split.catalogue_V), len(items))
    np.minimum.at(first_V, items[by_user], np.arange(len(items)))
    counts_V = np.bincount(items, minlength=len(first_V))
    order = CommonOrder(torch.from_numpy(counts_V - first_V / (len(items) + 1.0)))
    sets, (users_T, ends_T) = bool(split.sets_2[1]), split.test_targets
    sizes_T = split.test_targets_U[users_T] if sets else None
    evaluation = Evaluation(torch.from_numpy(split.counts_V), METRICS, sets)
    for batch in EvalBatches(split, Targets(users_T, ends_T), 128, sizes_T=sizes_T):
        if own_ties:
            found = baselines.score("recent-popularity", batch)
        else:
            seen = Pairs(batch.seen_targets_S, batch.seen_items_S)
            found = order.ranked(batch.targets_M, 50, None, seen)._replace(loss_B=torch.zeros(len(batch.targets_M)))
        evaluation.update(found, batch)
    return evaluation.compute()


@pytest.mark.parametrize(
    ("targets", "to_validation", "to_test"),
    [
        pytest.param("first", (918, 480), (1224, 721), marks=pytest.mark.slow),
        pytest.param("last", (430, 213), (414, 244), marks=pytest.mark.slow),
        ("window", (7229, 2693), (7560, 2865)),
    ],
)
def test_popularity_of_seven_days(
    data: MovieLensDataModule, targets: str, to_validation: tuple[int, int], to_test: tuple[int, int]
) -> None:
    split = cut(data, targets=targets)
    none_U = np.zeros_like(split.train_U)
    longer = replace(split, train_U=before_the_test(split), val_U=none_U - 1, val_targets_U=none_U)
    for expected, until in ((to_validation, split), (to_test, longer)):
        figures = popularity(until, own_ties=False)
        assert tuple(round(1e4 * figures[f"{name}@10_unseen"]) for name in ("HR", "NDCG")) == expected
        # If the counts of the days tie, total counts decide; if these tie too, half a rank or the item's index.
        own = popularity(until, own_ties=True)
        for name in ("HR@10_unseen", "NDCG@10_unseen"):
            assert own[name] == pytest.approx(figures[name], abs=20e-4)
