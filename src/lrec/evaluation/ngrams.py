"""Interpolated n-grams of items: they predict what follows the last item, or the last two, by counting alone.

    p_0(j) = smoothed(n_j, p = 1 / V)                              popularity
    p_k(j | c) = smoothed(n(c, j), p_(k-1)(j | c without its first item)),     c the last k items
    smoothed(n(c, j), p) = (max(n(c, j) - d_k, 0) + d_k t(c) p) / n(c)

n counts training interactions, t(c) counts the different items that followed c, and d_k = (n1 + 1) / (n1 + 2 n2 + 2),
where n1 and n2 are the numbers of pairs (c, j) that were counted once and twice. A context that was never seen has the
probabilities of the shorter context. Source: absolute discounting, Ney, Essen & Kneser 1994.

Shape suffixes: N training interactions, U users, T distinct pairs of a context and what followed it, C cases.
"""

import numpy as np

from lrec.data.datamodule import SequenceDataModule
from lrec.data.splits.rules import ranges
from lrec.evaluation.cases import Cases, cases_before

ORDERS = ("popularity", "bigram", "trigram")
MOST_COUNTED = 20_000_000  # interactions; they take about ten seconds and 2 GiB


def losses_of_test(data: SequenceDataModule) -> dict[str, float]:
    """The mean cross-entropy of the test targets by n-grams of what a run trains on, or of its first users if that is
    more than MOST_COUNTED interactions. Empty if no target is in the catalogue, or if there is nothing to count."""
    part = data.batch_plan.part
    lengths_U = part.lengths_U * (np.cumsum(part.lengths_U) <= MOST_COUNTED)
    items_N = data.cuts.catalogue_index_I[part.items(ranges(part.starts_U, lengths_U))]
    cases = cases_before(data.cuts, *data.evaluated("test")[0], len(ORDERS) - 1)
    cases = cases.where(cases.targets_C >= 0)
    if len(cases) == 0 or len(items_N) == 0:
        return {}
    losses = ngram_losses(items_N, lengths_U, data.n_items, cases)
    return {name: float(losses[name].mean()) for name in ORDERS[1:]}


def _find(keys_T: np.ndarray, keys_C: np.ndarray) -> np.ndarray:
    """Place of each key among the ascending keys_T, -1 if it is not there."""
    places_C = np.searchsorted(keys_T, keys_C)
    return np.where(np.append(keys_T, np.iinfo(np.int64).max)[places_C] == keys_C, places_C, -1)


def ngram_losses(items_N: np.ndarray, lengths_U: np.ndarray, n_items: int, cases: Cases) -> dict[str, np.ndarray]:
    """The cross-entropy of each case's target, in nats, by each of `ORDERS`; items_N are the training interactions.

    A context's number is the place of its last pair among the pairs of the order below, so that keys stay below N V.
    """
    position_N = ranges(np.zeros_like(lengths_U), lengths_U)
    context_N = np.zeros(len(items_N), dtype=np.int64)
    p_C = np.full(len(cases), 1 / n_items)
    tables: list[np.ndarray] = []  # the keys of each order: context * V + item
    losses = {}
    for order, name in enumerate(ORDERS):
        has_context_N = position_N >= order
        keys_T, place_N, counts_T = np.unique(
            context_N[has_context_N] * n_items + items_N[has_context_N], return_inverse=True, return_counts=True
        )
        context_C = _contexts(tables, cases, n_items, order)
        p_C = _smoothed((keys_T, counts_T), n_items, context_C, cases.targets_C, p_C)
        losses[name] = -np.log(p_C)
        tables.append(keys_T)
        followed_N = np.full(len(items_N), -1, dtype=np.int64)
        followed_N[has_context_N] = place_N
        context_N = np.roll(followed_N, 1)
    return losses


def _contexts(tables: list[np.ndarray], cases: Cases, n_items: int, order: int, back: int = 0) -> np.ndarray:
    """The context number of the last `order` items before each history's last `back` ones; -1 if it was never seen."""
    if order == 0:
        return np.zeros(len(cases), dtype=np.int64)
    shorter_C = _contexts(tables, cases, n_items, order - 1, back + 1)
    long_enough_C = cases.lengths_C > back
    last_C = cases.items_N[np.where(long_enough_C, cases.starts_C + cases.lengths_C - 1 - back, 0)]
    return np.where(long_enough_C, _find(tables[order - 1], shorter_C * n_items + last_C), -1)


def _smoothed(
    pairs: tuple[np.ndarray, np.ndarray], n_items: int, context_C: np.ndarray, targets_C: np.ndarray, low_C: np.ndarray
) -> np.ndarray:
    keys_T, counts_T = pairs
    once, twice = ((counts_T == n).sum() for n in (1, 2))
    discount = (once + 1) / (once + 2 * twice + 2)
    contexts_T = keys_T // n_items
    n_contexts = int(max(contexts_T.max(initial=0), context_C.max(initial=0))) + 1
    total_C = np.bincount(contexts_T, counts_T, n_contexts)[context_C]
    types_C = np.bincount(contexts_T, minlength=n_contexts)[context_C]
    # A context of -1 has negative keys, which are not found.
    place_C = _find(keys_T, context_C * n_items + targets_C)
    count_C = np.append(counts_T, 0)[place_C]
    mass_C = np.maximum(count_C - discount, 0) + discount * types_C * low_C
    return np.where((context_C >= 0) & (total_C > 0), mass_C / np.maximum(total_C, 1), low_C)
