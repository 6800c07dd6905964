"""Times in any format as whole numbers, and the unit of the times of each file."""

import re
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import polars as pl

from lrec.errors import UserError

Kind = Literal["number", "date", "date with an offset"]

_DATES = (pl.Date, pl.Datetime)  # what a column of times may hold besides numbers and text
# A median below the first bound means seconds, below the second milliseconds, below the third microseconds, else ns.
_BOUNDS = (10**11, 10**14, 10**17)
_UNITS = ("s", "ms", "us", "ns")
_ANY_UNIT = 10**8  # a smaller number may be a time in any unit: a year has 3e7 seconds
_IN_WORDS = ("seconds", "milliseconds", "microseconds", "nanoseconds")
_TOO_FINE = r"\.\d{6}\d*[1-9]"
_DIGITS = r"^(19|20)\d{6}(\d{4}(\d\d)?)?$"  # a date such as 20140131, 201401312359 or 20140131235959


def parse_times(raw: pl.Series, kind: Kind | None) -> tuple[pl.Series, Kind]:
    """Times as int64 (dates in microseconds), and their kind. A time is null if it cannot be read as this kind, or if
    it is finer than a microsecond. `kind` says what text contains; None: the kind that leaves the fewest nulls.
    Numbers of which most are dates such as 20140131 are dates: as seconds, most would be of one month of 1970."""
    if isinstance(raw.dtype, _DATES):
        times = raw.cast(pl.Datetime("us"), strict=False).dt.epoch("us")
        if isinstance(raw.dtype, pl.Datetime) and raw.dtype.time_unit == "ns":
            times = times.set(raw.dt.epoch("ns") % 1000 != 0, None)
        return times, "date"
    times = _whole(raw) if raw.dtype.is_numeric() else pl.Series([None] * len(raw), dtype=pl.Int64)
    found: Kind = "number"
    if raw.dtype == pl.String:
        kinds: tuple[Kind, ...] = (kind,) if kind else get_args(Kind)
        read = [(_read(raw.str.strip_chars(), each), each) for each in kinds]
        times, found = min(read, key=lambda times_kind: times_kind[0].null_count())  # of equals, the first
    middle = times.quantile(0.5, "nearest") if found == "number" and kind is None else None
    if (found == "number" and kind == "date") or (middle is not None and is_like_a_date(int(middle))):
        dates = _read(times.cast(pl.String), "date")
        if kind == "date" or 2 * dates.null_count() < len(dates):
            return dates, "date"
    return times, found


def is_like_a_date(number: int) -> bool:
    """Whether a number has the form of 20140131, 201401312359 or 20140131235959."""
    return re.match(_DIGITS, str(number)) is not None


def in_seconds(raw: pl.Series, what: str) -> np.ndarray:
    """Times as whole seconds, int64, from dates or from numbers, whose median decides their unit; UserError if a time
    cannot be read. `what` names the times for this error."""
    times, kind = parse_times(raw, None)
    if times.null_count():
        row = int(times.is_null().arg_max() or 0)
        raise UserError(f"{what}: {raw[row]} {not_a_time(raw, row, kind)}")
    numbers = times.to_numpy()
    finer = sum(np.median(np.abs(numbers)) >= bound for bound in _BOUNDS) if len(numbers) else 0
    return np.asarray(numbers // 10 ** (3 * int(finer) if kind == "number" else 6))


def not_a_time(raw: pl.Series, row: int, kind: Kind) -> str:
    """Why `parse_times` cannot read a row of a column of this kind."""
    if isinstance(raw.dtype, _DATES) or (raw.dtype == pl.String and re.search(_TOO_FINE, str(raw[row]))):
        return "is finer than a microsecond: round it, or give whole nanoseconds since 1970"
    if kind != "number" and parse_times(raw[row : row + 1], None)[1] not in ("number", kind):
        has, other = ("no", "one") if kind == "date with an offset" else ("an", "none")
        return f"has {has} offset from UTC where other dates have {other}: give one to all dates or to none"
    if kind == "date" and re.fullmatch(r"-?\d+(\.0*)?", str(raw[row]).strip()):
        return "is a number where other times are dates (20140131 is a date): correct or drop the row"
    return "is neither a whole number of seconds or milliseconds nor an ISO date"


def _read(text: pl.Series, kind: Kind) -> pl.Series:
    """Text of this kind (dates in ISO 8601) as the numbers that `parse_times` returns."""
    if kind == "number":
        numbers = text.cast(pl.Int64, strict=False)
        return numbers.fill_null(_whole(text.cast(pl.Float64, strict=False))) if numbers.null_count() else numbers
    spaced = text.set(text.str.contains(_TOO_FINE), None).str.replace("T", " ", literal=True)
    patterns, zone = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d"], None
    if kind == "date with an offset":
        spaced, zone = spaced.str.replace(r"Z$", "+00:00"), "UTC"
        patterns = [f"{pattern}%#z" for pattern in patterns[:2]]
    parsed = partial(spaced.str.to_datetime, time_unit="us", time_zone=zone, strict=False)
    dates = parsed(patterns[0])
    for pattern in patterns[1:]:
        if dates.null_count() > spaced.null_count():  # most columns have dates of one form
            dates = dates.fill_null(parsed(pattern))
    if zone is None and dates.null_count() > spaced.null_count():
        spaced = spaced.set(~spaced.str.contains(_DIGITS), None)  # the patterns would also accept fewer digits
        for pattern in ("%Y%m%d", "%Y%m%d%H%M", "%Y%m%d%H%M%S"):
            dates = dates.fill_null(spaced.str.to_datetime(pattern, time_unit="us", strict=False))
    return dates.dt.epoch("us")


def _whole(numbers: pl.Series) -> pl.Series:
    return numbers.set(numbers != numbers.floor(), None).cast(pl.Int64, strict=False)


class TimeUnits:
    """The unit of each file's times: microseconds for dates; for numbers, the median decides. A number whose size means
    another unit is refused, because it would be sorted as if it were in the median's."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}  # of each file's times
        self._counts: dict[str, np.ndarray] = {}  # of each file's times in each unit
        self._first: dict[str, dict[int, str]] = {}  # for each file and unit: the first row with such a time

    def note(self, name: str, first_row: int, column: str, times: pl.Series, kind: Kind) -> None:
        self.kinds[name] = kind
        sizes_N = np.abs(times.to_numpy())
        counts = -np.diff([len(sizes_N), *(np.count_nonzero(sizes_N >= bound) for bound in _BOUNDS), 0])
        self._counts[name] = self._counts.get(name, 0) + counts
        for unit in np.flatnonzero(counts).tolist():
            least, end = (_ANY_UNIT, *_BOUNDS, np.inf)[unit : unit + 2]
            found = np.flatnonzero((sizes_N >= least) & (sizes_N < end))
            if len(found):
                where = f"{name}, row {first_row + found[0]}: {column} {times[int(found[0])]}"
                self._first.setdefault(name, {}).setdefault(unit, where)

    def facts(self) -> dict[str, Any]:
        """The unit of all times, if there are any; UserError if units are mixed."""
        files: dict[str, str] = {}  # a file for each unit
        for name, kind in self.kinds.items():
            counts = self._counts[name]
            most = int(np.searchsorted(np.cumsum(counts), (counts.sum() + 1) // 2))
            files.setdefault(_UNITS[most] if kind == "number" else f"a {kind}", name)
            for unit, where in self._first.get(name, {}).items():
                if unit != most and kind == "number":
                    others = f"most times of the file are in {_IN_WORDS[most]}: give all times in one unit"
                    raise UserError(f"{where} is a time in {_IN_WORDS[unit]}, but {others}")
        if len(files) > 1:
            listed = ", ".join(f"{name} ({unit})" for unit, name in files.items())
            raise UserError(f"the files' times are in different units: {listed}")
        return {"time_unit": next((unit for unit in _UNITS if unit in files), "us")} if files else {}
