"""Writes orders.csv for the page Get started: python make_orders.py

The last two products of a customer decide which two products may come next. One purchase in five is random.
"""

from datetime import datetime, timedelta

import numpy as np
import polars as pl

CUSTOMERS, PRODUCTS, LONGEST = 1500, 300, 30


def main() -> None:
    random = np.random.default_rng(0)
    popularity = 1 / np.arange(1, PRODUCTS + 1) ** 0.8
    rows = []
    for customer in range(CUSTOMERS):
        time = datetime(2025, 1, 1) + timedelta(hours=int(random.integers(4000)))
        before, product = random.choice(PRODUCTS, 2, p=popularity / popularity.sum())
        for _ in range(random.integers(2, LONGEST + 1)):
            price = int(random.integers(5, 100))
            rows.append((f"c_{customer:05}", f"SKU-{product:04}", time.isoformat(" "), price))
            chance = random.random()
            usual = (7 * product + 3) % PRODUCTS if chance < 0.5 else (product + before + 1) % PRODUCTS
            by_chance = random.choice(PRODUCTS, p=popularity / popularity.sum())
            before, product = product, int(by_chance if chance > 0.8 else usual)
            time += timedelta(hours=int(random.integers(1, 100)))
    table = pl.DataFrame(rows, schema=["customer", "product", "bought_at", "price"], orient="row")
    table.sample(fraction=1.0, shuffle=True, seed=0).write_csv("orders.csv")


if __name__ == "__main__":
    main()
