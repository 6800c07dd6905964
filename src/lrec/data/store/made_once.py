"""Arrays that one process of a machine makes, and all of them map into memory."""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lrec.common.files import file_hash, json_hash, locked, replacing
from lrec.data.store.store import Store

Arrays = dict[str, np.ndarray]


def made_once(folder: Path, name: str, make: Callable[[], Arrays]) -> Arrays:
    """What `make` gives, from the files of that name in the folder, which the first process writes."""
    mine = folder / name
    if not mine.exists():
        with locked(folder / f".{name}.lock"):
            if not mine.exists():
                made = make()
                with replacing(mine) as unfinished:
                    unfinished.mkdir()
                    for each, values in made.items():
                        np.save(unfinished / f"{each}.npy", values)
    return {file.stem: np.asarray(np.load(file, mmap_mode="r")) for file in mine.glob("*.npy")}


def made_beside(store: Store, what: str, options: Any, make: Callable[[], Arrays]) -> Arrays:
    """The same, beside the store, or among this machine's temporary files where nothing can be written there; of this
    store, these options and lrec's code as it is now."""
    name = f"{what}-{json_hash([store.hash, options, _code_hash()])[:16]}"
    with suppress(OSError):
        return made_once(store.path / "made", name, make)
    with suppress(OSError):
        return made_once(shared_folder(store.hash[:16]), name, make)
    return make()


@cache
def _code_hash() -> str:
    return json_hash([file_hash(file) for file in sorted(Path(__file__).parents[2].rglob("*.py"))])


def shared_folder(token: str) -> Path:
    """A folder of this user's on this machine for processes that have the same token; it goes with its maker."""
    folder = Path(tempfile.gettempdir()) / f"lrec-plans-{os.getuid()}-{token}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if folder.stat().st_uid != os.getuid():
            raise
    else:
        atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, maker: int) -> None:
    if os.getpid() == maker:  # not a process that was forked from it
        shutil.rmtree(folder, ignore_errors=True)
