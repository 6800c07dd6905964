"""The table that laws are fitted to: a Polars frame with a row per trained run.

    x           what is scaled: a size, an amount of data or FLOPs; positive
    y           the loss in nats; positive
    d, u        interactions processed and unique ones, for laws of them; d may be another count, as of unique ones
    processed   interactions processed, whatever d counts
    run         points of one run share its noise
    flops       training FLOPs
    wall_s      seconds that training took
    overfitted  whether the validation loss rose again after its best

x and y are required; a law asks for d and u where it depends on them. `METRICS` may stand beside them.
"""

from collections.abc import Sequence

import polars as pl

from lrec.files import json_hash

METRICS = ("HR@10", "NDCG@10", "HR@10_unseen", "NDCG@10_unseen")
"""Metrics that a law may link to the loss."""


def source_hash(points: pl.DataFrame, columns: Sequence[str] = ("x", "y")) -> str:
    """SHA-256 of the values used, whatever the order of the points."""
    return json_hash(sorted([float(value) for value in row] for row in points.select(columns).iter_rows()))
