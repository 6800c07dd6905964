"""The radix sort against numpy's own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lrec.data.store.ordering import stable_argsort


@given(st.integers(0, 300), st.integers(1, 63), st.integers(0, 2**32 - 1))
def test_same_order_as_numpys_stable_sort(length: int, bits: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    few_N, many_N = (
        generator.integers(0, 10, length),
        generator.integers(0, 2**bits - 1, length, dtype=np.int64, endpoint=True),
    )
    keys_N = np.where(generator.random(length) < 0.5, few_N, many_N)
    assert np.array_equal(stable_argsort(keys_N), np.argsort(keys_N, kind="stable"))


@given(arrays(np.uint32, st.integers(0, 300), elements=st.integers(0, 2**32 - 1)))
def test_same_order_of_unsigned_integers(keys_N: np.ndarray) -> None:
    assert np.array_equal(stable_argsort(keys_N), np.argsort(keys_N, kind="stable"))
