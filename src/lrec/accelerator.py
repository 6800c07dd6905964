"""What `trainer.accelerator` names: the CPU or GPUs."""

from typing import Literal

Kind = Literal["cpu", "cuda"]


def kind_of(accelerator: str) -> Kind:
    """The device that training with this option takes; for `auto`, a GPU if this machine has one."""
    if accelerator == "auto":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cuda" if accelerator in ("gpu", "cuda") else "cpu"
