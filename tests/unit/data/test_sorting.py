"""The radix sort against numpy's own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lrec.data.sorting import stable_argsort


@given(arrays(np.int64, st.integers(0, 300), elements=st.one_of(st.integers(0, 9), st.integers(0, 2**63 - 1))))
def test_same_order_as_numpys_stable_sort(keys_N: np.ndarray) -> None:
    assert np.array_equal(stable_argsort(keys_N), np.argsort(keys_N, kind="stable"))


@given(arrays(np.uint32, st.integers(0, 300), elements=st.integers(0, 2**32 - 1)))
def test_same_order_of_unsigned_integers(keys_N: np.ndarray) -> None:
    assert np.array_equal(stable_argsort(keys_N), np.argsort(keys_N, kind="stable"))
