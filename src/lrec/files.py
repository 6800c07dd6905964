"""Files that are whole or absent: written under a temporary name, then renamed. And their hashes and locks."""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrec.errors import UserError


def check_writable(path: Path, option: str) -> None:
    """Raise UserError where no file can be put at `path`: to be asked before hours of work, not after."""
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: name a file")
    _check_nearest(path, path.absolute().parents, option)


def check_folder(path: Path, option: str) -> None:
    """Raise UserError where `path` is no folder that can be written to, nor can be made one."""
    _check_nearest(path, [path.absolute(), *path.absolute().parents], option)


def _check_nearest(path: Path, above: Iterable[Path], option: str) -> None:
    nearest = next(folder for folder in above if folder.exists())
    if not nearest.is_dir():
        raise UserError(f"{option} {path}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{option} {path}: {nearest} cannot be written to")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success rename it to `path`, on failure remove it.

    The body may create a file or a folder there. An existing file is replaced; an existing folder must not be there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold an exclusive lock on a file and yield its descriptor; the system releases it with the last process that
    holds the descriptor."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_hash(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
