"""Fixtures for many tests: the command line in this process, a small log, and the real data if it is there."""

import os

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # before anything that counts the cores is imported
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(share, 1)))

# Tests that compare results exactly need float32, even if another precision is faster on this machine.
os.environ.setdefault("LREC_PRECISION", "32-true")

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

import warm_python
from lrec.cli import LIGHTNING_COMMANDS, main, own_command
from lrec.options.config_files import with_shipped_configs

# Lightning's log handler keeps the stderr of the test that imported it, which pytest closes.
logging.raiseExceptions = False

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def lrec(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `lrec` with arguments and return what it prints. A UserError ends in SystemExit(2)."""

    def run(*arguments: object) -> str:
        # A run leaves its rank, port and seed in the environment: the next command must not use them.
        with patch.dict(os.environ):
            main([str(argument) for argument in arguments])
        return capsys.readouterr().out

    return run


@pytest.fixture
def refused(lrec: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `lrec` with arguments that it must refuse, with exit code 2 and one line. Returns that line."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            lrec(*arguments)
        assert stop.value.code == 2
        *before, error = capsys.readouterr().err.strip().splitlines()
        assert error.startswith("lrec: error: ")
        assert all(line.startswith(("preparing ", "  ")) for line in before), before  # progress on a busy machine
        return error

    return run


@pytest.fixture(scope="session")
def _warm_executable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if sys.platform != "linux":
        yield sys.executable
        return
    beside = "PYTEST_XDIST_WORKER" in os.environ  # workers share one server
    folder = tmp_path_factory.getbasetemp().parent / "warm" if beside else tmp_path_factory.mktemp("warm")
    folder.mkdir(exist_ok=True)
    executable, held = warm_python.start(folder)
    yield executable
    os.close(held)


@pytest.fixture(scope="module")
def warm_processes(_warm_executable: str) -> Iterator[None]:
    """Processes of `lrec` that a module's tests start, and their own child processes, start with Lightning imported."""
    with patch.object(sys, "executable", _warm_executable):
        yield


@pytest.fixture(scope="session")
def parse() -> Callable[[list[str]], None]:
    """Parse arguments as `lrec` would, without running anything."""

    def run(arguments: list[str]) -> None:
        from lrec.training.lightning_cli import CommandLine

        if arguments[0] in LIGHTNING_COMMANDS:
            CommandLine(arguments[0], with_shipped_configs(arguments[1:]), make=False)
            return
        _, parser, options = own_command(arguments)
        parser.parse_args(with_shipped_configs(options))

    return run


@pytest.fixture(scope="session")
def log_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 300 users over 40 items, in which an item is mostly followed by the item with the next number."""
    generator = np.random.default_rng(0)
    lines = ["who,what,when"]
    for user in range(300):
        item = int(generator.integers(40))
        for step in range(int(generator.integers(4, 16))):
            lines.append(f"u{user},item-{item},{1_600_000_000 + 60 * step + user}")
            item = (item + 1) % 40 if generator.random() < 0.8 else int(generator.integers(40))
    path = tmp_path_factory.mktemp("log") / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """A file of the real data next to the repository. Skips the test if the file is missing."""

    def find(name: str) -> Path:
        path = REPOSITORY.parent / "shared" / "data" / "interactions" / name
        if not path.is_file():
            pytest.skip(f"real data not at hand: {path}")
        return path

    return find
