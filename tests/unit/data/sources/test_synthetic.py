"""The synthetic data set against its definition, computed slowly, and against what it promises."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from lrec.data.sources.synthetic import Process, SyntheticDataModule
from lrec.data.splits.rules import LastItems
from lrec.errors import UserError

SMALL = Process(n_items=9, memory=3, decay=0.4, zipf=0.8, shift=5.0, signal=4.0, tail=0.5, head=1.0, seed=3)


def slow_conditional(process: Process, history: list[int]) -> list[float]:
    """p(next | history) by the formulas of Process's docstring, one number at a time."""
    popularity = [(j + 1 + process.shift) ** -process.zipf for j in range(process.n_items)]
    squares = [(m + process.head) ** -(1 + process.tail) for m in range(1, process.n_items // 2 + 1)]
    strengths = [math.sqrt(process.signal * square / (2 * sum(squares))) for square in squares]
    a, b = process.features_2FV
    recent = history[::-1][: process.memory]
    norm = math.sqrt(sum(process.decay ** (2 * k) for k in range(len(recent))))
    weights = []
    for j in range(process.n_items):
        logit = math.log(popularity[j] / sum(popularity))
        for k, item in enumerate(recent):
            for m, strength in enumerate(strengths):
                logit += process.decay**k / norm * strength * (a[m, item] * b[m, j] - b[m, item] * a[m, j])
        weights.append(math.exp(logit))
    return [weight / sum(weights) for weight in weights]


def module(data_dir: Path, **options: Any) -> SyntheticDataModule:
    """A small data set, prepared and split."""
    data = SyntheticDataModule(**{"data_dir": data_dir, "n_users": 3000, "n_items": 60, "length": 20} | options)
    data.prepare_data()
    data.setup()
    return data


def test_a_batch_is_moved_to_a_device(tmp_path: Path) -> None:
    data = module(tmp_path, n_users=20)
    batch = next(iter(data.train_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved.items_BL.is_meta
    assert moved.items_BL.shape == batch.items_BL.shape


@given(history=st.lists(st.integers(0, 8), max_size=7))
@settings(max_examples=50, deadline=None)
def test_the_conditional_matches_the_definition(history: list[int]) -> None:
    log_probs_V = SMALL.log_probs(np.array([history], dtype=np.int64))[0]
    np.testing.assert_allclose(np.exp(log_probs_V), slow_conditional(SMALL, history), rtol=1e-5)


def test_features_are_standardised_under_popularity_and_carry_the_signal() -> None:
    p_V, strengths_F = SMALL.popularity_V, SMALL.strengths_F
    np.testing.assert_allclose(SMALL.features_2FV @ p_V, 0, atol=1e-12)
    np.testing.assert_allclose(SMALL.features_2FV**2 @ p_V, 1)
    assert 2 * (strengths_F**2).sum() == pytest.approx(SMALL.signal)
    assert strengths_F[2] / strengths_F[0] == pytest.approx(((3 + 1) / (1 + 1)) ** -0.75)
    np.testing.assert_array_equal(np.diag(SMALL.kernel_VV), 0)


def test_drawn_items_follow_the_conditional() -> None:
    process = Process(n_items=6, memory=2, decay=0.5, zipf=0.8, shift=2.0, signal=2.0, tail=0.5, head=1.0, seed=0)
    items_UL = process.sample(40_000, 4)
    statistic, degrees = 0.0, 0
    for first in range(6):
        for second in range(6):
            history = [first, second]
            next_items = items_UL[(items_UL[:, :2] == history).all(1), 2]
            expected_V = len(next_items) * np.array(slow_conditional(process, history))
            counts_V = np.bincount(next_items, minlength=6)
            enough = expected_V > 5
            statistic += ((counts_V - expected_V)[enough] ** 2 / expected_V[enough]).sum()
            degrees += enough.sum()
    assert chi2.cdf(statistic, degrees) < 0.999
    assert degrees > 100


def test_popularity_before_any_history_is_zipf() -> None:
    process = Process(n_items=50, memory=1, decay=1.0, zipf=1.0, shift=0.0, signal=1.0, tail=0.5, head=1.0, seed=0)
    counts_V = np.bincount(process.sample(200_000, 1)[:, 0], minlength=50)
    slope = np.polyfit(np.log(np.arange(1, 51)), np.log(counts_V), 1)[0]
    assert slope == pytest.approx(-1, abs=0.03)


def test_popularity_in_the_set_is_near_zipf(tmp_path: Path) -> None:
    data = module(tmp_path, n_items=300)
    counts_V = np.sort(data.item_counts_V)[::-1]
    slope = np.polyfit(np.log(np.arange(len(counts_V)) + 1 + data.process.shift), np.log(counts_V), 1)[0]
    assert -1.4 < slope < -0.6


def test_same_seed_same_data_and_more_users_keep_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    items_UL = SMALL.sample(500, 12)
    monkeypatch.setattr("lrec.data.sources.synthetic._CHUNK", 64)
    np.testing.assert_array_equal(SMALL.sample(500, 12), items_UL)
    np.testing.assert_array_equal(SMALL.sample(130, 12), items_UL[:130])


def test_another_process_seed_is_another_set_and_the_training_seed_is_not(tmp_path: Path) -> None:
    first, again, other = module(tmp_path), module(tmp_path, seed=5), module(tmp_path, process_seed=1)
    assert again.data_hash == first.data_hash
    assert other.data_hash != first.data_hash
    assert other.floor != first.floor


def floor_by_batches(data: SyntheticDataModule, loader_name: str) -> float:
    """Mean -log p of the targets that a model is tested on, from the inputs that the model gets."""
    numbers_V = np.array([int(raw_id) for raw_id in data.item_table()["raw_id"]])
    losses = []
    for batch in getattr(data, loader_name)():
        log_probs_BV = data.process.log_probs(numbers_V[batch.items_BL.numpy()])[:, numbers_V]
        log_probs_BV -= np.log(np.exp(log_probs_BV).sum(1, keepdims=True))
        targets_B = batch.targets_M.numpy()
        losses.append(-log_probs_BV[np.arange(len(targets_B)), targets_B][targets_B >= 0])
    return float(np.concatenate(losses).mean())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"split": LastItems(trajectory=4)},
        {"split": LastItems(held_out_users=0.5), "length": 52, "n_users": 400},
        {"max_len": 4},
    ],
    ids=["default", "trajectory", "held-out users", "max_len = memory"],
)
def test_floor_is_the_loss_of_the_process_on_the_batches(tmp_path: Path, options: dict[str, Any]) -> None:
    data = module(tmp_path, **options)
    assert data.floor["val"] == pytest.approx(floor_by_batches(data, "val_dataloader"), abs=1e-5)
    assert data.floor["test"] == pytest.approx(floor_by_batches(data, "test_dataloader"), abs=1e-5)


def test_floor_is_that_of_the_users_who_are_evaluated(tmp_path: Path) -> None:
    """A fit may validate fewer users than the validation after it."""
    data = module(tmp_path, n_users=400, split=LastItems(trajectory=4))
    for data.validation_users in (50, "all"):
        assert data.floor["val"] == pytest.approx(floor_by_batches(data, "val_dataloader"), abs=1e-5)


def test_floor_renormalises_over_the_catalogue(tmp_path: Path) -> None:
    data = module(tmp_path, n_users=400, n_items=300, length=5)
    assert data.n_items < 290
    assert data.floor["val"] == pytest.approx(floor_by_batches(data, "val_dataloader"), abs=1e-5)
    # The floor knows a validation item outside the catalogue, but a model does not see it.
    assert data.floor["test"] < floor_by_batches(data, "test_dataloader")


def test_floor_is_in_the_store(tmp_path: Path) -> None:
    data = module(tmp_path)
    assert json.loads((data.store_path / "meta.json").read_text())["facts"]["floor"] == data.floor


def test_no_counting_predictor_beats_the_floor(tmp_path: Path) -> None:
    data = module(tmp_path, n_users=20_000)
    V = data.n_items
    items_UL = data.store.items_N.reshape(20_000, 20)
    train, last, target = items_UL[:, :-2], items_UL[:, -2], items_UL[:, -1]
    unigram_V = np.bincount(train.ravel(), minlength=V) / train.size
    bigram_VV = np.full((V, V), 0.5)
    np.add.at(bigram_VV, (train[:, :-1].ravel(), train[:, 1:].ravel()), 1)
    bigram_VV /= bigram_VV.sum(1, keepdims=True)
    unigram, bigram = -np.log(unigram_V[target]).mean(), -np.log(bigram_VV[last, target]).mean()
    assert data.floor["test"] + 0.1 < bigram
    assert bigram + 0.5 < unigram


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_users": 0}, "n_users must be at least 1"),
        ({"length": 2}, "length must be at least 3"),
        ({"n_items": 3}, "n_items must be at least 4"),
        ({"memory": 0}, "memory must be at least 1"),
        ({"decay": 0.0}, "decay must be above 0"),
        ({"signal": -1.0}, "signal must be at least 0"),
        ({"memory": 8, "max_len": 4}, "max_len, with the synthetic set's memory 8, must be at least 8, got 4"),
        ({"k_core": 5}, "leave it at 0"),
        ({"repeats": False}, "leave it at True"),
        ({"repeats": "not_in_a_row"}, "leave it at True"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SyntheticDataModule(**options)
