"""The folder and the runs that the tests of a session share."""

from pathlib import Path

import pytest
from running import Fit, fit_command, run, run_here


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of all tests lie."""
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="session")
def fit(folder: Path) -> Fit:
    """Train run `name` of the session's folder."""

    def train(name: str, processes: int, *options: str, code: int = 0) -> Path:
        command = fit_command(folder, folder / name, processes, *options)
        if processes == 0 and code == 0:
            run_here(command)
        else:
            run(command, code)
        return folder / name

    return train
