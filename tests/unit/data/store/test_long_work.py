"""Threads work ahead: results come in order, and whatever drops the iterator does not have to wait."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator

import pytest

from lrec.data.store.long_work import ahead, map_ahead


def each(wait: Callable[[int], int]) -> Iterator[int]:
    for number in range(1, 10):
        yield wait(number)


def results_of_each(wait: Callable[[int], int]) -> Iterator[int]:
    return map_ahead(wait, range(1, 10))


def ahead_of_each(wait: Callable[[int], int]) -> Iterator[int]:
    return ahead(each(wait))


def test_results_come_in_order() -> None:
    def later(number: int) -> int:
        time.sleep(0.01 * (number % 3))
        return number

    assert list(results_of_each(later)) == list(ahead_of_each(later)) == list(range(1, 10))


def test_what_precedes_a_failure_comes_first() -> None:
    def things() -> Iterable[int]:
        yield from range(3)
        raise ValueError("third")

    results = map_ahead(lambda number: number, things())
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="third"):
        next(results)


@pytest.mark.usefixtures("_no_pool_thread_left")
@pytest.mark.parametrize("working", [results_of_each, ahead_of_each])
def test_dropped_half_way_it_does_not_wait_for_its_threads(working: Callable[..., Iterator[int]]) -> None:
    """The garbage collector may drop it, in a thread that holds what a waiting thread needs."""
    go, busy = threading.Event(), threading.Event()

    def wait(number: int) -> int:
        if number > 1:
            busy.set()
            assert go.wait(30)
        return number

    results = working(wait)
    assert next(results) == 1
    assert busy.wait(30)
    started = time.monotonic()
    del results
    waited = time.monotonic() - started
    go.set()
    assert waited < 10
