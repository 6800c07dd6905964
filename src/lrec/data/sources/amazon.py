"""AmazonDataModule: the Amazon review data of 2014, 2018 and 2023 (https://amazon-reviews-2023.github.io and before),
in the layouts that docs/data-reference.md lists by year. There is a file per domain, whose name contains the domain:
Books.csv, ratings_Books.csv, reviews_Books_5.json.gz and amazon2018_Books.csv.gz are all of the domain Books."""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl

from lrec.data.datamodule import SequenceDataModule
from lrec.data.formats.parsing import Table
from lrec.data.formats.readers import Columns, format_of, read_table, to_interactions
from lrec.data.store.prepare import RawInteractions, source_hashes
from lrec.errors import UserError

Year = Literal[2014, 2018, 2023]

_REVIEW = Columns("reviewerID", "asin", "unixReviewTime", rating="overall")
_COLUMNS = {2014: _REVIEW, 2018: _REVIEW, 2023: Columns("user_id", "parent_asin", "timestamp", rating="rating")}
# The fields of a ratings file without a header, by the names they have in the reviews.
_FIELDS = ["overall", "unixReviewTime"]
_HEADERS = {2014: ["reviewerID", "asin", *_FIELDS], 2018: ["asin", "reviewerID", *_FIELDS], 2023: None}
_ENDING = r"\.(?P<layout>csv|json|jsonl)(?:\.gz|\.xz|\.zst)?"
_NAME = re.compile(rf"(?!meta_|\.)(?:amazon\d+_)?(?:ratings_|reviews_)?(?P<domain>.+?)(?:_5)?{_ENDING}")
# Item ids have ten characters and begin with B or, for books, a digit; user ids begin with A.
_ITEM_ID = r"^[B0-9][A-Z0-9]{9}$"


class _File(NamedTuple):
    domain: str
    layout: str
    path: Path


class AmazonDataModule(SequenceDataModule):
    """Amazon reviews. Each review is an interaction, whatever its rating. All domains together make one history per
    user. A row that several files have counts as one interaction. An item in the files of several domains gets the
    domain whose name is first in the alphabet, and interactions of a user at the same time have this order too."""

    def __init__(self, path: Path, year: Year, domains: list[str] | None = None, **options: Any) -> None:
        """Say where the files are, and of which year and domains.

        Args:
            path: A file (ratings .csv, or reviews as .json or .jsonl; plain, .gz, .xz or .zst), or a folder of them.
            year: Edition of the data: 2014, 2018 or 2023.
            domains: Domains, as in the names of the files (Books, AMAZON_FASHION); by default, all domains in the
                folder.
        """
        super().__init__(**options)
        if domains is not None and not domains:
            raise UserError("domains is empty: leave it out to read all domains in the folder")
        self.path = self.local(path)
        self.year: Year = year
        self.domains = domains
        self.columns = _COLUMNS[year]

    @property
    def store_name(self) -> str:
        files = self._files()
        name = re.sub(r"[^\w-]+", "_", files[0].domain) if len(files) == 1 else "merged"
        return f"amazon{self.year}-{name}"

    def source(self) -> dict[str, Any]:
        files = self._files()
        hashes = source_hashes(self.data_dir, [file.path for file in files])
        described = [[file.domain, file.layout, digest] for file, digest in zip(files, hashes, strict=True)]
        return {"kind": "amazon", "year": self.year, "repeats": self.repeats, "files": described}

    def read(self) -> RawInteractions:
        tables = chain.from_iterable(self._tables(file) for file in self._files())
        return to_interactions(tables, _COLUMNS[self.year], features=self.feature_columns)

    def _tables(self, file: _File) -> Iterator[Table]:
        columns, file_format = _COLUMNS[self.year], format_of(file.path, None)
        tables = read_table(file.path, file_format, ["timestamp", "unixReviewTime"], _HEADERS[self.year])
        first = next(tables)
        if file.layout == "csv" and self.year != 2023:
            _refuse_other_year(first, self.year)
        found = first.frame.columns
        if missing := [each for each in (columns.user, columns.item, columns.time) if each not in found]:
            needed = f"which Amazon {self.year} has (option year)"
            raise UserError(f"{first.name} has no {missing[0]}, {needed}; its columns are {', '.join(found)}")
        for table in chain([first], tables):
            # Reviews leave out keys without a value, and ratings have only four columns.
            yield replace(table, keys_vary=True, domain=file.domain)

    def _files(self) -> list[_File]:
        """The files of the domains, in the order of the domains' names."""
        if not self.path.exists():
            raise UserError(f"{self.path} does not exist (option path)")
        candidates = self.path.iterdir() if self.path.is_dir() else [self.path]
        matches = [(_NAME.fullmatch(path.name), path) for path in candidates if path.is_file()]
        files = sorted(_File(match["domain"], match["layout"], path) for match, path in matches if match)
        if not files:
            raise UserError(f"{self.path}: no .csv, .json or .jsonl file of Amazon reviews is there (option path)")
        if self.domains is not None:
            known = {file.domain for file in files}
            if unknown := [domain for domain in self.domains if domain not in known]:
                raise UserError(f"{self.path} has no file of the domain {unknown[0]}, only {', '.join(sorted(known))}")
            files = [file for file in files if file.domain in self.domains]
        for one, other in pairwise(files):
            if one.domain == other.domain:
                several = f"several files of the domain {one.domain} ({one.path.name}, {other.path.name})"
                raise UserError(f"{self.path} has {several}: keep one of them in the folder, or choose other domains")
        return files


def _refuse_other_year(table: Table, year: int) -> None:
    """Refuse a file of another year: it has a header, or most users look like items and most items do not."""
    if "user_id" in table.frame.row(0):
        raise UserError(f"{table.name} has a header, as Amazon 2023 has: set the option year to 2023")
    ids = pl.col(_COLUMNS[year].user, _COLUMNS[year].item)
    users, items = table.frame.select(ids.str.contains(_ITEM_ID).mean().fill_null(0.0)).row(0)
    if users > 0.5 > items:
        other = 2014 if year == 2018 else 2018
        raise UserError(f"{table.name} has users where Amazon {year} has items: set the option year to {other}")
