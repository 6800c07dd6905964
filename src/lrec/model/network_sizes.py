"""The ladder of sizes: number of blocks, width and heads, by name or by number of parameters."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from lrec.errors import UserError, check_range


class Size(NamedTuple):
    """An entry of the ladder: number of blocks, width and heads."""

    layers: int
    width: int
    heads: int


# Named by N_body = 12 * layers * width^2. 98k, 786k, 1.6m, 9.4m, 75m and 829m are the sizes of arXiv 2311.11351; the
# others are for a laptop.
SIZES: dict[str, Size] = {
    "0.8k": Size(1, 8, 1),
    "1.7k": Size(1, 12, 1),
    "3k": Size(1, 16, 1),
    "4.8k": Size(1, 20, 1),
    "6.9k": Size(1, 24, 1),
    "9.4k": Size(1, 28, 1),
    "12k": Size(1, 32, 1),
    "25k": Size(2, 32, 1),
    "49k": Size(1, 64, 1),
    "55k": Size(2, 48, 2),
    "74k": Size(6, 32, 1),
    "98k": Size(2, 64, 2),
    "111k": Size(1, 96, 1),
    "221k": Size(2, 96, 2),
    "442k": Size(1, 192, 1),
    "786k": Size(4, 128, 4),
    "1.6m": Size(8, 128, 4),
    "9.4m": Size(12, 256, 8),
    "75m": Size(24, 512, 8),
    "829m": Size(48, 1200, 24),
}
HEAD_WIDTH = 32


def find_size(name: str) -> Size:
    """The entry of the ladder with that name, or the shape LAYERSxWIDTH, such as 2x96; UserError if it is neither."""
    if name in SIZES:
        return SIZES[name]
    layers, times, width = name.partition("x")
    if not (times and layers.isdecimal() and width.isdecimal() and int(layers) and int(width)):
        raise UserError(
            f"unknown size {name!r}: choose one of {', '.join(SIZES)}, a shape LAYERSxWIDTH such as 2x96, "
            "or give layers, width and heads"
        )
    d = int(width)
    # Heads as near to a width of 32 as an even head width allows.
    heads = next((h for h in range(max(round(d / HEAD_WIDTH), 1), 1, -1) if d % (2 * h) == 0), 1)
    return Size(int(layers), d, heads)


def chosen_size(size: str | None, layers: int | None, width: int | None, heads: int | None) -> tuple[str, Size]:
    """The name and the shape that `size` or the other three choose; UserError if both are given, or not enough."""
    if size is not None:
        if (layers, width, heads) != (None, None, None):
            raise UserError("give model.size, or model.layers, model.width and model.heads, not both")
        return size, find_size(size)
    if layers is None or width is None or heads is None:
        raise UserError("choose the network: model.size, or model.layers, model.width and model.heads")
    return f"{layers}x{width}", Size(layers, width, heads)


def even_ladder(smallest: str, largest: str, per_decade: int) -> list[str]:
    """Shapes of one depth, evenly spaced in log N_body: `per_decade` of them for each factor of ten."""
    low, high = (parameters(size) for size in (smallest, largest))
    if not low < high:
        raise UserError(f"sizes: from {smallest} must be below to {largest}")
    check_range("sizes: per_decade", per_decade, at_least=1)
    count = math.floor(math.log10(high / low) * per_decade + 1e-9) + 1
    return shapes([low * 10 ** (i / per_decade) for i in range(count)])


def shapes(n_bodies: Sequence[float]) -> list[str]:
    """Shapes of one depth with about these numbers of parameters in their blocks, from the smallest to the largest.

    At this depth, the middle size in log N_body has a width of 32 times its number of blocks. If the depth grew along
    the ladder, the loss would have a kink at each added block, and a law would fit that kink as curvature.
    """
    middle = math.sqrt(n_bodies[0] * n_bodies[-1])
    layers = max(round((middle / (12 * HEAD_WIDTH**2)) ** (1 / 3)), 1)
    names: dict[str, None] = {}
    for n_body in n_bodies:
        exact = math.sqrt(n_body / (12 * layers))
        step = 8 if exact >= 2 * HEAD_WIDTH else 4
        names[f"{layers}x{max(round(exact / step), 1) * step}"] = None
    return list(names)


def parameters(text: str) -> float:
    """The number of parameters that a text such as 3000, 3k, 1.6m or 1b means; UserError for any other text."""
    scale = {"k": 1e3, "m": 1e6, "b": 1e9}.get(text[-1:].lower(), 1.0)
    try:
        number = float(text if scale == 1 else text[:-1]) * scale
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(f"{text!r} is no number of parameters: write 3000, 3k, 1.6m or 1b")
    return number
