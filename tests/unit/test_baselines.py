"""Each baseline against its definition, written out one user at a time."""

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import lrec
from lrec.baselines import BASELINES, Baselines
from lrec.data.base import SequenceDataModule


@pytest.fixture(scope="module")
def data(log_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> SequenceDataModule:
    columns = {"user_column": "who", "item_column": "what", "time_column": "when"}
    data: SequenceDataModule = lrec.InteractionsDataModule(
        log_csv, **columns, data_dir=tmp_path_factory.mktemp("data"), max_len=6, targets_per_step=64
    )
    data.prepare_data()
    data.setup()
    return data


def expected_scores(name: str, log: dict[str, list[tuple[int, str]]], history: list[str]) -> dict[str, float]:
    """Score of each catalogue item after a history, from everyone's training interactions (time, item)."""
    training = [row for rows in log.values() for row in rows]
    share = {item: n / len(training) for item, n in Counter(item for _, item in training).items()}
    following: Counter[str] = Counter()
    if name == "recent-popularity":
        earliest = sorted(time for time, _ in training)[int(0.9 * len(training))]
        following = Counter(item for time, item in training if time >= earliest)
    if name == "markov":
        pairs = ((one[1], two[1]) for rows in log.values() for one, two in pairwise(rows))
        following = Counter(two for one, two in pairs if one == history[-1])
    scores = {item: math.log(following[item] + share[item]) for item in share}
    if name == "repeat-last":
        scores |= {item: 1.0 + place for place, item in enumerate(history)}
    return scores


@pytest.mark.parametrize("name", BASELINES)
def test_ranks_lists_and_losses_are_those_of_the_definition(name: str, data: SequenceDataModule, log_csv: Path) -> None:
    rows = pl.read_csv(log_csv).sort("who", "when", maintain_order=True)
    whole = {user: list(zip(t, i, strict=True)) for user, i, t in rows.group_by("who").all().iter_rows()}
    training = {user: row[:-2] if len(row) >= 3 else row for user, row in whole.items()}
    catalogue = data.item_table()["raw_id"].to_list()
    baselines = Baselines(data.split_positions, torch.device("cpu"))
    checked = 0
    for batch in data.test_dataloader():
        scores = baselines.score(name, batch)
        for row, user in enumerate(data.raw_user_ids.gather(batch.users_B.numpy())[:60]):
            history = [item for _, item in whole[user][:-1] if item in catalogue]
            expected = expected_scores(name, training, history[-6:])
            values = np.array([expected[item] for item in catalogue])
            target = whole[user][-1][1]
            assert catalogue[batch.targets_B[row]] == target
            higher, tied = (values > expected[target] + 1e-6).sum(), (np.abs(values - expected[target]) <= 1e-6).sum()
            assert scores.rank_B[row].item() == 1 + higher + (tied - 1) / 2
            unseen = values[[item not in history for item in catalogue]]
            if target in history:
                assert scores.rank_unseen_B[row].item() == math.inf
            else:
                higher, tied = (unseen > expected[target] + 1e-6).sum(), (np.abs(unseen - expected[target]) <= 1e-6)
                assert scores.rank_unseen_B[row].item() == 1 + higher + (tied.sum() - 1) / 2
            best = values[scores.top_BK[row][:10].numpy()]
            np.testing.assert_allclose(best, np.sort(values)[::-1][:10], atol=1e-6)
            if name == "repeat-last":
                assert math.isnan(scores.loss_B[row].item())
            else:
                share = math.exp(expected[target]) / np.exp(values).sum()
                assert scores.loss_B[row].item() == pytest.approx(-math.log(share), abs=1e-5)
            checked += 1
    assert checked > 50


def test_without_times_there_is_nothing_recent(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(
        "".join(f"u{u} {' '.join(str((u + i) % 9) for i in range(5))}\n" for u in range(9))
    )
    data = lrec.InteractionsDataModule(
        tmp_path / "log.txt", data_dir=tmp_path / "data", max_len=4, targets_per_step=64, time_column=None
    )
    data.prepare_data()
    data.setup()
    names = Baselines(data.split_positions, torch.device("cpu")).names
    assert names == ["popularity", "repeat-last", "markov"]
