"""The processes that evaluate together: the processes of torchrun or of a training, or only this one."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, distributed
from torch.distributed import ReduceOp

from lrec.model.sharded_table import PATIENCE_MINUTES

T = TypeVar("T")


@contextmanager
def processes() -> Iterator[None]:
    """Join the other processes if torchrun started this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    # gloo, because the processes exchange only numbers that are on the CPU.
    distributed.init_process_group("gloo", timeout=timedelta(minutes=PATIENCE_MINUTES))
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


def share_of(batches: Iterable[T]) -> Iterator[T]:
    """The batches that this process scores, every n-th. Batches do not depend on n, so results do not either."""
    return islice(batches, distributed.get_rank() if distributed.is_initialized() else 0, None, number())


def together(values: np.ndarray) -> np.ndarray:
    """The sum over all processes; each process has zeros where others have values."""
    return reduced(torch.from_numpy(values), "sum").numpy()


def reduced(values: Tensor, how: Literal["sum", "min"]) -> Tensor:
    """The sum over all processes, or the minimum of each element."""
    values = values.clone()
    if distributed.is_initialized():
        distributed.all_reduce(values, ReduceOp.SUM if how == "sum" else ReduceOp.MIN)
    return values


def of_first(value: T) -> T:
    shared = [value]
    if distributed.is_initialized():
        distributed.broadcast_object_list(shared)
    return shared[0]


def number() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1
