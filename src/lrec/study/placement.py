"""The nodes, processes and GPUs that a run of a study trains on, and how they share the network: from its options."""

import os
from dataclasses import dataclass
from itertools import takewhile

from lrec.common.hardware import Kind, auto_precision, kind_of
from lrec.errors import UserError
from lrec.model.memory import Precision
from lrec.run import RunConfig


@dataclass(frozen=True)
class Placement:
    kind: Kind
    nodes: int
    devices: int  # processes on each node; each has a GPU, or CPU cores
    shards: int  # processes that share the blocks' parameters; 1: each process holds the whole network
    accumulation: int  # micro-batches in a step
    precision: Precision  # named as in `memory.of_step`
    checkpointing: bool  # whether the backward pass computes the blocks again

    @property
    def ranks(self) -> int:
        return self.nodes * self.devices

    @property
    def gpus(self) -> int:
        """GPUs of each node; 0 if the run trains on CPUs."""
        return self.devices if self.kind == "cuda" else 0


def placement(config: RunConfig, gpus_per_run: int = 1) -> Placement:
    """The placement of a run; `gpus_per_run` counts if trainer.devices is auto. UserError if that is not a number."""
    kind = kind_of(config.value("trainer.accelerator", "auto"))
    devices = config.value("trainer.devices", "auto")
    if devices in ("auto", -1, "-1"):
        devices = max(gpus_per_run, 1) if kind == "cuda" else 1
    if not str(devices).isdigit() or int(devices) < 1:
        raise UserError(f"--trainer.devices {devices}: a study chooses the GPUs itself: give their number, or auto")
    nodes, devices = config.value("trainer.num_nodes", 1), int(devices)
    strategy = config.value("trainer.strategy.class_path") or config.value("trainer.strategy", "auto")
    shards = config.value("trainer.strategy.shard_group", nodes * devices) if strategy in ("fsdp2", "lrec.FSDP2") else 1
    accumulation = config.value("trainer.accumulate_grad_batches", 1)
    checkpointing = bool(config.value("model.checkpoint_activations", False))
    named = str(config.value("trainer.precision", "32-true"))
    if named == "auto":
        named = auto_precision(kind) if kind == "cpu" or here() else "bf16-mixed"
    precision: Precision = "bf16-true" if named in ("bf16-true", "16-true") else "32-true"
    if config.value("trainer.strategy.param_dtype") is not None or named in ("bf16", "bf16-mixed", "16", "16-mixed"):
        precision = "bf16-mixed"
    return Placement(kind, nodes, devices, shards, accumulation, precision, checkpointing)


def here() -> tuple[str, ...]:
    """The GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them: those before a -1."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        names = [name.strip() for name in named.split(",") if name.strip()]
        return tuple(takewhile(lambda name: name != "-1", names))
    import torch

    return tuple(str(number) for number in range(torch.cuda.device_count()))
