"""The precision of `--trainer.precision auto`: bfloat16 products where a short measurement finds them faster."""

import os
from typing import Literal

import torch
from torch import Tensor

from lrec.common import hardware
from lrec.common.cpu_threads import one_core
from lrec.common.hardware import Kind
from lrec.errors import UserError
from lrec.model.config import TransformerConfig
from lrec.model.losses import full_softmax
from lrec.model.transformer import Transformer

AUTO = "auto"
# What the processes that a process starts take over from it, so that all of a run, or of a study, have the same.
DECIDED = "LREC_PRECISION"
Precision = Literal["32-true", "bf16-mixed"]
# Least gain: what is saved must be worth the rounding, and no chance of the measurement.
LEAST_GAIN = 1.15
REPEATS = 3
ITEMS, ROWS, LENGTH = 4096, 8, 32


def decided(kind: Kind) -> Precision:
    """The precision that trains faster on this machine; measured once, here or by the process that started this one."""
    if DECIDED not in os.environ:
        if kind == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "trainer.precision auto: training takes a GPU, and none is here to be measured: choose 32-true or "
                "bf16-mixed, or trainer.accelerator cpu"
            )
        float32, bfloat16 = _seconds(kind)
        os.environ[DECIDED] = "bf16-mixed" if float32 > LEAST_GAIN * bfloat16 else "32-true"
        print(
            f"precision: {os.environ[DECIDED]}, as a step with bfloat16 products takes {bfloat16 / float32:.2f} times "
            "as long here as one in float32"
        )
    return "bf16-mixed" if os.environ[DECIDED] == "bf16-mixed" else "32-true"


def _seconds(kind: Kind) -> tuple[float, float]:
    """Least duration of a small step, forward and backward, in float32 and with bfloat16 products; of a CPU in
    processor time of one thread, so that other load counts little."""
    with torch.random.fork_rng(devices=[]):  # what a run draws does not depend on whether this was measured
        net = Transformer(TransformerConfig(ITEMS, LENGTH, layers=1, width=128, heads=4)).to(kind)
    items_BL = (torch.arange(ROWS * LENGTH, device=kind) * 13 % ITEMS).view(ROWS, LENGTH)

    def head(hidden_BLD: Tensor, table_VD: Tensor) -> Tensor:
        return full_softmax(hidden_BLD.flatten(0, 1), table_VD, items_BL.flatten())

    def step(in_bfloat16: bool) -> float:
        began = hardware.seconds(kind)
        with torch.autocast(kind, torch.bfloat16, enabled=in_bfloat16):
            loss_sum: Tensor = net(items_BL, head)
        loss_sum.backward()
        net.zero_grad()
        return hardware.seconds(kind) - began

    with one_core():
        step(False), step(True)
        float32, bfloat16 = step(False), step(True)
        for _ in range(REPEATS - 1):
            if bfloat16 > 2 * float32:  # a processor without instructions for it, where a step takes long
                break
            float32, bfloat16 = min(float32, step(False)), min(bfloat16, step(True))
    return float32, bfloat16
