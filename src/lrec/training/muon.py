"""Muon's step: momentum, made orthogonal, for the matrices of the blocks. torch has the arithmetic.

Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon. The step of a matrix is that of its spectral norm,
sqrt(max(1, rows / columns)) times the rate, so that the best rate does not depend on the width (arXiv 2310.17813).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim._muon import muon

MOMENTUM = 0.95


def is_for_muon(net: nn.Module, name: str) -> bool:
    """Whether a parameter is a matrix inside a block: neither a table nor a vector."""
    return name.startswith("blocks.") and net.get_parameter(name).ndim == 2


def muon_matrices(matrices: list[nn.Parameter], state: dict[Tensor, dict[str, Any]], group: dict[str, Any]) -> None:
    """A step of Muon on those of a group that have a gradient, which AdamW then does not find.

    The state has AdamW's names, so that AdamW loads it and SGD goes on from its momentum.
    """
    moving = [matrix for matrix in matrices if matrix.grad is not None]
    for matrix in moving:
        if not state[matrix]:
            state[matrix]["step"] = torch.zeros((), dtype=torch.float32, device=matrix.device)
            state[matrix]["exp_avg"] = torch.zeros_like(matrix)
        state[matrix]["step"] += 1
    muon(
        list(moving),
        [matrix.grad for matrix in moving if matrix.grad is not None],
        [state[matrix]["exp_avg"] for matrix in moving],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        momentum=MOMENTUM,
        nesterov=True,
        ns_coefficients=(3.4445, -4.7750, 2.0315),
        ns_steps=5,
        eps=1e-7,
        adjust_lr_fn="original",
        has_complex=False,
    )
    for matrix in moving:
        matrix.grad = None
