"""What items are called, from a file beside the interactions: MovieLens's movies, Amazon's metadata, any table."""

import re
from pathlib import Path

import polars as pl

from lrec.data.formats.readers import Columns, infer_format, read_bytes, read_table
from lrec.errors import UserError


def read_titles(path: Path, item_column: str | None = None, title_column: str = "title") -> pl.DataFrame:
    """Raw id and title of each item.

    Args:
        path: A CSV, TSV, JSON lines or Parquet file, plain or compressed; or MovieLens's movies.dat.
        item_column: Column of the raw ids; None for the file's first column.
        title_column: Column of the titles.

    Returns:
        Columns item and title, text; the first title of each item.

    Raises:
        UserError: there is no such file or column.
    """
    if re.search(r"movies\.dat(\.\w+)?$", path.name):
        rows = re.findall(r"^(\d+)::(.*)::[^:]*$", read_bytes(path).decode("latin-1"), re.MULTILINE)
        return pl.DataFrame(rows, schema={"item": pl.String, "title": pl.String}, orient="row")
    file_format = infer_format(path.name)
    if file_format is None or file_format == "lines":
        raise UserError(f"{path}: titles are read from .csv, .tsv, .jsonl and .parquet files and from movies.dat")
    found = []
    for table in read_table(path, file_format, Columns("", "")):
        frame = table.frame
        for column, option in ((item_column, "title_item_column"), (title_column, "title_column")):
            if column is not None and column not in frame.columns:
                listed = ", ".join(frame.columns)
                raise UserError(f"{path} has no column {column} (option {option}); its columns are {listed}")
        found.append(
            frame.select(
                pl.col(item_column or frame.columns[0]).cast(pl.String).alias("item"),
                pl.col(title_column).cast(pl.String).alias("title"),
            )
        )
    return pl.concat(found).drop_nulls().unique("item", keep="first", maintain_order=True)
