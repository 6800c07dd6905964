"""Losses for training: heads that turn hidden states and the item table into a sum over targets.

Full softmax is exact and costs what its matrix products cost; the sampled losses cost what their negatives cost, and
are for catalogues where that matters. Evaluation is over the whole catalogue, whatever is trained on.

Shape suffixes: M targets, D width, V catalogue, C targets of a chunk, N negatives, shared by the batch.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lrec.errors import UserError

# Logits held at once. On a CPU, a chunk stays in the cache where products of that few rows are still fast (they want
# twice as many as the width); where not, more rows make faster products. MAX bounds memory, but never to less than a
# table's worth: every chunk passes over the whole table, and fewer rows would only multiply the passes.
CPU_CACHE_ELEMENTS = 2**21
CPU_ROWS = 1024
MAX_CHUNK_ELEMENTS = 100 * 2**20


class Loss(ABC):
    """A training loss: a sum over targets, so that any split of a step into batches adds up to the same."""

    @abstractmethod
    def __call__(self, hidden_MD: Tensor, table_VD: Tensor, targets_M: Tensor, counts_V: Tensor) -> Tensor:
        """The sum over targets, in nats; counts_V are the items' training interactions."""

    @abstractmethod
    def flops_per_target(self, n_items: int, width: int) -> int:
        """Training FLOPs of the head: six per entry of the scores' matrix product and its two gradients' products."""


@dataclass(frozen=True)
class FullSoftmax(Loss):
    """Cross-entropy over the whole catalogue, exact; never holds targets x catalogue."""

    def __call__(self, hidden_MD: Tensor, table_VD: Tensor, targets_M: Tensor, counts_V: Tensor) -> Tensor:
        """Sum of -log softmax(hidden @ table.T)[target]."""
        return full_softmax(hidden_MD, table_VD, targets_M)

    def flops_per_target(self, n_items: int, width: int) -> int:
        """6 V d."""
        return 6 * n_items * width


@dataclass(frozen=True)
class SampledSoftmax(Loss):
    """Softmax over the target and negatives drawn for the whole batch, corrected by logQ.

    A negative j of N, drawn with probability q_j, gets the score s_j - log(N q_j), so that the sum in the denominator
    has the full softmax's as its expectation; negatives equal to a row's target are left out of the row.
    Source: Bengio & Senecal 2008; the target counted as not sampled.

    Attributes:
        negatives: Items drawn per batch, with replacement.
        power: Negatives are drawn in proportion to (training count) ** power; 0 draws uniformly.
        logq: Correct the scores; without, popular negatives are pushed down more than full softmax would.
    """

    negatives: int = 256
    power: float = 0.0
    logq: bool = True

    def __post_init__(self) -> None:
        _check_negatives(self.negatives)
        if not self.power >= 0:
            raise UserError(f"loss.power must be at least 0, not {self.power}")

    def __call__(self, hidden_MD: Tensor, table_VD: Tensor, targets_M: Tensor, counts_V: Tensor) -> Tensor:
        """Sum of -log softmax over target and negatives."""
        negatives_N, log_q_N = _draw(self.negatives, counts_V, self.power)
        correction_N = -(log_q_N + math.log(self.negatives)) if self.logq else torch.zeros_like(log_q_N)
        rows_ND, target_M = F.embedding(negatives_N, table_VD), _target_scores(hidden_MD, table_VD, targets_M)
        loss: Tensor = _ChunkedSampledCrossEntropy.apply(
            hidden_MD, rows_ND, target_M, correction_N, targets_M, negatives_N
        )
        return loss

    def flops_per_target(self, n_items: int, width: int) -> int:
        """6 (N + 1) d."""
        return 6 * (self.negatives + 1) * width


@dataclass(frozen=True)
class GBCE(Loss):
    """Generalised binary cross-entropy over the target and uniform negatives drawn for the whole batch.

    -(1 / (N + 1)) [log sigmoid(s_target) beta + sum over negatives of log(1 - sigmoid(s))], with
    beta = a (t (1 - 1/a) + 1/a) and a = N / (V - 1). Source: gSASRec, arXiv 2308.07192.
    Its scores are no log-probabilities of the catalogue, so select and stop on a rank metric, not on val/loss.

    Attributes:
        negatives: Items drawn per batch, with replacement.
        calibration: t: 0 is plain binary cross-entropy, 1 gives well-calibrated probabilities.
    """

    negatives: int = 256
    calibration: float = 0.75

    def __post_init__(self) -> None:
        _check_negatives(self.negatives)
        if not 0 <= self.calibration <= 1:
            raise UserError(f"loss.calibration must lie in 0..1, not {self.calibration}")

    def __call__(self, hidden_MD: Tensor, table_VD: Tensor, targets_M: Tensor, counts_V: Tensor) -> Tensor:
        """Sum over targets."""
        negatives_N, _ = _draw(self.negatives, counts_V, 0.0)
        target_M = _target_scores(hidden_MD, table_VD, targets_M)
        scores_MN = (hidden_MD @ F.embedding(negatives_N, table_VD).T).float()
        share = min(self.negatives / max(len(counts_V) - 1, 1), 1.0)
        beta = share * (self.calibration * (1 - 1 / share) + 1 / share)
        # log(1 - sigmoid(s)) = -softplus(s); a negative that is the row's target counts for nothing.
        losses_MN = F.softplus(scores_MN).masked_fill(negatives_N == targets_M[:, None], 0.0)
        return (beta * F.softplus(-target_M).sum() + losses_MN.sum()) / (self.negatives + 1)

    def flops_per_target(self, n_items: int, width: int) -> int:
        """6 (N + 1) d."""
        return 6 * (self.negatives + 1) * width


def full_softmax(hidden_MD: Tensor, table_VD: Tensor, targets_M: Tensor) -> Tensor:
    """Sum over targets of -log softmax(hidden @ table.T)[target], in nats.

    Holds `chunk_rows` x V logits at once, never the M x V tensor, in forward or backward.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden_MD, table_VD, targets_M)
    return loss


def chunk_rows(n_items: int, width: int, device_type: str) -> int:
    """Targets whose logits a softmax over so many items holds at once."""
    at_most = max(MAX_CHUNK_ELEMENTS // n_items, width)
    if device_type != "cpu":
        return at_most
    rows = max(CPU_CACHE_ELEMENTS // n_items, 2 * width)
    return rows if rows * n_items <= 4 * CPU_CACHE_ELEMENTS else min(at_most, CPU_ROWS)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of full-softmax cross-entropies; both gradients are made in the forward, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, table_VD: Tensor, targets_M: Tensor) -> Tensor:
        needs_grad = any(ctx.needs_input_grad)
        factor_MD, factor_VD = _factors(hidden_MD, table_VD)
        rows = chunk_rows(len(factor_VD), hidden_MD.shape[1], hidden_MD.device.type)
        loss = hidden_MD.new_zeros((), dtype=torch.float32)
        grad_hidden_MD = torch.empty_like(hidden_MD) if needs_grad else None
        grad_table_VD = torch.zeros_like(table_VD, dtype=torch.float32) if needs_grad else None
        # One buffer for all chunks: the system would take memory of this size back, and clear it again, for every one.
        buffer_CV = factor_MD.new_empty(min(rows, len(factor_MD)), len(factor_VD))
        for start in range(0, len(factor_MD), rows):
            factor_CD = factor_MD[start : start + rows]
            targets_C1 = targets_M[start : start + rows, None]
            logits_CV = torch.mm(factor_CD, factor_VD.T, out=buffer_CV[: len(factor_CD)])
            target_C1, max_C1 = logits_CV.gather(1, targets_C1), logits_CV.amax(1, keepdim=True)
            share_CV = logits_CV.float()  # the buffer itself, where the products are in float32
            torch.softmax(share_CV, 1, out=share_CV)
            # The most likely item's share is 1 / (sum of e^(logit - max)).
            loss += (max_C1.float() - share_CV.amax(1, keepdim=True).log() - target_C1.float()).sum()
            if grad_hidden_MD is not None and grad_table_VD is not None:
                # d loss / d logits = softmax - one-hot(target)
                share_CV.scatter_add_(1, targets_C1, -torch.ones_like(targets_C1, dtype=torch.float32))
                if share_CV.dtype != factor_VD.dtype:
                    share_CV = logits_CV.copy_(share_CV)
                grad_hidden_MD[start : start + rows] = share_CV @ factor_VD
                _add_product(grad_table_VD, share_CV.T, factor_CD)
        if grad_hidden_MD is not None and grad_table_VD is not None:
            ctx.save_for_backward(grad_hidden_MD, grad_table_VD.to(table_VD.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden_MD, grad_table_VD = ctx.saved_tensors
        return grad_hidden_MD * grad_loss, grad_table_VD * grad_loss, None


class _ChunkedSampledCrossEntropy(torch.autograd.Function):
    """Sum of cross-entropies over each row's target and the negatives; made chunk by chunk as full softmax's are."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        rows_ND: Tensor,
        target_M: Tensor,
        correction_N: Tensor,
        targets_M: Tensor,
        negatives_N: Tensor,
    ) -> Tensor:
        needs_grad = any(ctx.needs_input_grad)
        factor_MD, factor_ND = _factors(hidden_MD, rows_ND)
        rows = chunk_rows(len(factor_ND), hidden_MD.shape[1], hidden_MD.device.type)
        loss = hidden_MD.new_zeros((), dtype=torch.float32)
        grad_hidden_MD = torch.empty_like(hidden_MD) if needs_grad else None
        grad_rows_ND = torch.zeros_like(rows_ND, dtype=torch.float32) if needs_grad else None
        grad_target_M = torch.empty_like(target_M) if needs_grad else None
        buffer_CN = factor_MD.new_empty(min(rows, len(factor_MD)), len(factor_ND))
        for start in range(0, len(factor_MD), rows):
            factor_CD = factor_MD[start : start + rows]
            target_C1 = target_M[start : start + rows, None]
            scores_CN = torch.mm(factor_CD, factor_ND.T, out=buffer_CN[: len(factor_CD)])
            share_CN = scores_CN.float().add_(correction_N)
            # Not -inf: a row's negatives may all be its target.
            share_CN.masked_fill_(negatives_N == targets_M[start : start + rows, None], torch.finfo(torch.float32).min)
            max_C1 = share_CN.amax(1, keepdim=True)
            torch.softmax(share_CN, 1, out=share_CN)
            negatives_C1 = max_C1 - share_CN.amax(1, keepdim=True).log()  # log of the sum of e^score
            all_C1 = torch.logaddexp(target_C1, negatives_C1)
            loss += (all_C1 - target_C1).sum()
            if grad_hidden_MD is not None and grad_rows_ND is not None and grad_target_M is not None:
                # d loss / d score is the share of target and negatives together, less 1 for the target.
                part_C1 = (negatives_C1 - all_C1).exp()
                share_CN = share_CN.to(factor_CD.dtype)
                grad_hidden_MD[start : start + rows] = part_C1 * (share_CN @ factor_ND)
                _add_product(grad_rows_ND, share_CN.T, (part_C1 * factor_CD).to(factor_CD.dtype))
                grad_target_M[start : start + rows] = -part_C1[:, 0]
        if grad_hidden_MD is not None and grad_rows_ND is not None and grad_target_M is not None:
            ctx.save_for_backward(grad_hidden_MD, grad_rows_ND.to(rows_ND.dtype), grad_target_M)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        grad_hidden_MD, grad_rows_ND, grad_target_M = (grad * grad_loss for grad in ctx.saved_tensors)
        return grad_hidden_MD, grad_rows_ND, grad_target_M, None, None, None


def _factors(*factors: Tensor) -> tuple[Tensor, ...]:
    """The matrices in the type of their product: autocast's, where it is on."""
    device = factors[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else factors[0].dtype
    return tuple(factor.to(dtype) for factor in factors)


def _add_product(sum_VD: Tensor, left_VC: Tensor, right_CD: Tensor) -> None:
    """sum += left @ right; inside the product where the types allow it, which spares a pass over V x D per chunk."""
    if left_VC.dtype == sum_VD.dtype:
        sum_VD.addmm_(left_VC, right_CD)
    else:
        sum_VD += left_VC @ right_CD


def _check_negatives(negatives: int) -> None:
    if negatives < 1:
        raise UserError(f"loss.negatives must be at least 1, not {negatives}")


def _draw(n: int, counts_V: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """n items with replacement, and the log of each one's probability."""
    n_items = len(counts_V)
    if power == 0:
        drawn_N = torch.randint(n_items, (n,), device=counts_V.device)
        return drawn_N, counts_V.new_full((n,), -math.log(n_items), dtype=torch.float32)
    mass_V = counts_V.double() ** power
    # Not multinomial: it refuses more than 2^24 items.
    upto_V = mass_V.cumsum(0)
    places_N = torch.rand(n, dtype=torch.float64, device=counts_V.device) * upto_V[-1]
    drawn_N = torch.searchsorted(upto_V, places_N, right=True).clamp(max=n_items - 1)
    return drawn_N, (mass_V[drawn_N] / upto_V[-1]).log().float()


def _target_scores(hidden_MD: Tensor, table_VD: Tensor, targets_M: Tensor) -> Tensor:
    """The score of each row's target, in float32."""
    return (hidden_MD * F.embedding(targets_M, table_VD)).sum(1).float()
