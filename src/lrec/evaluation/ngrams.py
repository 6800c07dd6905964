"""Interpolated n-grams of items: they predict what follows the last item, or the last two, by counting alone.

    p_0(j) = smoothed(n_j, p = 1 / V)                              popularity
    p_k(j | c) = smoothed(n(c, j), p_(k-1)(j | c without its first item)),     c the last k items
    smoothed(n(c, j), p) = (max(n(c, j) - d_k, 0) + d_k t(c) p) / n(c)

n counts training interactions, t(c) counts the different items that followed c, and d_k = (n1 + 1) / (n1 + 2 n2 + 2),
where n1 and n2 are the numbers of pairs (c, j) that were counted once and twice. A context that was never seen has the
probabilities of the shorter context. Source: absolute discounting, Ney, Essen & Kneser 1994.

Shape suffixes: N training interactions, U users, C cases.
"""

import numpy as np
import polars as pl

from lrec.data.datamodule import SequenceDataModule
from lrec.data.splits.rules import ranges
from lrec.evaluation.cases import Cases, cases_before

ORDERS = ("popularity", "bigram", "trigram")
CONTEXTS = ("none", "last", "before_last")  # columns; an order's context is as many of them as the order's place
MOST_COUNTED = 20_000_000  # interactions; they take about ten seconds and 2.5 GiB


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


def ngram_losses(items_N: np.ndarray, lengths_U: np.ndarray, n_items: int, cases: Cases) -> dict[str, np.ndarray]:
    """The cross-entropy of each case's target, in nats, by each of `ORDERS`; items_N are the training interactions."""
    users_N, cases = np.repeat(np.arange(len(lengths_U)), lengths_U), cases.last(len(ORDERS) - 1)
    trained = _with_contexts(users_N, items_N)
    ends_C = np.cumsum(cases.lengths_C + 1)
    asked_N = np.insert(cases.items_N, cases.starts_C + cases.lengths_C, cases.targets_C)
    asked = _with_contexts(np.repeat(np.arange(len(cases)), cases.lengths_C + 1), asked_N)[ends_C - 1]
    p_C, losses = np.full(len(cases), 1 / n_items), {}
    for order, name in enumerate(ORDERS):
        context = CONTEXTS[: order + 1]
        pairs = trained.drop_nulls(context).group_by(*context, "item").len("n")
        once, twice = (len(pairs.filter(pl.col("n") == n)) for n in (1, 2))
        discount = (once + 1) / (once + 2 * twice + 2)
        contexts = pairs.group_by(context).agg(n_all=pl.col("n").sum(), n_pairs=pl.len())
        found = asked.join(pairs, on=[*context, "item"], how="left", maintain_order="left")
        found = found.join(contexts, on=context, how="left", maintain_order="left").fill_null(0)
        count_C, total_C, types_C = found.select("n", "n_all", "n_pairs").to_numpy().T
        mass_C = np.maximum(count_C - discount, 0) + discount * types_C * p_C
        p_C = np.where(total_C > 0, mass_C / np.maximum(total_C, 1), p_C)
        losses[name] = -np.log(p_C)
    return losses


def _with_contexts(users_N: np.ndarray, items_N: np.ndarray) -> pl.DataFrame:
    """Each item and the items of the user before it, which are null if there are none."""
    before = {name: pl.col("item").shift(back).over("user") for back, name in enumerate(CONTEXTS) if back > 0}
    items = pl.DataFrame({"user": users_N, "item": items_N}, schema_overrides={"user": pl.Int32, "item": pl.Int32})
    return items.select("item", pl.lit(0).alias(CONTEXTS[0]), **before)
