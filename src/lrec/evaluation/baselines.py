"""Baselines: scorers without a network, which count in the unreduced training part. They are evaluated with each model.

    popularity          log p_j; p_j is the item's share of the training interactions
    recent-popularity   log(n_j + p_j); n_j counts the last tenth of these interactions in time, or those within a
                        duration before the last one; absent if the data have no times
    repeat-last         the items of the input, the last one first, then all other items by popularity
    markov              log(n_ij + p_j); n_ij counts how often j came directly after the last item i
    item-graph          log(g_j + c p_j); g_j adds up how often j came shortly after each of the last items

The softmax of the scores gives shares, so each baseline has a cross-entropy, except repeat-last. Next to a count, p_j
acts as one more observation (c p_j as c of them) that is divided among the items by popularity. Ranks and lists follow
the rules of `scoring.score`, also for ties. They come in closed form from counts, without a catalogue pass per row.

Shape suffixes: B rows, L positions, M targets, V catalogue, N interactions, T edges, R items that rows reach.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256

import numpy as np
import torch
from scipy.sparse import coo_array, csr_array
from torch import Tensor

from lrec.common.hardware import available_gib
from lrec.data.batching.eval_batches import EvalBatch
from lrec.data.splits.rules import Split, ranges
from lrec.data.store.made_once import Arrays, made_beside
from lrec.data.store.store import TIME_UNITS, seconds_in
from lrec.evaluation.metrics import KS
from lrec.evaluation.shared_scoring import leads, number, of_first
from lrec.ranking.best_items import Pairs
from lrec.ranking.common_order import CommonOrder, Leading, newest_first
from lrec.ranking.scoring import Scores

BASELINES = ("popularity", "recent-popularity", "repeat-last", "markov", "item-graph")
RECENT_SHARE = 0.1
# In the graph, an edge leads from an item to each of the five items that follow it. Its weight is multiplied by 0.8 for
# each further step. The weight of an input item is halved for each step back.
EDGES, STEPS_BACK = (625, 500, 400, 320, 256), (16, 8, 4, 2, 1)
LEAST = EDGES[-1] * STEPS_BACK[-1] / (EDGES[0] * STEPS_BACK[0])
NEIGHBOURS = 500  # number of an item's edges that are kept, the strongest ones


class Baselines:
    """The baselines of a split, each counted when it is first asked to score; `names` has those that the data allow."""

    def __init__(self, split: Split, device: torch.device, recent: float | str = RECENT_SHARE) -> None:
        """Use the training part of the split. `recent` is the share of it, or the duration at its end, that
        recent-popularity counts."""
        self.split, self._device, self._recently = split, device, recent
        self._share_V = split.counts_V / split.counts_V.sum()
        self._k = min(max(KS), len(self._share_V))
        self.names = [name for name in BASELINES if name != "recent-popularity" or split.store.times_N is not None]

    def score(self, name: str, batch: EvalBatch) -> Scores:
        """Score every item of the catalogue for every target with the baseline `name`."""
        seen = Pairs(batch.seen_targets_S, batch.seen_items_S)
        if name in ("markov", "item-graph"):
            followers = self._next_items if name == "markov" else self._item_graph
            return followers.score(batch.items_BL, batch.positions_M, batch.targets_M, seen, self._k)
        order, loss_V = self._recent if name == "recent-popularity" else self._popularity
        inputs = self._inputs(batch) if name == "repeat-last" else None
        has_loss_M = (batch.targets_M >= 0) & (name != "repeat-last")
        loss_M = loss_V[batch.targets_M.clamp(min=0)].masked_fill(~has_loss_M, torch.nan)
        return order.ranked(batch.targets_M, self._k, inputs, seen)._replace(loss_B=loss_M)

    def _inputs(self, batch: EvalBatch) -> Leading:
        length = batch.items_BL.shape[1]
        read_ML = torch.arange(length, device=self._device) <= (batch.positions_M % length)[:, None]
        targets_N, places_N = read_ML.nonzero(as_tuple=True)
        items_N = batch.items_BL[batch.positions_M[targets_N] // length, places_N]
        return newest_first(targets_N, items_N, len(self._share_V))

    @cached_property
    def _popularity(self) -> tuple[CommonOrder, Tensor]:
        return self._common(self._share_V)

    @cached_property
    def _recent(self) -> tuple[CommonOrder, Tensor]:
        def count() -> Arrays:
            store, rows_N = self.split.store, self._training_rows()
            assert store.times_N is not None
            times_N = store.times_N[rows_N]
            if isinstance(self._recently, str):
                unit = TIME_UNITS[store.facts["time_unit"]]
                earliest = times_N.max() + 1 - (seconds_in(self._recently) or 0) * unit
            else:
                earliest = np.partition(times_N, place := int((1 - self._recently) * len(times_N)))[place]
            items_N = self.split.catalogue_index_I[store.items_N[rows_N[times_N >= earliest]]]
            return {"counts_V": np.bincount(items_N, minlength=len(self._share_V))}

        return self._common(self._counted(f"recent-popularity-{self._recently}", count)["counts_V"] + self._share_V)

    def _common(self, values_V: np.ndarray) -> tuple[CommonOrder, Tensor]:
        """The order of the items by the logarithms of their values, and each item's cross-entropy."""
        # In float32, the logarithms of some values would be equal.
        scores_V = torch.from_numpy(np.log(values_V)).to(self._device)
        return CommonOrder(scores_V), float(np.log(values_V.sum())) - scores_V.float()

    @cached_property
    def _next_items(self) -> "Followers":
        return Followers(self._edges("markov", (1,)), self._share_V, self._device)

    @cached_property
    def _item_graph(self) -> "Followers":
        # Small enough that each item that an edge reaches scores above all other items.
        prior = min(1.0, LEAST / (2 * float(self._share_V.max())))
        edges_VV = self._edges("item-graph", EDGES, NEIGHBOURS)
        return Followers(edges_VV, self._share_V, self._device, prior, EDGES[0] * STEPS_BACK[0], STEPS_BACK)

    def _edges(self, name: str, weights: Sequence[int], most: int | None = None) -> csr_array:
        n_items = len(self._share_V)

        def count() -> Arrays:
            items_N = self.split.catalogue_index_I[self.split.store.items_N[self._training_rows()]]
            users_N = np.repeat(np.arange(len(self.split.train_U)), self.split.train_U)
            edges_VV = edges_of(users_N, items_N, n_items, weights, most)
            return {"data": edges_VV.data, "indices": edges_VV.indices, "indptr": edges_VV.indptr}

        found = self._counted(name, count)
        return csr_array((found["data"], found["indices"], found["indptr"]), shape=(n_items, n_items))

    def _counted(self, name: str, count: Callable[[], Arrays]) -> Arrays:
        """What `count` counts in the training part. Of several processes, one counts and all map it into memory."""
        if number() == 1:
            return count()
        cut = sha256(np.ascontiguousarray(self.split.train_U, dtype=np.int64).data).hexdigest()
        return made_beside(self.split.store, name, cut, count)

    def with_room(self, names: list[str]) -> list[str]:
        """The names whose counts fit into the memory of the first process; prints which names are left out."""
        n_rows, steps = int(self.split.train_U.sum()), {"recent-popularity": 0, "markov": 1, "item-graph": len(EDGES)}
        # Measured bytes for each row, and for each edge that `edges_of` can find.
        edges = {name: min(n * n_rows, len(self._share_V) ** 2) for name, n in steps.items()}
        gib = {name: (64 * n_rows + 36 * n_edges) / 2**30 for name, n_edges in edges.items()}
        room = available_gib()
        left_out = of_first([name for name in names if gib.get(name, 0) > room])
        if left_out and leads():
            needed = max(gib[name] for name in left_out)
            print(f"left out: {', '.join(left_out)}, whose counts take up to {needed:,.1f} GiB; {room:,.1f} are free")
        return [name for name in names if name not in left_out]

    def _training_rows(self) -> np.ndarray:
        return ranges(self.split.store.offsets_U1[:-1], self.split.train_U)


class Followers:
    """Scores log(g_j + c p_j): g_j adds up the edges from the last items to j, p_j is j's share of all interactions. A
    list has the items that edges reach by score, and then the other items by popularity.
    """

    def __init__(
        self,
        edges_VV: csr_array,
        share_V: np.ndarray,
        device: torch.device,
        prior: float = 1.0,
        one: int = 1,
        weights_back: Sequence[int] = (1,),
    ) -> None:
        """`prior` is c. `weights_back` has the weights of a history's last item, the item before it, and so on. g is
        the sum of item weight * edge weight / `one`. Weights are whole numbers, so that ties are exact."""
        self._edges_VV, self._one, self._weights_back = edges_VV, one, np.array(weights_back)
        self._prior, self._device = prior, device
        self._prior_V = torch.from_numpy(prior * share_V).to(device)
        self._popular = CommonOrder(torch.from_numpy(share_V).to(device))

    def score(self, items_BL: Tensor, last_M: Tensor, targets_M: Tensor, seen: Pairs, k: int) -> Scores:
        """Score every catalogue item for every target; last_M is the flat index of the last item before each target."""
        rows_R, items_R, weights_R = self._reached(items_BL, last_M)
        values_R = weights_R + self._prior_V[items_R]
        value_M = self._prior_V[targets_M.clamp(min=0)]
        hit_R = items_R == targets_M[rows_R]
        value_M[rows_R[hit_R]] = values_R[hit_R]
        total_M = torch.full_like(value_M, self._prior).index_add_(0, rows_R, weights_R)
        loss_M = total_M.log() - value_M.log().float()
        ranked = self._popular.ranked(targets_M, k, Leading(rows_R, items_R, values_R), seen)
        return ranked._replace(loss_B=loss_M.masked_fill(targets_M < 0, torch.nan))

    def _reached(self, items_BL: Tensor, last_M: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The items that edges reach from the last items before each target: rows and items, ascending, and their g."""
        items_N, last_N = items_BL.flatten().cpu().numpy(), last_M.cpu().numpy()
        back = np.arange(len(self._weights_back))
        rows_M, back_M = np.nonzero(back <= (last_N % items_BL.shape[1])[:, None])
        read = self._weights_back[back_M], (rows_M, items_N[last_N[rows_M] - back_M])
        shape = len(last_N), self._edges_VV.shape[0]
        reached_BV = coo_array(read, shape=shape).tocsr() @ self._edges_VV
        reached_BV.sort_indices()
        rows_R = np.repeat(np.arange(len(last_N)), np.diff(reached_BV.indptr))
        found = rows_R, reached_BV.indices.astype(np.int64), reached_BV.data / self._one
        rows, items, weights = (torch.from_numpy(values_R).to(self._device) for values_R in found)
        return rows, items, weights


def edges_of(
    users_N: np.ndarray, items_N: np.ndarray, n_items: int, weights: Sequence[int] = (1,), most: int | None = None
) -> csr_array:
    """The edges between items of the same user; `users_N` and `items_N` are in the order of the interactions. `weights`
    has the weight of an edge to the next item, to the item after it, and so on. An item keeps its `most` strongest."""
    edges_VV = csr_array((n_items, n_items), dtype=np.int64)
    for step, weight in enumerate(weights, start=1):
        together_N = users_N[:-step] == users_N[step:]
        pairs = items_N[:-step][together_N], items_N[step:][together_N]
        edges_VV += coo_array((np.full(len(pairs[0]), weight), pairs), shape=edges_VV.shape).tocsr()
    if most is None:
        return edges_VV
    starts_V1, kept_T = edges_VV.indptr, np.ones(edges_VV.nnz, dtype=bool)
    for item in np.flatnonzero(np.diff(starts_V1) > most):
        row = slice(starts_V1[item], starts_V1[item + 1])
        keys_M = edges_VV.data[row] * edges_VV.shape[1] - edges_VV.indices[row]  # by weight, ties by index
        kept_T[row] = keys_M >= np.partition(keys_M, -most)[-most]
    starts_V1 = np.append(0, np.cumsum(kept_T))[starts_V1]
    return csr_array((edges_VV.data[kept_T], edges_VV.indices[kept_T], starts_V1), shape=edges_VV.shape)
