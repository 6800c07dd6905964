"""The processes that share the scoring: those of torchrun, or this one alone.

Each scores every n-th batch, the same batches whatever their number, so that the numbers do not depend on it.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import distributed

Batch = TypeVar("Batch")


@contextmanager
def processes() -> Iterator[None]:
    """Join the other processes if torchrun started this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    distributed.init_process_group("gloo")  # only numbers travel, and those lie on the CPU
    try:
        yield
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


def leads() -> bool:
    """Whether this is the process that writes and prints the results."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def device() -> torch.device:
    """Where this process scores: on a GPU of its own if there is one."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def share_of(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The batches that this process scores."""
    if not distributed.is_initialized():
        return iter(batches)
    return islice(batches, distributed.get_rank(), None, distributed.get_world_size())


def together(values: np.ndarray) -> np.ndarray:
    """The sum over all processes; each has zeros where others have values."""
    if not distributed.is_initialized():
        return values
    total = torch.from_numpy(values.copy())
    distributed.all_reduce(total)
    return total.numpy()
