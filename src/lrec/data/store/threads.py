"""Work ahead in threads: the next things are made while the current one is used, in order and in bounded number."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Number of things in work at a time; each adds to the peak memory.
THREADS = 2


def ahead(things: Iterable[T]) -> Iterator[T]:
    """The same things; the next one is made in a second thread while the current one is used."""
    iterator, pool = iter(things), _pool(1)
    coming = pool.submit(next, iterator, None)
    while (thing := coming.result()) is not None:
        coming = pool.submit(next, iterator, None)
        yield thing


def mapped(function: Callable[[T], R], things: Iterable[T]) -> Iterator[R]:
    """function(thing) for each thing, in order; of several failures, that of the earliest thing is raised."""
    coming: deque[Future[R]] = deque()
    failure: Exception | None = None
    iterator, pool = iter(things), _pool(THREADS)
    while True:
        try:
            coming.append(pool.submit(function, next(iterator)))
        except StopIteration:
            break
        except Exception as error:  # raised after the results of all earlier things
            failure = error
            break
        if len(coming) > THREADS:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()
    if failure is not None:
        raise failure


def _pool(threads: int) -> ThreadPoolExecutor:
    """A pool whose threads end by themselves once nothing refers to it.

    It is never shut down, because that waits for its threads. A generator that is dropped half-way may be closed by the
    garbage collector, in a thread that holds a lock which those threads need.
    """
    return ThreadPoolExecutor(threads)
