"""The optimizer: parameter groups and the learning rate of every step."""

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lrec.errors import UserError
from lrec.net import Transformer


@dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warm-up and decay, both per optimizer step.

    Attributes:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of matrices and tables (norms and biases have none).
        betas: Decay rates of the two moment estimates.
        warmup: Share of all steps over which the rate rises linearly to lr.
        decay: Shape of the fall after the warm-up.
        final_lr: Rate at the last step, as a share of lr (not used by constant).
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.05
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise UserError(f"optimizer.lr must be above 0, got {self.lr}")
        for name in ("warmup", "final_lr"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"optimizer.{name} must lie in 0..1, got {getattr(self, name)}")

    def lr_factor(self, step: int, total_steps: int) -> float:
        """Share of lr that step `step` (from 0) of `total_steps` uses."""
        warmup_steps = round(self.warmup * total_steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if self.decay == "constant":
            return 1.0
        progress = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
        fall = (1 + math.cos(math.pi * progress)) / 2 if self.decay == "cosine" else 1 - progress
        return self.final_lr + (1 - self.final_lr) * fall

    def build(self, net: Transformer, total_steps: int) -> tuple[AdamW, LambdaLR]:
        """The optimizer and its scheduler, which must step once per optimizer step."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in net.named_parameters():
            groups[net.lr_multiplier(name), self.weight_decay if parameter.ndim >= 2 else 0.0].append(parameter)
        # AdamW decays by lr * weight_decay: divided by the multiplier, the decay per step is that of every other group.
        adamw = AdamW(
            [
                {"params": parameters, "lr": self.lr * multiplier, "weight_decay": decay / multiplier}
                for (multiplier, decay), parameters in groups.items()
            ],
            lr=self.lr,
            betas=self.betas,
            fused=True,
        )
        return adamw, LambdaLR(adamw, lambda step: self.lr_factor(step, total_steps))
