"""Saves that training does not wait for: a copy of the checkpoint is taken, and a thread writes it."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from lrec.checkpoint.agreement import Agreement
from lrec.checkpoint.format import mapped, not_written
from lrec.checkpoint.writer import Write
from lrec.common.hardware import available_gib
from lrec.model.parallelize import local

# What Trainer.save_checkpoint takes as storage_options for a save that it does not wait for.
IN_BACKGROUND = "in background"


class Saver:
    """One save at a time. It is in force once every process has written its part and has been asked (`poll`, `join`).

    Where a process could not write, all of them raise a UserError, and the checkpoint before stands.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._write: Write | None = None
        self._written: Future[None]
        self._agreement: Agreement
        self._afterwards: list[Callable[[], object]] = []

    def talk_over(self, group: Any) -> None:
        """All processes of a group of gloo take part in every save from now on."""
        self._group = group

    def start(self, write: Write, background: bool) -> None:
        """Write a checkpoint, once the save before is in force; in the background, return while it is being written."""
        self.join()
        self._agreement, self._afterwards = Agreement(self._group), []
        self._together(write, write.make_room)
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lrec-checkpoint")
        self._write, self._written = write, thread.submit(write.write)
        thread.shutdown(wait=False)
        if not background:
            self.join()
        elif not write.copied:
            wait([self._written])

    def also_as(self, path: Path) -> None:
        """Have the save under way at another path, too; nothing where this process has no part in it."""
        if self._write is not None:
            self._write.also.append(path)

    def then(self, work: Callable[[], object]) -> None:
        """Have something done once the save under way is in force; nothing where this process has no part in it."""
        self._afterwards.append(work)

    def poll(self) -> None:
        """After a step: put the save under way in force if all processes have written. Waits for nothing."""
        if self._write is not None and self._agreement.ask(not self._written.done()) is False:
            self.join()

    def join(self) -> None:
        """Wait for the save under way and put it in force."""
        if self._write is None:
            return
        write, self._write = self._write, None
        self._together(write, self._written.result)
        self._together(write, write.put_in_force)
        for work in self._afterwards:
            work()

    def abandon(self) -> None:
        """Leave the save under way, where the other processes may be gone: the checkpoint before stands."""
        self._write = None

    def _together(self, write: Write, work: Any) -> None:
        failure: Exception | None = None
        try:
            work()
        except (OSError, RuntimeError, SafetensorError) as error:
            failure = error
        if self._agreement.now(failure is not None):
            write.discard()
            raise not_written(write.path, failure) from failure


def copy_fits(checkpoint: dict[str, Any], processes: int = 1) -> bool:
    """Whether so many processes may each hold a copy: in half of the memory that is free."""
    n_bytes = 0

    def count(_: str, leaf: Any) -> None:
        nonlocal n_bytes
        if isinstance(leaf, Tensor):
            own = local(leaf)
            n_bytes += own.numel() * own.element_size()

    mapped(checkpoint, "", count)
    return processes * n_bytes <= available_gib() * 2**29
