"""What scores without a network, from the unreduced training part alone; it stands beside every model.

    popularity          log p_j, with p_j the item's share of the training interactions
    recent-popularity   log(n_j + p_j), n_j counting the last tenth of them in time; absent where there are no times
    repeat-last         the items of the input, the last one first, then all others by popularity
    markov              log(n_ij + p_j), n_ij counting how often j followed the last item i

The softmax of a score is a share (with one observation more, which is shared out as popularity), so each has a
cross-entropy; repeat-last has none. All are scored by the head that scores models, so the same rule decides ties.

Shape suffixes: B rows, L positions, V catalogue, N interactions, T distinct transitions, S (row, item) pairs.
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lrec.data.batches import EvalBatch
from lrec.data.splits import Split, ranges
from lrec.metrics import Overrides, Scores, score

BASELINES = ("popularity", "recent-popularity", "repeat-last", "markov")
RECENT_SHARE = 0.1


class Baselines:
    """The baselines of a split. What they count, they count when they are first asked to score.

    Attributes:
        names: Those of BASELINES that the data allow.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self._split, self._device = split, device
        self._share_V = split.counts_V / split.counts_V.sum()
        self.names = [name for name in BASELINES if name != "recent-popularity" or split.store.times_N is not None]

    def score(self, name: str, batch: EvalBatch) -> Scores:
        """Score every item of the catalogue for every row, by one of `names`."""
        scorers: dict[str, Callable[[EvalBatch], Scores]] = {
            "popularity": lambda batch: self._score(batch, self._popularity_V),
            "recent-popularity": lambda batch: self._score(batch, self._recent_V),
            "repeat-last": self._repeat_last,
            "markov": lambda batch: self._score(batch, self._popularity_V, self._after_last(batch)),
        }
        return scorers[name](batch)

    def _score(self, batch: EvalBatch, scores_V: Tensor, overrides: Overrides | None = None) -> Scores:
        """A network of one feature: hidden state 1, table `scores_V`."""
        ones_B1 = torch.ones(len(batch.users_B), 1, device=self._device)
        return score(
            ones_B1,
            scores_V[:, None],
            batch.targets_B,
            batch.seen_rows_S,
            batch.seen_items_S,
            overrides=overrides,
        )

    def _repeat_last(self, batch: EvalBatch) -> Scores:
        length = batch.items_BL.shape[1]
        positions_BL = torch.arange(length, device=self._device).expand_as(batch.items_BL)
        real_BL = positions_BL <= (batch.positions_B % length)[:, None]
        rows_B1 = torch.arange(len(batch.items_BL), device=self._device)[:, None]
        keys_S, which_N = (rows_B1 * len(self._share_V) + batch.items_BL)[real_BL].unique(return_inverse=True)
        last_S = torch.zeros_like(keys_S).scatter_reduce(0, which_N, positions_BL[real_BL], "amax")
        overrides = Overrides(keys_S // len(self._share_V), keys_S % len(self._share_V), 1.0 + last_S)
        scores = self._score(batch, self._popularity_V, overrides)  # popularity's scores are at most 0
        return scores._replace(loss_B=torch.full_like(scores.loss_B, torch.nan))

    def _after_last(self, batch: EvalBatch) -> Overrides:
        """The scores of what has followed each row's last item."""
        last_B = batch.items_BL.flatten()[batch.positions_B].cpu().numpy()
        starts_V1, next_T, scores_T = self._transitions
        numbers_B = starts_V1[last_B + 1] - starts_V1[last_B]
        places_S = ranges(starts_V1[last_B], numbers_B)
        rows_S = np.repeat(np.arange(len(last_B)), numbers_B)
        return Overrides(
            *(torch.from_numpy(a).to(self._device) for a in (rows_S, next_T[places_S], scores_T[places_S]))
        )

    @cached_property
    def _popularity_V(self) -> Tensor:
        return self._logarithm(self._share_V)

    @cached_property
    def _recent_V(self) -> Tensor:
        assert self._split.store.times_N is not None
        rows_N = self._training_rows()
        times_N = self._split.store.times_N[rows_N]
        earliest = np.partition(times_N, place := int((1 - RECENT_SHARE) * len(times_N)))[place]
        items_N = self._split.catalogue_index_I[self._split.store.items_N[rows_N[times_N >= earliest]]]
        return self._logarithm(np.bincount(items_N, minlength=len(self._share_V)) + self._share_V)

    @cached_property
    def _transitions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where each item's transitions begin, what follows, and its score."""
        split, n_items = self._split, len(self._share_V)
        items_N = split.catalogue_index_I[split.store.items_N[self._training_rows()]]
        goes_on_N = np.ones(len(items_N), dtype=bool)
        goes_on_N[np.cumsum(split.train_U)[split.train_U > 0] - 1] = False  # a user's last item
        pairs_N = items_N[:-1][goes_on_N[:-1]] * n_items + items_N[1:][goes_on_N[:-1]]
        pairs_T, counts_T = np.unique(pairs_N, return_counts=True)
        next_T = pairs_T % n_items
        starts_V1 = np.searchsorted(pairs_T, np.arange(n_items + 1) * n_items)
        return starts_V1, next_T, np.log(counts_T + self._share_V[next_T]).astype(np.float32)

    def _training_rows(self) -> np.ndarray:
        return ranges(self._split.store.offsets_U1[:-1], self._split.train_U)

    def _logarithm(self, values_V: np.ndarray) -> Tensor:
        return torch.from_numpy(np.log(values_V)).float().to(self._device)
