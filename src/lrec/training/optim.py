"""Optimizers: lrec's own (parameter groups, rate of every step, AdamW with a switch to SGD), and any other one."""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import LBFGS, AdamW, SparseAdam
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.sgd import sgd

from lrec.common.text_tables import counted
from lrec.errors import UserError, check_choices, check_range
from lrec.model.sharded_table import TouchedRows
from lrec.model.transformer import Transformer, is_for_muon
from lrec.training.muon import muon_matrices
from lrec.training.touched_rows import adamw_rows, sgd_rows, touched_of

# wsd (warm-up, stable, decay): the rate is constant and falls by 1 - square root at the end. Runs of any length can
# share the steps before the fall (arXiv 2405.18392, which finds a fall over 10 to 20 % of the steps enough).
Decay = Literal["cosine", "linear", "constant", "wsd"]
WSD_FALL = 0.15
BuiltOptimizer = tuple[torch.optim.Optimizer, LRScheduler]


@dataclass(frozen=True)
class Switch:
    """When SGD with momentum replaces AdamW, and how SGD trains to the last step. Source: arXiv 2311.11351.

    Attributes:
        at: Number of optimizer steps of AdamW; null: AdamW trains until the validation loss has converged.
        patience: Evaluations without improvement after which val/loss counts as converged.
        min_improvement: Smallest fall of val/loss, in nats, that counts as improvement.
        latest: Share of all steps, or of the time limit, after which SGD replaces AdamW even without convergence, so
            that no run ends before its rate has fallen (not used with at).
        lr: Learning rate of SGD at the switch, for parameters outside the blocks.
        momentum: Momentum of SGD; its buffer is empty at the switch.
        weight_decay: L2 penalty of matrices and tables during SGD.
        decay: Shape of the rate's fall from the switch to the last step.
        final_lr: Rate at the last step, as a share of lr (not used by constant).
    """

    at: int | None = None
    patience: int = 3
    min_improvement: float = 0.0
    latest: float = 0.9
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    decay: Decay = "cosine"
    final_lr: float = 0.0

    def __post_init__(self) -> None:
        check_choices(("optimizer.switch.decay", self.decay, Decay))
        check_range("optimizer.switch.at", self.at, at_least=1)
        check_range("optimizer.switch.patience", self.patience, at_least=1)
        check_range("optimizer.switch.lr", self.lr, above=0)
        check_range("optimizer.switch.min_improvement", self.min_improvement, at_least=0)
        check_range("optimizer.switch.weight_decay", self.weight_decay, at_least=0)
        check_range("optimizer.switch.latest", self.latest, above=0, at_most=1)
        check_range("optimizer.switch.momentum", self.momentum, at_least=0, below=1)
        check_range("optimizer.switch.final_lr", self.final_lr, at_least=0, at_most=1)


class OptimizerConfig(ABC):
    """The options of an optimizer and its schedule."""

    @abstractmethod
    def build(self, net: Transformer, total_steps: int) -> BuiltOptimizer:
        """The optimizer of the network's parameters, and its scheduler, which steps once per optimizer step. The share
        of the learning rate that the parametrisation gives to a parameter is `net.lr_multiplier(name)`."""


# Makes a torch optimizer from groups of parameters.
OfParameters = Callable[[Iterable], torch.optim.Optimizer]


def build(
    optimizer: OptimizerConfig | OfParameters, net: Transformer, total_steps: int, products: torch.dtype = torch.float32
) -> BuiltOptimizer:
    """The optimizer and its scheduler. A torch optimizer has a constant rate, times each parameter's multiplier. Matrix
    products of training are of the type `products`, which Muon uses too."""
    if isinstance(optimizer, OptimizerConfig):
        pair = optimizer.build(net, total_steps)
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise UserError(f"model.optimizer {type(optimizer).__name__}: build returns no optimizer and scheduler")
        if isinstance(pair[0], AdamWThenSGD) and products == torch.bfloat16:
            pair[0].muon_products = products
        return pair
    if not callable(optimizer):
        raise UserError(f"model.optimizer must be an lrec.Optimizer or a class of torch.optim, got {optimizer!r}")
    groups: dict[float, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            groups[net.lr_multiplier(name)].append(parameter)
    try:
        made = optimizer([{"params": parameters} for parameters in groups.values()])
    except ValueError as error:
        raise UserError(f"model.optimizer: {error}") from error
    if isinstance(made, LBFGS | SparseAdam):
        raise UserError(f"model.optimizer {type(made).__name__}: a step of lrec has one dense gradient: choose another")
    for group, multiplier in zip(made.param_groups, groups, strict=True):
        group["lr"] *= multiplier
    return made, LambdaLR(made, lambda step: 1.0)


@dataclass(frozen=True)
class Optimizer(OptimizerConfig):
    """AdamW, and Muon for matrices, with linear warm-up and decay by optimizer step; after a switch, SGD.

    Attributes:
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of matrices and tables (norms and biases have no decay).
        betas: Decay rates of the two moment estimates.
        warmup: Share of all steps, or of the time limit, over which the rate rises linearly to lr.
        decay: Shape of the fall of the rate from the warm-up to the end (or to the switch).
        final_lr: Rate at the last step, as a share of lr (not used by constant).
        switch: Switch to SGD at a step, or after convergence; null: AdamW to the end.
        touched_rows: Update only the rows of the item table that a step uses: the items of its windows, its targets and
            its negatives. Other rows do not change, not even by decay. This saves the memory and time of their
            gradients, but gives other results than AdamW on all rows. For sampled losses.
        muon: Muon updates the matrices of the blocks, with a peak rate of this multiple of lr, times the share that the
            parametrisation gives to their width. With null, AdamW updates the matrices too.
    """

    lr: float = 0.008
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.05
    decay: Decay = "linear"
    final_lr: float = 0.0
    switch: Switch | None = None
    touched_rows: bool = False
    muon: float | None = 2.0

    def __post_init__(self) -> None:
        check_choices(("optimizer.decay", self.decay, Decay))
        check_range("optimizer.lr", self.lr, above=0)
        check_range("optimizer.weight_decay", self.weight_decay, at_least=0)
        for beta in self.betas:
            check_range("optimizer.betas", beta, at_least=0, below=1)
        check_range("optimizer.warmup", self.warmup, at_least=0, at_most=1)
        check_range("optimizer.final_lr", self.final_lr, at_least=0, at_most=1)
        check_range("optimizer.muon", self.muon, above=0)

    def stable_steps(self, total_steps: int) -> int | None:
        """Number of steps before the fall of wsd, in a run of `total_steps`: longer runs with as many steps of warm-up
        begin with the same ones. None without such a fall."""
        if self.decay != "wsd" or self.switch is not None:
            return None
        warmup_steps = round(self.warmup * total_steps)
        return warmup_steps + _stable(total_steps - warmup_steps)

    def lr_factor(self, step: int, total_steps: int) -> float:
        """Share of lr that step `step` (from 0) of `total_steps` uses while AdamW runs."""
        warmup_steps = round(self.warmup * total_steps)
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return _fall(self.decay, self.final_lr, step - warmup_steps, total_steps - warmup_steps)

    def build(self, net: Transformer, total_steps: int) -> "tuple[AdamWThenSGD, LambdaLR]":
        switch = self.switch
        if switch is not None and switch.at is not None and switch.at >= total_steps:
            raise UserError(f"optimizer.switch.at {switch.at}: the run has only {counted(total_steps, 'step')}")
        if self.touched_rows:
            net.items.weight.touched = TouchedRows()  # type: ignore[attr-defined]
        groups: dict[tuple[float, float, bool, bool], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in net.named_parameters():
            if parameter.requires_grad:
                by_rows = touched_of(parameter) is not None
                multiplier = net.lr_multiplier(name, self.muon is not None, by_rows)
                if by_muon := self.muon is not None and is_for_muon(name, parameter):
                    multiplier *= self.muon
                of = multiplier, net.sgd_lr_multiplier(name), parameter.ndim >= 2, by_muon
                groups[of].append(parameter)
        # AdamW decays by lr * weight_decay. The division by the multiplier gives all groups the same decay per step.
        options = [
            {
                "params": parameters,
                "lr": self.lr * multiplier,
                "weight_decay": self.weight_decay / multiplier if decays else 0.0,
                "sgd_lr": switch.lr * sgd_multiplier if switch else None,
                "sgd_weight_decay": switch.weight_decay if switch and decays else 0.0,
                "momentum": switch.momentum if switch else 0.0,
                "muon": by_muon,
            }
            for (multiplier, sgd_multiplier, decays, by_muon), parameters in groups.items()
        ]
        optimizer = AdamWThenSGD(options, lr=self.lr, betas=self.betas)

        def factor(step: int, index: int) -> float:
            """A group's rate as a share of its first, AdamW's. It looks the group up, as loading replaces groups."""
            group = optimizer.param_groups[index]
            began = group["sgd_scheduled_from"]  # not `sgd_from` if the schedule follows time
            if switch is None or began is None:
                return self.lr_factor(step, total_steps)
            fall = _fall(switch.decay, switch.final_lr, step - began, total_steps - began)
            return group["sgd_lr"] / group["initial_lr"] * fall

        indices = range(len(optimizer.param_groups))
        factors: list[Any] = [lambda step, index=index: factor(step, index) for index in indices]
        return optimizer, LambdaLR(optimizer, factors)


def _fall(decay: Decay, final: float, step: int, steps: int) -> float:
    """Share of the peak rate at `step` of `steps`: 1 at step 0, and `final` from step `steps` on, unless constant."""
    if decay == "constant":
        return 1.0
    before = _stable(steps) if decay == "wsd" else 0
    progress = min(max(step - before, 0) / max(steps - before, 1), 1.0)
    if decay == "cosine":
        left = (1 + math.cos(math.pi * progress)) / 2
    else:
        left = 1 - (math.sqrt(progress) if decay == "wsd" else progress)
    return final + (1 - final) * left


def _stable(steps: int) -> int:
    """How many of the `steps` after the warm-up come before the fall of wsd."""
    return int((1 - WSD_FALL) * steps)


class AdamWThenSGD(AdamW):
    """AdamW, and Muon for groups that ask for it; from `begin_sgd` on, SGD with momentum.

    Both phases are one optimizer, so that a checkpoint of one phase loads in the other: groups hold the phase, and
    exp_avg becomes SGD's momentum buffer. Besides AdamW's options, groups have sgd_lr, sgd_weight_decay, momentum, and
    muon (whether Muon replaces AdamW). The arithmetic is torch.optim's, except for Muon and touched rows.
    """

    muon_products = torch.float32  # the type of Muon's matrix products; on a GPU, it is always bfloat16

    def __init__(self, groups: Iterable[dict[str, Any]], **options: Any) -> None:
        not_yet = {"sgd_from": None, "sgd_scheduled_from": None}
        super().__init__([not_yet | group for group in groups], fused=True, **options)
        # True would mean that the step itself undoes the scale of a gradient scaler. Lightning then refuses to clip.
        self._step_supports_amp_scaling = False

    @property
    def sgd_from(self) -> int | None:
        """The optimizer step from which SGD runs; None while AdamW runs."""
        return self.param_groups[0]["sgd_from"]

    def phase_of(self, steps: int) -> Literal["adamw", "sgd"]:
        """The phase of the last step, after `steps` steps."""
        return "sgd" if self.sgd_from is not None and steps > self.sgd_from else "adamw"

    @torch.no_grad()
    def begin_sgd(self, step: int, scheduled: int | None = None) -> None:
        """Use SGD for the next step, number `step` from 0, and for all later ones. AdamW must have taken a step before.
        `scheduled` is where the schedule of the rate is, by default at this step."""
        assert self.sgd_from is None, "the switch is made once"
        scheduled = step if scheduled is None else scheduled
        for group in self.param_groups:
            group |= {"sgd_from": step, "sgd_scheduled_from": scheduled, "lr": group["sgd_lr"]}
            for parameter in group["params"]:
                if parameter in self.state:
                    self.state[parameter]["exp_avg"].zero_()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters, or their rows, that have a gradient; returns the closure's loss."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        in_adamw = self.sgd_from is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if touched_of(parameter) is not None:
                    (adamw_rows if in_adamw else sgd_rows)(parameter, self.state[parameter], group)
            if in_adamw and group["muon"]:
                muon_matrices(group["params"], self.state, group, self.muon_products)
            moving = [parameter for parameter in group["params"] if parameter.grad is not None]
            if moving and not in_adamw:
                gradients = [parameter.grad for parameter in moving]
                buffers = [self.state[parameter]["exp_avg"] for parameter in moving]
                of_group = {"lr": group["lr"], "momentum": group["momentum"], "weight_decay": group["sgd_weight_decay"]}
                # The fused kernel does not support sharded tensors.
                sgd(moving, gradients, buffers, foreach=True, dampening=0.0, nesterov=False, maximize=False, **of_group)
        if in_adamw:
            super().step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for group in self.param_groups:
            for parameter in group["params"]:
                if (touched := touched_of(parameter)) is not None:
                    touched.clear()
