"""A store that stands for the raw data: how it was prepared, beside what the options ask for."""

from typing import Any

from lrec.data.store.store import Store
from lrec.errors import UserError


def prepared_with(store: Store, asked: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """The options with which the store was prepared; UserError where another value than the default was asked for."""
    stored = default | store.meta["reading"] | store.meta["options"]
    for option, value in asked.items():
        if value not in (stored.get(option, value), default.get(option)):
            raise UserError(
                f"data.{option}={value}: {store.path} was prepared with {stored[option]}; leave the option out, or "
                "prepare another store from the raw data"
            )
    return stored


def check_features(store: Store, columns: dict[str, bool]) -> None:
    """UserError where the store lacks a column of features, or has numbers for texts or texts for numbers.

    Args:
        store: The store.
        columns: The columns, and whether each has numbers.
    """
    stored = store.meta.get("features", {})
    for column, is_number in columns.items():
        if column not in stored or is_number != (stored[column] is None):
            raise UserError(
                f"data: {store.path} was prepared without the feature {column}, or with one of another kind: prepare "
                "another store from the raw data"
            )
