"""A walk by factors of two: where it ends, and what it has tried by then."""

from collections.abc import Sequence
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from lrec.study.tuning import Place, Setting, walk

places = st.builds(Place, st.integers(-6, 6), st.integers(-3, 3), st.integers(0, 5))


@given(best=places, cliff=st.integers(1, 3))
def test_a_walk_ends_between_worse_neighbours_wherever_the_best_is(best: Place, cliff: int) -> None:
    tried: list[Place] = []

    def losses_of(wanted: list[Place]) -> Sequence[float]:
        tried.extend(wanted)
        away = [[at - to for at, to in zip(place, best, strict=True)] for place in wanted]
        return [float("inf") if lr > cliff + 8 else 5 + lr**2 + step**2 + dropout**2 for lr, step, dropout in away]

    found = walk(losses_of, Place._fields, lambda place: 0 <= place.dropout <= 5)
    assert len(tried) == len(set(tried)) == len(found)
    assert min(found, key=found.__getitem__) == best
    for axis, by in product(Place._fields, (-1, 1)):
        neighbour = best._replace(**{axis: getattr(best, axis) + by})
        assert neighbour in found or not 0 <= neighbour.dropout <= 5


def test_another_step_is_tried_at_the_rate_that_suits_it() -> None:
    assert Place(1, -2).of(Setting(0.01, 512, 0.0)) == Setting(0.01, 128, 0.0)
    assert Place(0, 1, 2).of(Setting(0.01, 512, 0.1)) == Setting(0.01414, 1024, 0.3)
