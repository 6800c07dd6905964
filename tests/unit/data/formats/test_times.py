"""Times of every kind are read in one unit, to the microsecond, or refused in one line that names the row."""

import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lrec.data.formats.times import TimeUnits, in_seconds
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.store.store import Store
from lrec.errors import UserError

SECONDS = [1_600_000_000 + 60 * row for row in range(9)]


def prepared(frame: pl.DataFrame, folder: Path, name: str = "log.parquet") -> Store:
    frame.write_csv(folder / name) if name.endswith("csv") else frame.write_parquet(folder / name)
    module = InteractionsDataModule(path=folder / name, data_dir=folder / "stores")
    module.prepare_data()
    return Store.open(module.store_path)


def log(times: object) -> pl.DataFrame:
    return pl.DataFrame({"user": ["a", "b", "c"] * 3, "item": list("xyzxyzxyz"), "timestamp": times})


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
@pytest.mark.parametrize(
    ("place", "factor", "row", "other", "most"),
    [(4, 1000, 5, "milliseconds", "seconds"), (0, 1000, 1, "milliseconds", "seconds"),
     (8, 10**9, 9, "nanoseconds", "seconds")],
)  # fmt: skip
def test_another_unit_among_the_times_is_refused_with_its_row(
    name: str, place: int, factor: int, row: int, other: str, most: str, tmp_path: Path
) -> None:
    times = [time * factor if row == place else time for row, time in enumerate(SECONDS)]
    row += name == "log.csv"  # for the header
    says = f"{name}, row {row}: timestamp {times[place]} is a time in {other}, but most times of the file are in {most}"
    with pytest.raises(UserError, match=says):
        prepared(log(times), tmp_path, name)
    assert not list((tmp_path / "stores").glob("log-*"))


def test_seconds_among_milliseconds_are_found_in_a_later_block_and_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrec.data.formats.parsing._BATCH", 2)
    times = [1000 * time for time in SECONDS]
    folder = tmp_path / "logs"
    folder.mkdir()
    log(times).write_parquet(folder / "one.parquet")
    log([*times[:7], SECONDS[7], times[8]]).write_parquet(folder / "two.parquet")
    module = InteractionsDataModule(path=folder, data_dir=tmp_path / "stores")
    with pytest.raises(UserError, match=r"two\.parquet, row 8: timestamp 1600000420 is a time in seconds"):
        module.prepare_data()


def test_the_unit_of_many_files_is_found_in_linear_time() -> None:
    units = TimeUnits()
    for number in range(5000):
        units.note(f"{number}.parquet", 1, "timestamp", pl.Series(SECONDS[:1]), "number")
    began = time.process_time()
    assert units.facts() == {"time_unit": "s"}
    assert time.process_time() - began < 1


def test_small_numbers_fit_any_unit(tmp_path: Path) -> None:
    times = [0, 1, 99_999_999, *(1000 * time for time in SECONDS[3:])]
    assert prepared(log(times), tmp_path).facts["time_unit"] == "ms"
    assert prepared(log(range(9)), tmp_path, "steps.csv").facts["time_unit"] == "s"


@pytest.mark.parametrize("outlier", [-(10**17), 10**18 - 1])
def test_a_store_with_a_time_that_no_calendar_has_is_described(
    outlier: int, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    times = [datetime(2020, 1, 1) + timedelta(days=row) for row in range(9)]
    column = pl.Series(times, dtype=pl.Datetime("us")).dt.epoch("us")
    column[3] = outlier
    store = prepared(log(column.cast(pl.Datetime("us"))), tmp_path)
    assert f"{outlier:,} us" in lrec("data", "describe", store.path)


def test_dates_finer_than_a_microsecond_are_refused_with_their_row(tmp_path: Path) -> None:
    nanoseconds = np.array(SECONDS) * 10**9
    whole = log(pl.Series(nanoseconds).cast(pl.Datetime("ns")))
    store = prepared(whole, tmp_path)
    assert store.facts["time_unit"] == "us"
    assert store.times_N is not None
    assert sorted(store.times_N) == [time * 10**6 for time in SECONDS]
    nanoseconds[6] += 1
    finer = log(pl.Series(nanoseconds).cast(pl.Datetime("ns")))
    with pytest.raises(UserError, match=r"finer\.parquet, row 7: timestamp is finer than a microsecond: round it"):
        prepared(finer, tmp_path, "finer.parquet")
    assert prepared(log(nanoseconds), tmp_path, "numbers.parquet").facts["time_unit"] == "ns"
    text = [f"2020-01-0{row + 1}T00:00:00.123456{'' if row < 8 else '789'}" for row in range(9)]
    with pytest.raises(UserError, match=r"text\.csv, row 10: timestamp is finer than a microsecond: .*123456789"):
        prepared(log(text), tmp_path, "text.csv")
    prepared(log([time.removesuffix("789") + "000" for time in text]), tmp_path, "zeros.csv")


@pytest.mark.parametrize("column", ["timestamp", "user", "item"])
@pytest.mark.parametrize("dtype", [pl.Duration("us"), pl.Time])
def test_durations_and_times_of_day_are_not_times(dtype: pl.DataType, column: str, tmp_path: Path) -> None:
    frame = log(SECONDS).with_columns(pl.Series(column, range(9)).cast(pl.Int64).cast(dtype))
    with pytest.raises(UserError, match=rf"log\.parquet: column {column} holds (Duration|Time)"):
        prepared(frame, tmp_path)


@pytest.mark.parametrize(("offset", "hours"), [("", 0), ("Z", 0), ("+02:00", 2)])
def test_dates_without_their_seconds_are_read(offset: str, hours: int) -> None:
    """Java writes no seconds if they are zero."""
    times = [f"2020-01-01T10:0{minute}{':30' * minute}{offset}" for minute in range(2)]
    start = 1_577_836_800 + 3600 * (10 - hours)
    assert in_seconds(pl.Series(times), "times").tolist() == [start, start + 90]


DAYS = [f"2020-01-3{row % 2} " for row in range(9)]


@pytest.mark.parametrize("dtype", [pl.Int64, pl.Float64, pl.String])
@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
@pytest.mark.parametrize("time", ["", "23:59", "23:59:58"])
def test_dates_without_separators_are_dates(
    time: str, name: str, dtype: pl.DataType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As seconds, 20200131 would be a day of 1970, and as milliseconds, 20200131235958 one of 2610."""
    monkeypatch.setattr("lrec.data.formats.parsing._BATCH", 2)
    digits = pl.Series([re.sub(r"\D", "", day + time) for day in DAYS]).cast(pl.Int64).cast(dtype)
    mine = prepared(log(digits), tmp_path, name)
    dashes = log([(day + time).strip() for day in DAYS])
    in_order = prepared(dashes, tmp_path, "dashes.csv")
    assert mine.facts == in_order.facts == {"time_unit": "us"}
    assert np.array_equal(mine.times_N, in_order.times_N)  # type: ignore[arg-type]
    assert np.array_equal(in_seconds(digits, "times"), in_seconds(dashes["timestamp"], "times"))


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
@pytest.mark.parametrize("other", [0, 20200230, 99999999, 1600000000])
def test_a_number_among_dates_is_refused_with_its_row(other: int, name: str, tmp_path: Path) -> None:
    row = 5 + (name == "log.csv")
    with pytest.raises(UserError, match=rf"{name}, row {row}: timestamp is a number where other times are dates"):
        prepared(log([*[20200131] * 4, other, *[20200131] * 4]), tmp_path, name)


def test_seconds_of_1970_are_seconds(tmp_path: Path) -> None:
    seconds = [20_190_000 + 977 * row for row in range(9)]
    store = prepared(log(seconds), tmp_path)
    assert store.facts["time_unit"] == "s"
    assert in_seconds(pl.Series(seconds), "times").tolist() == seconds


NAIVE, OFFSET = (
    [f"2020-01-0{row + 1} 10:00:00" for row in range(9)],
    [f"2020-01-0{row + 1}T10:00:00Z" for row in range(9)],
)
HAS, LACKS = "has an offset from UTC where other dates have none", "has no offset from UTC where other dates have one"
MIX = {
    "one with": ([*NAIVE[:4], "2020-01-05T10:00:00+02:00", *NAIVE[5:]], 6, HAS),
    "one without": ([*OFFSET[:4], NAIVE[4], *OFFSET[5:]], 6, LACKS),
    "a day": ([*OFFSET[:8], "2020-01-09"], 10, LACKS),
}


@pytest.mark.parametrize("mix", MIX)
@pytest.mark.parametrize("block", [1 << 22, 40])
def test_dates_with_and_without_an_offset_are_not_mixed(
    mix: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrec.data.formats.streams.BLOCK", block)
    monkeypatch.setattr("lrec.data.formats.streams._PIECE", block)
    times, row, problem = MIX[mix]
    with pytest.raises(UserError, match=rf"log\.csv, row {row}: timestamp {problem}: .*: {re.escape(times[row - 2])}"):
        prepared(log(times), tmp_path, "log.csv")


def test_files_with_and_without_offsets_are_not_mixed(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    log(NAIVE).write_csv(folder / "one.csv")
    log(OFFSET).write_csv(folder / "two.csv")
    module = InteractionsDataModule(path=folder, data_dir=tmp_path / "stores")
    with pytest.raises(
        UserError, match=r"different units: .*one\.csv \(a date\), .*two\.csv \(a date with an offset\)"
    ):
        module.prepare_data()
    (folder / "one.csv").unlink()
    module.prepare_data()
    assert Store.open(module.store_path).facts["time_unit"] == "us"
    with pytest.raises(UserError, match=r"times: 2020-01-02T10:00:00Z has an offset from UTC where other dates"):
        in_seconds(pl.Series([NAIVE[0], OFFSET[1]]), "times")
