"""Cases: histories with one target each, and how scorers rank the targets.

Shape suffixes: C cases, N items of all histories laid end to end, U users, V catalogue, B rows of a batch, M cases of a
batch, L positions, T = L + 1 times, D width, K list length.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from lrec.data.batching.eval_batches import Rows, rows_of
from lrec.data.batching.train_batches import padded, with_request
from lrec.data.splits.rules import Split, Targets, ranges
from lrec.evaluation.metrics import METRICS, Found, Mean, Metric
from lrec.evaluation.shared_scoring import share_of, together
from lrec.model.sharded_table import Table, among
from lrec.model.transformer import Transformer
from lrec.ranking.common_order import CommonOrder, Leading, newest_first
from lrec.ranking.scoring import Scores, score

LIST_LENGTH = 10


@dataclass(frozen=True)
class Cases:
    """Histories of at least one catalogue item, oldest first, each with the item to predict after it."""

    users_C: np.ndarray  # store index of the user; a user may have several cases
    positions_C: np.ndarray  # position of the target among the user's interactions
    items_N: np.ndarray  # the histories laid end to end, catalogue indices
    lengths_C: np.ndarray
    targets_C: np.ndarray  # catalogue indices, -1 outside the catalogue
    blank_N: np.ndarray | None = None  # which items are blanked in place; never all items of a history
    times_N: np.ndarray | None = None  # time of each item in whole seconds; None if the data have no times
    asked_C: np.ndarray | None = None  # time of the target; None if the data have no times
    events_N: np.ndarray | None = None  # `Split.events` of each item; None if the data have none

    def __len__(self) -> int:
        return len(self.users_C)

    @property
    def starts_C(self) -> np.ndarray:
        return np.cumsum(self.lengths_C) - self.lengths_C

    @property
    def case_N(self) -> np.ndarray:
        return np.repeat(np.arange(len(self)), self.lengths_C)

    @property
    def place_N(self) -> np.ndarray:
        return ranges(np.zeros_like(self.lengths_C), self.lengths_C)

    def where(self, chosen_C: np.ndarray) -> Self:
        """The cases with these indices, or for which a mask is true."""
        chosen_C = np.arange(len(self))[chosen_C]
        return self._at(C=chosen_C, N=ranges(self.starts_C[chosen_C], self.lengths_C[chosen_C]))

    def last(self, n: int) -> Self:
        lengths_C = np.minimum(self.lengths_C, n)
        places = ranges(self.starts_C + self.lengths_C - lengths_C, lengths_C)
        return self.inserting(self.items_N[places], lengths_C, places)

    def keeping(self, keep_N: np.ndarray) -> Self:
        """The same cases with only these items in their histories; cases that lose all their items are left out."""
        lengths_C = np.bincount(self.case_N[keep_N], minlength=len(self))
        return self.inserting(self.items_N[keep_N], lengths_C, keep_N).where(lengths_C > 0)

    def inserting(self, items_M: np.ndarray, lengths_C: np.ndarray, places_M: np.ndarray) -> Self:
        """The same cases with other histories. Each item of items_M takes its blank mark, time and event from the old
        item at its entry of places_M."""
        return replace(self._at(N=places_M), items_N=items_M, lengths_C=lengths_C)

    def _at(self, **places: np.ndarray) -> Self:
        """The values at these places of the dimensions that end the names of fields."""
        given = {name: values for name, values in vars(self).items() if values is not None and name[-1] in places}
        return replace(self, **{name: values[places[name[-1]]] for name, values in given.items()})


def cases_before(split: Split, users_C: np.ndarray, positions_C: np.ndarray, max_len: int) -> Cases:
    """Cases that predict the target at a user's position from the last `max_len` catalogue items before it. Items
    outside the catalogue are left out of histories; cases without any item before the target are left out."""
    store = split.store
    items_I = split.catalogue_index_I[store.items_N]
    known_I = items_I >= 0
    known_before_I1 = np.concatenate([[0], np.cumsum(known_I)])
    first_C = store.offsets_U1[users_C]
    next_C = first_C + positions_C
    lengths_C = np.minimum(known_before_I1[next_C] - known_before_I1[first_C], max_len)
    rows_N = np.flatnonzero(known_I)[ranges(known_before_I1[next_C] - lengths_C, lengths_C)]
    targets_C = items_I[split.rows_of(Targets(users_C, positions_C))]
    cases = Cases(users_C, positions_C, items_I[rows_N], lengths_C, targets_C, events_N=split.events(rows_N))
    if store.times_N is not None:
        cases = replace(cases, times_N=store.seconds(rows_N), asked_C=store.seconds(next_C))
    return cases.where(lengths_C > 0)


def cases_of_test(split: Split, max_len: int) -> Cases:
    """Cases that predict the split's test targets: see `cases_before`."""
    return cases_before(split, split.test_targets.users_T, split.test_targets.positions_T, max_len)


class Ranked(NamedTuple):
    """A scorer's result on cases."""

    loss_C: np.ndarray  # cross-entropy, nan if there is none
    rank_C: np.ndarray  # exact, inf for a miss
    top_CK: np.ndarray


def batches(cases: Cases, net: Transformer) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Batches of cases with similar lengths: the indices of the cases, row after row, and the network's inputs by name;
    positions_M is that of each history's last item that is not blank. A history and its beginnings share a row."""
    if not net.reads_times:
        cases = replace(cases, times_N=None, asked_C=None)
    if not net.reads_events:
        cases = replace(cases, events_N=None)
    if cases.blank_N is not None and cases.times_N is not None and cases.asked_C is not None:
        # A position reads the time after it as that of its request, and the last one that is not blank makes it.
        is_after_N = cases.place_N > np.repeat(_last_not_blank(cases), cases.lengths_C)
        cases = replace(cases, times_N=np.where(is_after_N, cases.asked_C[cases.case_N], cases.times_N))
    for chosen_M, counts_B in _shared_rows(cases).batches():
        rows = cases.where(chosen_M[np.cumsum(counts_B) - 1])
        of_items = {"items_BL": rows.items_N, "blank_BL": rows.blank_N, "events_BL": rows.events_N}
        read = {name: padded(values, rows.lengths_C) for name, values in of_items.items() if values is not None}
        if rows.times_N is not None and rows.asked_C is not None:
            read["times_BT"] = with_request(rows.times_N, rows.lengths_C, rows.asked_C)
        last_M = cases.lengths_C[chosen_M] - 1 if rows.blank_N is None else _last_not_blank(cases.where(chosen_M))
        starts_B = np.arange(len(counts_B)) * read["items_BL"].shape[1]
        read["positions_M"] = torch.from_numpy(np.repeat(starts_B, counts_B) + last_M)
        yield chosen_M, {name: values.to(net.items.weight.device) for name, values in read.items()}


def _shared_rows(cases: Cases) -> Rows:
    """Put cases of a user into one row if each history is the beginning of the next longer one."""
    order_C = np.lexsort((cases.lengths_C, cases.users_C))
    begins_C = np.diff(cases.users_C[order_C], prepend=-1) != 0
    later_P = np.flatnonzero(~begins_C)
    begins_C[later_P] = ~_goes_on(cases, order_C[later_P - 1], order_C[later_P])
    return rows_of(order_C, begins_C, cases.lengths_C[order_C])


def _goes_on(cases: Cases, shorter_P: np.ndarray, longer_P: np.ndarray) -> np.ndarray:
    """For pairs of cases: whether the longer history continues the shorter one, at the time of the shorter's target."""
    lengths_P = cases.lengths_C[shorter_P]
    shorter_N, longer_N = (ranges(cases.starts_C[which_P], lengths_P) for which_P in (shorter_P, longer_P))
    differs_N = np.zeros(len(shorter_N), dtype=bool)
    for values_N in (cases.items_N, cases.blank_N, cases.times_N, cases.events_N):
        if values_N is not None:
            unequal = values_N[shorter_N] != values_N[longer_N]
            differs_N |= unequal if unequal.ndim == 1 else unequal.any(axis=1)
    goes_on_P = np.bincount(np.repeat(np.arange(len(lengths_P)), lengths_P)[differs_N], minlength=len(lengths_P)) == 0
    if cases.times_N is not None and cases.asked_C is not None:
        next_P = np.minimum(cases.starts_C[longer_P] + lengths_P, len(cases.times_N) - 1)
        ended_P = lengths_P == cases.lengths_C[longer_P]
        goes_on_P &= cases.asked_C[shorter_P] == np.where(ended_P, cases.asked_C[longer_P], cases.times_N[next_P])
    return goes_on_P


def _last_not_blank(cases: Cases) -> np.ndarray:
    assert cases.blank_N is not None
    return np.maximum.reduceat(np.where(cases.blank_N, 0, cases.place_N), cases.starts_C)


@torch.inference_mode()
def rank_by_net(net: Transformer, cases: Cases, candidates_V: np.ndarray | None = None) -> Ranked:
    """Rank each case's target among all items of the catalogue, or only among the candidates (ascending)."""
    device = net.items.weight.device
    # Catalogue indices of the candidates, which get a table of their own.
    names_V = np.arange(net.config.n_items) if candidates_V is None else candidates_V
    places_C = np.minimum(np.searchsorted(names_V, cases.targets_C), len(names_V) - 1)
    targets_C = np.where(names_V[places_C] == cases.targets_C, places_C, -1)
    loss_C, rank_C = np.zeros(len(cases)), np.zeros(len(cases))
    top_CK = np.zeros((len(cases), min(LIST_LENGTH, len(names_V))), np.int64)
    nothing = torch.zeros(0, dtype=torch.int64, device=device)
    for chosen_M, read in share_of(batches(cases, net)):
        targets_M = torch.from_numpy(targets_C[chosen_M]).to(device)

        def head(hidden_MD: Tensor, table: Table, targets_M: Tensor = targets_M) -> Scores:
            if candidates_V is not None:
                table = among(table, torch.from_numpy(candidates_V).to(device))
            return score(hidden_MD, table, targets_M, nothing, nothing, LIST_LENGTH)

        found = net(head=head, **read)
        loss_C[chosen_M], rank_C[chosen_M] = found.loss_B.cpu(), found.rank_B.cpu()
        top_CK[chosen_M] = found.top_BK.cpu()
    return Ranked(together(loss_C), together(rank_C), names_V[together(top_CK)])


def rank_by_popularity(counts_V: np.ndarray, cases: Cases, candidates_V: np.ndarray | None = None) -> Ranked:
    """Rank targets by training count, a tie is half a rank. An item's probability is its share of the counts."""
    counts_V = _among(counts_V, candidates_V)
    found = _ranked(counts_V, cases.targets_C)
    with np.errstate(divide="ignore"):
        losses_V = -np.log(counts_V / counts_V.sum())
    return found._replace(loss_C=np.where(np.isfinite(found.rank_C), losses_V[cases.targets_C], np.nan))


def rank_by_repeating(counts_V: np.ndarray, cases: Cases, candidates_V: np.ndarray | None = None) -> Ranked:
    """Rank the history's items that are not blanked first, the last one on top, then all others by popularity."""
    counts_V = _among(counts_V, candidates_V)
    read_N = counts_V[cases.items_N] > 0
    if cases.blank_N is not None:
        read_N &= ~cases.blank_N
    case_N, items_N = torch.from_numpy(cases.case_N[read_N]), torch.from_numpy(cases.items_N[read_N])
    return _ranked(counts_V, cases.targets_C, newest_first(case_N, items_N, len(counts_V)))


def by_count(counts_V: np.ndarray) -> CommonOrder:
    """The catalogue items in the order of their training counts; items with a count of 0 are not listed."""
    return CommonOrder(torch.from_numpy(counts_V).double().log())


def _ranked(counts_V: np.ndarray, targets_C: np.ndarray, leading: Leading | None = None) -> Ranked:
    k = min(LIST_LENGTH, int((counts_V > 0).sum()))
    found = by_count(counts_V).ranked(torch.from_numpy(targets_C), k, leading)
    return Ranked(found.loss_B.numpy(), found.rank_B.numpy(), found.top_BK.numpy())


def _among(counts_V: np.ndarray, candidates_V: np.ndarray | None) -> np.ndarray:
    """The counts, with 0 for items that are not candidates; no catalogue item has a count of 0."""
    if candidates_V is None:
        return counts_V
    return np.where(np.isin(np.arange(len(counts_V)), candidates_V), counts_V, 0)


def values_of(
    ranked: Ranked, targets_C: np.ndarray, counts_V: np.ndarray, metrics: Sequence[Metric] = METRICS
) -> dict[str, np.ndarray]:
    """Each case's value by metric, nan if it has none. Only metrics that are means over cases are included."""
    found = Found(*(torch.from_numpy(values) for values in (*ranked, targets_C, counts_V)))
    values = {}
    for metric in metrics:
        for label, k in zip(metric.labels, metric.cutoffs, strict=True):
            if isinstance(metric, Mean) and not metric.of_sets and (k == LIST_LENGTH or not metric.of_lists):
                has_none_C = metric.shares(found, k) <= 0
                values[label] = metric.of_targets(found, k).double().masked_fill(has_none_C, torch.nan).numpy()
    return values
