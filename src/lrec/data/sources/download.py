"""Files from the web: resumed where they were cut off, checked by size and MD5, in place only when whole."""

import hashlib
import re
import sys
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from lrec.common.files import locked
from lrec.errors import UserError

_BLOCK = 1 << 20
_TIMEOUT_S = 30


def fetch(url: str, path: Path) -> None:
    """Download `url` to `path` unless it is there; processes that want the same file wait for the first.

    What was received before a failure stays beside `path`, and the next call resumes from it unless the file changed on
    the server. The MD5 comes from the file `url`.md5, where the server has one.

    Raises:
        UserError: The file cannot be fetched whole; the message says where to put it by hand.
    """
    if path.exists():
        return
    try:
        with locked(path.parent / ".lock"):
            if not path.exists():
                _receive(url, path).replace(path)
    except (OSError, HTTPException) as error:
        raise UserError(
            f"{url} cannot be fetched ({error}): run again, or fetch it elsewhere and put it at {path}"
        ) from None


def _receive(url: str, path: Path) -> Path:
    """Download to a file beside `path`, which is returned whole and checked."""
    md5 = _published_md5(url)
    with _open(url, method="HEAD") as head:
        total = int(head.headers["Content-Length"] or 0)
        # A later edition under the same address must not be appended to an earlier one.
        edition = f"{total} {head.headers['ETag']} {head.headers['Last-Modified']}"
    part = path.with_name(f".{path.name}.{hashlib.sha256(edition.encode()).hexdigest()[:16]}.part")
    for other in path.parent.glob(f".{path.name}.*.part"):
        if other != part:
            other.unlink()
    received = _size(part)
    while received < total:
        failure: Exception | None = None
        try:
            _append(url, part, received, total)
        except (OSError, HTTPException) as error:
            failure = error
        before, received = received, _size(part)
        if received <= before:
            raise failure or ConnectionError(f"the connection ended after {received} of {total} bytes")
    if _size(part) != total or total == 0:
        part.unlink(missing_ok=True)
        raise ConnectionError(f"{received} bytes came where {total} were announced")
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if md5 not in (None, found):
        part.unlink()
        raise ConnectionError(f"its MD5 is {found} where {md5} is published")
    return part


def _published_md5(url: str) -> str | None:
    try:
        with _open(f"{url}.md5") as response:
            match = re.search(rb"\b[0-9a-fA-F]{32}\b", response.read(_BLOCK))
    except HTTPError as error:
        if error.code == 404:
            return None
        raise
    return match[0].decode().lower() if match else None


def _append(url: str, part: Path, start: int, total: int) -> None:
    """Receive what follows the first `start` bytes, or everything where the server does not support ranges."""
    with _open(url, Range=f"bytes={start}-") as response:
        resumed = response.status == 206
        if resumed and not response.headers["Content-Range"].startswith(f"bytes {start}-"):
            raise ConnectionError(f"the server sent {response.headers['Content-Range']} for the bytes from {start} on")
        with part.open("ab" if resumed else "wb") as file:
            received, shown = file.tell(), -1
            try:
                while block := response.read(_BLOCK):
                    file.write(block)
                    received += len(block)
                    shown = _show(url, received, total, shown)
            finally:
                if sys.stderr.isatty():
                    print(file=sys.stderr)


def _show(url: str, received: int, total: int, shown: int) -> int:
    """Write the share received to stderr where its percentage differs from the one shown; returns that shown now."""
    percent = received * 100 // total
    if percent != shown and (sys.stderr.isatty() or percent // 10 != shown // 10):
        text = f"fetching {url}: {percent} % of {total / 1e6:,.1f} MB"
        print(text, end="\r" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)
        return percent
    return shown


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _open(url: str, method: str = "GET", **headers: str) -> Any:
    return urlopen(Request(url, method=method, headers={"User-Agent": "lrec", **headers}), timeout=_TIMEOUT_S)
