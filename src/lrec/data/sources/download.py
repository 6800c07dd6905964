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
    part.touch()
    while (before := part.stat().st_size) < total:
        failure: Exception | None = None
        try:
            _append(url, part, before, total)
        except (OSError, HTTPException) as error:
            failure = error
        received = part.stat().st_size
        if received <= before:
            raise failure or ConnectionError(f"the connection ended after {received} of {total} bytes")
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    problem = f"its MD5 is {found} where {md5} is published" if md5 not in (None, found) else ""
    if before != total or total == 0:
        problem = f"{before} bytes came where {total} were announced"
    if problem:
        part.unlink()
        raise ConnectionError(problem)
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
        terminal, shown = sys.stderr.isatty(), -1
        with part.open("ab" if resumed else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                tenth = (percent := file.tell() * 100 // total) // (1 if terminal else 10)
                if tenth != shown:
                    shown, text = tenth, f"fetching {url}: {percent} % of {total / 1e6:,.1f} MB"
                    print(text, end="\r" if terminal else "\n", file=sys.stderr, flush=True)
        if terminal:
            print(file=sys.stderr)


def _open(url: str, method: str = "GET", **headers: str) -> Any:
    return urlopen(Request(url, method=method, headers={"User-Agent": "lrec", **headers}), timeout=_TIMEOUT_S)
