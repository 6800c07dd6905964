"""Arrays that one process of a machine makes, and all its processes map into memory."""

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np

from lrec.common.files import file_hash, json_hash, locked, replacing
from lrec.data.store.store import Store

Arrays = dict[str, np.ndarray]
SHARED_ROWS = 10**7  # a split of fewer rows takes hardly any time or memory


def made_once(folder: Path, name: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays that `make` returns. The first process writes them to `folder`/`name`; all processes map them."""
    mine = folder / name
    if not mine.exists():
        with locked(folder / f".{name}.lock"):
            if not mine.exists():
                with replacing(mine) as unfinished:
                    unfinished.mkdir()
                    for each, values in make().items():
                        np.save(unfinished / f"{each}.npy", values)
    return {file.stem: np.asarray(np.load(file, mmap_mode="r")) for file in mine.glob("*.npy")}


def made_if_large(store: Store, rule: object, what: str, options: Any, make: Callable[[], Arrays]) -> Arrays:
    """`made_beside` the store if a split of it takes time and memory: it has many rows. A user's own split rule is not
    shared: its code may change while its repr stays the same."""
    if type(store) is Store and type(rule).__module__.startswith("lrec.") and len(store.items_N) >= SHARED_ROWS:
        return made_beside(store, what, [repr(rule), options], make)
    return make()


def arrays_of(value: object) -> Arrays:
    """The attributes of an object that are arrays."""
    return {name: each for name, each in vars(value).items() if isinstance(each, np.ndarray)}


def made_beside(store: Store, what: str, options: Any, make: Callable[[], Arrays]) -> Arrays:
    """`made_once` in the store's folder, or in a temporary folder if the store's is not writable, or else in memory.
    The name depends on `what`, the store, the options and the current code of lrec."""
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
    """This user's temporary folder for processes with the same token; its maker removes it when it ends."""
    folder = Path(tempfile.gettempdir()) / f"lrec-plans-{os.getuid()}-{token}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if folder.stat().st_uid != os.getuid():
            raise
    else:
        # Unlike atexit, it also runs at the end of multiprocessing's processes, and not in forks of the maker.
        Finalize(None, shutil.rmtree, (folder, True), exitpriority=0)
    return folder
