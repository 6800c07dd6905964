"""A DataModule of your own: the orders of a shop, in an SQLite database.

    lrec data prepare --data my_data.ShopOrders --data.path shop.db
    lrec fit --data my_data.ShopOrders --data.path shop.db --model.size 3k

See docs/extending.md.
"""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from lrec import UserError
from lrec.data.datamodule import SequenceDataModule
from lrec.data.store.prepare import RawInteractions, source_hashes

ORDERS = "SELECT customer AS user, product AS item, ordered_at AS time FROM orders WHERE NOT returned ORDER BY rowid"


class ShopOrders(SequenceDataModule):
    """Each order that was not returned is an interaction."""

    def __init__(self, path: Path, **options: Any) -> None:
        """Say where the database is.

        Args:
            path: The database file. Its table orders has customer, product, ordered_at (seconds) and returned.
        """
        super().__init__(**options)
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{self.path} does not exist (option path)")

    @property
    def store_name(self) -> str:
        """The name of the prepared store's folder begins with this."""
        return "shop"

    def source(self) -> dict[str, Any]:
        """What identifies the store. If this changes, the data are prepared again."""
        return {"kind": "shop", "query": ORDERS, "files": source_hashes(self.data_dir, [self.path])}

    def read(self) -> RawInteractions:
        """The rows in the order of the source, and the unit of their times."""
        return RawInteractions(self._blocks(), {"time_unit": "s"})

    def _blocks(self) -> Iterator[pl.DataFrame]:
        # Opened here, because another thread reads the blocks, and a connection of SQLite belongs to one thread.
        connection = sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro", uri=True)
        yield from pl.read_database(ORDERS, connection, iter_batches=True, batch_size=500_000)
