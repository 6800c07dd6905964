"""How a scheduler says stop, and the exit code that answers: start the same command again. Without Lightning."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h

Handlers = dict[signal.Signals, Any]


def listen(heed: Callable[[int, FrameType | None], object]) -> Handlers:
    """Have `heed` called on each signal; returns what `deafen` takes, empty in a thread, which cannot."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, heed) for number in SIGNALS}


def deafen(handlers: Handlers) -> None:
    """Listen no more: whoever listened before does so again."""
    for number, handler in handlers.items():
        signal.signal(number, handler)
