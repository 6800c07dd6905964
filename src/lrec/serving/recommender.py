"""`Model`: a trained network with the names of its items, which takes raw ids and returns the best raw ids. Shape
suffixes: B histories, L positions, D width, V catalogue, C candidates, K list length, N items laid end to end."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from torch.nn import functional as F

from lrec.common import cpu_threads
from lrec.data.batching.eval_batches import EvalBatch, batch_slices, history_batch
from lrec.data.features import Vocabulary, codes_of, one_table, vocabularies_of
from lrec.data.formats.readers import id_of
from lrec.data.formats.times import in_seconds
from lrec.data.histories import Histories, histories_of
from lrec.data.splits.rules import ranges
from lrec.data.store.encoding import FEATURE
from lrec.errors import UserError, check_range
from lrec.model.sharded_table import Table, among
from lrec.model.transformer import Transformer
from lrec.ranking.best_items import TopItems
from lrec.ranking.scoring import top_items

RawIds = Iterable[Any]


@dataclass(frozen=True)
class Model:
    """A trained network with the names of its items; `lrec.load` makes one.

    The model computes on the device of its network: `model.net.to("cuda")` moves the network to a GPU.

    Attributes:
        net: The network in evaluation mode; `net(items_BL, head)` takes indices into item_ids.
        item_ids: Raw id of each item of the catalogue.
        about: Step, D, flops, data_hash, the fields of the network's shape, and how the training data were read:
            columns (names), min_rating, repeats.
        counts_V: Training interactions of each item; None if they are not known. Then lrec knows no popular items.
    """

    net: Transformer
    item_ids: pl.Series
    about: dict[str, Any]
    counts_V: np.ndarray | None = None

    def recommend(
        self,
        histories: Any,
        k: int = 10,
        exclude_seen: bool = True,
        allowed: RawIds | None = None,
        exclude: RawIds | None = None,
        fallback: bool = True,
        now: Any = None,
    ) -> pl.DataFrame:
        """The k items that most likely come next in each history: exact, over the whole catalogue.

        The users may be new. Items outside the catalogue are skipped. The network reads the last max_len of the other
        items. All items of a history count as seen.

        Args:
            histories: A list of histories, or a Polars or pandas table. The table has a row for each user (columns user
                and items, lists) or for each interaction, in order of time (columns user and item). A list of
                dictionaries, such as {"items": [1, 2], "times": [10, 20]}, is a table of users. Ids may be text or
                integers. A network with `architecture.time` needs the time of each item: a column times (lists) or
                time, with numbers or dates. A network that reads types of event needs a column events (lists) or event.
                Features are columns with their names (lists, or a single value for a user); without its column, a
                feature counts as missing.
            k: Largest number of items in a list.
            exclude_seen: Leave out the items of the history.
            allowed: Recommend only these items, given as a list or a column of raw ids; None for all items.
            exclude: Never recommend these items.
            fallback: To a history without a known item, give the most popular items of the training data; otherwise
                an empty list.
            now: Time of the request, a number or a date; only for networks with `architecture.time` request.

        Returns:
            A row for each user, in the order of `histories`: user, items (raw ids, best first; ties in the catalogue's
            order), scores (logits), skipped (the items of the history that are not in the catalogue), and fallback
            (true if the items are the most popular items; the scores are then the logarithms of their shares of the
            training data).

        Raises:
            UserError: `histories` has another form; k is not a whole number of at least 1; exclude_seen or
                fallback is no bool; no allowed item is in the
                catalogue; times that the network needs are missing.
        """
        k, seconds = _whole(k), self.request_seconds(now)
        for name, value in {"exclude_seen": exclude_seen, "fallback": fallback}.items():
            if not isinstance(value, bool):
                raise UserError(f"{name} must be True or False, got {value!r}")
        if not isinstance(histories, Histories):
            columns = [each.column for each in self.features]
            histories = histories_of(histories, self.net.reads_times, self.reads_types, columns)
        request = (k, exclude_seen, self._candidates(allowed, exclude), fallback, seconds)
        blocks = [*histories.blocks()] or [histories]  # a block without users has the columns too
        return pl.concat([self._of_block(block, *request) for block in blocks])

    def similar_items(self, items: RawIds, k: int = 10) -> pl.DataFrame:
        """For each item, find the k other items whose embeddings have the largest cosine with its embedding.

        Args:
            items: Raw ids, a list or a column.
            k: Length of the lists.

        Returns:
            A row for each item: item, items (raw ids, most similar first), scores (cosines).

        Raises:
            UserError: An item is not in the catalogue, or k is not a whole number of at least 1.
        """
        k = _whole(k)
        raw = _as_text(items, "items")
        index_B = self.index(raw)
        if (index_B < 0).any():
            raise UserError(f"item {raw[int((index_B < 0).argmax())]!r} is not in the catalogue")
        with torch.inference_mode():
            directions_VD = F.normalize(self.net.items.weight.float(), dim=1)
            itself_B = torch.from_numpy(index_B).to(directions_VD.device)
            rows_B = torch.arange(len(raw), device=directions_VD.device)
            top = top_items(directions_VD[itself_B], directions_VD, rows_B, itself_B, k)
        lists = lists_of(self.item_ids, top.items_BK.cpu().numpy(), top.scores_BK.cpu().numpy())
        return pl.DataFrame({"item": raw, **lists})

    def request_seconds(self, now: Any) -> int:
        """`now` in whole seconds; 0 if the network does not read the time of the request. UserError if it is missing,
        not needed or no time."""
        if self.net.reads_request and now is None:
            raise UserError("the network reads the time of the request (architecture.time request): give now")
        if not self.net.reads_request and now is not None:
            raise UserError("now is only for networks that read the time of the request (architecture.time request)")
        now = now.item() if isinstance(now, np.generic) else now  # Polars does not know numpy's dates
        now = str(now) if str(now) == "NaT" else now  # nor pandas's missing date
        return int(in_seconds(pl.Series([now]), "now")[0]) if self.net.reads_request else 0

    def _of_block(
        self, block: Histories, k: int, exclude_seen: bool, candidates_C: np.ndarray, fallback: bool, now: int
    ) -> pl.DataFrame:
        if block.rows.is_empty():  # then a missing column lacks nothing
            block = block._replace(rows=block.rows.with_columns(time=pl.lit(0), event=pl.lit("")))
        items_N, lengths_B = self.index(block.rows["item"]), block.lengths_B
        events_N = self.event_codes(block) if self.net.reads_events else None
        if self.net.reads_times and "time" not in block.rows:
            raise UserError("the network reads times (architecture.time): histories need a column times, or time")
        times_N = block.rows["time"].to_numpy() if self.net.reads_times else None
        rows_N, starts_B = np.repeat(np.arange(len(lengths_B)), lengths_B), block.starts_B
        if times_N is not None and self.net.reads_request and (late_N := times_N > now).any():
            user = block.users[int(rows_N[late_N.argmax()])]
            raise UserError(f"now is before an event of user {user}: give a later now, or only the events before it")
        skipped_B = np.bincount(rows_N[items_N < 0], minlength=len(lengths_B))
        read_B = np.minimum(lengths_B - skipped_B, self.net.config.max_len)
        items_BK = np.full((len(lengths_B), min(k, len(candidates_C))), -1, dtype=np.int64)
        scores_BK = np.full(items_BK.shape, -np.inf, dtype=np.float32)
        if fallback and self.counts_V is not None and not read_B.all():
            order_C = np.argsort(-self.counts_V[candidates_C], kind="stable")
            popular_K = candidates_C[order_C[: items_BK.shape[1]]]
            popular_K = popular_K[self.counts_V[popular_K] > 0]  # new items have no training interaction
            slots = np.ix_(read_B == 0, range(len(popular_K)))
            items_BK[slots], scores_BK[slots] = popular_K, np.log(self.counts_V[popular_K] / self.counts_V.sum())
        # Batches of similar lengths; histories without a known item come first in the order, and are cut off.
        order_B = np.argsort(read_B, kind="stable")[int((read_B == 0).sum()) :]
        batches = [order_B[rows] for rows in batch_slices(read_B[order_B], np.ones_like(order_B))]

        def top_of(chosen_B: np.ndarray) -> TopItems:
            places_N, config = ranges(starts_B[chosen_B], lengths_B[chosen_B]), self.net.config
            times = None if times_N is None else (times_N[places_N], np.full(len(chosen_B), now))
            events = None if events_N is None else events_N[places_N]
            known = (items_N[places_N], lengths_B[chosen_B], config.max_len, config.n_items, times)
            return self._top(history_batch(*known, events_N=events), k, exclude_seen, candidates_C)

        # One batch per core is faster than all cores on each small operation of a batch.
        apart = cpu_threads.is_cpu(self.net.items.weight.device) and len(batches) >= torch.get_num_threads()
        tops = cpu_threads.mapped(top_of, batches) if apart else map(top_of, batches)
        for chosen_B, top in zip(batches, tops, strict=True):
            items_BK[chosen_B], scores_BK[chosen_B] = top.items_BK.cpu().numpy(), top.scores_BK.cpu().numpy()
        lists = lists_of(self.item_ids, items_BK, scores_BK)
        popular_B = (read_B == 0) & (items_BK[:, 0] >= 0)
        return pl.DataFrame({"user": block.users, **lists, "skipped": skipped_B, "fallback": popular_B})

    @torch.inference_mode()
    def _top(self, batch: EvalBatch, k: int, exclude_seen: bool, candidates_C: np.ndarray) -> TopItems:
        device, n_items = self.net.items.weight.device, self.net.config.n_items
        batch = EvalBatch(**{name: each.to(device) for name, each in batch._asdict().items() if each is not None})
        seen = slice(None if exclude_seen else 0)
        rows_S, items_S = batch.seen_targets_S[seen], batch.seen_items_S[seen]

        def head(hidden_BD: Tensor, table: Table) -> TopItems:
            if len(candidates_C) == n_items:
                return top_items(hidden_BD, table, rows_S, items_S, k)
            # The candidates ascend, so ties keep the catalogue's order.
            candidates = torch.from_numpy(candidates_C).to(device)
            place_V = torch.full((n_items,), -1, device=device)
            place_V[candidates] = torch.arange(len(candidates), device=device)
            places_S = place_V[items_S]
            may_S = places_S >= 0
            top = top_items(hidden_BD, among(table, candidates), rows_S[may_S], places_S[may_S], k)
            return TopItems(candidates[top.items_BK].masked_fill(top.items_BK < 0, -1), top.scores_BK)

        inputs = {"positions_M": batch.positions_M, "times_BT": batch.times_BT, "events_BL": batch.events_BL}
        return self.net(batch.items_BL, head, **inputs)

    @property
    def reads_types(self) -> bool:
        """Whether the network reads types of event."""
        return bool(self.about.get("event_names"))

    @cached_property
    def features(self) -> list[Vocabulary]:
        """The columns of events that the network reads, with their vocabularies."""
        return [each for each in vocabularies_of(self.about) if each.of != "item"]

    def event_codes(self, block: Histories) -> np.ndarray:
        """The type of each item's event, int64; with features, the rows of the network's table for each, (N, F)."""
        if not self.features:
            return self._types(block.rows)
        values = {each.name.removeprefix(FEATURE): each for each in block.rows if each.name.startswith(FEATURE)}
        codes = codes_of(self.features, values, len(block.rows))
        if not self.reads_types:
            return codes
        return one_table([self._types(block.rows)[:, None], codes], [len(self.about["event_names"])])

    def _types(self, rows: pl.DataFrame) -> np.ndarray:
        if "event" not in rows:
            raise UserError(
                "the network reads types of event (data.event_column): histories need a column events, or event"
            )
        names, events = self.about["event_names"], rows["event"]
        found = events.replace_strict(names, range(len(names)), default=-1, return_dtype=pl.Int64)
        if (found < 0).any():
            unknown = events[int((found < 0).arg_max() or 0)]
            raise UserError(f"histories: {unknown} is no type of event of the training data: {', '.join(names)}")
        return found.to_numpy()

    @cached_property
    def _sorted_ids(self) -> tuple[pl.Series, np.ndarray]:
        index_V = self.item_ids.arg_sort()
        return self.item_ids.gather(index_V), index_V.to_numpy().astype(np.int64)

    def index(self, raw_ids: pl.Series) -> np.ndarray:
        """Catalogue index of each raw id (text), int64; -1 for an id outside the catalogue."""
        sorted_ids, index_V = self._sorted_ids
        # A search is fast for one history and for a million; a hash table would be built again for every call.
        places = np.minimum(sorted_ids.search_sorted(raw_ids, side="left").to_numpy(), len(index_V) - 1)
        known = (sorted_ids.gather(places) == raw_ids).fill_null(False).to_numpy()
        return np.where(known, index_V[places], -1)

    def _candidates(self, allowed: RawIds | None, exclude: RawIds | None) -> np.ndarray:
        """Catalogue indices that may be listed, ascending."""
        may_V = np.full(len(self.item_ids), allowed is None)
        for name, ids, may in (("allowed", allowed, True), ("exclude", exclude, False)):
            if ids is not None:
                index = self.index(_as_text(ids, name))
                may_V[index[index >= 0]] = may
        if not may_V.any():
            raise UserError("no item of the catalogue may be recommended: see allowed and exclude")
        return np.flatnonzero(may_V)


def lists_of(item_ids: pl.Series, items_BK: np.ndarray, scores_BK: np.ndarray) -> dict[str, pl.Series]:
    """Lists of raw ids and scores, columns items and scores, without unused slots (index -1)."""
    items = item_ids.gather(np.maximum(items_BK, 0).ravel()).reshape(items_BK.shape)
    scores = pl.Series(scores_BK.ravel(), dtype=pl.Float32).reshape(items_BK.shape)
    lists = pl.DataFrame({"items": items.arr.to_list(), "scores": scores.arr.to_list()})
    if (items_BK < 0).any():  # unused slots are the last ones
        lists = lists.select(pl.all().list.head(pl.lit(pl.Series((items_BK >= 0).sum(1)))))
    return lists.to_dict()


def _whole(k: Any) -> int:
    """k as an integer of Python, which does not overflow like those of numpy."""
    if not isinstance(k, int | np.integer) or isinstance(k, bool):
        raise UserError(f"k must be a whole number, got {k!r}")
    check_range("k", int(k), at_least=1)
    return int(k)


def _as_text(ids: RawIds, name: str) -> pl.Series:
    expected = f"{name}: a list or a column is expected, of raw ids"
    if isinstance(ids, str | bytes) or hasattr(ids, "columns") or not isinstance(ids, Iterable):
        raise UserError(f"{expected}, not {type(ids).__name__}")
    return pl.Series([id_of(raw_id, expected) for raw_id in ids], dtype=pl.String)
