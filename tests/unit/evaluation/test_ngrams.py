"""n-grams: against a loop over interactions, as probabilities, and on data whose entropy is known."""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from lrec.data.sources.synthetic import SyntheticDataModule
from lrec.evaluation.cases import Cases
from lrec.evaluation.ngrams import ORDERS, losses_of_test, ngram_losses


def cases_of(histories: list[list[int]], targets: list[int]) -> Cases:
    lengths = np.array([len(history) for history in histories])
    items_N = np.concatenate(histories).astype(np.int64)
    return Cases(np.arange(len(lengths)), lengths, items_N, lengths, np.array(targets))


def counted_by_hand(users: list[list[int]], n_items: int, history: list[int], target: int) -> list[float]:
    """Probabilities by orders 0, 1, 2, with dictionaries and loops."""
    result, p = [], 1 / n_items
    for order in range(3):
        followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
        for items in users:
            for place in range(order, len(items)):
                followers[tuple(items[place - order : place])][items[place]] += 1
        counts = [n for counter in followers.values() for n in counter.values()]
        once, twice = counts.count(1), counts.count(2)
        d = (once + 1) / (once + 2 * twice + 2)
        found = followers.get(tuple(history[len(history) - order :])) if len(history) >= order else None
        if found:
            p = (max(found[target] - d, 0) + d * len(found) * p) / sum(found.values())
        result.append(p)
    return result


def test_as_counted_by_a_loop() -> None:
    random = np.random.default_rng(0)
    users = [random.integers(12, size=random.integers(1, 9)).tolist() for _ in range(60)]
    users += [[], [3]]
    histories = [random.integers(12, size=random.integers(1, 5)).tolist() for _ in range(80)]
    targets = random.integers(12, size=80).tolist()
    expected = [counted_by_hand(users, 12, history, target) for history, target in zip(histories, targets, strict=True)]
    items = np.concatenate([np.array(u, dtype=np.int64) for u in users])
    losses = ngram_losses(items, np.array([len(u) for u in users]), 12, cases_of(histories, targets))
    found = np.exp(-np.stack([losses[name] for name in ORDERS], axis=1))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("history", [[0], [4, 1], [2, 2, 2], [9]])
def test_probabilities_of_all_items_sum_to_one(history: list[int]) -> None:
    random = np.random.default_rng(1)
    items, lengths = random.integers(5, size=200), np.full(20, 10)
    losses = ngram_losses(items, lengths, 10, cases_of([history] * 10, list(range(10))))
    for name in ORDERS:
        assert np.exp(-losses[name]).sum() == pytest.approx(1, abs=1e-12)


def world(transitions: np.ndarray, users: int, length: int) -> np.ndarray:
    """Users x length items of a first-order chain, whose first items are uniform."""
    random = np.random.default_rng(2)
    items = np.empty((users, length), dtype=np.int64)
    items[:, 0] = random.integers(len(transitions), size=users)
    for place in range(1, length):
        upto = transitions[items[:, place - 1]].cumsum(1)
        items[:, place] = (random.random((users, 1)) > upto).sum(1).clip(max=len(transitions) - 1)
    return items


def losses_on(items: np.ndarray, n_items: int) -> dict[str, float]:
    train, (history, target) = items[:, :-3], (items[:, -3:-1], items[:, -1])
    lengths = np.full(len(train), train.shape[1])
    losses = ngram_losses(train.ravel(), lengths, n_items, cases_of(history.tolist(), target.tolist()))
    return {name: float(loss.mean()) for name, loss in losses.items()}


def test_a_bigram_knows_a_chain_of_first_order() -> None:
    transitions = np.random.default_rng(3).dirichlet(np.full(20, 0.3), size=20)
    items = world(transitions, 4000, 20)
    before, after = items[:, -2], items[:, -1]
    exact = -np.log(transitions[before, after]).mean()
    losses = losses_on(items, 20)
    assert losses["bigram"] == pytest.approx(exact, abs=0.02)
    assert losses["bigram"] <= losses["trigram"] < losses["popularity"] - 0.5


def test_nothing_is_found_in_items_without_order() -> None:
    share = 1 / np.arange(1, 31)
    share /= share.sum()
    items = world(np.tile(share, (30, 1)), 3000, 20)
    losses = losses_on(items, 30)
    assert losses["popularity"] == pytest.approx(-np.log(share[items[:, -1]]).mean(), abs=0.01)
    assert losses["popularity"] - 0.002 < losses["bigram"] < losses["popularity"] + 0.03


def test_losses_of_a_data_set_are_those_of_its_test_targets(tmp_path: Path) -> None:
    data = SyntheticDataModule(n_users=300, n_items=30, length=12, data_dir=tmp_path)
    data.prepare_data()
    data.setup("test")
    found, part = losses_of_test(data), data.batch_plan.part
    index_I = data.cuts.catalogue_index_I
    rows = [slice(start, start + length) for start, length in zip(part.starts_U, part.lengths_U, strict=True)]
    users = [index_I[data.store.items_N[row]].tolist() for row in rows]
    by_hand = []
    for user, position in zip(*data.cuts.test_targets, strict=True):
        history = index_I[data.store.items_N[data.store.offsets_U1[user] :][: position + 1]].tolist()
        by_hand.append(-np.log(counted_by_hand(users, data.n_items, history[-3:-1], history[-1])[1:]))
        if len(by_hand) == 5:
            break
    assert set(found) == {"bigram", "trigram"}
    few = data.cuts.of_users(np.isin(np.arange(data.store.n_users), data.cuts.test_targets.users_T[:5]))
    data.cuts = few
    assert list(losses_of_test(data).values()) == pytest.approx(np.mean(by_hand, axis=0).tolist())
