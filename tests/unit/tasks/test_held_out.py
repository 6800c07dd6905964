"""Users who are held out for the cold-start task leave no trace in training."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from lrec.data.batching.train_batches import TrainBatch
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.splits.rules import LastItems

RULE = LastItems(trajectory=4, held_out_users=0.5)


def module(path: Path, rows: list[tuple[str, str, int]]) -> InteractionsDataModule:
    path.write_text("user,item,time\n" + "".join(f"{user},{item},{time}\n" for user, item, time in rows))
    data = InteractionsDataModule(
        path=path, user_column="user", item_column="item", time_column="time",
        data_dir=path.parent / "data", split=RULE, max_len=20, targets_per_step=256,
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    return data


def test_rewriting_the_held_out_users_changes_no_batch_no_catalogue_and_no_count(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = [
        (f"u{user:02}", f"i{int(random.integers(40)):02}", time)
        for user in range(60)
        for time in range(int(random.integers(3, 90)))
    ]
    before = module(tmp_path / "before.csv", rows)
    held_out = {before.store.raw_user_ids[int(user)] for user in np.flatnonzero(before.cuts.held_out_U)}
    assert 5 < len(held_out) < 35
    # All their interactions now have one of two items: one that others have too, one that nobody else has.
    after = module(
        tmp_path / "after.csv",
        [(user, ("i05", "new")[time % 2] if user in held_out else item, time) for user, item, time in rows],
    )
    assert before.store.hash != after.store.hash

    assert before.item_table().equals(after.item_table()), "catalogue, raw ids and popularity"
    for (_, one), (_, two) in zip(_batches(before), _batches(after), strict=True):
        assert torch.equal(one.items_BL, two.items_BL)
        assert torch.equal(one.targets_M, two.targets_M)
    for loaders in (("val_dataloader", 2), ("test_dataloader", 1)):
        users = {int(user) for batch in getattr(before, loaders[0])() for user in batch.users_M}
        assert not users & set(np.flatnonzero(before.cuts.held_out_U).tolist())


def test_an_epoch_is_the_training_part_of_the_others_exactly(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    rows = [(f"u{user:02}", f"u{user:02}-{time}", time) for user in range(40) for time in range(random.integers(5, 80))]
    data = module(tmp_path / "log.csv", rows)
    names = data.item_table()["raw_id"].to_list()
    targets = Counter(names[int(item)] for epoch, batch in _batches(data) if epoch == 0 for item in batch.targets_M)
    expected = set()
    split = data.cuts
    for user, raw_id in enumerate(data.store.raw_user_ids):
        expected |= {f"{raw_id}-{time}" for time in range(1, int(split.train_U[user]))}
    assert targets == Counter(expected)
    held_out = tuple(data.store.raw_user_ids[int(user)] for user in np.flatnonzero(split.held_out_U))
    assert held_out
    assert not [name for name in names if name.startswith(held_out)]


def _batches(data: InteractionsDataModule) -> list[tuple[int, TrainBatch]]:
    """Two epochs of training batches."""
    loader = data.train_dataloader()
    return [(epoch, batch) for epoch in range(2) for batch in loader]
