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

Shape suffixes: L positions, M targets, V catalogue, N interactions.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from hashlib import sha256

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from lrec.common.hardware import available_gib
from lrec.data.batching.eval_batches import EvalBatch
from lrec.data.splits.rules import Split, ranges
from lrec.data.store.made_once import Arrays, made_beside
from lrec.data.store.store import TIME_UNITS, seconds_in
from lrec.evaluation.followers import Followers, bytes_to_count, edges_of
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
    """The baselines of a split. A baseline does its counting when it is first asked to score. `names` lists the
    baselines that the data allow."""

    def __init__(self, split: Split, device: torch.device, recent: float | str = RECENT_SHARE) -> None:
        """Use the training part of the split. `recent` is the share of it, or the duration at its end, that
        recent-popularity counts."""
        self._split, self._device, self._recently = split, device, recent
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
        return Scores(loss_M, *order.ranked(batch.targets_M, self._k, inputs, seen))

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
            store, rows_N = self._split.store, self._training_rows()
            assert store.times_N is not None
            times_N = store.times_N[rows_N]
            if isinstance(self._recently, str):
                unit = TIME_UNITS[store.facts["time_unit"]]
                earliest = times_N.max() + 1 - (seconds_in(self._recently) or 0) * unit
            else:
                earliest = np.partition(times_N, place := int((1 - self._recently) * len(times_N)))[place]
            items_N = self._split.catalogue_index_I[store.items_N[rows_N[times_N >= earliest]]]
            return {"counts_V": np.bincount(items_N, minlength=len(self._share_V))}

        return self._common(self._counted(f"recent-popularity-{self._recently}", count)["counts_V"] + self._share_V)

    def _common(self, values_V: np.ndarray) -> tuple[CommonOrder, Tensor]:
        """The order of the items by the logarithms of their values, and each item's cross-entropy."""
        # In float32, the logarithms of some values would be equal.
        scores_V = torch.from_numpy(np.log(values_V)).to(self._device)
        return CommonOrder(scores_V), float(np.log(values_V.sum())) - scores_V.float()

    @cached_property
    def _next_items(self) -> Followers:
        return Followers(self._edges("markov", (1,)), self._share_V, self._device)

    @cached_property
    def _item_graph(self) -> Followers:
        # Small enough that each item that an edge reaches scores above all other items.
        prior = min(1.0, LEAST / (2 * float(self._share_V.max())))
        edges_VV = self._edges("item-graph", EDGES, NEIGHBOURS)
        return Followers(edges_VV, self._share_V, self._device, prior, EDGES[0] * STEPS_BACK[0], STEPS_BACK)

    def _edges(self, name: str, weights: Sequence[int], most: int | None = None) -> csr_array:
        n_items = len(self._share_V)

        def count() -> Arrays:
            items_N = self._split.catalogue_index_I[self._split.store.items_N[self._training_rows()]]
            users_N = np.repeat(np.arange(len(self._split.train_U)), self._split.train_U)
            edges_VV = edges_of(users_N, items_N, n_items, weights, most)
            return {"data": edges_VV.data, "indices": edges_VV.indices, "indptr": edges_VV.indptr}

        found = self._counted(name, count)
        return csr_array((found["data"], found["indices"], found["indptr"]), shape=(n_items, n_items))

    def _counted(self, name: str, count: Callable[[], Arrays]) -> Arrays:
        """What `count` counts in the training part. Of several processes, one counts and all map it into memory."""
        if number() == 1:
            return count()
        cut = sha256(np.ascontiguousarray(self._split.train_U, dtype=np.int64).data).hexdigest()
        return made_beside(self._split.store, name, cut, count)

    def with_room(self, names: list[str]) -> list[str]:
        """The names whose counts fit into the memory of the first process; prints which names are left out."""
        n_rows, steps = int(self._split.train_U.sum()), {"recent-popularity": 0, "markov": 1, "item-graph": len(EDGES)}
        gib = {name: bytes_to_count(n_rows, len(self._share_V), n) / 2**30 for name, n in steps.items()}
        room = available_gib()
        left_out = of_first([name for name in names if gib.get(name, 0) > room])
        if left_out and leads():
            needed = max(gib[name] for name in left_out)
            print(f"left out: {', '.join(left_out)}, whose counts take up to {needed:,.1f} GiB; {room:,.1f} are free")
        return [name for name in names if name not in left_out]

    def _training_rows(self) -> np.ndarray:
        return ranges(self._split.store.offsets_U1[:-1], self._split.train_U)
