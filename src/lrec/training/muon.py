"""Muon, for the matrices of the blocks: each step is the momentum, made orthogonal.

Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon. The step's spectral norm is about the rate times
sqrt(max(1, rows / columns)), whatever the width (arXiv 2310.17813).

Shape suffixes: R rows, C columns.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lrec.model.sharded_table import is_sharded, local_range, local_rows

MOMENTUM = 0.95
# An odd polynomial. Applied five times, it moves singular values from 0.001 to 1 to between 0.7 and 1.2.
LINEAR, CUBIC, QUINTIC, TIMES = 3.4445, -4.7750, 2.0315, 5
# In float32, two and then three times in a row need fewer products of the size R C C, because the squares of the result
# follow from those before. But small singular values lose one or two digits of seven: bfloat16 has none to lose.
IN_A_ROW = (2, 3)
WIDE = 80  # columns of a matrix from which a CPU is faster in bfloat16


@torch.no_grad()
def muon_matrices(
    matrices: list[nn.Parameter], state: dict[Tensor, dict[str, Any]], group: dict[str, Any], products: torch.dtype
) -> None:
    """Take a step of Muon on the matrices that have a gradient, and remove it, so that AdamW skips these matrices.

    The state has AdamW's names, so that SGD finds its momentum buffer there. If a matrix is sharded, every process
    gathers the whole step. `products` is the type of the matrix products; on a GPU, it is always bfloat16.
    """
    for matrix in matrices:
        if matrix.grad is None:
            continue
        if not state[matrix]:
            state[matrix]["step"] = torch.zeros((), dtype=torch.float32, device=matrix.device)
            state[matrix]["exp_avg"] = torch.zeros_like(matrix)
        state[matrix]["step"] += 1
        momentum = state[matrix]["exp_avg"].lerp_(matrix.grad, 1 - MOMENTUM)
        ahead = matrix.grad.lerp(momentum, MOMENTUM)
        whole_RC = ahead.full_tensor() if is_sharded(ahead) else ahead
        step_RC = orthogonal(whole_RC, torch.bfloat16 if whole_RC.is_cuda else products)
        rate = group["lr"] * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        own_RC = local_rows(matrix).mul_(1 - group["lr"] * group["weight_decay"])
        own_RC.sub_(step_RC[local_range(matrix)], alpha=rate)
        matrix.grad = None


def orthogonal(matrix_RC: Tensor, products: torch.dtype = torch.float32) -> Tensor:
    """About U V' of the singular value decomposition U S V'; values near 0 in S stay near 0. With products in bfloat16,
    narrow matrices on a CPU have products in float32 all the same."""
    if matrix_RC.shape[0] < matrix_RC.shape[1]:
        return orthogonal(matrix_RC.mT, products).mT
    short = products == torch.bfloat16 and (matrix_RC.is_cuda or matrix_RC.shape[1] >= WIDE)
    x_RC = matrix_RC.to(torch.bfloat16 if short else torch.float32)
    x_RC = x_RC / x_RC.norm().clamp(min=1e-7)
    if short:
        for _ in range(TIMES):
            x_RC = torch.addmm(x_RC, x_RC, _beyond_linear(x_RC.mT @ x_RC), beta=LINEAR)
        return x_RC.to(matrix_RC.dtype)
    for times in IN_A_ROW:
        squares_CC = x_RC.mT @ x_RC
        factor_CC = step_CC = _polynomial(squares_CC)
        for _ in range(times - 1):
            squares_CC = step_CC @ squares_CC @ step_CC
            step_CC = _polynomial(squares_CC)
            factor_CC = factor_CC @ step_CC
        x_RC = x_RC @ factor_CC
    return x_RC.to(matrix_RC.dtype)


def _beyond_linear(squares_CC: Tensor) -> Tensor:
    """What multiplies X in a step of the iteration, without its linear part, where the squares are X' X."""
    return torch.addmm(squares_CC, squares_CC, squares_CC, beta=CUBIC, alpha=QUINTIC)


def _polynomial(squares_CC: Tensor) -> Tensor:
    """What multiplies X in a step of the iteration."""
    factor_CC = _beyond_linear(squares_CC)
    factor_CC.diagonal().add_(LINEAR)
    return factor_CC
