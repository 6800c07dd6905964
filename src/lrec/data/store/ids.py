"""Raw ids as integers."""

import numpy as np
import polars as pl

# Integers below this are looked up in an array; others are encoded as text.
_DIRECT = 1 << 24
_UNKNOWN = np.uint32(0xFFFFFFFF)
_NUMPY_INTEGERS = {pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64}


class Ids:
    """Raw ids as codes in the order in which they appear; at the end, the rank of each code in text order.

    An integer and the text that spells it are the same id.

    Shape suffixes: N rows, K ids.
    """

    def __init__(self) -> None:
        self._type = pl.Categorical(pl.Categories.random())
        # Polars drops the codes with the last column that uses them.
        self._anchor = pl.Series([], dtype=self._type)
        self._counts_K = np.zeros(0, dtype=np.int64)
        self._code_of_integer = np.zeros(0, dtype=np.uint32)

    def encode(self, ids: pl.Series) -> np.ndarray:
        """Codes of the ids, uint32."""
        codes_N = self._encode_integers(ids) if _are_small(ids) else self._encode_text(ids.cast(pl.String))
        counts_K = np.bincount(codes_N)
        if len(counts_K) > len(self._counts_K):
            counts_K[: len(self._counts_K)] += self._counts_K
            self._counts_K = counts_K
        else:
            self._counts_K[: len(counts_K)] += counts_K
        return codes_N

    def ranked(self) -> tuple[pl.Series, np.ndarray, np.ndarray]:
        """The ids in text order, each code's place in it (int32), and the rows of each id, in text order."""
        codes = pl.Series("raw_id", np.arange(len(self._counts_K), dtype=np.uint32))
        # Codes that belong to another column have no rows here.
        codes = codes.filter(pl.Series(self._counts_K > 0))
        ids = codes.cat.to(self._type).cast(pl.String)
        order = ids.arg_sort().to_numpy()
        rank_K = np.full(len(self._counts_K), -1, dtype=np.int32)
        rank_K[codes.to_numpy()[order]] = np.arange(len(order), dtype=np.int32)
        return ids.gather(order), rank_K, self._counts_K[codes.to_numpy()[order]]

    def _encode_text(self, ids: pl.Series) -> np.ndarray:
        codes = ids.cast(self._type).to_physical()
        assert codes.null_count() == 0, "null ids must be refused when they are read"
        return codes.cast(pl.UInt32).to_numpy()

    def _encode_integers(self, ids: pl.Series) -> np.ndarray:
        values_N = ids.to_numpy()
        end = int(values_N.max()) + 1
        if end > len(self._code_of_integer):
            longer = np.full(min(max(end, 2 * len(self._code_of_integer)), _DIRECT), _UNKNOWN)
            longer[: len(self._code_of_integer)] = self._code_of_integer
            self._code_of_integer = longer
        codes_N = self._code_of_integer[values_N]
        unknown_N = codes_N == _UNKNOWN
        if unknown_N.any():
            met = np.zeros(end, dtype=bool)
            met[values_N[unknown_N]] = True
            new = np.flatnonzero(met)
            self._code_of_integer[new] = self._encode_text(pl.Series(new).cast(pl.String))
            codes_N = self._code_of_integer[values_N]
        return codes_N


def _are_small(ids: pl.Series) -> bool:
    """Whether these are integers that can be looked up."""
    if ids.dtype not in _NUMPY_INTEGERS or ids.null_count() or len(ids) == 0:
        return False
    values_N = ids.to_numpy()
    return int(values_N.min()) >= 0 and int(values_N.max()) < _DIRECT
