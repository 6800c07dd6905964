"""A Python that has imported Lightning and torch: processes of `lrec` that begin in 0.1 s instead of 5.

`start` makes an executable to stand for sys.executable. `-m lrec`, torchrun and submitit's jobs are run in processes of
their own, with the arguments, environment, folder, open files and limit of file size that they were given; what these
start begins as fast. A server forks them; the executable hands signals on, waits, and ends as its process ends. Killed,
it takes that with it. What else is asked of it goes to the Python that it stands for.
"""

import atexit
import contextlib
import gc
import json
import os
import re
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def start(folder: Path) -> "tuple[str, subprocess.Popen[bytes]]":
    """The executable, made in `folder`, and the server, which ends where its stdin does."""
    executable, address = folder / "python", folder / "socket"
    executable.write_text(f'#!/bin/sh\nexec {sys.executable} -SE {__file__} ask {sys.executable} {address} "$@"\n')
    executable.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(64)
        serve = [sys.executable, __file__, "serve", str(listener.fileno()), str(executable)]
        server = subprocess.Popen(serve, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])
    return str(executable), server


def ask(python: str, address: str, *arguments: str) -> None:
    """What the executable does: run `python` with these arguments."""
    if arguments[0] == "-u":
        return ask(python, address, *arguments[1:])
    if arguments[0] != "-m" or not re.match(r"lrec\b|torch\.|submitit\.core\._submit$", arguments[1]):
        os.execv(python, [python, *arguments])
    files = [number for number in map(int, os.listdir("/proc/self/fd")) if _is_open(number)]
    request = {"arguments": arguments[1:], "environment": dict(os.environ), "folder": os.getcwd(), "files": files}
    request["file_size"] = resource.getrlimit(resource.RLIMIT_FSIZE)
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        for number in SIGNALS:
            signal.signal(number, lambda number, _: server.sendall(bytes([number])))
        socket.send_fds(server, [b"\0"], files)
        server.sendall(json.dumps(request).encode() + b"\n")
        code = int(server.makefile().read())
    if code < 0:  # by a signal
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def serve(listener: str, executable: str) -> list[str]:
    """Fork a process for each request; returns, in that process only, what it is to run: a module and its arguments."""
    _import_all()
    sys.executable = executable
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    with socket.socket(fileno=int(listener)) as requests:
        readable: list[socket.socket | int] = [requests, 0]
        while requests in select.select(readable, [], [])[0]:
            connection, _ = requests.accept()
            if os.fork() == 0:
                break
            connection.close()
        else:
            sys.exit()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return _look_after(connection)


def _import_all() -> None:
    from lrec.cli import OWN_COMMANDS

    for module in (
        "lrec.training.lightning_cli",
        "torch.distributed.run",
        *(entry.module for entry in OWN_COMMANDS.values()),
    ):
        import_module(module)
    # What jsonargparse makes of docstrings and types it keeps.
    import_module("lrec.training.lightning_cli").compose(["--data=lrec.SyntheticDataModule", "--model.size=3k"])
    # So is the processor's rate. On one thread: OpenMP's others would not live in the processes that are forked.
    torch = import_module("torch")
    torch.set_num_threads(1)
    import_module("lrec.training.throughput").measure_peak(torch.device("cpu"), torch.float32)
    gc.freeze()


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass


def _look_after(connection: socket.socket) -> list[str]:
    """Fork the process that was asked for, in which this returns, and stay with it to its end."""
    _, files, _, _ = socket.recv_fds(connection, 1, 64)
    with connection.makefile("rb") as received:
        request = json.loads(received.readline())
    process = os.fork()
    if process == 0:
        connection.close()
        return _become(request, files)
    for number in files:
        os.close(number)
    ended = os.pidfd_open(process)
    readable: list[socket.socket | int] = [connection, ended]
    while ended not in select.select(readable, [], [])[0]:
        for number in connection.recv(64) or [signal.SIGKILL]:
            os.kill(process, number)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    with contextlib.suppress(BrokenPipeError):  # whoever asked was killed
        connection.sendall(str(code).encode())
    os._exit(0)


def _become(request: dict[str, Any], files: list[int]) -> list[str]:
    """Take over what the process was given; returns its arguments."""
    import torch

    for asked, number in zip(request["files"], files, strict=True):
        if asked < 3:
            os.dup2(number, asked)
            os.close(number)
    resource.setrlimit(resource.RLIMIT_FSIZE, request["file_size"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    os.environ.clear()
    os.environ.update(request["environment"])
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    return list(request["arguments"])


def _exit_after(module: str, *arguments: str) -> None:
    """Run a module as `python -m` does, and exit, but leave all that the server had imported as it is."""
    code: Any = 1
    sys.argv = ["", *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        ask(*sys.argv[2:])
    else:
        _exit_after(*serve(*sys.argv[2:]))
