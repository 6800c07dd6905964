"""Heads for training: what turns hidden states and the item table into a loss.

Shape suffixes: M targets, D width, V catalogue, C targets of a chunk.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 2**22  # logits held at once: 16 MiB in float32, small enough for the caches to help
MIN_CHUNK_ROWS = 256


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Sum of full-softmax cross-entropies; both gradients are made in the forward, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden_MD: Tensor, table_VD: Tensor, targets_M: Tensor) -> Tensor:
        needs_grad = any(ctx.needs_input_grad)
        rows = max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // table_VD.shape[0])
        loss = hidden_MD.new_zeros((), dtype=torch.float32)
        grad_hidden_MD = torch.empty_like(hidden_MD) if needs_grad else None
        grad_table_VD = torch.zeros_like(table_VD, dtype=torch.float32) if needs_grad else None
        for start in range(0, hidden_MD.shape[0], rows):
            hidden_CD = hidden_MD[start : start + rows]
            targets_C1 = targets_M[start : start + rows, None]
            logits_CV = hidden_CD @ table_VD.T
            matmul_dtype = logits_CV.dtype  # bfloat16 under autocast
            logits_CV = logits_CV.float()
            target_C = logits_CV.gather(1, targets_C1).squeeze(1)
            max_C1 = logits_CV.amax(1, keepdim=True)
            weights_CV = logits_CV.sub_(max_C1).exp_()
            sum_C1 = weights_CV.sum(1, keepdim=True)
            loss += (max_C1 + sum_C1.log()).sum() - target_C.sum()
            if grad_hidden_MD is not None and grad_table_VD is not None:
                # d loss / d logits = softmax - one-hot(target)
                weights_CV.div_(sum_C1)
                weights_CV.scatter_add_(1, targets_C1, torch.full_like(max_C1, -1.0))
                grad_logits_CV = weights_CV.to(matmul_dtype)
                grad_hidden_MD[start : start + rows] = grad_logits_CV @ table_VD
                grad_table_VD += grad_logits_CV.T @ hidden_CD
        if grad_hidden_MD is not None and grad_table_VD is not None:
            ctx.save_for_backward(grad_hidden_MD, grad_table_VD.to(table_VD.dtype))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None]:
        grad_hidden_MD, grad_table_VD = ctx.saved_tensors
        return grad_hidden_MD * grad_loss, grad_table_VD * grad_loss, None


def full_softmax(hidden_MD: Tensor, table_VD: Tensor, targets_M: Tensor) -> Tensor:
    """Sum over targets of -log softmax(hidden @ table.T)[target], in nats.

    Holds at most `CHUNK_ELEMENTS` logits (but no fewer than 256 rows), never the M x V tensor, in forward or backward.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden_MD, table_VD, targets_M)
    return loss
