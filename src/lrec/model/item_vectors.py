"""Item vectors, such as embeddings of titles: how they come from a file into a network.

    NAME.parquet       columns item (raw id) and vector (a list of numbers)
    NAME.npy           an array (items, width), and next to it NAME.txt, with a raw id on each line
    NAME.safetensors   a tensor `vectors` (items, width), and in the metadata `item_ids`, a JSON list of raw ids

Items of the file outside the catalogue are new: training does not see them, but rows can be made from their vectors.

Shape suffixes: F items of the file, V catalogue, H rows held here, N new items, C some of them, W width of the vectors.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lrec.errors import UserError
from lrec.model.sharded_table import OWN_ROWS, PROJECTION, VECTORS
from lrec.model.transformer import Transformer

AT_ONCE = 2**14  # vectors read at once, so that a mapped file is never in memory as a whole
Use = Literal["initial", "fixed", "added"]


class NewItems(NamedTuple):
    """Items that have a vector and are not in the catalogue."""

    ids: pl.Series
    vectors_NW: Tensor

    def without(self, ids: pl.Series) -> "NewItems":
        """The items that are not among these."""
        kept_N = ~self.ids.is_in(ids.implode())
        return NewItems(self.ids.filter(kept_N), self.vectors_NW[kept_N.to_torch()])


def vectors_of(path: Path, raw_ids: pl.Series, rows: slice = slice(None)) -> tuple[Tensor, NewItems]:
    """A file's vectors for `rows` of the catalogue and for new items, `scaled`; UserError if one cannot be used."""
    return scaled(*read_item_vectors(path), raw_ids, rows, f"model.item_vectors {path}")


def scaled(
    ids: pl.Series, vectors_FW: np.ndarray, raw_ids: pl.Series, rows: slice, source: str
) -> tuple[Tensor, NewItems]:
    """The vectors for `rows` of the catalogue and for new items, in float32. The catalogue's mean becomes 0, which
    changes no softmax, and its mean squared length 1, so that a table of them begins as large as any other."""
    place = {raw_id: place for place, raw_id in enumerate(ids)}
    places_V = np.array([place.pop(raw_id, -1) for raw_id in raw_ids], dtype=np.int64)
    if (places_V < 0).any():
        missing = int((places_V < 0).sum())
        raise UserError(
            f"{source} has no vector for {missing:,} of the catalogue's {len(raw_ids):,} "
            f"items, such as {raw_ids[int((places_V < 0).argmax())]}: give each item one"
        )
    sum_W = np.zeros(vectors_FW.shape[1])
    for places_C in _parts(places_V):  # adds one row after the other, so that the size of parts changes no digit
        sum_W = np.concatenate([sum_W[None], vectors_FW[places_C]]).sum(0)
    centre_W = sum_W / len(places_V)
    squares_V = np.concatenate([((vectors_FW[places_C] - centre_W) ** 2).sum(1) for places_C in _parts(places_V)])
    length = float(np.sqrt(squares_V.mean()))
    if length == 0:
        raise UserError(f"{source}: the items' vectors are all the same")

    def centred(places: np.ndarray) -> Tensor:
        scaled_NW = np.empty((len(places), len(centre_W)), dtype=np.float32)
        for scaled_CW, places_C in zip(_parts(scaled_NW), _parts(places), strict=True):
            scaled_CW[:] = (vectors_FW[places_C] - centre_W) / length
        return torch.from_numpy(scaled_NW)

    places_N = np.fromiter(place.values(), np.int64, len(place))
    return centred(places_V[rows]), NewItems(ids.gather(places_N), centred(places_N))


def _parts(values: np.ndarray) -> list[np.ndarray]:
    return [values[start : start + AT_ONCE] for start in range(0, len(values), AT_ONCE)]


def initial_parameters(net: Transformer, vectors_HW: Tensor, use: Use, seed: int) -> dict[str, Tensor]:
    """The values that a network begins with: the vectors, or for `initial` the rows that a random projection makes."""
    if use != "initial":
        return {VECTORS: vectors_HW}
    shape = torch.Size((vectors_HW.shape[1], net.config.width))
    return {OWN_ROWS: vectors_HW @ net.draw_(torch.empty(shape), PROJECTION, shape, seed)}


def refuse_other_vectors(saved: Mapping[str, Tensor], mine: Mapping[str, Tensor], path: object) -> None:
    """UserError if a checkpoint's vectors are not the given ones; both arguments are the state of a module, by name."""
    name = f"net.{VECTORS}"
    if name in mine and not same_vectors(saved[name], mine[name].to(saved[name].device)):
        raise UserError(f"{path} was trained with other vectors than those of model.item_vectors: give its own")


def same_vectors(one_VW: Tensor, other_VW: Tensor) -> bool:
    """Whether the vectors are the same, in the lower of the two precisions."""
    dtype = min(one_VW.dtype, other_VW.dtype, key=lambda each: each.itemsize)
    return torch.equal(one_VW.to(dtype), other_VW.to(dtype))


def read_width(path: Path) -> int:
    """The width of the first vector in a file."""
    return int(read_item_vectors(path, n_rows=1)[1].shape[1])


def read_item_vectors(path: Path, n_rows: int | None = None) -> tuple[pl.Series, np.ndarray]:
    """Raw ids and vectors of a file; UserError unless each item has one vector, of finite values and the same width.
    With `n_rows`, only that number of vectors, and no check of their items and values."""
    try:
        if path.suffix not in _READERS:
            raise UserError(f"its name must end in {', '.join(_READERS)}")
        if not path.is_file():
            raise UserError("no such file")
        ids, vectors_FW = _READERS[path.suffix](path, n_rows)
        if vectors_FW.ndim != 2 or 0 in vectors_FW.shape:
            raise UserError(f"vectors of the shape {vectors_FW.shape}, not (items, width)")
        if vectors_FW.dtype.kind not in "biuf":
            raise UserError(f"its values are {vectors_FW.dtype}, not real numbers")
        vectors_FW = vectors_FW[:n_rows].astype(np.float32, copy=False)
        if n_rows is not None:
            return ids, vectors_FW
        if len(ids) != len(vectors_FW):
            raise UserError(f"{len(vectors_FW):,} vectors and {len(ids):,} item ids")
        if (twice := ids.is_duplicated()).any():
            raise UserError(f"item {ids[int(twice.arg_max() or 0)]} is in it twice")
        finite_F = np.concatenate([np.isfinite(part_CW).all(1) for part_CW in _parts(vectors_FW)])
        if not finite_F.all():
            odd = ids[int(finite_F.argmin())]
            raise UserError(f"the vector of item {odd} is not finite: each value must be a number")
    except (OSError, ValueError, LookupError, TypeError, SafetensorError, pl.exceptions.PolarsError) as error:
        wrong = error if isinstance(error, UserError) else "not a file of item vectors, or a damaged one"
        raise UserError(f"model.item_vectors {path}: {wrong}") from error
    return ids, vectors_FW


def _read_parquet(path: Path, n_rows: int | None) -> tuple[pl.Series, np.ndarray]:
    found = pl.read_parquet_schema(path)
    for column in ("item", "vector"):
        if column not in found:
            raise UserError(f"it has no column {column}; its columns are {', '.join(found)}")
    inner = getattr(found["vector"], "inner", None)
    if inner is None or not pl.Series(dtype=inner).dtype.is_numeric():
        raise UserError(f"the column vector holds {found['vector']}, not lists of numbers")
    if not (found["item"] == pl.String or found["item"].is_integer()):
        raise UserError(f"the column item holds {found['item']}, not text or integers")
    table = pl.read_parquet(path, columns=["item", "vector"], n_rows=n_rows, glob=False)
    ids, vectors = table["item"].cast(pl.String), table["vector"].cast(pl.List(inner))
    if ids.null_count():
        raise UserError(f"row {int(ids.is_null().arg_max() or 0) + 1}: item is empty")
    lengths = vectors.list.len().fill_null(0)
    if (odd := lengths != lengths.first()).any():
        row = int(odd.arg_max() or 0)
        raise UserError(f"row {row + 1}: {lengths[row]} values, but the first vector has {lengths[0]}")
    values = vectors.explode().cast(pl.Float32).fill_null(np.nan).to_numpy()
    return ids, values.reshape(len(table), len(values) // max(len(table), 1))


def _read_npy(path: Path, _: int | None) -> tuple[pl.Series, np.ndarray]:
    beside = path.with_suffix(".txt")
    if not beside.is_file():
        raise UserError(f"{beside}, with a raw id on each line, is missing")
    # Not splitlines, which also splits at characters that may be inside an id.
    lines = beside.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    return pl.Series(lines, dtype=pl.String), np.load(path, mmap_mode="r")


def _read_safetensors(path: Path, n_rows: int | None) -> tuple[pl.Series, np.ndarray]:
    with safe_open(path, framework="pt") as opened:
        metadata: dict[str, Any] = opened.metadata() or {}
        if "vectors" not in opened.keys() or "item_ids" not in metadata:  # noqa: SIM118 (no mapping)
            raise UserError("it needs a tensor vectors, and item_ids in the metadata")
        rows = opened.get_slice("vectors")
        vectors = rows[: n_rows if len(rows.get_shape()) == 2 else None].float().numpy()
    return pl.Series([str(raw_id) for raw_id in json.loads(metadata["item_ids"])], dtype=pl.String), vectors


_READERS = {".parquet": _read_parquet, ".npy": _read_npy, ".safetensors": _read_safetensors}
