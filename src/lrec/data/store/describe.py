"""`lrec data describe`: a store's statistics on the terminal."""

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
    rows = [("store", str(store)), ("k_core", str(opened.meta["options"]["k_core"])), *_rows(opened)]
    print_rows(rows)


def print_rows(rows: list[tuple[str, str]]) -> None:
    """Print names and values in two columns."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _rows(store: Store) -> list[tuple[str, str]]:
    statistics = store.statistics
    interactions = statistics["interactions"]
    rows = [(name, f"{statistics[name]:,}") for name in ("users", "items", "interactions")]
    rows.append(("density", f"{statistics['density']:.4%}"))
    rows.append(
        (
            "length",
            f"mean {statistics['mean_length']:.1f}, median {statistics['median_length']:g}, "
            f"max {statistics['max_length']:,}",
        )
    )
    if "first_time" in statistics:
        unit = store.facts.get("time_unit")
        rows.append(("time", f"{_time(statistics['first_time'], unit)} to {_time(statistics['last_time'], unit)}"))
        rows.append(("ties in time", _share(statistics["ties"], interactions)))
    else:
        rows.append(("time", "none: rows are in time order"))
    rows.append(("repeats of an item", _share(statistics["repeats"], interactions)))
    rows.append(("duplicates dropped", f"{statistics['duplicates_dropped']:,}"))
    if "domains" in statistics:
        rows.append(("domains", f"{statistics['domains']:,}"))
    rows.extend((name, str(value)) for name, value in store.facts.items() if name not in _SHOWN)
    return rows


_SHOWN = ("duplicates_dropped", "time_unit")


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})"


def _time(value: int, unit: Any) -> str:
    if unit not in TIME_UNITS:
        return f"{value:,}"
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=value // TIME_UNITS[unit])
    except OverflowError:  # no year from 1 to 9999
        return f"{value:,} {unit}"
    return f"{moment:%Y-%m-%d %H:%M}"
