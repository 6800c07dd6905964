"""Temporary folders that processes share."""

import multiprocessing
import tempfile
from pathlib import Path

import pytest

from lrec.data.store.made_once import shared_folder


def test_the_process_that_made_a_folder_removes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def run(token: str) -> None:
        process = multiprocessing.get_context("fork").Process(target=shared_folder, args=(token,))
        process.start()
        process.join()
        assert process.exitcode == 0

    run("its own")
    assert list(tmp_path.iterdir()) == []
    mine = shared_folder("mine")
    run("mine")
    assert mine.is_dir()
