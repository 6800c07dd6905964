"""Scaling points: reads tables of (size, loss) from lrec's own runs or from anywhere else."""

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl

from lrec.errors import UserError
from lrec.laws.table import COLUMNS
from lrec.run import POINTS, find_points

# A table with all OWN_COLUMNS is lrec's own points.jsonl. HELPERS are read only to choose among points. RUN tells runs
# apart, because runs of several studies may have the same name.
OWN_COLUMNS, HELPERS = {"schema", "best", "status"}, {"N", "seed", "data_hash", "ended", "steps"}
RUN = "study", "run", "data_hash"
# Figures that are not read as metrics: of baselines, of validation, and those of the test that size need not improve.
NO_METRICS = re.compile(r"test/(.*/.*|(coverage|popularity)@.*|loss|targets.*|.*_(se|by_user|warm))|(?!test/).*")
# The largest size, amount of data or loss; 1 / LARGEST is the smallest. Laws multiply powers of these numbers.
LARGEST = 1e100
# Numbers that lrec's own points may lack. Those that are positive if they are known.
_POSITIVE = "N_body", "D", "U", "flops", "wall_s", "horizon"
_NUMBERS = *_POSITIVE, "seed", "step", "val_loss"
# A run is over-fitted if its last validation loss is more than this many times its best one.
ROSE = 1.001
# With more passes over the data than this, a run counts as one with repeated data: up to four passes are nearly as
# good as new data (arXiv 2305.16264).
REPEATED = 4.0
# Among runs of several lengths, a shorter one with fewer steps is left out: it only shows how training begins.
LEAST_STEPS = 300


def read_points(
    paths: Sequence[Path],
    x: str = "N_body",
    y: str = "test_loss",
    d: str | None = None,
    u: str | None = None,
    shares: bool = False,
) -> pl.DataFrame:
    """The points to fit, from files (.jsonl, .csv, .tsv, .parquet) and every points.jsonl under folders.

    Of lrec's own points, only the best evaluation of each run that did not diverge is used. Without `d`, a law of one
    variable holds at a fixed value of the other: if x is a size, only runs with the most unique targets U are used; if
    x is D or U, only runs of the largest size. If x is flops, only the best runs with the most U are used: no run is as
    good with fewer FLOPs. If x is a size, `shares` keeps every amount of data for a forecast, but only if a run made
    more than `REPEATED` passes. With fewer passes, a smaller data sample is only a shorter training, and does not show
    at which size the loss stops falling.

    The columns are x, y, file, row and may_stop; also d and u if you name them. lrec's own points also have d and u (D
    and U), processed (D), flops, wall_s, the test's metrics, and overfitted: whether the validation loss rose again
    after its best value. Other tables keep their column `run`: points of one run share its noise (`contrast`).

    Raises UserError if there is no usable point; if a value is not a positive number; if lrec's own points with the
    same amount of data have different data; or if x is a size and two runs have the same size, data and seed.
    """
    columns = {name: column for name, column in (("x", x), ("y", y), ("d", d), ("u", u)) if column is not None}
    frames = [_read_file(file, columns) for file in _files(paths)]
    points = pl.concat([frame for frame, _ in frames], how="diagonal")
    if points.is_empty():
        raise UserError(f"{paths[0]}: no usable point: wait until a run has finished without divergence")
    _check_data(points)
    if d is None and all(own for _, own in frames):
        points = _comparable(_of_lengths(points, x, shares), x, shares and _may_stop(points, x))
    points = points.with_columns(may_stop=_may_stop(points, x))
    known = [name for name in points.columns if points[name].null_count() < len(points) and name not in HELPERS]
    return points.select(known).sort("x", "y", "file", "row")


def _files(paths: Sequence[Path]) -> list[Path]:
    if not paths:
        raise UserError("--points: name at least one file or folder")
    files: dict[Path, Path] = {}  # by resolved path, so that a file named twice counts once
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        if not (found := find_points(path) if path.is_dir() else [path]):
            raise UserError(f"{path}: no {POINTS} in or under this folder; name a folder of runs, or a file")
        files |= {file.resolve(): file for file in found}
    return list(files.values())


def _read_file(file: Path, columns: Mapping[str, str]) -> tuple[pl.DataFrame, bool]:
    """The points of one file, with a column for each field that a point may have; and whether it is lrec's own."""
    rows = _read_rows(file)
    if not rows:
        raise UserError(f"{file}: the file holds no rows")
    present = dict.fromkeys(column for _, row in rows for column in row)
    for name, column in columns.items():
        if column not in present:
            raise UserError(f"{file}: no column '{column}' (--{name}); it has {', '.join(present)}")
    own = present.keys() >= OWN_COLUMNS
    if own and file.suffix in {".csv", ".tsv"}:  # where every value is text
        way_out = f"keep a row for each run, and leave out the columns {', '.join(sorted(OWN_COLUMNS))}"
        raise UserError(f"{file}: lrec's own points are read from .jsonl or .parquet files; or {way_out}")
    known = [_checked(f"{file}, row {number}", row) if own else row for number, row in rows]
    last_of_run = {tuple(map(row.get, RUN)): row for row in known} if own else {}
    points = []
    for (number, given), row in zip(rows, known, strict=True):
        if not own or (row.get("best") is True and row.get("status") != "diverged"):
            point = _own(row, last_of_run[*map(row.get, RUN)]) if own else {"run": row.get("run") and str(row["run"])}
            point |= {name: _positive(file, number, column, given.get(column)) for name, column in columns.items()}
            points.append(point | {"file": str(file), "row": number})
    metrics = dict.fromkeys(name for point in points for name in point if name not in {*COLUMNS, *HELPERS})
    numbers = ("x", "y", "d", "u", "processed", "horizon", "ended", "steps", "flops", "wall_s", *metrics, "N")
    schema: dict[str, type[pl.DataType]] = dict.fromkeys(numbers, pl.Float64)
    schema |= {"seed": pl.Int64, "overfitted": pl.Boolean, "row": pl.Int64}
    schema |= dict.fromkeys(("data_hash", "run", "file"), pl.String)
    return pl.DataFrame(points, schema=schema, strict=False), own


def _own(row: dict[str, Any], last: dict[str, Any]) -> dict[str, Any]:
    """The fields that lrec's own points have besides the requested columns; None if a field is missing. `last` is the
    last evaluation of the same run."""
    best, last_val_loss, metrics = row.get("val_loss"), last.get("val_loss"), row.get("metrics") or {}
    point = {name: row.get(name) for name in ("seed", "flops", "wall_s", "horizon")}
    point |= {"N": row.get("N_body"), "d": row.get("D"), "u": row.get("U"), "processed": row.get("D")}
    point |= {"data_hash": row.get("data_hash") or None, "ended": last.get("D"), "steps": last.get("step")}
    point["overfitted"] = None if best is None or last_val_loss is None else last_val_loss > ROSE * best
    tested = {name: value for name, value in metrics.items() if not NO_METRICS.fullmatch(name)}
    return point | {name.removeprefix("test/"): value for name, value in tested.items()}


def _checked(place: str, row: dict[str, Any]) -> dict[str, Any]:
    """One of lrec's own points with None for numbers that are not finite, or not positive where only positive ones
    count. UserError if a field has no number or no text where it should."""
    if not isinstance(metrics := row.get("metrics") or {}, dict):
        raise UserError(f"{place}: metrics is no JSON object; correct or remove the row")
    if not isinstance(best := row.get("best"), bool | None):  # a text would be left out as if it were false
        raise UserError(f"{place}: best is {best!r}, not true or false; correct or remove the row")
    texts = {name: None if row[name] is None else str(row[name]) for name in RUN if name in row}
    numbers = {name: _known(place, name, row[name]) for name in _NUMBERS if name in row}
    return row | texts | numbers | {"metrics": {name: _known(place, name, metrics[name]) for name in metrics}}


def _known(place: str, column: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{place}: {column} is {value!r}, not a number; correct or remove the row")
    if column == "seed" and abs(value) > 2**53:  # beyond it, two seeds may be one floating-point number
        raise UserError(f"{place}: seed is {value}, beyond 2**53; correct or remove the row")
    return float(value) if abs(value) <= LARGEST and (value >= 1 / LARGEST or column not in _POSITIVE) else None


def read_target_losses(file: Path) -> pl.DataFrame:
    """A run's losses by target; UserError if the file is damaged."""
    try:
        return pl.read_parquet(file, glob=False)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{file} is damaged ({error}): restore or remove it") from error


def _read_rows(file: Path) -> list[tuple[int, dict[str, Any]]]:
    try:
        if file.suffix == ".jsonl":
            lines = file.read_text(encoding="utf-8-sig").split("\n")  # texts may hold the other line breaks of Unicode
            return [(number, _json_object(file, number, line)) for number, line in enumerate(lines, 1) if line.strip()]
        if file.suffix == ".parquet":
            return [*enumerate(pl.read_parquet(file, glob=False).iter_rows(named=True), start=1)]
        if file.suffix in {".csv", ".tsv"}:
            with file.open(encoding="utf-8-sig", newline="") as text:
                table = csv.DictReader(text, delimiter="\t" if file.suffix == ".tsv" else ",", strict=True)
                if len(names := table.fieldnames or ()) > len({name.strip() for name in names}):
                    raise UserError(f"{file}: two columns have the same name; remove or rename one")
                return [(table.line_num, _texts(file, table.line_num, row)) for row in table]
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text: save the table as UTF-8") from error
    except (pl.exceptions.PolarsError, csv.Error, OSError) as error:
        raise UserError(f"{file}: not readable as {file.suffix[1:]}: {str(error).splitlines()[0]}") from error
    raise UserError(f"{file}: points are read from .jsonl, .csv, .tsv or .parquet files")


def _texts(file: Path, number: int, row: dict[str, Any]) -> dict[str, Any]:
    if None in row:
        raise UserError(f"{file}, row {number}: more values than columns; correct or remove the row")
    return {name.strip(): value or None for name, value in row.items()}


def _json_object(file: Path, number: int, line: str) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        if isinstance(row := json.loads(line), dict):
            return row
    raise UserError(f"{file}, row {number}: not a JSON object")


def _check_data(points: pl.DataFrame) -> None:
    """Raise UserError if runs with the same amount of data had different data: their losses are not on one curve."""
    for _, alike in points.drop_nulls(("u", "data_hash")).group_by("u", maintain_order=True):
        others = alike.unique("data_hash", keep="first", maintain_order=True)
        if len(others) > 1:
            (one, two), hashes = others["file"][:2], " and ".join(each[:16] for each in others["data_hash"][:2])
            raise UserError(f"{one} and {two} were trained on different data (data_hash {hashes}): fit them separately")


def _may_stop(points: pl.DataFrame, x: str) -> bool:
    """Whether a larger x may stop to help: x is an amount of data, or a run made more than `REPEATED` passes."""
    passes = points.select(pl.coalesce("processed", "d") / pl.col("u")).to_series()
    return x in ("D", "U") or bool((passes > REPEATED).any())


def _positive(file: Path, number: int, column: str, value: Any) -> float:
    parsed = math.nan
    with suppress(TypeError, ValueError, OverflowError):
        parsed = math.nan if isinstance(value, bool) else float(value)
    if not 1 / LARGEST <= parsed <= LARGEST:
        what = f"{column} is {value!r}, not a positive number up to {LARGEST:g}"
        raise UserError(f"{file}, row {number}: {what}; correct or remove the row")
    return parsed


def _of_lengths(points: pl.DataFrame, x: str, shares: bool) -> pl.DataFrame:
    """Keep only the longest runs if runs have several lengths. A forecast of sizes (`shares`) keeps all lengths with
    the most data; d is then the number of targets after which a run was planned to end, the same for every seed."""
    if points["horizon"].null_count():
        return points.drop("horizon")
    longest = pl.col("horizon") == pl.col("horizon").max()
    if not (shares and x.startswith("N_")) or points["horizon"].n_unique() == 1:
        return points.filter(longest).drop("horizon")
    passes = (points["ended"] / points["u"] / points["horizon"]).max()
    assert isinstance(passes, float)
    d = pl.col("horizon") * pl.col("u") * max(round(passes), 1)
    return points.filter(longest | (pl.col("steps") >= LEAST_STEPS), pl.col("u") == pl.col("u").max()).with_columns(d=d)


def _comparable(points: pl.DataFrame, x: str, shares: bool) -> pl.DataFrame:
    """Keep lrec's own points with the most data (if x is a size or flops) or of the largest size (if x is D or U). With
    `shares` and a size as x, keep all. UserError if two of these have the same size, amount of data and seed."""
    other = {"N_body": "u", "N_head": "u", "N_total": "u", "flops": "u", "D": "N", "U": "N"}.get(x)
    if other is None or points[other].null_count():
        return points
    if not (shares and other == "u" and x != "flops"):
        points = points.filter(pl.col(other) == pl.col(other).max())
    if x == "flops":
        points = points.sort("x", "y")
        return points.filter(pl.col("y") < pl.col("y").cum_min().shift(1, fill_value=math.inf))
    if other != "u":  # x itself is the amount of data: u and d are no data samples
        return points.with_columns(u=None, d=None) if shares else points
    alike = pl.struct("x", "u", "seed", *(["horizon"] if "horizon" in points.columns else []))
    again = points.filter(alike.is_duplicated() & pl.col("seed").is_not_null()).sort("x", "seed")
    if len(again):
        both = f"{again['file'][0]} and {again['file'][1]} both have {x} {again['x'][0]:g} and seed {again['seed'][0]}"
        way_out = "Name the runs of one variant, or fit a law of size and data"
        raise UserError(f"{both}, but a law of size takes one run for each size and seed. {way_out}")
    return points
