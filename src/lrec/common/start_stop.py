"""Fast imports when a process starts, and the signals with which a scheduler stops it."""

import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# With which a scheduler or, by Ctrl-C, a person stops a process.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h, as exit code: start the same command again


@contextmanager
def importing() -> Iterator[None]:
    """Import without garbage collection: it would search a million objects that stay, and take a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def on_signals(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Call `handler` on each of SIGNALS, then restore the earlier handlers; outside the main thread, do nothing. A
    second Ctrl-C raises KeyboardInterrupt, for people who do not want to wait."""

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
        handler(number, frame)

    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handle) for number in (SIGNALS if here else ())}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
