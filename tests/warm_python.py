"""A Python that has already imported Lightning and torch, so that processes of `lrec` start in 0.1 s instead of 5 s.

`start` makes an executable that replaces sys.executable. It runs `-m lrec`, torchrun and submitit's jobs in their own
processes, forked like those of a study, with the given arguments, environment, folder, open files and limit of file
size. Processes that these start are as fast. The executable passes signals on, waits, and ends as its process ends. If
it is killed, it kills that process too. All other commands go to the Python that it replaces.
"""

import atexit
import contextlib
import fcntl
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
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

_SERVERS: "list[subprocess.Popen[bytes]]" = []  # keeps Python from warning about processes not waited for
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def start(folder: Path) -> tuple[str, int]:
    """Return the executable, which the first caller makes in `folder`, and a descriptor. The server ends with the last
    process that holds such a descriptor open."""
    executable, address, alive = folder / "python", folder / "socket", folder / "alive"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if executable.exists():
            return str(executable), os.open(alive, os.O_WRONLY)
        os.mkfifo(alive)
        reading = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
        held = os.open(alive, os.O_WRONLY)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
            listener.listen(64)
            serve = [sys.executable, __file__, "serve", str(listener.fileno()), str(executable)]
            _SERVERS.append(subprocess.Popen(serve, stdin=reading, pass_fds=[listener.fileno()]))
        os.close(reading)
        executable.write_text(f'#!/bin/sh\nexec {sys.executable} -SE {__file__} ask {sys.executable} {address} "$@"\n')
        executable.chmod(0o755)
    return str(executable), held


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


def serve(listener: str, executable: str) -> None:
    """Start a process for each request, and look after it until it ends."""
    from lrec.study import processes

    processes.IMPORTED.append("warm_imports")  # PYTHONPATH must have it
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    processes.start_server()
    with socket.socket(fileno=int(listener)) as requests:
        readable: list[socket.socket | int] = [requests, 0]
        while requests in select.select(readable, [], [])[0]:
            Thread(target=_look_after, args=(requests.accept()[0], executable), daemon=True).start()


def _look_after(connection: socket.socket, executable: str) -> None:
    from lrec.study.processes import begin, exit_code

    _, files, _, _ = socket.recv_fds(connection, 1, 64)
    with connection.makefile("rb") as received:
        request = json.loads(received.readline())
    threads = {"OMP_NUM_THREADS": request["environment"].get("OMP_NUM_THREADS", str(os.cpu_count()))}
    handed = dict(zip(request["files"], files, strict=True))
    process = begin(["warm_python", "become", executable, json.dumps(request)], threads, handed)
    for number in files:
        os.close(number)
    readable: list[socket.socket | int] = [connection, process.sentinel]
    assert process.pid is not None
    while process.sentinel not in select.select(readable, [], [])[0]:
        for number in connection.recv(64) or [signal.SIGKILL]:
            os.kill(process.pid, number)
    with contextlib.suppress(BrokenPipeError):  # the caller was killed
        connection.sendall(str(exit_code(process)).encode())
    connection.close()


def become(executable: str, asked: str) -> None:
    """In the forked process: apply what the request gives, and do what `python -m` does."""
    request: dict[str, Any] = json.loads(asked)
    sys.executable = executable
    resource.setrlimit(resource.RLIMIT_FSIZE, request["file_size"])
    os.chdir(request["folder"])
    sys.path[0] = request["folder"]
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (for as long as the process lives)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["", *request["arguments"][1:]]
    try:
        runpy.run_module(request["arguments"][0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()


if __name__ == "__main__":
    commands: dict[str, Callable[..., object]] = {"ask": ask, "serve": serve, "become": become}
    commands[sys.argv[1]](*sys.argv[2:])
