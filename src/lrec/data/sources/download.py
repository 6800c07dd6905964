"""Fetch files: one over HTTP, or all that a URL names, through fsspec. Only whole files are put in place."""

import glob
import hashlib
import re
import shutil
import sys
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from lrec.common.files import locked, read_json, replacing, write_json
from lrec.errors import UserError

# Path turns s3://bucket into s3:/bucket.
_URL = re.compile(r"([a-z][a-z0-9+]+):/+(.+)")


def fetch(url: str, path: Path) -> None:
    """Download `url` to `path` unless `path` exists. Processes that want the same file wait for the first. The file's
    size is checked, and also its MD5 if the server has a file `url`.md5."""
    if path.exists():
        return
    try:
        with locked(path.parent / ".lock"):
            if path.exists():
                return
            md5 = _published_md5(url)
            with replacing(path) as unfinished:
                with _open(url) as response, unfinished.open("wb") as file:
                    total = int(response.headers["Content-Length"] or 0)
                    print(f"fetching {url}: {total / 1e6:,.1f} MB", file=sys.stderr)
                    shutil.copyfileobj(response, file)
                if (received := unfinished.stat().st_size) != total:
                    raise ConnectionError(f"the connection ended after {received} of {total} bytes")
                with unfinished.open("rb") as file:
                    found = hashlib.file_digest(file, "md5").hexdigest()
                if md5 not in (None, found):
                    raise ConnectionError(f"its MD5 is {found} where {md5} is published")
    except (OSError, HTTPException) as error:
        said = f"{url} cannot be fetched ({error}): run again, or fetch it elsewhere and put it at {path}"
        raise UserError(said) from None


def _published_md5(url: str) -> str | None:
    try:
        with _open(f"{url}.md5") as response:
            match = re.search(rb"\b[0-9a-fA-F]{32}\b", response.read(1 << 20))
    except HTTPError as error:
        if error.code == 404:
            return None
        raise
    return match[0].decode().lower() if match else None


def _open(url: str) -> Any:
    return urlopen(Request(url, headers={"User-Agent": "lrec"}), timeout=30)


def url_of(path: Path | str) -> str | None:
    match = _URL.fullmatch(str(path))
    root = "/" if match and match[1] in ("file", "local") else ""  # these have no host before the path
    return f"{match[1]}://{root}{match[2]}" if match else None


def place_of(url: str, folder: Path) -> Path:
    """The local path to which `copy_here` copies the file or folder of a URL."""
    return folder / url.replace("://", "/")


def copy_here(url: str, folder: Path) -> None:
    """Copy a file, a folder or the matches of a glob to `place_of(url, folder)`. Unchanged files are not copied again;
    files that the URL no longer has are removed. Processes that want the same folder wait for the first."""
    import fsspec

    try:
        with locked(folder / ".lock"):
            known = read_json(folder / "copied.json", {}).get("files", {})  # several URLs may name a file
            system, root = fsspec.url_to_fs(url)
            here, checksums = place_of(url, folder), dict[str, str]()
            for file, place in _files_at(system, root, here).items():
                name = str(place.relative_to(folder))
                checksums[name] = str(system.checksum(file))
                if known.get(name) == checksums[name] and place.exists():
                    continue
                print(f"fetching {file}: {system.size(file) / 1e6:,.1f} MB", file=sys.stderr)
                with replacing(place) as unfinished:
                    system.get_file(file, str(unfinished))
            # The folder's own name may have brackets.
            named = glob.glob(str(here.relative_to(folder)), root_dir=folder, recursive=True)
            for name in known.keys() - checksums.keys():
                if any(Path(name).is_relative_to(each) for each in named):
                    (folder / name).unlink(missing_ok=True)
            write_json(folder / "copied.json", {"files": known | checksums})
    except FileNotFoundError:
        raise UserError(f"{url} does not exist") from None
    except ImportError as error:
        raise UserError(f"{url} cannot be read: {error} (pip install 'lrec[cloud]')") from None
    except Exception as error:  # each file system has its own errors
        raise UserError(f"{url} cannot be fetched ({type(error).__name__}: {error})") from None


def _files_at(system: Any, root: str, here: Path) -> dict[str, Path]:
    """The files that `root` names in a file system, each with its local path; that of `root` itself is `here`."""
    parts = root.rstrip("/").split("/")
    has_magic = glob.has_magic(root) and not root.startswith("http")
    n_fixed = next((n for n, part in enumerate(parts) if has_magic and glob.has_magic(part)), len(parts))
    above, top = "/".join(parts[:n_fixed]), here.parents[len(parts) - n_fixed - 1] if has_magic else here
    matches = system.glob(root) if has_magic else [root]
    found = [file for match in matches for file in ([match] if system.isfile(match) else system.find(match))]
    if not found:
        raise FileNotFoundError
    if climbing := [file for file in found if ".." in file.split("/")]:
        raise ValueError(f"{climbing[0]} leads out of the folder")
    return {file: top / file.removeprefix(above).lstrip("/") for file in found}
