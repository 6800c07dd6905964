"""Sizes by shape, and ladders whose sizes differ in width alone."""

import itertools
import math
from typing import Any

import pytest

from lrec.errors import UserError
from lrec.model import cost
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.network_sizes import even_ladder, find_size


def n_body(size: str) -> int:
    return cost.n_body(TransformerConfig(1, 1, *find_size(size)))


def test_a_shape_is_a_size() -> None:
    assert find_size("2x96") == (2, 96, 3)
    assert find_size("1x8") == (1, 8, 1)


@pytest.mark.parametrize(
    ("width", "choice", "got"),
    [(6, {}, "6 / 2 heads"), (64, {"attention": "hstu", "hstu_head_width": 3}, "3")],
)
def test_rotary_positions_name_the_odd_width_per_head(width: int, choice: dict[str, Any], got: str) -> None:
    with pytest.raises(UserError, match=f"needs an even width per head, got {got}$"):
        TransformerConfig(9, 4, 1, width, 2, architecture=Architecture(positions="rotary", **choice))


@pytest.mark.parametrize("name", ["2x", "x96", "0x96", "2x0", "-1x8", "2x96x3", "2×96", "99k"])
def test_what_is_neither_a_size_nor_a_shape_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="unknown size"):
        find_size(name)


@pytest.mark.parametrize(
    ("width", "heads"), [(12, 1), (17, 1), (64, 2), (84, 3), (108, 3), (112, 4), (240, 8), (97, 1)]
)
def test_heads_are_about_32_wide_and_divide_the_width_evenly(width: int, heads: int) -> None:
    assert find_size(f"2x{width}").heads == heads


@pytest.mark.parametrize(("smallest", "largest", "per_decade"), [("3k", "3m", 3), ("98k", "829m", 2), ("1k", "3k", 9)])
def test_a_ladder_is_even_and_of_one_depth(smallest: str, largest: str, per_decade: int) -> None:
    names = even_ladder(smallest, largest, per_decade)
    assert len({find_size(name).layers for name in names}) == 1
    sizes = [n_body(name) for name in names]
    assert sizes == sorted(set(sizes))
    low, high = (float(text[:-1]) * {"k": 1e3, "m": 1e6}[text[-1]] for text in (smallest, largest))
    assert low / 1.6 < sizes[0] < low * 1.6
    assert high / 10 ** (1 / per_decade) / 1.6 < sizes[-1] < high * 1.6
    if per_decade < 9:  # small widths come in steps of four
        steps = [math.log10(large / small) for small, large in itertools.pairwise(sizes)]
        assert steps == pytest.approx([1 / per_decade] * len(steps), abs=0.2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("3k", "3k", 3), "from 3k must be below to 3k"),
        (("3k", "3m", 0), "per_decade must be at least 1, got 0"),
        (("3q", "3m", 3), "'3q' is no number of parameters"),
        (("-3k", "3m", 3), "'-3k' is no number of parameters"),
    ],
)
def test_impossible_ladders_are_refused(arguments: tuple[str, str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        even_ladder(*arguments)
