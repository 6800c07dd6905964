"""Losses for training: heads that turn hidden states and the item table into a sum over targets.

If processes share the table, full softmax scores the targets of all processes against the rows held here, and a sampled
loss uses the negatives of the first process.

Shape suffixes: M targets, D width, V catalogue or its rows that are held here, G targets of all processes,
C targets of a chunk, N negatives, shared by the batch, K next items.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lrec.errors import UserError, check_range
from lrec.model.memory import chunk_rows
from lrec.model.seen_items import Additions
from lrec.model.sharded_table import Shard, Table, rows_of, shard_of


class Loss(ABC):
    """A training loss: a sum over targets, so that it is the same for any split of a step into batches.

    Attributes:
        in_shards: Whether the loss accepts a `sharded_table.Shard` if several processes share the table. If not, it
            gets the whole table, which takes more memory.
        touches_rows: Whether only some rows of the table get a gradient: the rows that the loss gets from
            `sharded_table.rows_of`.
        adds_to_seen: Whether the loss adds `Shard.added` to the scores of items of the history, as a network with
            `architecture.seen` needs.
        ahead: How many next items the loss gets as targets of a position. If more than 1, its targets are (M, ahead),
            and -1 where a training window ends before.
    """

    in_shards: ClassVar[bool] = False
    touches_rows: ClassVar[bool] = False
    adds_to_seen: ClassVar[bool] = False

    @property
    def ahead(self) -> int:
        return 1

    @abstractmethod
    def __call__(self, hidden_MD: Tensor, table_VD: Any, targets_M: Tensor, counts_V: Tensor) -> Tensor:
        """The sum over targets, in nats; counts_V are the items' training interactions."""

    @abstractmethod
    def flops_per_target(self, n_items: int, width: int) -> int:
        """Training FLOPs of the head for a target: 2 for each multiplication in its scores, and 4 for the gradients."""


@dataclass(frozen=True)
class FullSoftmax(Loss):
    """Exact cross-entropy over the whole catalogue. The scores of all targets and all items are never in memory
    together."""

    in_shards: ClassVar[bool] = True
    adds_to_seen: ClassVar[bool] = True

    def __call__(self, hidden_MD: Tensor, table_VD: Table, targets_M: Tensor, counts_V: Tensor) -> Tensor:
        """Sum of -log softmax(hidden @ table.T)[target]."""
        return full_softmax(hidden_MD, table_VD, targets_M)

    def flops_per_target(self, n_items: int, width: int) -> int:
        return 6 * n_items * width


@dataclass(frozen=True)
class NextItems(FullSoftmax):
    """Cross-entropy between the softmax over the whole catalogue and a weighted mean of the next items.

    -sum over k of w_k log softmax(hidden @ table.T)[target k], where the weights of the items that are there add up to
    1. Items after the next one tell the network what a user likes, in whichever order. This helps a small network that
    makes several passes over few data. In one pass, it raised the loss (benchmarks/targets.md). The validation and test
    losses stay those of the next item. Source: dense all action prediction, PinnerFormer, arXiv 2205.04507.

    Attributes:
        weights: Weight of the next item, and of each item after it.
    """

    weights: tuple[float, ...] = (1.0, 0.3, 0.3)

    def __post_init__(self) -> None:
        if not self.weights or not all(0 <= weight < math.inf for weight in self.weights) or self.weights[0] == 0:
            raise UserError(
                f"loss.weights must be finite and at least 0, and above 0 for the next item, got {self.weights}"
            )

    @property
    def ahead(self) -> int:
        return len(self.weights)

    def __call__(self, hidden_MD: Tensor, table_VD: Table, targets_M: Tensor, counts_V: Tensor) -> Tensor:
        targets_MK, shard = targets_M.view(len(targets_M), self.ahead), shard_of(table_VD)
        rows_MKD = rows_of(shard, targets_MK.clamp(min=0).flatten()).unflatten(0, targets_MK.shape)
        there_KM = (targets_MK >= 0).T
        weights_MK = torch.stack([weight * there_M for weight, there_M in zip(self.weights, there_KM, strict=True)], 1)
        weights_MK = weights_MK / weights_MK.sum(1, keepdim=True)
        # The log of the sum is the same for all next items: only their scores differ.
        beside_next_MD = (weights_MK[..., None] * (rows_MKD[:, :1] - rows_MKD)).sum(1)
        of_next = full_softmax(hidden_MD, table_VD, targets_MK[:, 0].contiguous())
        loss = of_next + (hidden_MD * beside_next_MD).float().sum()
        if shard.added is None:
            return loss
        added_MK = shard.added.of(targets_MK)
        return loss + (weights_MK * (added_MK[:, :1] - added_MK)).sum()

    def flops_per_target(self, n_items: int, width: int) -> int:
        return 6 * (n_items + self.ahead) * width


@dataclass(frozen=True)
class _Sampled(Loss):
    """A loss over the target and negatives drawn for the whole batch."""

    in_shards: ClassVar[bool] = True
    touches_rows: ClassVar[bool] = True
    adds_to_seen: ClassVar[bool] = True

    negatives: int = 256

    def __post_init__(self) -> None:
        check_range("loss.negatives", self.negatives, at_least=1)

    def flops_per_target(self, n_items: int, width: int) -> int:
        return 6 * (self.negatives + 1) * width


@dataclass(frozen=True)
class SampledSoftmax(_Sampled):
    """Softmax over the target and negatives drawn for the whole batch, corrected by logQ.

    A negative j of N, drawn with probability q_j, gets the score s_j - log(N q_j). So the expected sum in the
    denominator is the sum of the full softmax. Negatives equal to a row's target are left out of the row. By default,
    the target counts as not sampled, and its score is not corrected. Source: Bengio & Senecal 2008.

    Attributes:
        negatives: Items drawn per batch, with replacement.
        power: lrec draws negatives in proportion to (training count) ** power; 0 draws uniformly.
        logq: Correct the scores. Without the correction, the loss lowers popular negatives more than the full softmax
            does.
        target_logq: Correct the target's score too, as if the target were sampled (Yi et al., RecSys 2019).
    """

    power: float = 0.0
    logq: bool = True
    target_logq: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("loss.power", self.power, at_least=0)
        if self.target_logq and not self.logq:
            raise UserError("loss.target_logq true needs loss.logq true")

    def __call__(self, hidden_MD: Tensor, table_VD: Table, targets_M: Tensor, counts_V: Tensor) -> Tensor:
        """Sum of -log softmax over target and negatives."""
        shard = shard_of(table_VD)
        negatives_N = shard.of_first(_draw(self.negatives, counts_V, self.power))
        correction_N = self._log_expected(negatives_N, counts_V) if self.logq else 0
        target_M = _target_scores(hidden_MD, shard, targets_M)
        if self.target_logq:
            target_M = target_M - self._log_expected(targets_M, counts_V)
        fixed_M, share_M = target_M.detach(), torch.empty_like(target_M)

        def of_chunk(scores_CN: Tensor, chunk: slice) -> Tensor:
            scores_CN -= correction_N
            # Not -inf, which would give nan if all negatives of a row are its target.
            scores_CN.masked_fill_(negatives_N == targets_M[chunk, None], torch.finfo(scores_CN.dtype).min)
            negatives_C = _softmax_(scores_CN)
            all_C = torch.logaddexp(fixed_M[chunk], negatives_C)
            share_M[chunk] = share_C = (negatives_C - all_C).exp()  # the negatives' share of the probability
            scores_CN *= share_C[:, None]
            return (all_C - fixed_M[chunk]).sum()

        loss = _sum_over_negatives(hidden_MD, shard, negatives_N, of_chunk)
        # The added term is 0. It brings the gradient with respect to the targets' scores: d loss / d s = -share.
        return loss + (share_M * (fixed_M - target_M)).sum()

    def _log_expected(self, items_I: Tensor, counts_V: Tensor) -> Tensor:
        """log(N q) of each item: how often it is expected among the negatives."""
        if self.power == 0:
            return counts_V.new_full((len(items_I),), math.log(self.negatives / len(counts_V)), dtype=torch.float32)
        return _masses(counts_V, self.power)[1][items_I] + math.log(self.negatives)


@dataclass(frozen=True)
class GBCE(_Sampled):
    """Generalised binary cross-entropy over the target and uniform negatives drawn for the whole batch.

    -(1 / (N + 1)) [log sigmoid(s_target) beta + sum over negatives of log(1 - sigmoid(s))], with beta = a (t (1 - 1/a)
    + 1/a) and a = N / (V - 1). Source: gSASRec, arXiv 2308.07192. The scores are no log-probabilities of the catalogue.
    So choose checkpoints and stop by a rank metric, not by val/loss.

    Attributes:
        negatives: Items drawn per batch, with replacement.
        calibration: t: 0 is plain binary cross-entropy, 1 gives well-calibrated probabilities.
    """

    calibration: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("loss.calibration", self.calibration, at_least=0, at_most=1)

    def __call__(self, hidden_MD: Tensor, table_VD: Table, targets_M: Tensor, counts_V: Tensor) -> Tensor:
        shard = shard_of(table_VD)
        negatives_N = shard.of_first(_draw(self.negatives, counts_V, 0.0))
        share = min(self.negatives / max(len(counts_V) - 1, 1), 1.0)
        beta = share * (self.calibration * (1 - 1 / share) + 1 / share)

        def of_chunk(scores_CN: Tensor, chunk: slice) -> Tensor:
            # log(1 - sigmoid(s)) = -softplus(s); a negative that is the row's target does not count.
            hit_CN = negatives_N == targets_M[chunk, None]
            loss = F.softplus(scores_CN).masked_fill_(hit_CN, 0.0).sum()
            scores_CN.sigmoid_().masked_fill_(hit_CN, 0.0)
            return loss

        negative = _sum_over_negatives(hidden_MD, shard, negatives_N, of_chunk)
        positive = F.softplus(-_target_scores(hidden_MD, shard, targets_M)).sum()
        return (beta * positive + negative) / (self.negatives + 1)


def full_softmax(hidden_MD: Tensor, table_VD: Table, targets_M: Tensor) -> Tensor:
    """Sum over targets of -log softmax(hidden @ table.T)[target], in nats.

    It holds `chunk_rows` x V logits at once, never the M x V tensor, forward or backward. With a sharded table, the sum
    is over this process's targets, but the gradients are those of the sum over the targets of all processes.
    """
    shard = shard_of(table_VD)
    most = shard.most(len(targets_M))
    targets_G = shard.gathered(targets_M, most, -1)
    first, last = shard.rank * most, shard.rank * most + len(targets_M)  # the targets of this process

    def of_chunk(scores_CV: Tensor, chunk: slice) -> Tensor:
        has_row_C, places_C = shard.places(targets_G[chunk])
        some = scores_CV.shape[1] > 0  # a process may hold no rows
        target_C = scores_CV.gather(1, places_C[:, None])[:, 0] if some else scores_CV.new_zeros(len(scores_CV))
        target_C.masked_fill_(~has_row_C, 0.0)
        log_sum_C = _softmax_(scores_CV)
        if shard.processes > 1:  # from the softmax over this process's rows to the softmax over all rows
            own_C, largest_C = log_sum_C, log_sum_C.clone()
            distributed.all_reduce(largest_C, distributed.ReduceOp.MAX)
            sum_C, target_C = shard.summed(torch.stack([(own_C - largest_C).exp(), target_C]))
            log_sum_C = largest_C + sum_C.log()
            # The targets that only pad a process's part have no gradient.
            scores_CV *= (own_C - log_sum_C).exp().masked_fill_(targets_G[chunk] < 0, 0.0)[:, None]
        # d loss / d scores = softmax - one-hot(target)
        if some:
            scores_CV.scatter_add_(1, places_C[:, None], -has_row_C.to(scores_CV.dtype)[:, None])
        own = slice(max(first - chunk.start, 0), max(last - chunk.start, 0))
        return (log_sum_C - target_C)[own].sum()

    return _SumOverScores.apply(hidden_MD, shard.rows_HD, of_chunk, shard, most, *_given(shard.added))


def _sum_over_negatives(hidden_MD: Tensor, shard: Shard, negatives_N: Tensor, of_chunk: "OfChunk") -> Tensor:
    """Sum of a loss over the scores of the negatives."""
    rows_ND, given = rows_of(shard, negatives_N, shared=True), tuple[Any, ...]()
    if shard.added is not None:
        sorted_N = negatives_N.sort().values

        def place(items: Tensor) -> Tensor:
            """The first place of an item among the sorted negatives; -1 if it is not there."""
            places = torch.searchsorted(sorted_N, items).clamp(max=len(sorted_N) - 1)
            return places.masked_fill(sorted_N[places] != items, -1)

        given = *_given(shard.added.mapped(place)), place(negatives_N)
    return _SumOverScores.apply(hidden_MD, rows_ND, of_chunk, shard_of(rows_ND), len(hidden_MD), *given)


def _given(added: Additions | None) -> tuple[Any, ...]:
    """For autograd, the tensor that has a gradient stands beside the additions."""
    return () if added is None else (added, added.of_ages_MK)


# Returns the sum of a loss over a chunk of float32 scores, and overwrites the scores with their gradients.
OfChunk = Callable[[Tensor, slice], Tensor]


class _SumOverScores(torch.autograd.Function):
    """Sum of a loss over the scores hidden @ table.T, with one chunk of scores in memory at a time. No process has more
    than `most` hidden states. If the scores have the gradient G, that of the hidden states is G @ table, and that of
    the table is G.T @ hidden: the forward pass adds up both while it has the scores; the backward pass returns them.

    The items of `added` are rows of the table. If several of these rows are the same item, they are the first of them,
    and `first_V` is the first row of each row's item. `of_ages_MK` is that of `added`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        table_VD: Tensor,
        of_chunk: OfChunk,
        shard: Shard,
        most: int,
        added: Additions | None = None,
        of_ages_MK: Tensor | None = None,
        first_V: Tensor | None = None,
    ) -> Tensor:
        device = hidden_MD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_MD.dtype
        factor_GD, factor_VD = shard.gathered(hidden_MD.to(dtype), most), table_VD.to(dtype)
        rows = chunk_rows(-(-shard.n_items // shard.processes), factor_VD.shape[1], device)  # the same on all
        loss = hidden_MD.new_zeros((), dtype=torch.float32)
        summed_type = hidden_MD.dtype if shard.processes == 1 else torch.float32
        grad_hidden_GD = torch.empty_like(factor_GD, dtype=summed_type)
        grad_table_VD = torch.zeros_like(table_VD, dtype=torch.float32)
        # One buffer for all chunks: otherwise the system would take back and clear memory of this size for each chunk.
        buffer_CV = factor_GD.new_empty(min(rows, len(factor_GD)), len(factor_VD))
        if added is not None:
            added = shard.additions_here(added, most)
            grad_of_ages_GK = torch.empty_like(added.of_ages_MK)
        for start in range(0, len(factor_GD), rows):
            chunk = slice(start, start + rows)
            factor_CD = factor_GD[chunk]
            product_CV = _product(factor_CD, factor_VD, buffer_CV[: len(factor_CD)])
            scores_CV = product_CV.float()  # the buffer itself, if the products are in float32
            slots = None if added is None else added.rows(chunk).slots()
            if slots is not None:
                slots.add_(scores_CV, first_V)
            loss += of_chunk(scores_CV, chunk)
            if slots is not None:
                grad_of_ages_GK[chunk] = slots.gradient(scores_CV, first_V)
            grad_CV = scores_CV if scores_CV.dtype == dtype else product_CV.copy_(scores_CV)
            del scores_CV  # with bfloat16, it is a copy twice as large as the buffer
            grad_hidden_GD[chunk] = grad_CV @ factor_VD
            if dtype == torch.float32:  # the sum inside the product saves a pass over V x D
                grad_table_VD.addmm_(grad_CV.T, factor_CD)
            else:
                grad_table_VD += grad_CV.T @ factor_CD
        grad_hidden_MD = shard.returned(grad_hidden_GD, len(hidden_MD)).to(hidden_MD.dtype)
        grad_of_ages_MK = None if added is None else shard.returned(grad_of_ages_GK, len(hidden_MD))
        ctx.gradients = grad_hidden_MD, grad_table_VD.to(table_VD.dtype), grad_of_ages_MK
        ctx.gradient_of_table = shard.gradient
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        # In place, because each of them may be as large as the table. So a second backward pass is not possible.
        assert ctx.gradients is not None, "backward can go through a loss only once"
        of_hidden, of_table, of_ages = (None if each is None else each.mul_(grad_loss) for each in ctx.gradients)
        ctx.gradients = None
        if ctx.gradient_of_table is not None:
            ctx.gradient_of_table.add_dense(of_table)
            of_table = None
        return of_hidden, of_table, None, None, None, None, of_ages, None


def _product(left_CD: Tensor, right_VD: Tensor, out_CV: Tensor) -> Tensor:
    """left @ right.T. In float32 on a CPU, it takes only some rows of `right` at a time, so that the results of a core
    stay in its cache: the sums are the same, in two thirds to three quarters of the time."""
    if out_CV.device.type != "cpu" or out_CV.dtype != torch.float32:
        return torch.mm(left_CD, right_VD.T, out=out_CV)
    at_once = 512 * torch.get_num_threads()  # columns of scores
    for start in range(0, len(right_VD), at_once):
        columns = slice(start, start + at_once)
        torch.mm(left_CD, right_VD[columns].T, out=out_CV[:, columns])
    return out_CV


def _softmax_(scores_CV: Tensor) -> Tensor:
    """Turn scores into softmax in place; return the log of the sum of e^score of each row."""
    if scores_CV.shape[1] == 0:
        return scores_CV.new_full((len(scores_CV),), -math.inf)
    max_C1 = scores_CV.amax(1, keepdim=True)
    torch.softmax(scores_CV, 1, out=scores_CV)
    # The most likely item's share is 1 / (sum of e^(score - max)).
    return (max_C1 - scores_CV.amax(1, keepdim=True).log())[:, 0]


def _draw(n: int, counts_V: Tensor, power: float) -> Tensor:
    """n items with replacement, in proportion to count ** power."""
    n_items = len(counts_V)
    if power == 0:
        return torch.randint(n_items, (n,), device=counts_V.device)
    upto_V, _ = _masses(counts_V, power)
    # Not multinomial: it refuses more than 2^24 items.
    places_N = torch.rand(n, dtype=torch.float64, device=counts_V.device) * upto_V[-1]
    return torch.searchsorted(upto_V, places_N, right=True).clamp(max=n_items - 1)


@lru_cache(maxsize=1)
def _masses(counts_V: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """For each item, the sum of count ** power up to it, and the log of its probability; the same in all steps."""
    mass_V = counts_V.cpu().double() ** power
    upto_V = mass_V.cumsum(0)  # on a CPU, because a GPU adds floats in any order
    return upto_V.to(counts_V.device), (mass_V / upto_V[-1]).log().float().to(counts_V.device)


def _target_scores(hidden_MD: Tensor, shard: Shard, targets_M: Tensor) -> Tensor:
    """The score of each row's target, in float32."""
    score_M = (hidden_MD * rows_of(shard, targets_M)).sum(1).float()
    return score_M if shard.added is None else score_M + shard.added.of(targets_M[:, None])[:, 0]
