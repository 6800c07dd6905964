"""A store's statistics in words: what `lrec data describe` shows."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lrec.data.store.store import TIME_UNITS, Store


def describe(store: Path, verify: bool = False) -> None:
    """Print a store's statistics.

    Args:
        store: The store's folder.
        verify: Hash every file of the store as a whole.
    """
    opened = Store.open(store, verify)
    about = [("store", str(store)), ("k_core", str(opened.meta["options"]["k_core"]))]
    features = [
        (f"feature {name}", "numbers" if texts is None else f"{len(texts):,} values")
        for name, texts in opened.meta.get("features", {}).items()
    ]
    print_rows([*about, *in_words(opened.statistics, opened.facts), *features])


def print_rows(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def in_words(counted: Mapping[str, Any], about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The statistics and facts of a store, each with its name."""
    facts = dict(about)
    unit = facts.pop("time_unit", None)
    lengths = f"mean {counted['mean_length']:.1f}, median {counted['median_length']:g}, max {counted['max_length']:,}"
    rows = [(name, f"{counted[name]:,}") for name in ("users", "items", "interactions")]
    rows += [("density", f"{counted['density']:.4%}"), ("length", lengths)]
    if "first_time" in counted:
        first, last = (time_text(counted[name], unit) for name in ("first_time", "last_time"))
        rows += [("time", f"{first} to {last}"), ("ties in time", _share(counted["ties"], counted["interactions"]))]
    else:
        rows.append(("time", "none: rows are in time order"))
    rows.append(("repeats of an item", _share(counted["repeats"], counted["interactions"])))
    counts = [name for name in ("duplicates_dropped", "domains") if name in counted]
    rows += [(name.replace("_", " "), f"{counted[name]:,}") for name in counts]
    return rows + [(name, str(value)) for name, value in facts.items()]


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})"


def time_text(value: int, unit: Any) -> str:
    """A time of this unit as a date, or as a plain number if that is not possible."""
    if unit not in TIME_UNITS:
        return f"{value:,}"
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=value // TIME_UNITS[unit])
    except OverflowError:  # the year is not from 1 to 9999
        return f"{value:,} {unit}"
    return f"{moment:%Y-%m-%d %H:%M}"
