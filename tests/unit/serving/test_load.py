"""`lrec.load` of a checkpoint in bfloat16 whose item table is made from vectors, and of what is no path."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import lrec
from lrec.checkpoint.writing import write
from lrec.errors import UserError
from lrec.model.item_vectors import initial_parameters, refuse_other_vectors, vectors_of
from lrec.model.parallelize import fill
from lrec.model.sharded_table import VECTORS
from lrec.model.transformer import Transformer
from small_checkpoints import ABOUT, CONFIG, IDS, checkpoint


@pytest.mark.parametrize("own_rows", [False, True])
def test_a_table_made_from_vectors_has_the_type_of_the_other_parameters(own_rows: bool, tmp_path: Path) -> None:
    vectors_FW = np.random.default_rng(0).normal(size=(len(IDS) + 1, 3))
    table = pl.DataFrame({"item": [*IDS, "new"], "vector": vectors_FW.tolist()})
    table.write_parquet(tmp_path / "v.parquet")
    table.with_columns(pl.col("vector").list.eval(pl.element() ** 2)).write_parquet(tmp_path / "other.parquet")
    vectors_VW, _ = vectors_of(tmp_path / "v.parquet", IDS)
    config = replace(CONFIG, vector_width=3, own_rows=own_rows)
    net = Transformer(config)
    fill(net, initial_parameters(net, vectors_VW, "added", 0))
    write(tmp_path / "m.ckpt", checkpoint(net.bfloat16()) | {"lrec": ABOUT | config.to_dict()})
    model = lrec.load(tmp_path / "m.ckpt", item_vectors=tmp_path / "v.parquet")
    found = model.recommend([[IDS[0], "new"]], k=10)
    assert set(found["items"][0]) == {*IDS[1:]}
    saved = {f"net.{VECTORS}": net.get_parameter(VECTORS)}
    refuse_other_vectors(saved, {f"net.{VECTORS}": vectors_VW}, "m.ckpt")  # tested in float32
    with pytest.raises(UserError, match="was trained with other vectors for its items"):
        lrec.load(tmp_path / "m.ckpt", item_vectors=tmp_path / "other.parquet")


@pytest.mark.parametrize("path", [None, 3, ["runs/first"], b"runs/first"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(UserError, match="the path of a model is expected"):
        lrec.load(path)
