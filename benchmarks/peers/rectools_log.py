"""A prepared log as RecTools wants it, and its leave-one-out parts; imported by the scripts beside it."""

from pathlib import Path

import pandas as pd
from rectools import Columns


def read_log(path: Path) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
    """The log in order, which of its rows validate, and which are for test."""
    log = pd.read_csv(path).rename(columns={"user": Columns.User, "item": Columns.Item, "time": Columns.Datetime})
    log[Columns.Datetime] = pd.to_datetime(log[Columns.Datetime], unit="s")
    log[Columns.Weight] = 1.0
    from_end = log.groupby(Columns.User).cumcount(ascending=False)
    held_out = log.groupby(Columns.User)[Columns.Item].transform("size") >= 3
    return log, held_out & (from_end == 1), held_out & (from_end == 0)
