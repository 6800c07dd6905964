"""Processes of a study, forked from a server that has imported Lightning once. This saves each of them four seconds.
The server does nothing else, so an event that ends one process does not affect the others."""

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
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from lrec.common.start_stop import SIGNALS

IMPORTED = ["torch.utils.tensorboard", "lrec.training.lightning_cli"]  # by the server

# An exit code can be read only once, and starting a process reads the codes of all processes that have ended. Without
# a lock, a second reader would get nothing, which multiprocessing reports as exit code 255.
_READS_EXIT_CODES = threading.Lock()


def start_server() -> None:
    """Start the server that processes are forked from, unless it runs already. It imports in the background. Signals,
    which may go to a whole group of processes, are blocked in it: without it, exit codes would be lost."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    resource_tracker.ensure_running()  # it would unblock some
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Processes:
    """The running processes. `stop` tells all of them to save and stop; after that, `run` starts none. They are also
    told to stop when one of the processes `end_with` ends, for any reason."""

    def __init__(self, end_with: Sequence[int] = ()) -> None:
        self.stopping, self._end_with = False, end_with
        self._under_way: list[BaseProcess] = []

    def run(self, arguments: list[str], log: Path, threads: int, lock: int, variables: Mapping[str, str] = {}) -> int:
        """Run `python -m` with arguments and return its exit code. It inherits `lock` and also has `variables`."""
        if self.stopping:
            return -signal.SIGTERM
        # A run starts its device processes itself. It must not treat the scheduler's SLURM job as its own.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        environment |= {"OMP_NUM_THREADS": str(threads)} | dict(variables)
        with log.open("a") as out:
            process = begin(arguments, environment, {1: out.fileno(), 2: out.fileno(), lock: lock}, self._end_with)
        self._under_way.append(process)
        if self.stopping:  # `stop` was called after the first check
            process.terminate()
        code = exit_code(process)
        self._under_way.remove(process)
        return code

    def stop(self, wait: bool = False) -> None:
        """Tell the running processes to stop; `wait` for their end, even in a signal handler."""
        self.stopping, under_way = True, list(self._under_way)
        for process in under_way:
            process.terminate()
        for process in under_way if wait else ():
            connection.wait([process.sentinel])


def begin(
    arguments: list[str], environment: dict[str, str], files: Mapping[int, int], end_with: Sequence[int] = ()
) -> BaseProcess:
    """Start `python -m` with arguments in a forked process that has only this environment, and these open files: 0, 1
    and 2 under these numbers, others under any. On Linux, it is told to stop when one of the processes `end_with` ends.
    """
    start_server()
    handed = [(number, Connection(os.dup(file))) for number, file in files.items()]  # so that they can be sent
    become = (arguments, environment, handed, end_with)
    process = multiprocessing.get_context("forkserver").Process(target=_become, args=become)
    with _READS_EXIT_CODES:
        process.start()
    return process


def exit_code(process: BaseProcess) -> int:
    """Wait for the end of a process and return its exit code."""
    connection.wait([process.sentinel])
    with _READS_EXIT_CODES:
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def _become(
    arguments: list[str], environment: dict[str, str], files: list[tuple[int, Connection]], end_with: Sequence[int]
) -> None:
    """Do what `python -m` does with arguments, in a forked process. The files stay open until it ends."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    import torch

    gc.freeze()  # so that the collector leaves alone the memory that all processes share
    for number, file in files:
        if number <= 2:
            os.dup2(file.fileno(), number)
    for stream in (sys.stdout, sys.stderr):  # so that the log is in the order of printing, with an error last
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
