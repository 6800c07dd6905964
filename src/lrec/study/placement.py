"""What a run of a study trains on: processes, nodes, GPUs, and how its parameters lie on them, by its options."""

import os
from dataclasses import dataclass

from lrec.common.hardware import Kind, kind_of
from lrec.errors import UserError
from lrec.model.memory import Precision
from lrec.run import RunConfig


@dataclass(frozen=True)
class Placement:
    """What a run trains on.

    Attributes:
        kind: cpu or cuda.
        nodes: Machines.
        devices: Processes of a node, each with a GPU or on CPU cores.
        shards: Processes that share the blocks' parameters; 1: each holds the whole network.
        accumulation: Micro-batches of a step.
        precision: That of its steps, as `memory.of_step` names it.
        checkpointing: Whether blocks are computed again in the backward pass.
    """

    kind: Kind
    nodes: int
    devices: int
    shards: int
    accumulation: int
    precision: Precision
    checkpointing: bool

    @property
    def ranks(self) -> int:
        """All processes."""
        return self.nodes * self.devices

    @property
    def gpus(self) -> int:
        """GPUs of a node."""
        return self.devices if self.kind == "cuda" else 0


def placement(config: RunConfig, gpus_per_run: int = 1) -> Placement:
    """What a run trains on, with `gpus_per_run` where its devices are auto; UserError if they are no number either."""
    kind = kind_of(config.value("trainer.accelerator", "auto"))
    devices = config.value("trainer.devices", "auto")
    if devices in ("auto", -1, "-1"):
        devices = max(gpus_per_run, 1) if kind == "cuda" else 1
    if not str(devices).isdigit() or int(devices) < 1:
        raise UserError(f"--trainer.devices {devices}: a study chooses the GPUs itself: give their number, or auto")
    nodes, devices = config.value("trainer.num_nodes", 1), int(devices)
    strategy = config.value("trainer.strategy.class_path") or config.value("trainer.strategy", "auto")
    sharded = str(strategy) in ("fsdp2", "lrec.FSDP2")
    return Placement(
        kind,
        nodes,
        devices,
        config.value("trainer.strategy.shard_group", nodes * devices) if sharded else 1,
        config.value("trainer.accumulate_grad_batches", 1),
        _precision(config),
        bool(config.value("model.checkpoint_activations", False)),
    )


def here() -> tuple[str, ...]:
    """The GPUs of this machine that may be used, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip())
    import torch

    return tuple(str(number) for number in range(torch.cuda.device_count()))


def _precision(config: RunConfig) -> Precision:
    if config.value("trainer.strategy.param_dtype") is not None:
        return "bf16-mixed"
    match str(config.value("trainer.precision", "32-true")):
        case "bf16" | "bf16-mixed" | "16" | "16-mixed":
            return "bf16-mixed"
        case "bf16-true" | "16-true":
            return "bf16-true"
    return "32-true"
