"""Finds, on a CPU, the operators that would make the process wait for a GPU."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# These ask the device for a number, or for the number of elements.
_ASKS = {
    "_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "unique_consecutive", "unique_dim",
    "_unique", "_unique2", "bincount", "repeat_interleave", "allclose",
}  # fmt: skip
_INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_"}  # by a mask: asks how many entries are true
_COPIES = {"copy_", "_to_copy"}  # between host and device; seen if the device is the meta device


class HostWaits(TorchDispatchMode):
    """Records these operators while the mode is active.

    Attributes:
        seen: Their names.
        operators: The number of all operators, also those in `seen`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_truth = name in _INDEXES and any(each is not None and each.dtype == torch.bool for each in args[1])
        result = func(*args, **(kwargs or {}))
        places = {each.device.type for each in (*args, result) if isinstance(each, torch.Tensor)}
        if name in _ASKS or by_truth or (name in _COPIES and len(places) > 1):
            self.seen.append(str(func))
        self.operators += 1
        return result
