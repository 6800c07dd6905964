"""Writing a checkpoint, file or folder, in steps: what takes time may run beside training, and one rename ends it."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.distributed.tensor import DTensor

from lrec.checkpoint.format import (
    CHECKSUM,
    ITEMS,
    PARTS,
    ROWS,
    SHARDED,
    STATE,
    checksum,
    flush,
    mapped,
    save_pt,
    save_tensors,
    set_aside,
    write_file,
)
from lrec.common.files import remove, replacing
from lrec.model.parallelize import Sharding
from lrec.model.sharded_table import held


class Write(Protocol):
    """A checkpoint that is about to be written (`FileWrite`, `FolderWrite`).

    Attributes:
        path: Where it will be.
        also: Where else, as links to the same files.
        copied: Whether it holds copies, so that training may change the originals meanwhile.
    """

    path: Path
    also: list[Path]
    copied: bool

    def make_room(self) -> None:
        """What has to be done before anything is written."""

    def write(self) -> None:
        """Write this process's part, in a thread, without a word with other processes; the checkpoint before stands."""

    def put_in_force(self) -> None:
        """Put it in the place of the one before: renames and links."""

    def discard(self) -> None:
        """Remove what was written."""


class FileWrite:
    """A file that is about to be written, by one process."""

    def __init__(self, path: Path, checkpoint: dict[str, Any], copied: bool = False) -> None:
        """Take a checkpoint as Lightning makes it, or a copy of it; the catalogue does not change, and needs none."""
        self.path, self.copied = path, copied
        self.also: list[Path] = []
        self._checkpoint = {
            key: mapped(value, key, _copy) if copied and key != ITEMS else value for key, value in checkpoint.items()
        }

    def make_room(self) -> None:
        """Nothing has to be done."""

    def write(self) -> None:
        """Write it and put it in force."""
        write_file(self.path, self._checkpoint)

    def put_in_force(self) -> None:
        """Link it."""
        for path in self.also:
            link(self.path, path)

    def discard(self) -> None:
        """Nothing is left of it."""


class FolderWrite:
    """A folder that is about to be written, together with all other processes."""

    def __init__(
        self, path: Path, checkpoint: dict[str, Any], sharding: Sharding, token: str, copied: bool = False
    ) -> None:
        """Take this process's part.

        Args:
            path: The folder; a checkpoint that is there is replaced.
            checkpoint: As Lightning makes it, with DTensors.
            sharding: Which rows this process holds.
            token: Names this checkpoint's files; the same on every process, another each time.
            copied: Take a copy.
        """
        self.path, self.copied = path, copied
        self.also: list[Path] = []
        self._tensors: dict[str, Tensor] = {}
        self._starts: dict[str, int] = {}

        def take(name: str, leaf: Any) -> Any:
            return _copy(name, leaf) if copied and not name.startswith(ITEMS) else leaf

        def take_rows(name: str, leaf: Any) -> Any:
            if not isinstance(leaf, DTensor):
                return take(name, leaf)
            if sharding.first_copy or all(placement.is_shard() for placement in leaf.placements):
                self._starts[name] = held(leaf).start
                self._tensors[name] = leaf.to_local().detach().to("cpu", copy=copied)
            return SHARDED, name, len(leaf)

        self._state = {
            key: mapped(value, key, take_rows if key in PARTS else take) for key, value in checkpoint.items()
        }
        n = sharding.processes
        self._state["shards"] = [f"{token}-{process:05d}-of-{n:05d}.safetensors" for process in range(n)]
        self._mine = path / self._state["shards"][sharding.process]
        self._new_state = path / f"{token}-{STATE}"
        self._leads = sharding.process == 0
        self._aside: Path | None = None

    def make_room(self) -> None:
        """Have the folder."""
        if self._leads:
            self._aside = set_aside(self.path) if self.path.is_file() else None
            self.path.mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        """Write this process's rows; the first process also writes what names them all."""
        text = json.dumps({"file": self._mine.name, "starts": self._starts})
        save_tensors(self._tensors, self._mine, {ROWS: text, CHECKSUM: checksum(text, self._tensors)})
        if self._leads:
            save_pt(self._new_state, self._state)

    def put_in_force(self) -> None:
        """Rename that, remove the files of the checkpoint before, and link."""
        if not self._leads:
            return
        self._new_state.replace(self.path / STATE)
        if self._aside is not None:
            remove(self._aside)
        _remove_others(self.path, self._state["shards"])
        for path in self.also:
            link(self.path, path)

    def discard(self) -> None:
        """Remove what this process has written."""
        for file in (self._mine, self._new_state):
            file.unlink(missing_ok=True)


def link(checkpoint: Path, path: Path) -> None:
    """Have a checkpoint at another path, too, of the same files: the disk holds it once, and replacing one keeps the
    other. Copied where the file system has no hard links."""
    if checkpoint.is_dir():
        aside = set_aside(path) if path.is_file() else None
        path.mkdir(parents=True, exist_ok=True)
        shards = [file.name for file in checkpoint.iterdir() if file.name != STATE]
        for name in shards:
            _link_file(checkpoint / name, path / name)
        _link_file(checkpoint / STATE, path / STATE)
        _remove_others(path, shards)
    else:
        aside = set_aside(path) if path.is_dir() else None
        _link_file(checkpoint, path)
    if aside is not None:
        remove(aside)


def _link_file(file: Path, path: Path) -> None:
    with replacing(path) as temporary:
        try:
            os.link(file, temporary)
        except OSError:
            shutil.copyfile(file, temporary)
            flush(temporary)


def _remove_others(folder: Path, shards: list[str]) -> None:
    """Remove the files of a folder that its checkpoint does not name."""
    for file in folder.iterdir():
        if file.name not in (STATE, *shards):
            file.unlink(missing_ok=True)


def _copy(_: str, leaf: Any) -> Any:
    return leaf.detach().to("cpu", copy=True) if isinstance(leaf, Tensor) else leaf
