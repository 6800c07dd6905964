"""Processes of a study, forked from a server that has imported Lightning once and has done nothing else."""

import io
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection, forkserver, reduction
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# An exit code can be read once, and starting a process reads those of all that have ended. If a thread reads its own
# at that moment, one of the two gets nothing, which multiprocessing takes for exit code 255.
_READS_EXIT_CODES = threading.Lock()


def start_server() -> None:
    """Start what runs are forked from, unless it is there; it imports while this process does something else."""
    multiprocessing.set_forkserver_preload(["lrec.study.server"])
    forkserver.ensure_running()


def side_by_side(function: Callable[[T], R], things: Sequence[T], n: int) -> list[R]:
    """function(thing) for each thing, in up to n processes; in this one if n is 1."""
    n = min(n, len(things))
    if n <= 1:
        return [function(thing) for thing in things]
    start_server()
    context, ignore = multiprocessing.get_context("forkserver"), (signal.SIGINT, signal.SIG_IGN)
    # An interrupt from the keyboard reaches all processes: this one alone is to say so.
    with ProcessPoolExecutor(n, context, initializer=signal.signal, initargs=ignore) as pool:
        return list(pool.map(function, things))


class Processes:
    """The processes under way, so that all can be told to save and stop; once that is said, none is started.

    They are forked from a server that has imported Lightning once, which takes seconds, and has done nothing else: what
    ends one of them leaves the others alone.
    """

    def __init__(self) -> None:
        self.stopping = False
        self._under_way: list[BaseProcess] = []

    def run(
        self, arguments: list[str], log: Path, threads: int, lock: int, variables: Mapping[str, str] | None = None
    ) -> int:
        """Run `python -m` with arguments, inheriting the lock and with more variables in its environment, to the end;
        returns its exit code."""
        if self.stopping:
            return -signal.SIGTERM
        # A run starts the processes of its devices itself: it is not to take a scheduler's job for its own.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        environment |= {"OMP_NUM_THREADS": str(threads)} | dict(variables or {})
        start_server()
        process = multiprocessing.get_context("forkserver").Process(
            target=_run_module, args=(arguments, log, environment, _Descriptor(lock))
        )
        with _READS_EXIT_CODES:
            process.start()
        self._under_way.append(process)
        if self.stopping:  # since the process was started
            process.terminate()
        connection.wait([process.sentinel])
        with _READS_EXIT_CODES:
            process.join()
        self._under_way.remove(process)
        assert process.exitcode is not None
        return process.exitcode

    def stop(self) -> None:
        """Tell all to stop."""
        self.stopping = True
        for process in list(self._under_way):
            process.terminate()


def _run_module(arguments: list[str], log: Path, environment: dict[str, str], lock: "_Descriptor") -> None:
    """What `python -m` does with arguments, in a forked process; the lock is held while it lives."""
    import torch

    with log.open("a") as out:
        os.dup2(out.fileno(), sys.stdout.fileno())
        os.dup2(out.fileno(), sys.stderr.fileno())
    for stream in (sys.stdout, sys.stderr):  # what is printed first stands first in the log, and an error last
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ |= environment
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


class _Descriptor:
    """An open file that a forked process inherits."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _inherited, (reduction.DupFd(self.number),)


def _inherited(handed: Any) -> _Descriptor:
    return _Descriptor(handed.detach())
