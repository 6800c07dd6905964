"""`lrec recommend`: read a file of histories and write a file of recommendations, block by block."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import torch

from lrec.common.files import check_writable, replacing, temporary
from lrec.common.text_tables import counted
from lrec.data.formats.readers import Columns, Format, read_titles
from lrec.data.histories import Histories, histories_in
from lrec.data.store.long_work import Progress
from lrec.errors import UserError, check_range
from lrec.serving.export import load
from lrec.serving.recommender import Model

SHOWN = 10
# The value of an option that was not given (null is a value of its own); and fallback names of columns.
AUTO = "auto"
USUAL = {"user": "user", "item": "item", "time": "timestamp", "event": "event"}


def recommend(
    ckpt_path: Path,
    histories: Path,
    k: int = 10,
    exclude_seen: bool = True,
    user_column: str = AUTO,
    item_column: str = AUTO,
    time_column: str | None = AUTO,
    event_column: str = AUTO,
    format: Format | None = None,
    titles: Path | None = None,
    title_item_column: str | None = None,
    title_column: str = "title",
    out: Path | None = None,
    fallback: bool = True,
    now: str | None = None,
    item_vectors: Path | None = None,
    trust: bool = False,
) -> None:
    """Write the items that most likely come next for each user of a file; the users may be new to the network.

    Args:
        ckpt_path: A run's folder, one of its checkpoints, or what lrec export wrote.
        histories: File with a row per interaction; or with a row per user: a column of lists named items (Parquet, JSON
            lines), or `user item item ...` (.txt). Items that the model does not know are skipped and counted.
        k: Largest number of items in a list.
        exclude_seen: Leave out the items of the history.
        user_column: Column of the user's id; auto: named as in the training data, or user if the file has that
            instead.
        item_column: Column of the item's id, if a row is an interaction; auto: as in training, or item.
        time_column: Column of the time, if a row is an interaction; auto: as in training, or timestamp; null if rows
            are in time order.
        event_column: Column of the type of event, for networks that read it (data.event_column), if a row is an
            interaction; auto: as in training, or event. With a row per user, it is a column of lists named events.
        format: csv, tsv, jsonl, parquet or lines; by default lrec decides from the file's name.
        titles: File with a title per item (CSV, TSV, JSON lines, Parquet, or MovieLens's movies.dat).
        title_item_column: Column of item ids in the file of titles; by default the first column.
        title_column: Column of titles in the file of titles.
        out: File to write: .parquet or .jsonl with a row per user (user, items, scores, skipped, fallback; titles if
            given), or .csv with a row per recommendation. Without it, the lists of the first users are shown.
        fallback: If the model knows no item of a user's history, give the most popular items of the training data;
            false gives nothing.
        now: Time of the request, a number or an ISO date; only for networks with architecture.time request. These
            networks, and networks with past or input, need the time of each interaction; with a row per user, it is a
            column of lists named times.
        item_vectors: File with the vectors, or the features, of the items that the network was trained with
            (model.item_vectors, data.item_features) and of newer items, which may then be recommended.
        trust: Import classes that the checkpoint names and that are not lrec's own.
    """
    check_range("--k", k, at_least=1)
    if out is not None:
        if out.suffix not in WRITERS:
            raise UserError(f"--out {out}: its name must end in {', '.join(WRITERS)}")
        read = {"histories": histories, "titles": titles, "item_vectors": item_vectors}
        if lost := [name for name, path in read.items() if path is not None and path.resolve() == out.resolve()]:
            raise UserError(f"--out {out} is the file of --{lost[0]}: it would be lost")
        check_writable(out, "--out")
    model = load(ckpt_path, trust=trust, item_vectors=item_vectors)
    model.request_seconds(now)  # refused before the file is read
    if torch.cuda.is_available():
        model.net.to("cuda")
    names = None if titles is None else read_titles(titles, title_item_column, title_column)
    if names is not None and not names["item"].is_in(model.item_ids.implode()).any():
        raise UserError(f"--titles {titles} names no item of the model: see --title_item_column")
    given = {"user": user_column, "item": item_column, "time": time_column, "event": event_column}
    blocks = _blocks_of(model, histories, format, given)
    if out is None:
        blocks = (next(block.blocks(SHOWN)) for block in islice(blocks, 1))
    lists = (model.recommend(block, k, exclude_seen, fallback=fallback, now=now) for block in blocks)
    if names is not None:
        title = pl.element().replace_strict(names["item"], names["title"], default=None)
        lists = (rows.with_columns(titles=pl.col("items").list.eval(title)) for rows in lists)
    shown, counts = _write(lists, out)
    if shown is None:
        raise UserError(f"{histories} holds no history")
    _say(shown, counts, out)


def _blocks_of(model: Model, histories: Path, format: Format | None, given: dict[str, Any]) -> Iterator[Histories]:
    """The histories of a file, from the given columns, read in the same way as the training data."""
    if not model.reads_types:
        if given["event"] != AUTO:
            raise UserError("--event_column is only for networks that read types of event (data.event_column)")
        del given["event"]
    trained = model.about.get("columns") or USUAL
    columns = replace(_columns(given, trained), rating=trained.get("rating"))
    kinds = {each.column: each.kind == "numbers" for each in model.features}
    rules = (model.about.get("min_rating"), model.about.get("repeats", True), kinds)
    reads = (model.net.reads_times, model.reads_types)
    return histories_in(histories, format, columns, _columns(given, USUAL), *rules, *reads)


def _write(lists: Iterable[pl.DataFrame], out: Path | None) -> tuple[pl.DataFrame | None, Counter[str]]:
    """Write the lists after all are computed; returns the first lists, and counts of users and of skipped items."""
    shown, counts, progress = None, Counter[str](), Progress()
    progress.stage("recommend")
    with temporary(Path(tempfile.gettempdir()) / "lrec-recommend") as folder:
        folder.mkdir(mode=0o700)
        for rows in lists:
            rows.write_parquet(folder / f"{counts['users']:015d}.parquet")
            shown = rows.head(SHOWN) if shown is None else shown
            found = rows.select("skipped", "fallback", empty=pl.col("items").list.len() == 0).sum()
            counts.update(found.row(0, named=True), users=len(rows))
            progress.add(len(rows))
        progress.finish()
        if out is not None and shown is not None:
            with replacing(out) as whole:
                WRITERS[out.suffix](pl.scan_parquet(sorted(folder.iterdir()), glob=False), whole)
    return shown, counts


def _say(shown: pl.DataFrame, counts: Counter[str], out: Path | None) -> None:
    """Print the first lists, and what was written."""
    for row in shown.iter_rows(named=True):
        listed = [title or item for title, item in zip(row.get("titles") or row["items"], row["items"], strict=True)]
        print(f"{row['user']}: {', '.join(listed) or 'nothing'}")
    written = f"{counted(counts['users'], 'user')} written to {out}"
    done = "the first users of the file, --out writes all" if out is None else written
    print(f"{done}; {counted(counts['skipped'], 'unknown item')} of the histories skipped")
    if counts["fallback"]:
        print(f"popular items for {counted(counts['fallback'], 'user')}: the model knows no item of the history")
    if counts["empty"]:
        whose = counted(counts["empty"], "user")
        print(f"nothing for {whose}: the model knows no item of the history, or nothing unseen is left")


def _columns(given: dict[str, Any], defaults: dict[str, Any]) -> Columns:
    return Columns(**{key: defaults[key] if name == AUTO else name for key, name in given.items()})


def _write_csv(rows: pl.LazyFrame, path: Path) -> None:
    lists = [name for name in ("items", "scores", "titles") if name in rows.collect_schema()]
    rows = rows.filter(pl.col("items").list.len() > 0)
    rows = rows.with_columns(rank=pl.int_ranges(1, pl.col("items").list.len() + 1)).explode("rank", *lists)
    rows.select("user", "rank", *(pl.col(name).alias(name.removesuffix("s")) for name in lists)).sink_csv(path)


WRITERS: dict[str, Any] = {
    ".parquet": pl.LazyFrame.sink_parquet,
    ".jsonl": pl.LazyFrame.sink_ndjson,
    ".csv": _write_csv,
}
