"""Write a checkpoint (file or folder), from a copy in a thread if training is to go on. One rename completes it."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, distributed

from lrec.checkpoint.reading import CHECKSUM, ITEMS, ROWS, SHARDED, STATE, aside, change_leaves, checksum, checksum_of
from lrec.common.files import remove, replacing
from lrec.common.hardware import available_gib
from lrec.errors import UserError
from lrec.model.sharded_table import is_first_copy, is_sharded, local_range, local_rows

# The storage_options of Trainer.save_checkpoint for a save that it does not wait for.
IN_BACKGROUND = "in background"


def write(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a file. If that fails, the checkpoint before it is kept."""
    _set_aside_other_form(path, folder=False)
    with replacing(path) as temporary:
        _save_pt(checkpoint, temporary)
    remove(aside(path))


def shard_names(token: str, processes: int) -> list[str]:
    """Names of a folder's shards, one per process; `token` sets them apart from those of the checkpoint before."""
    return [f"{token}-{process:05d}-of-{processes:05d}.safetensors" for process in range(processes)]


class Save:
    """A checkpoint to be written in place of the one at its path: one process writes a file, or all processes together
    write a folder. If it holds copies, training may change the originals at the same time."""

    def __init__(
        self, path: Path, checkpoint: dict[str, Any], copied: bool, shards: list[str] | None = None, process: int = 0
    ) -> None:
        """Take this process's part of Lightning's checkpoint. `shards` are the `shard_names`, or None for a file. The
        first process also writes what is not sharded. The catalogue does not change, so it needs no copy."""
        self.path, self.copied = path, copied
        self.links: list[Path] = []  # further paths that will have the same files
        self._rows: dict[str, Tensor] = {}
        self._starts: dict[str, int] = {}

        def take(name: str, leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if not is_sharded(leaf):
                return leaf.detach().to("cpu", copy=True) if copied else leaf
            if is_first_copy(leaf):
                self._starts[name] = local_range(leaf).start
                self._rows[name] = local_rows(leaf).detach().to("cpu", copy=copied)
            return SHARDED, name, len(leaf)

        self._state = {
            key: value if key == ITEMS else change_leaves(value, key, take) for key, value in checkpoint.items()
        }
        self._shards, self._first = shards, process == 0
        if shards is not None:
            self._state["shards"] = shards
            self._shard = path / shards[process]
            self._new_state = path / f"{shards[0]}.{STATE}"

    def make_room(self) -> None:
        if self._shards is not None and self._first:
            _set_aside_other_form(self.path, folder=True)
            self.path.mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        """Write this process's part, in a thread, without talking to other processes. A file replaces the checkpoint
        before it at once; a folder does not replace it yet."""
        if self._shards is None:
            write(self.path, self._state)
            return
        places = json.dumps({"file": self._shard.name, "starts": self._starts})
        save_tensors(self._rows, self._shard, {ROWS: places, CHECKSUM: checksum(places, self._rows)})
        if self._first:
            _save_pt(self._state, self._new_state)

    def put_in_force(self) -> None:
        """After all processes have written: the first one renames, removes the checkpoint before it, and links."""
        if self._shards is not None and self._first:
            self._new_state.replace(self.path / STATE)
            remove(aside(self.path))
            _remove_others(self.path, self._shards)
        for path in self.links if self._first else []:
            link(self.path, path)

    def discard(self) -> None:
        """Remove what this process has written to a folder; a failed file leaves nothing behind."""
        if self._shards is not None:
            for file in (self._shard, self._new_state):
                file.unlink(missing_ok=True)


def link(checkpoint: Path, path: Path) -> None:
    """Put the same checkpoint at another path, too, by hard links (replacing one keeps the other), else by copies."""
    _set_aside_other_form(path, checkpoint.is_dir())
    pairs = [(checkpoint, path)]
    if checkpoint.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        parts = sorted(checkpoint.iterdir(), key=lambda file: file.name == STATE)  # state.pt is the last
        pairs = [(file, path / file.name) for file in parts]
    for file, place in pairs:
        with replacing(place) as temporary:
            try:
                os.link(file, temporary)
            except OSError:
                shutil.copyfile(file, temporary)
                flush(temporary)
    if checkpoint.is_dir():
        _remove_others(path, [place.name for _, place in pairs])
    remove(aside(path))


class Anywhere:
    """Whether something is true on any process of a gloo group, where nobody waits for a GPU; None: on this one."""

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
        """Whether it was true on any process at the last call, one training step ago, so that nobody waits for others.
        None at the first call, and after `now`. Without a group, whether it is true now."""
        if self._group is None:
            return mine
        before, anywhere = self._asked, torch.tensor(int(mine))
        self._asked = (anywhere, distributed.all_reduce(anywhere, distributed.ReduceOp.MAX, self._group, async_op=True))
        if before is None:
            return None
        before[1].wait()
        return bool(before[0].item())


class Saver:
    """Runs one save at a time. It is in force once all processes have written their parts and call `poll` or `join`. If
    one process cannot write, all of them raise a UserError, and the checkpoint before it is kept."""

    def __init__(self, group: Any = None) -> None:
        """All processes of a gloo group take part in every save; None: this process is alone."""
        self._anywhere = Anywhere(group)
        self._save: Save | None = None
        self._written: Future[None]
        self._afterwards: list[Callable[[], object]] = []

    def start(self, save: Save, background: bool) -> None:
        """Finish the previous save and write a checkpoint. In the background, do not wait for one that holds copies."""
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
        """Put the save under way at another path, too. Does nothing if no save is under way."""
        if self._save is not None:
            self._save.links.append(path)

    def afterwards(self, work: Callable[[], object]) -> None:
        """Do some work once the save under way is in force; never if no save is under way."""
        self._afterwards.append(work)

    def poll(self) -> None:
        """After a step: put the save under way in force if all processes have written. It does not wait for them."""
        if self._save is not None and self._anywhere.last_time(not self._written.done()) is False:
            self.join()

    def join(self) -> None:
        if self._save is None:
            return
        save, self._save = self._save, None
        self._together(save, self._written.result)
        self._together(save, save.put_in_force, discard=False)
        for work in self._afterwards:
            work()

    def _together(self, save: Save, work: Callable[[], object], discard: bool = True) -> None:
        failure: Exception | None = None
        try:
            work()
        except (OSError, RuntimeError, SafetensorError) as error:
            failure = error
        if self._anywhere.now(failure is not None):
            if discard:
                save.discard()
            reason = "another process failed" if failure is None else str(failure).splitlines()[0]
            way_out = "free some space" if os.strerror(errno.ENOSPC) in reason else "correct that"
            refusal = f"the checkpoint {save.path} could not be written ({reason}): an earlier one, if any, is kept"
            raise UserError(f"{refusal}; {way_out} and go on with --ckpt_path=last") from failure


def copy_fits(checkpoint: dict[str, Any], processes: int = 1) -> bool:
    """Whether half of the free memory has room for one copy per process."""
    leaves: list[Any] = []
    change_leaves(checkpoint, "", lambda _, leaf: leaves.append(leaf))
    size = sum(local_rows(leaf).nbytes for leaf in leaves if isinstance(leaf, Tensor))
    return processes * size <= available_gib() * 2**29


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file to the disk, with the permissions that this process gives to new files."""
    path.touch()
    mode = path.stat().st_mode  # safetensors would let only the owner read it
    save_file(tensors, path, metadata)
    path.chmod(mode)
    flush(path)


def flush(path: Path) -> None:
    """Make sure that the file is on the disk before anything refers to it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _save_pt(checkpoint: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(checkpoint | {CHECKSUM: checksum_of(checkpoint)}, file)
    except RuntimeError as error:  # torch raises it while it handles the OSError of a failed write
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
    flush(path)


def _set_aside_other_form(path: Path, folder: bool) -> None:
    """Move away a file where a folder is to be, or a folder where a file is: neither can replace the other at once."""
    if path.is_file() if folder else path.is_dir():
        remove(aside(path))
        path.rename(aside(path))


def _remove_others(folder: Path, shards: list[str]) -> None:
    for file in folder.iterdir():
        if file.name not in (STATE, *shards):
            file.unlink(missing_ok=True)
