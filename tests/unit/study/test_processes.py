"""Processes that a study forks."""

import os
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path

import pytest

from lrec.common.files import locked
from lrec.common.start_stop import SIGNALS
from lrec.study.processes import IMPORTED, Processes


def test_processes_that_end_at_once_have_their_own_exit_codes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("ends.py").write_text("import sys\nraise SystemExit(int(sys.argv[1]))\n")
    processes, codes = Processes(), [n % 4 for n in range(24)]
    with locked(Path("lock")) as lock, ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda code: processes.run(["ends", str(code)], Path("log"), 1, lock), codes)
        assert list(found) == codes


def test_a_process_that_has_begun_is_told_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("waits.py").write_text("import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(60)\n")
    processes = Processes()
    with locked(Path("lock")) as lock, ThreadPoolExecutor(1) as threads:
        code = threads.submit(processes.run, ["waits"], Path("log"), 1, lock)
        while not Path("begun").exists():
            assert not code.done(), Path("log").read_text()
        for number in SIGNALS:  # to the whole group of processes
            os.kill(forkserver._forkserver._forkserver_pid, number)
        processes.stop()
        assert code.result() == -15
        assert processes.run(["waits"], Path("log"), 1, lock) == -15


def test_processes_begin_with_all_imports_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("knows.py").write_text(f"import sys\nsys.exit(not {{*{IMPORTED}, 'lightning'}} <= set(sys.modules))\n")
    with locked(Path("lock")) as lock:
        assert Processes().run(["knows"], Path("log"), 1, lock) == 0
