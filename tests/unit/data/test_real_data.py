"""Published counts of real data sets, and how full their batches are."""

from pathlib import Path

import pytest

from lrec.data.batching.plan import share_out
from lrec.data.datamodule import SequenceDataModule
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.sources.movielens import MovieLensDataModule


def ready(data: SequenceDataModule) -> SequenceDataModule:
    data.prepare_data()
    data.setup()
    return data


def counts(data: SequenceDataModule) -> tuple[int, int, int]:
    return tuple(data.store.statistics[name] for name in ("users", "items", "interactions"))


def filled(data: SequenceDataModule) -> float:
    """Share of real positions in an epoch's batches."""
    batches = list(data.train_dataloader())
    assert sum(len(batch.targets_M) for batch in batches) == data.U
    return data.U / sum(batch.items_BL.numel() for batch in batches)


def test_latest_small(interactions_dir: Path, tmp_path: Path) -> None:
    data = ready(MovieLensDataModule(interactions_dir, version="latest-small", data_dir=tmp_path))
    assert counts(data) == (610, 9_724, 100_836)
    assert round(data.store.statistics["ties"] / 100_836, 2) == 0.16
    assert data.U == 100_836 - 3 * 610, "two are held out per user and the first is nobody's target"
    assert filled(data) >= 0.95


def test_1m(interactions_dir: Path, tmp_path: Path) -> None:
    data = ready(MovieLensDataModule(interactions_dir, version="1m", data_dir=tmp_path))
    assert counts(data) == (6_040, 3_706, 1_000_209)
    assert round(data.store.statistics["ties"] / 1_000_209, 2) == 0.53
    assert data.store.statistics["duplicates_dropped"] == data.store.statistics["repeats"] == 0
    assert filled(data) >= 0.95


def test_beauty(interactions_dir: Path, tmp_path: Path) -> None:
    data = ready(InteractionsDataModule(interactions_dir / "s3rec_Beauty.txt.gz", data_dir=tmp_path, max_len=50))
    assert counts(data) == (22_363, 12_101, 198_502)
    assert filled(data) >= 0.92
    assert sum(int(batch.weights_M.sum()) for batch in data.test_dataloader()) == 22_363
    unchanged = ready(InteractionsDataModule(interactions_dir / "s3rec_Beauty.txt.gz", data_dir=tmp_path, k_core=5))
    assert counts(unchanged) == counts(data), "the file is a 5-core"


def test_fashion(interactions_dir: Path, tmp_path: Path) -> None:
    data = InteractionsDataModule(
        interactions_dir / "amazon2018_AMAZON_FASHION_5.json.gz",
        user_column="reviewerID",
        item_column="asin",
        time_column="unixReviewTime",
        data_dir=tmp_path,
    )
    users, items, interactions = counts(ready(data))
    assert (users, items) == (406, 31)
    assert interactions + data.store.statistics["duplicates_dropped"] == 3_176


def test_ciao(interactions_dir: Path, tmp_path: Path) -> None:
    path = interactions_dir / "ciao_ratings.csv.gz"
    data = ready(InteractionsDataModule(path, domain_column="category", data_dir=tmp_path))
    users, items, interactions = counts(data)
    assert (users, items) == (7_375, 105_114)
    assert interactions + data.store.statistics["duplicates_dropped"] == 284_086
    assert data.store.statistics["domains"] == 28


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_every_step(interactions_dir: Path, tmp_path: Path, world: int) -> None:
    data = ready(MovieLensDataModule(interactions_dir, version="latest-small", data_dir=tmp_path))
    plan = data.batch_plan.epoch(0, 0)
    for step in range(data.steps_per_epoch):
        whole_starts, whole_lengths = plan.windows(step)
        rank_W = share_out(whole_lengths, world)
        parts = [(whole_starts[rank_W == rank], whole_lengths[rank_W == rank]) for rank in range(world)]
        assert [start for starts, _ in parts for start in starts] == whole_starts.tolist()
        assert [length for _, lengths in parts for length in lengths] == whole_lengths.tolist()
