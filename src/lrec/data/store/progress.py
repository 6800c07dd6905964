"""Progress of long work on stderr."""

import sys
import time
from collections.abc import Callable


class Progress:
    """Rows and seconds of each stage; silent for the first two seconds.

    On a terminal one line is updated in place; elsewhere a line is printed every ten seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._start = self._stage_start = clock()
        self._next = self._start + 2
        self._stage = ""
        self._rows = 0
        self._line_open = False

    def stage(self, name: str) -> None:
        """Begin a stage."""
        if self._stage and self._shown:
            self._print("\n")
        self._stage, self._rows, self._stage_start = name, 0, self._clock()

    def add(self, rows: int) -> None:
        """Count more rows of the stage."""
        self._rows += rows
        now = self._clock()
        if now >= self._next:
            terminal = sys.stderr.isatty()
            self._print("" if terminal else "\n")
            self._next = now + (0.2 if terminal else 10)

    def finish(self) -> None:
        """End the last stage."""
        if self._shown:
            self._print("\n")

    @property
    def _shown(self) -> bool:
        return self._clock() - self._start >= 2

    def _print(self, end: str) -> None:
        begin = "\r" if self._line_open else ""
        seconds = self._clock() - self._stage_start
        print(f"{begin}  {self._stage}: {self._rows:,} rows, {seconds:.1f} s", end=end, file=sys.stderr, flush=True)
        self._line_open = end == ""
