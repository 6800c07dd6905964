"""AdamW, SGD and clipping for an item table of which only the rows that a step touches have a gradient.

A row that is not touched does not change: its moments do not fade, and its weights do not decay. So this is
torch.optim.SparseAdam, except for the decay. If every step touches every row, it is AdamW.

Shape suffixes: U touched rows, D width.
"""

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lrec.errors import UserError
from lrec.model.config import TransformerConfig
from lrec.model.losses import Loss
from lrec.model.sharded_table import TouchedRows, local_rows


def check_touched_rows(config: TransformerConfig, loss: Loss, trainer: Trainer) -> None:
    """UserError if these options need the gradients of all rows."""
    scales = getattr(trainer.precision_plugin, "scaler", None) is not None
    for refused, why in (
        (config.vector_width, "the projection of item vectors moves every row; use model.item_vectors_use initial"),
        (not loss.touches_rows, "use a sampled loss; this one gives every row a gradient"),
        (isinstance(trainer.strategy, DDPStrategy), "ddp synchronises whole gradients; use fsdp2"),
        (trainer.gradient_clip_algorithm == "value", "clip by norm, not by value"),
        (scales, "--trainer.precision 16-mixed scales whole gradients; use bf16-mixed or 32-true"),
    ):
        if refused:
            raise UserError(f"optimizer.touched_rows: {why}")


def touched_of(parameter: nn.Parameter) -> TouchedRows | None:
    return getattr(parameter, "touched", None)


def adamw_rows(parameter: nn.Parameter, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Take a step of AdamW on the touched rows; the state is AdamW's own."""
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
    state["step"] += 1
    if (found := _gradient(parameter)) is None:
        return
    places_U, grad_UD = found
    step, (beta1, beta2) = float(state["step"]), group["betas"]
    first_UD = _moved(state["exp_avg"], places_U, grad_UD, beta1)
    second_UD = _moved(state["exp_avg_sq"], places_U, grad_UD.square(), beta2)
    scale_UD = (second_UD / (1 - beta2**step)).sqrt_().add_(group["eps"])
    rows_UD = local_rows(parameter)[places_U].mul_(1 - group["lr"] * group["weight_decay"])
    local_rows(parameter)[places_U] = rows_UD.addcdiv_(first_UD, scale_UD, value=-group["lr"] / (1 - beta1**step))


def sgd_rows(parameter: nn.Parameter, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Take a step of SGD with momentum on the touched rows; the buffer is the entry exp_avg of the state."""
    if (found := _gradient(parameter)) is None:
        return
    places_U, grad_UD = found
    rows_UD, buffer_HD = local_rows(parameter)[places_U], local_rows(state["exp_avg"])
    buffer_UD = buffer_HD[places_U].mul_(group["momentum"]).add_(grad_UD).add_(rows_UD, alpha=group["sgd_weight_decay"])
    buffer_HD[places_U] = buffer_UD
    local_rows(parameter)[places_U] = rows_UD.sub_(buffer_UD, alpha=group["lr"])


@torch.no_grad()
def clip_by_norm(parameters: list[nn.Parameter], most: float) -> Tensor:
    """Clip as torch's clip_grad_norm_ does, including the gradients of touched rows; returns the norm before."""
    norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    for parameter in parameters:
        if touched_of(parameter) is not None:
            found = _gradient(parameter)
            squares = norm.new_zeros(()) if found is None else found[1].square().sum()
            if isinstance(parameter, DTensor):
                torch.distributed.all_reduce(squares)
            norm = (norm.square() + squares).sqrt()
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            local_rows(parameter.grad).mul_(factor)
        elif (found := _gradient(parameter)) is not None:
            found[1].mul_(factor)
    return norm


def _gradient(parameter: nn.Parameter) -> tuple[Tensor, Tensor] | None:
    touched = touched_of(parameter)
    return None if touched is None else touched.coalesced()


def _moved(moment_VD: Tensor, places_U: Tensor, values_UD: Tensor, beta: float) -> Tensor:
    """The moment's rows, after a step towards the values."""
    moved_UD = local_rows(moment_VD)[places_U].lerp_(values_UD, 1 - beta)
    local_rows(moment_VD)[places_U] = moved_UD
    return moved_UD
