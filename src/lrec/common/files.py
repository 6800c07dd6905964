"""Files that are whole or absent: written under a temporary name, then renamed. Also hashes, locks and commits."""

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lrec.errors import UserError

_HOST = re.sub(r"\W", "-", socket.gethostname())
_HELD = set[int]()  # descriptors of the locks of this process


def check_writable(path: Path, option: str) -> None:
    """UserError if no file can be written at `path`. Call it before hours of work, not after."""
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder: name a file")
    check_folder(path.absolute().parent, option)


def check_folder(path: Path, option: str) -> None:
    """UserError if the folder cannot be written to, or cannot be made."""
    nearest = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not nearest.is_dir():
        raise UserError(f"{option} {path}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{option} {path}: {nearest} cannot be written to")


def sibling(folder: Path, ending: str) -> Path:
    """The folder beside `folder` with its name and an ending: runs/a-updated for runs/a."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(f"{named.name}-{ending}")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to `path`, for a file or a folder; on success rename it to `path`, on failure remove
    it. An existing file is replaced; a folder must not exist yet."""
    with temporary(path) as unfinished:
        yield unfinished
        os.replace(unfinished, path)


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Yield a path next to `path` that is removed at the end. Also remove such paths that killed processes have left.
    If the disk is full, the OSError names `path`, whichever library raised it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    of_this_machine = re.compile(rf"\.{re.escape(path.name)}\.{_HOST}\.(\d{{1,9}})\.[0-9a-f]{{8}}\.tmp")
    for other in path.parent.iterdir():
        if (found := of_this_machine.fullmatch(other.name)) and not _is_alive(int(found[1])):
            remove(other)
    unfinished = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield unfinished
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))  # libraries in Rust write the system's number so
        number = getattr(error, "errno", None) or (int(found[1]) if found else None)
        if number is None or getattr(error, "filename", None) is not None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        remove(unfinished)


def _is_alive(process: int) -> bool:
    try:
        with suppress(PermissionError):  # the process is another user's, and alive
            os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as possible; do nothing if it does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def locked(path: Path, refusal: str | None = None) -> Iterator[int]:
    """Hold an exclusive lock on a file and yield its descriptor. The system releases the lock when the last process
    with the descriptor ends; forked processes, such as the workers of a loader, close theirs. If another process has
    the lock, wait; with `refusal`, raise that as a UserError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # less the umask
    _HELD.add(lock)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if refusal is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(refusal) from None
        yield lock
    finally:
        _HELD.discard(lock)
        os.close(lock)


def _leave_to_parent() -> None:
    while _HELD:
        os.close(_HELD.pop())


os.register_at_fork(after_in_child=_leave_to_parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` to `path` as indented JSON, whole or not at all; see `finite`."""
    write_text(path, json.dumps(finite(value), indent=2) + "\n")


def finite(value: Any) -> Any:
    """The value as JSON can store it, with null for a number that is not finite."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def read_json(path: Path, default: Any = None) -> Any:
    """The value in a JSON file; `default` if the file does not exist, UserError if it is no JSON, as after a merge."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else default
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): restore or remove it") from error


@contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Use a value of `read_json`; UserError if it lacks an entry, or if an entry is of another kind."""
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error!r}): restore or remove it") from error


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_hash(value: Any) -> str:
    """SHA-256 of a value that JSON can hold, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def commit_of(folder: Path, file: str | None = None) -> str | None:
    """The commit of the git repository that a folder is in; None without one, or if the commit lacks the folder's
    `file`."""
    names = ["HEAD", *([f"HEAD:./{file}"] if file else [])]
    with suppress(OSError, subprocess.CalledProcessError):
        git = ["git", "-C", str(folder), "rev-parse", *names]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.split()[0]
    return None
