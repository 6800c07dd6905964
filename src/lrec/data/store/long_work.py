"""Long work: a thread makes the next thing while the current one is used, and stderr shows the progress."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

THREADS = 2  # things that are made at a time; each adds to the peak memory


def ahead(things: Iterable[T]) -> Iterator[T]:
    """The same things; a second thread makes the next one while the current one is used."""
    iterator = iter(things)
    for thing in map_ahead(lambda _: next(iterator, None), count(), threads=1):
        if thing is None:
            return
        yield thing


def map_ahead(function: Callable[[T], R], things: Iterable[T], threads: int = THREADS) -> Iterator[R]:
    """function(thing) for each thing, in order. If several fail, the error of the earliest thing is raised."""
    # The pool is never shut down, because that waits for its threads. The garbage collector may close an unfinished
    # generator in a thread that holds a lock which they need. They end when nothing refers to the pool.
    pool = ThreadPoolExecutor(threads)
    coming, iterator = deque[Future[R]](), iter(things)
    while True:
        try:
            coming.append(pool.submit(function, next(iterator)))
        except StopIteration:
            break
        except Exception as error:  # raised after the results of all earlier things
            coming.append(Future())
            coming[-1].set_exception(error)
            break
        if len(coming) > threads:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


class Progress:
    """Prints rows and seconds of each stage, after two silent seconds. A terminal gets one line per stage, which is
    updated in place; any other output gets a line every ten seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._stage, self._rows, self._start = clock, "", 0, clock()
        self._silent_until = self._next = self._start + 2

    def stage(self, name: str) -> None:
        self.finish()
        self._stage, self._rows, self._start = name, 0, self._clock()

    def add(self, rows: int) -> None:
        self._rows += rows
        if self._clock() >= self._next:
            self._print("")
            self._next = self._clock() + (0.2 if sys.stderr.isatty() else 10)

    def finish(self) -> None:
        if self._stage and self._clock() >= self._silent_until:
            self._print("\n")

    def _print(self, end: str) -> None:
        text = f"  {self._stage}: {self._rows:,} rows, {self._clock() - self._start:.1f} s"
        begin, end = ("\r", end) if sys.stderr.isatty() else ("", "\n")
        print(begin + text, end=end, file=sys.stderr, flush=True)
