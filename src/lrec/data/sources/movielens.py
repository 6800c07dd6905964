"""MovieLensDataModule: the official raw files of GroupLens (https://grouplens.org/datasets/movielens), in the layouts
that docs/data-reference.md lists by version."""

import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from lrec.data.datamodule import SequenceDataModule
from lrec.data.formats.parsing import Table, csv_tables
from lrec.data.formats.readers import Columns, to_interactions
from lrec.data.formats.streams import unpacked
from lrec.data.sources.download import fetch
from lrec.data.store.prepare import RawInteractions, source_hashes
from lrec.errors import UserError

# The address of ml-VERSION.zip and, for most versions, of ml-VERSION.zip.md5.
OFFICIAL = "https://files.grouplens.org/datasets/movielens"

Version = Literal["100k", "1m", "10m", "20m", "25m", "32m", "latest-small", "latest"]

_COLUMNS = Columns("userId", "movieId", "timestamp")
_VERSION = re.compile(r"ml-(latest-small|latest|100k|\d+m)", re.IGNORECASE)
_RATINGS = re.compile(r"(?!\.)(?:.*_)?(u\.data|ratings\.dat|ratings\.csv)(?:\.gz|\.xz|\.zst)?")
_SEPARATORS = {"u.data": "\t", "ratings.dat": "::", "ratings.csv": ","}


class MovieLensDataModule(SequenceDataModule):
    """MovieLens ratings. Each rating is an interaction, whatever its value. Without a file, lrec downloads the ratings
    from GroupLens."""

    columns = _COLUMNS

    def __init__(self, path: Path | None = None, version: Version | None = None, **options: Any) -> None:
        """Say where the ratings are, or which to download.

        Args:
            path: The ratings file (plain, .gz, .xz or .zst), the official zip or folder, or a folder that holds them;
                by default the official zip of the version in data_dir/raw, downloaded if it is not there.
            version: Version of MovieLens to download, or to choose if the folder contains several versions.
        """
        super().__init__(**options)
        if path is None and version is None and self.given_store is None:
            raise UserError("name the version of MovieLens to download (option version) or its file (option path)")
        self._download = f"{OFFICIAL}/ml-{version}.zip" if path is None and self.given_store is None else None
        self.path = self.data_dir / "raw" / f"ml-{version}.zip" if path is None else self.local(path)
        self.version = version

    def prepare_data(self) -> None:
        if self._download is not None:
            fetch(self._download, self.path)
        super().prepare_data()

    @property
    def store_name(self) -> str:
        # Without its file, the store can still be found.
        version = self.version or _version_of(self._file() if self.path.exists() else self.path)
        return f"ml-{version}" if version else "movielens"

    def source(self) -> dict[str, Any]:
        file = self._file()
        return {"kind": "movielens", "layout": _layout(file.name), "files": source_hashes(self.data_dir, [file])}

    def read(self) -> RawInteractions:
        file = self._file()
        tables = _read_zip(file) if file.suffix == ".zip" else _parse(unpacked(file), str(file))
        return to_interactions(tables, _COLUMNS, features=self.feature_columns)

    def _file(self) -> Path:
        if self.path.is_file():
            if _layout(self.path.name) is None and self.path.suffix != ".zip":
                names = "u.data, ratings.dat, ratings.csv nor *.zip"
                raise UserError(f"{self.path} is named neither {names} (option path)")
            return self.path
        if not self.path.is_dir():
            fetched = "(option path)" if self._download is None else "yet: `lrec data prepare` downloads it"
            raise UserError(f"{self.path} does not exist {fetched}")
        files = sorted(file for pattern in ("*", "*/*") for file in self.path.glob(pattern) if file.is_file())
        if self.version is not None:
            named = [file for file in files if _version_of(file) == self.version]
            files = named or [file for file in files if _version_of(file) is None]
        ratings = [file for file in files if _layout(file.name) is not None]
        # An unpacked data set often lies beside its zip.
        found = ratings or [file for file in files if file.suffix == ".zip" and _version_of(file)]
        wanted = "MovieLens ratings" if self.version is None else f"ratings of MovieLens {self.version}"
        if not found:
            raise UserError(f"{self.path} holds no {wanted} (u.data, ratings.dat, ratings.csv or the official zip)")
        if len(found) > 1:
            names = ", ".join(str(file.relative_to(self.path)) for file in found)
            raise UserError(f"{self.path} holds several {wanted}: {names}; name the file, or set the option version")
        return found[0]


def _version_of(file: Path) -> str | None:
    """The version in the file's name, or else in its folder's name; None if there is none."""
    match = _VERSION.search(file.name) or _VERSION.search(file.resolve().parent.name)
    return match[1].lower() if match else None


def _layout(name: str) -> str | None:
    match = _RATINGS.fullmatch(PurePosixPath(name).name)
    return match[1] if match else None


def _read_zip(file: Path) -> Iterator[Table]:
    """Parse the only ratings file of the zip, without unpacking it to disk."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = [name for name in archive.namelist() if _layout(name) is not None]
            if len(members) != 1:
                raise UserError(f"{file} holds {len(members)} MovieLens ratings files where one is expected")
            with archive.open(members[0]) as member:
                yield from _parse(iter(lambda: member.read(1 << 20), b""), f"{file}/{members[0]}")
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{file} is cut off or damaged: {error}; fetch it again") from None


def _parse(parts: Iterable[bytes], name: str) -> Iterator[Table]:
    layout = str(_layout(name))
    header = None if layout == "ratings.csv" else ["userId", "movieId", "rating", "timestamp"]
    return csv_tables(parts, name, _SEPARATORS[layout], header, _COLUMNS.integers)
