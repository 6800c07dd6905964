"""SyntheticDataModule: the built-in data set, drawn from a process whose lowest possible loss is known exactly. Shape
suffixes: U users, L items of a user, B histories, V items of the process, F feature pairs."""

from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from lrec.data.datamodule import SequenceDataModule
from lrec.data.splits.rules import LastItems, Targets
from lrec.data.store.long_work import map_ahead
from lrec.data.store.prepare import RawInteractions
from lrec.data.store.store import Store
from lrec.errors import UserError, check_range

# Users whose items are drawn at once, and whose losses are computed at once. These numbers do not change the items.
_DRAWN, _CHUNK = 2048, 512


@dataclass(frozen=True)
class Process:
    """A popularity law times a pull of the last few items. The rank of the pull is too high for a small width.

    With items j = 0 .. V-1, x_1 the last item of a history, x_2 the item before it, and k running over the last
    min(memory, length of the history) items:

        p(next = j | history) = softmax_j( log p_j + sum_k w_k K[x_k, j] )
        p_j  ∝ (j + 1 + shift)^-zipf                                      popularity before any history
        w_k  = decay^(k-1) / sqrt(sum_k decay^(2(k-1)))                   so that sum_k w_k² = 1
        K[i, j] = sum_m s_m (a_m(i) b_m(j) - b_m(i) a_m(j)),   m = 1 .. F = V // 2
        s_m² ∝ (m + head)^-(1 + tail),   scaled so that 2 sum_m s_m² = signal

    a_m and b_m are independent normal numbers per item, shifted and scaled to mean 0 and variance 1 under p. After an
    item with a large a_m, items with a large b_m are more likely; after an item with a large b_m, items with a small
    a_m. Tastes change and do not reinforce themselves: no item pulls itself (K[i, i] = 0), and histories do not freeze.

    Why the loss falls with size: the pull has 2F features with a power-law spectrum, but a network of width d with a
    tied table scores items through d numbers. The features that it cannot represent, about those with 2m > d, cost half
    their variance, about sum_{2m > d} s_m² ~ d^-tail nats: a power of N_body = 12 L d². The network needs attention to
    use items before the last one. Items older than the last `memory` do not matter, so p is exact for any input of at
    least that many items. The mean of -log p(target | input) over targets is the lowest loss that any model can reach
    on them (the Bayes-optimal loss: in expectation, no model is below it). `SyntheticDataModule` documents the fields.
    """

    n_items: int
    memory: int
    decay: float
    zipf: float
    shift: float
    signal: float
    tail: float
    head: float
    seed: int

    def __post_init__(self) -> None:
        at_least = {"n_items": 4, "memory": 1, "zipf": 0, "shift": 0, "signal": 0, "tail": 0, "head": 0, "seed": 0}
        for name, least in at_least.items():
            check_range(f"the synthetic set's {name}", getattr(self, name), at_least=least)
        check_range("the synthetic set's decay", self.decay, above=0, at_most=1)

    @cached_property
    def popularity_V(self) -> np.ndarray:
        """p_j, float64."""
        weights_V = (np.arange(self.n_items) + 1 + self.shift) ** -float(self.zipf)
        return weights_V / weights_V.sum()

    @cached_property
    def strengths_F(self) -> np.ndarray:
        """s_m, float64."""
        squares_F = (np.arange(1, self.n_items // 2 + 1) + self.head) ** -(1 + float(self.tail))
        return np.sqrt(self.signal / 2 * squares_F / squares_F.sum())

    @cached_property
    def features_2FV(self) -> np.ndarray:
        """a_m(i) and b_m(i), float64."""
        features_2FV = np.random.default_rng([self.seed, 0]).standard_normal((2, self.n_items // 2, self.n_items))
        features_2FV -= (features_2FV @ self.popularity_V)[..., None]
        features_2FV /= np.sqrt(features_2FV**2 @ self.popularity_V)[..., None]
        return features_2FV

    @cached_property
    def kernel_VV(self) -> np.ndarray:
        """K, float32."""
        a_FV, b_FV = self.features_2FV
        pull_VV = (a_FV * self.strengths_F[:, None]).T @ b_FV
        return (pull_VV - pull_VV.T).astype(np.float32)

    def logits(self, history_BL: np.ndarray) -> np.ndarray:
        """log p_j + sum_k w_k K[x_k, j] after histories of equal length (0 too), oldest item first, as (B, V) float32.
        A row does not depend on the other rows: it is a sum of gathered rows, not part of a matrix product."""
        logits_BV = np.tile(np.log(self.popularity_V).astype(np.float32), (len(history_BL), 1))
        recent_BK = history_BL[:, ::-1][:, : self.memory]
        weights_K = float(self.decay) ** np.arange(recent_BK.shape[1])
        weights_K /= np.sqrt((weights_K**2).sum())
        for items_B, weight in zip(recent_BK.T, weights_K.astype(np.float32), strict=True):
            logits_BV += weight * self.kernel_VV[items_B]
        return logits_BV

    def log_probs(self, history_BL: np.ndarray) -> np.ndarray:
        """log p(next = j | history) after histories of equal length, oldest item first, as (B, V) float64."""
        logits_BV = self.logits(history_BL).astype(np.float64)
        logits_BV -= logits_BV.max(1, keepdims=True)
        return logits_BV - np.log(np.exp(logits_BV).sum(1, keepdims=True))

    def sample(self, n_users: int, length: int) -> np.ndarray:
        """Draw every user's items, (U, L) int32, by inverting the cumulative distribution of each next item."""
        draws_UL = np.random.default_rng([self.seed, 1]).random((n_users, length), dtype=np.float32)
        _ = self.kernel_VV  # made once, before the threads need it

        def drawn(start: int) -> np.ndarray:
            draws_BL = draws_UL[start : start + _DRAWN]
            items_BL = np.empty(draws_BL.shape, dtype=np.int32)
            for position, draws_B in enumerate(draws_BL.T):
                logits_BV = self.logits(items_BL[:, max(position - self.memory, 0) : position])
                upto_VB = np.exp(logits_BV).T.copy()
                # np.cumsum of each user's weights adds the same numbers in the same order, but takes twice the time.
                for before_B, here_B in pairwise(upto_VB):
                    here_B += before_B
                items_BL[:, position] = np.minimum((upto_VB <= draws_B * upto_VB[-1]).sum(0), self.n_items - 1)
            return items_BL

        return np.concatenate(list(map_ahead(drawn, range(0, n_users, _DRAWN))))

    def bayes_loss(self, items_UL: np.ndarray, targets: Targets, catalogue_V: np.ndarray) -> float:
        """Mean -log p(target | the items before), in nats. As for a model, p is renormalised over the catalogue
        (`catalogue_V` is a mask), and targets outside it are left out. Unlike a model, p also reads the items outside
        the catalogue that are in the history."""
        loss, known = 0.0, 0
        for position in np.unique(targets.positions_T):
            users_T = targets.users_T[targets.positions_T == position]
            for start in range(0, len(users_T), _CHUNK):
                items_BL = items_UL[users_T[start : start + _CHUNK]]
                items_BL = items_BL[catalogue_V[items_BL[:, position]]]
                log_probs_BV = self.log_probs(items_BL[:, max(position - self.memory, 0) : position])
                normalisers_B = np.log(np.exp(log_probs_BV[:, catalogue_V]).sum(1))
                loss += float((normalisers_B - log_probs_BV[np.arange(len(items_BL)), items_BL[:, position]]).sum())
                known += len(items_BL)
        return loss / max(known, 1)


class SyntheticDataModule(SequenceDataModule):
    """Histories of equal length drawn from `Process`, which defines them and says why the loss falls with size."""

    store_name = "synthetic"

    def __init__(
        self,
        n_users: int = 40_000,
        n_items: int = 200,
        length: int = 37,
        memory: int = 2,
        decay: float = 0.4,
        zipf: float = 0.8,
        shift: float = 5.0,
        signal: float = 4.0,
        tail: float = 0.5,
        head: float = 0.0,
        process_seed: int = 0,
        max_len: int = 16,
        targets_per_step: int = 1024,
        **options: Any,
    ) -> None:
        """Choose the size of the set and the process it is drawn from.

        Args:
            n_users: Number of users.
            n_items: Number of items of the process.
            length: Number of interactions of each user.
            memory: Number of last items on which the next item depends, at most max_len.
            decay: Weight of an item divided by the weight of the item after it, above 0, at most 1.
            zipf: Exponent of popularity.
            shift: Number added to the ranks, which flattens the head of the popularity law.
            signal: Variance of the logits that the history decides; about twice the nats that the history saves.
            tail: Exponent of the spectrum of the features: how fast the loss falls with width.
            head: Number added to the index of each feature pair, which flattens the head of the spectrum.
            process_seed: Seed of the process and of the histories; `seed` is the seed of the order of training.
            max_len: Longest input, in items.
            targets_per_step: Largest number of targets in a global step, over all ranks and accumulated batches, on
                average.
        """
        super().__init__(max_len=max_len, targets_per_step=targets_per_step, **options)
        self.process = Process(n_items, memory, decay, zipf, shift, signal, tail, head, process_seed)
        self.n_users, self.length = n_users, length
        self._floors: dict[tuple[Any, ...], dict[str, float]] = {}  # by the samples that are evaluated
        check_range("n_users", n_users, at_least=1)
        check_range("length", length, at_least=3)  # training, validation, test
        check_range(f"max_len, with the synthetic set's memory {memory},", max_len, at_least=memory)
        for name, value, default in (("k_core", self.k_core, 0), ("repeats", self.repeats, True)):
            if value != default:
                raise UserError(f"{name}={value} would break the synthetic set's histories: leave it at {default}")

    def source(self) -> dict[str, Any]:
        return {"kind": "synthetic", "n_users": self.n_users, "length": self.length, "process": asdict(self.process)}

    def open_store(self) -> Store:
        """The store; UserError if a given store has another process or size, and so another floor."""
        store = super().open_store()
        if self.given_store is not None and store.meta["source"] != self.source():
            remedy = "set the options that it was drawn with, or read it with --data lrec.InteractionsDataModule"
            raise UserError(f"{self.given_store} holds no synthetic set of these options: {remedy}")
        return store

    def read(self) -> RawInteractions:
        """Draw the set, and compute its floor for `LastItems`: test on the last item, validation on the item before.
        Raw ids are numbers with leading zeros: item 0 is the most popular."""
        items_UL, users_U = self.process.sample(self.n_users, self.length), np.arange(self.n_users)
        columns = {
            "user": _raw_ids(self.n_users).gather(np.repeat(users_U, self.length)),
            "item": _raw_ids(self.process.n_items).gather(items_UL.ravel()),
            "time": np.tile(np.arange(self.length), self.n_users),
        }
        catalogue_V = np.bincount(items_UL[:, :-2].ravel(), minlength=self.process.n_items) > 0
        floor = {}
        for part, position in (("val", self.length - 2), ("test", self.length - 1)):
            targets = Targets(users_U, np.full(self.n_users, position))
            floor[part] = self.process.bayes_loss(items_UL, targets, catalogue_V)
        return RawInteractions(pl.DataFrame(columns), {"time_unit": "step", "floor": floor})

    @property
    def floor(self) -> dict[str, float]:
        """Bayes-optimal loss of the split's validation and test targets, in nats."""
        evaluated = {stage: self.evaluated(stage) for stage in ("val", "test")}
        samples = tuple(sample for _, sample in evaluated.values())
        if self.split == LastItems() and not any(samples):
            return dict(self.store.facts["floor"])
        if samples not in self._floors:  # with validation_users auto, the sample depends on the command
            numbers_I = self.store.item_table["raw_id"].cast(pl.Int64).to_numpy()
            items_UL = numbers_I[self.store.items_N].reshape(self.n_users, self.length)
            catalogue_V = np.isin(np.arange(self.process.n_items), numbers_I[self.cuts.catalogue_V])
            loss = partial(self.process.bayes_loss, items_UL, catalogue_V=catalogue_V)
            self._floors[samples] = {stage: loss(targets) for stage, (targets, _) in evaluated.items()}
        return self._floors[samples]


def _raw_ids(n: int) -> pl.Series:
    return pl.int_range(n, eager=True).cast(pl.String).str.zfill(len(str(n - 1)))
