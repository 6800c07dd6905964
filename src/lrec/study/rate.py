"""How fast a network trains here, by a short measured step: what the hours of a plan are computed from.

B rows, L positions, M targets, D width, V catalogue.
"""

from dataclasses import replace

import torch
from torch import Tensor

from lrec.common import hardware
from lrec.common.cpu_threads import one_core
from lrec.model import cost
from lrec.model.config import TransformerConfig
from lrec.model.losses import Loss
from lrec.model.memory import Precision
from lrec.model.transformer import Transformer

# Enough to be measured within a fraction of a second.
BLOCKS = 2
MOST_ITEMS = 20_000
MOST_FLOPS = {"cpu": 5e9, "cuda": 1e13}
SECONDS = 0.2


def training_rate(
    config: TransformerConfig, loss: Loss, positions: int, precision: Precision, kind: str = "cpu"
) -> float:
    """FLOPs per second of forward and backward: of one core, in processor time, so that other load counts little; or of
    one GPU.

    Steps of a network of the same width and parts, of up to two blocks over a catalogue of up to 20,000 items.

    Args:
        config: The network.
        loss: What it is trained on.
        positions: Those of a micro-batch; fewer where they would take long.
        precision: Of the products, as `memory.of_step` names it.
        kind: cpu or cuda.
    """
    small = replace(config, layers=min(config.layers, BLOCKS), n_items=min(config.n_items, MOST_ITEMS))
    length = small.max_len
    head_flops = loss.flops_per_target(small.n_items, small.width)
    of_row = cost.training_flops(small, length, length * (length + 1) // 2, head_flops)
    rows = max(min(positions // length, int(MOST_FLOPS[kind] / of_row)), 1)
    device = torch.device(kind)
    with one_core(), torch.random.fork_rng(devices=[]):
        net = Transformer(small).to(device, torch.bfloat16 if precision == "bf16-true" else None)
        items_BL = torch.randint(0, small.n_items, (rows, length), device=device)
        targets_M = torch.randint(0, small.n_items, (rows * length,), device=device)
        times_BT = torch.zeros(rows, length + 1, dtype=torch.int64, device=device) if net.reads_times else None
        counts_V = torch.ones(small.n_items, dtype=torch.int64, device=device)

        def head(hidden_BLD: Tensor, table_VD: Tensor) -> Tensor:
            return loss(hidden_BLD.flatten(0, 1), table_VD, targets_M, counts_V)

        def step() -> None:
            with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss_sum: Tensor = net(items_BL, head, times_BT=times_BT)
            loss_sum.backward()
            net.zero_grad()

        step()  # what is done once
        steps, began = 0, hardware.seconds(kind)
        while steps == 0 or hardware.seconds(kind) - began < SECONDS:
            step()
            steps += 1
        return steps * rows * of_row / (hardware.seconds(kind) - began)
