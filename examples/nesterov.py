"""An optimizer and a schedule of your own: SGD with Nesterov's momentum and a rate that falls linearly to zero.

Try it from this folder: lrec fit --model.optimizer nesterov.Nesterov --model.optimizer.lr 0.5 ...
torch's optimizers with a constant rate need no class: --model.optimizer torch.optim.Adagrad --model.optimizer.lr 0.1
"""

from dataclasses import dataclass

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lrec import OptimizerConfig
from lrec.model.transformer import Transformer


@dataclass(frozen=True)
class Nesterov(OptimizerConfig):
    """SGD, with the same rate for every parameter."""

    lr: float = 0.5
    momentum: float = 0.9

    def build(self, net: Transformer, total_steps: int) -> tuple[torch.optim.Optimizer, LRScheduler]:
        optimizer = torch.optim.SGD(net.parameters(), lr=self.lr, momentum=self.momentum, nesterov=True)
        return optimizer, LambdaLR(optimizer, lambda step: 1 - step / total_steps)
