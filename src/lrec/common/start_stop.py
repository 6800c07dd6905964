"""Fast imports when a process starts, and the signals with which a scheduler stops it."""

import gc
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # with which a scheduler stops a process
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
    """Call `handler` on each of SIGNALS, then restore the earlier handlers; outside the main thread, do nothing."""
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in (SIGNALS if here else ())}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
