"""What the processes of a run ask each other on the CPU: whether something is true on any of them."""

from typing import Any

import torch
from torch import distributed


class Agreement:
    """A question that all processes ask together, over gloo: nobody waits for a GPU.

    `ask` does not wait for the others either: the answer comes with the next call, a step of training later.
    """

    def __init__(self, group: Any = None) -> None:
        """Ask a process group of gloo; null: this process is alone."""
        self._group = group
        self._asked: tuple[torch.Tensor, Any] | None = None

    def ask(self, here: bool) -> bool | None:
        """Whether it was true on any process at the call before, None at the first; alone: whether it is true."""
        if self._group is None:
            return here
        before = self._asked
        somewhere = torch.tensor(int(here))
        work = distributed.all_reduce(somewhere, distributed.ReduceOp.MAX, self._group, async_op=True)
        self._asked = somewhere, work
        if before is None:
            return None
        before[1].wait()
        return bool(before[0].item())

    def now(self, here: bool) -> bool:
        """Whether it is true on any process; waits for all of them."""
        if self._group is None:
            return here
        somewhere = torch.tensor(int(here))
        distributed.all_reduce(somewhere, distributed.ReduceOp.MAX, self._group)
        return bool(somewhere.item())
