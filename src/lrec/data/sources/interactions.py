"""InteractionsDataModule: interactions in any CSV, TSV, JSON lines, Parquet or one-user-per-line files."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import chain, takewhile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl

from lrec.data.datamodule import SequenceDataModule
from lrec.data.formats.parsing import Table
from lrec.data.formats.readers import Columns, Format, format_of, infer_format, read_table, to_interactions
from lrec.data.store.prepare import RawInteractions, source_hashes
from lrec.errors import UserError

_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_LONGEST_NAME = 100  # bytes; file systems allow 255, with the hash and what a temporary name adds


class InteractionsDataModule(SequenceDataModule):
    """Interactions from files with any column names, plain or compressed (.gz, .xz, .zst)."""

    columns = Columns("user", "item", "timestamp")

    def __init__(
        self,
        path: Path | None = None,
        format: Format | None = None,
        user_column: str = "user",
        item_column: str = "item",
        time_column: str | None = "timestamp",
        domain_column: str | None = None,
        rating_column: str | None = None,
        min_rating: float | None = None,
        event_column: str | None = None,
        target_events: list[str] | None = None,
        **options: Any,
    ) -> None:
        """Name the files and their columns; the format `lines` (user item item ...) has no column names.

        Args:
            path: A file, a folder (with its subfolders) or a glob, or a URL of one of these, such as s3://bucket/logs.
                Folders named column=value add a column. With the option store, no path is needed.
            format: csv, tsv, jsonl, parquet or lines; by default, it follows from the file's name.
            user_column: Column of the user's id.
            item_column: Column of the item's id.
            time_column: Column of the time: seconds, milliseconds or ISO dates; null if rows are in time order.
            domain_column: Column of the item's domain.
            rating_column: Column of the rating, for min_rating.
            min_rating: Keep only interactions with at least this rating.
            event_column: Column of the type of event, such as view or buy. The network reads this type with the item.
                Null for none.
            target_events: Types of event whose items the network predicts, in training and in evaluation; null for all.
        """
        super().__init__(**options)
        if path is None and self.given_store is None:
            raise UserError("name your interactions (option path), or a prepared store of them (option store)")
        if min_rating is not None and rating_column is None:
            raise UserError("min_rating needs rating_column, the name of the column it is compared with")
        if user_column == item_column:
            raise UserError(f"user_column and item_column are both {user_column}: name two columns")
        if target_events is not None and (not target_events or (event_column is None and self.given_store is None)):
            raise UserError("data.target_events needs data.event_column, and at least one of its types")
        self.path = self.local(path or Path())
        self.format = format
        self.columns = Columns(user_column, item_column, time_column, domain_column, rating_column, event_column)
        self.min_rating = min_rating
        self.target_events = target_events

    @property
    def store_name(self) -> str:
        name = re.sub(r"[^\w-]+", "_", self.path.name.split(".")[0]).strip("_") or "interactions"
        return name.encode()[:_LONGEST_NAME].decode(errors="ignore")

    def source(self) -> dict[str, Any]:
        files = self._files()
        formats, partitions = [file_format for _, file_format in files], [_partition(file) for file, _ in files]
        columns = {key: name for key, name in vars(self.columns).items() if key != "event" or name is not None}
        hashes = source_hashes(self.data_dir, [file for file, _ in files])
        described: dict[str, Any] = {"kind": "interactions", "files": hashes, "formats": formats}
        described |= {"columns": None if set(formats) == {"lines"} else columns, "min_rating": self.min_rating}
        return described | ({"partitions": partitions} if any(partitions) else {})

    def read(self) -> RawInteractions:
        files = self._files()
        tables = chain.from_iterable(_read(file, file_format, self.columns) for file, file_format in files)
        are_lines = files[0][1] == "lines"
        columns = replace(self.columns, user="user", item="item", time=None) if are_lines else self.columns
        return to_interactions(tables, columns, self.min_rating, features=self.feature_columns)

    def _files(self) -> list[tuple[Path, Format]]:
        parts = self.path.parts
        n_fixed = len(parts)
        if not self.path.exists():
            # Brackets in the name of a folder that exists are no pattern.
            here = [Path(*parts[: n + 1]) for n in range(n_fixed)]
            n_fixed = next(n for n, path in enumerate(here) if re.search(r"[*?]", path.name) or not path.exists())
        found = [self.path] if self.path.is_file() else sorted(_data_files(Path(*parts[:n_fixed]), parts[n_fixed:]))
        if self.path.is_dir() and self.format is None:
            found = [file for file in found if infer_format(file.name) is not None]
        # A file may have several names, such as links and matches of **: the first is taken.
        once = sorted({file.resolve(): file for file in reversed(found)}.values())
        if not once:
            problem = "holds no file of a known format" if self.path.is_dir() else "does not exist"
            raise UserError(f"{self.path} {problem} (option path)")
        files = [(file, format_of(file, self.format)) for file in once]
        if len({file_format == "lines" for _, file_format in files}) > 1:
            raise UserError(f"{self.path} mixes one-user-per-line files with others: choose the option format")
        return files


def _data_files(folder: Path, parts: Sequence[str], above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """The files in a folder that match the parts of a glob, and all files in the folders that match; without parts, all
    files. Wildcards match no name that starts with . or _, and ** no data_dir. Links to the folders `above` and files
    of lrec are left out. UserError for a link to nothing."""
    part, *rest = parts or ["**"]
    above = (*above, folder.resolve())
    if part == "**" and rest:
        yield from _data_files(folder, rest, above)
    for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
        is_hidden = entry.name.startswith((".", "_")) and entry.name[0] != part[0]
        if is_hidden or (part != "**" and not fnmatchcase(entry.name, part)):
            continue
        if entry.is_dir():
            is_data_dir = part == "**" and (entry / "sources.json").exists()
            if not is_data_dir and entry.resolve() not in above:
                yield from _data_files(entry, parts if part == "**" else rest, above)
        elif rest:
            continue
        elif not entry.exists():
            raise UserError(f"{entry} is a link to nothing: correct or remove it")
        elif entry.name != "sources.json" and not any((up / "offsets.npy").exists() for up in entry.parents[:2]):
            yield entry


def _partition(file: Path) -> dict[str, str | None]:
    """Columns and values from the column=value folders directly above a file."""
    named = takewhile(lambda name: "=" in name, (folder.name for folder in file.parents))
    pairs = (name.split("=", 1) for name in named)
    return {unquote(column): None if value == _NO_VALUE else unquote(value) for column, value in pairs}


def _read(file: Path, file_format: Format, columns: Columns) -> Iterator[Table]:
    for table in read_table(file, file_format, columns.integers):
        missing = {column: value for column, value in _partition(file).items() if column not in table.frame.columns}
        told = [pl.lit(value, dtype=pl.String).alias(column) for column, value in missing.items()]
        yield replace(table, frame=table.frame.with_columns(told))
