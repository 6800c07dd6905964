"""Processes of a study, forked from a server that has imported Lightning once: that saves each of them four seconds.

The server does nothing else: what ends one of the processes leaves the others alone.
"""

import gc
import io
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

# By name: a list of imports that nothing uses is soon taken for a mistake.
IMPORTED = ["torch.utils.tensorboard", "lrec.training.lightning_cli"]

# An exit code can be read once, and starting a process reads those of all that have ended: whoever comes second gets
# nothing, which multiprocessing takes for exit code 255.
_READS_EXIT_CODES = threading.Lock()


def start_server() -> None:
    """Start what processes are forked from, unless it is there; it imports while this process does something else."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    forkserver.ensure_running()


class Processes:
    """The processes under way, so that all can be told to save and stop; once that is said, none is started."""

    def __init__(self, end_with: Sequence[int] = ()) -> None:
        """Those under way are told, too, once one of these processes has ended, however it did."""
        self.stopping = False
        self._end_with = end_with
        self._under_way: list[BaseProcess] = []

    def run(self, arguments: list[str], log: Path, threads: int, lock: int, variables: Mapping[str, str] = {}) -> int:
        """Run `python -m` with arguments, the lock and more variables of its environment to the end: its exit code."""
        if self.stopping:
            return -signal.SIGTERM
        # A run starts the processes of its devices itself: it is not to take a scheduler's job for its own.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        environment |= {"OMP_NUM_THREADS": str(threads)} | dict(variables)
        with log.open("a") as out:
            process = begin(arguments, environment, {1: out.fileno(), 2: out.fileno(), lock: lock}, self._end_with)
        self._under_way.append(process)
        if self.stopping:  # since the process was started
            process.terminate()
        code = exit_code(process)
        self._under_way.remove(process)
        return code

    def stop(self) -> None:
        self.stopping = True
        for process in list(self._under_way):
            process.terminate()

    def wait(self) -> None:
        for process in list(self._under_way):
            connection.wait([process.sentinel])


def begin(
    arguments: list[str], environment: dict[str, str], files: Mapping[int, int], end_with: Sequence[int] = ()
) -> BaseProcess:
    """Begin `python -m` with arguments in a forked process, in that environment alone.

    It inherits open files: what stands for 0, 1 and 2, and others under whichever number it gets. Where one of the
    processes `end_with` ends, it is told to stop (on Linux).
    """
    start_server()
    handed = [(number, Connection(os.dup(file))) for number, file in files.items()]  # these may be sent to it
    become = partial(_become, arguments, environment, handed, end_with)
    process = multiprocessing.get_context("forkserver").Process(target=become)
    with _READS_EXIT_CODES:
        process.start()
    return process


def exit_code(process: BaseProcess) -> int:
    """Wait for the end of a process; its exit code."""
    connection.wait([process.sentinel])
    with _READS_EXIT_CODES:
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def _become(
    arguments: list[str], environment: dict[str, str], files: list[tuple[int, Connection]], end_with: Sequence[int]
) -> None:
    """What `python -m` does with arguments, in a forked process; its files stay open while it lives."""
    import torch

    gc.freeze()  # the collector is to leave alone what all processes share
    for number, file in files:
        if number <= 2:
            os.dup2(file.fileno(), number)
    for stream in (sys.stdout, sys.stderr):  # what is printed first stands first in the log, and an error last
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ |= environment
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    for number in end_with if sys.platform == "linux" else ():
        threading.Thread(target=_end_with, args=(number,), daemon=True).start()
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


def _end_with(number: int) -> None:
    with suppress(ProcessLookupError):
        connection.wait([os.pidfd_open(number)])
    os.kill(os.getpid(), signal.SIGTERM)
