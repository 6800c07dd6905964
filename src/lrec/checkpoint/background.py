"""Saves that training does not wait for: a copy of the checkpoint is taken, and a thread writes it."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, distributed

from lrec.checkpoint.format import change_leaves
from lrec.checkpoint.writing import Save, not_written
from lrec.common.hardware import available_gib
from lrec.model.sharded_table import local_rows

# What Trainer.save_checkpoint takes as storage_options for a save that it does not wait for.
IN_BACKGROUND = "in background"


class Anywhere:
    """Whether something is true on any process of a group of gloo, where nobody waits for a GPU; null: of this one."""

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self._asked: tuple[torch.Tensor, Any] | None = None

    def now(self, mine: bool) -> bool:
        self._asked = None
        if self._group is None:
            return mine
        anywhere = torch.tensor(int(mine))
        distributed.all_reduce(anywhere, distributed.ReduceOp.MAX, self._group)
        return bool(anywhere.item())

    def last_time(self, mine: bool) -> bool | None:
        """Whether it was true on any process at the last call, a step of training ago, so that nobody waits for the
        others; None at the first call. Alone: whether it is true."""
        if self._group is None:
            return mine
        before, anywhere = self._asked, torch.tensor(int(mine))
        self._asked = (anywhere, distributed.all_reduce(anywhere, distributed.ReduceOp.MAX, self._group, async_op=True))
        if before is None:
            return None
        before[1].wait()
        return bool(before[0].item())


class Saver:
    """One save at a time. It is in force once every process has written its part and has been asked (`poll`, `join`).

    Where a process could not write, all of them raise a UserError, and the checkpoint before stands.
    """

    def __init__(self, group: Any = None) -> None:
        """All processes of a group of gloo take part in every save; null: this process is alone."""
        self._anywhere = Anywhere(group)
        self._save: Save | None = None
        self._written: Future[None]
        self._afterwards: list[Callable[[], object]] = []

    def start(self, save: Save, background: bool) -> None:
        """Write a checkpoint, once the save before is in force; in the background, return while it is being written."""
        self.join()
        self._together(save, save.make_room)
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lrec-checkpoint")
        self._save, self._written, self._afterwards = save, thread.submit(save.write), []
        thread.shutdown(wait=False)
        if not background:
            self.join()
        elif not save.copied:
            wait([self._written])

    def link_to(self, path: Path) -> None:
        """Have the save under way at another path, too; nothing where this process has no part in it."""
        if self._save is not None:
            self._save.links.append(path)

    def afterwards(self, work: Callable[[], object]) -> None:
        """Have something done once the save under way is in force; nothing where this process has no part in it."""
        self._afterwards.append(work)

    def poll(self) -> None:
        """After a step: put the save under way in force if all processes have written. Waits for nothing."""
        if self._save is not None and self._anywhere.last_time(not self._written.done()) is False:
            self.join()

    def join(self) -> None:
        if self._save is None:
            return
        save, self._save = self._save, None
        self._together(save, self._written.result)
        self._together(save, save.put_in_force)
        for work in self._afterwards:
            work()

    def give_up(self) -> None:
        """Leave the save under way, where the other processes may be gone: the checkpoint before stands."""
        self._save = None

    def _together(self, save: Save, work: Callable[[], object]) -> None:
        failure: Exception | None = None
        try:
            work()
        except (OSError, RuntimeError, SafetensorError) as error:
            failure = error
        if self._anywhere.now(failure is not None):
            save.discard()
            raise not_written(save.path, failure) from failure


def copy_fits(checkpoint: dict[str, Any], processes: int = 1) -> bool:
    """Whether so many processes may each hold a copy: in half of the memory that is free."""
    leaves: list[Any] = []
    change_leaves(checkpoint, "", lambda _, leaf: leaves.append(leaf))
    size = sum(local_rows(leaf).nbytes for leaf in leaves if isinstance(leaf, Tensor))
    return processes * size <= available_gib() * 2**29
