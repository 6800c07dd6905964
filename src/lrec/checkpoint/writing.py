"""Writing a checkpoint, file or folder, in steps: what takes time may run in a thread beside training, of a copy, and
one rename ends it."""

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

# What Trainer.save_checkpoint takes as storage_options for a save that it does not wait for.
IN_BACKGROUND = "in background"


def write(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write a file; where that fails, the checkpoint before stands."""
    other_form = _set_aside(path) if path.is_dir() else None
    with replacing(path) as temporary:
        _save_pt(checkpoint, temporary)
    if other_form is not None:
        remove(other_form)


def shard_names(token: str, processes: int) -> list[str]:
    """The files of a folder, one a process, that `token` tells from those of the checkpoint before."""
    return [f"{token}-{process:05d}-of-{processes:05d}.safetensors" for process in range(processes)]


class Save:
    """A checkpoint that is about to be written, in place of the one at its path: a file by one process, or a folder by
    all of them together. Where it holds copies, training may change the originals meanwhile."""

    def __init__(
        self, path: Path, checkpoint: dict[str, Any], copied: bool, shards: list[str] | None = None, process: int = 0
    ) -> None:
        """Take this process's part of what Lightning makes: of `shard_names`, which are None for a file, that of its
        number; the first one also writes what is not sharded. The catalogue does not change, and needs no copy."""
        self.path, self.copied = path, copied
        self.links: list[Path] = []  # where else it will be, of the same files
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
        self._other_form: Path | None = None
        if shards is not None:
            self._state["shards"] = shards
            self._shard = path / shards[process]
            self._new_state = path / f"{shards[0]}.{STATE}"

    def make_room(self) -> None:
        if self._shards is not None and self._first:
            self._other_form = _set_aside(self.path) if self.path.is_file() else None
            self.path.mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        """Write this process's part, in a thread, without a word with other processes; the checkpoint before stands,
        but a file takes its place at once."""
        if self._shards is None:
            write(self.path, self._state)
            return
        places = json.dumps({"file": self._shard.name, "starts": self._starts})
        save_tensors(self._rows, self._shard, {ROWS: places, CHECKSUM: checksum(places, self._rows)})
        if self._first:
            _save_pt(self._state, self._new_state)

    def put_in_force(self) -> None:
        """Once all processes have written: let the first one rename, remove what was there before, and link."""
        if self._shards is not None and self._first:
            self._new_state.replace(self.path / STATE)
            if self._other_form is not None:
                remove(self._other_form)
            _remove_others(self.path, self._shards)
        for path in self.links if self._first else []:
            link(self.path, path)

    def discard(self) -> None:
        """Remove what this process has written; of a file nothing is left."""
        if self._shards is not None:
            for file in (self._shard, self._new_state):
                file.unlink(missing_ok=True)


def link(checkpoint: Path, path: Path) -> None:
    """Have a checkpoint at another path, too, of the same files: the disk holds it once, and replacing one keeps the
    other. Copied where the file system has no hard links."""
    folder = checkpoint.is_dir()
    other_form = _set_aside(path) if (path.is_file() if folder else path.is_dir()) else None
    if folder:
        path.mkdir(parents=True, exist_ok=True)
        shards = [file.name for file in checkpoint.iterdir() if file.name != STATE]
        for name in (*shards, STATE):
            _link_file(checkpoint / name, path / name)
        _remove_others(path, shards)
    else:
        _link_file(checkpoint, path)
    if other_form is not None:
        remove(other_form)


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


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file to the disk, for those to read who may read what this process writes."""
    path.touch()
    mode = path.stat().st_mode  # safetensors would leave it to its owner alone
    save_file(tensors, path, metadata)
    path.chmod(mode)
    flush(path)


def flush(path: Path) -> None:
    """Have the file on the disk before anything refers to it."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def not_written(path: Path, error: Exception | None) -> UserError:
    """What to say of a checkpoint that could not be written: by this process where there is an error, or by another."""
    reason = "another process failed" if error is None else str(error).splitlines()[0]
    way_out = "free some space" if os.strerror(errno.ENOSPC) in reason else "correct that"
    return UserError(
        f"the checkpoint {path} could not be written ({reason}): the one before it stands; "
        f"{way_out} and go on with --ckpt_path=last"
    )


def _save_pt(checkpoint: dict[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(checkpoint | {CHECKSUM: checksum_of(checkpoint)}, file)
    except RuntimeError as error:  # torch loses its place in a file that the system refuses to write
        raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
    flush(path)


def _set_aside(path: Path) -> Path:
    """Move away a checkpoint of the other form, which cannot be replaced in one step."""
    remove(aside(path))
    return path.rename(aside(path))


def _link_file(file: Path, path: Path) -> None:
    with replacing(path) as temporary:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copyfile(file, temporary)
            flush(temporary)


def _remove_others(folder: Path, shards: list[str]) -> None:
    for file in folder.iterdir():
        if file.name not in (STATE, *shards):
            file.unlink(missing_ok=True)
