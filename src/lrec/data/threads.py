"""Work on what comes next while the present is used: in threads, in order, a bounded number ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Things that are worked on at a time; each adds to the peak of memory.
THREADS = 2


def ahead(things: Iterable[T]) -> Iterator[T]:
    """The same things, each next one made in a second thread while the present one is used."""
    iterator, pool = iter(things), _pool(1)
    coming = pool.submit(next, iterator, None)
    while (thing := coming.result()) is not None:
        coming = pool.submit(next, iterator, None)
        yield thing


def mapped(function: Callable[[T], R], things: Iterable[T]) -> Iterator[R]:
    """function(thing) for each thing, in order; of several failures that of the first thing is raised."""
    coming: deque[Future[R]] = deque()
    failure: Exception | None = None
    iterator, pool = iter(things), _pool(THREADS)
    while True:
        try:
            coming.append(pool.submit(function, next(iterator)))
        except StopIteration:
            break
        except Exception as error:  # raised once all that precedes it has been handed over
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

    It is never shut down, since that waits for its threads: a generator that is dropped half-way is closed by whoever
    drops it, and that may be the garbage collector inside a thread that holds what those threads need.
    """
    return ThreadPoolExecutor(threads)
