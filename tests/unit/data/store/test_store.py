"""A store that was truncated, edited or copied."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lrec.data.features import Features
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.store.store import Store, describe
from lrec.errors import UserError


@pytest.fixture
def store(make_lengths) -> Store:
    return make_lengths([50_000, 3])


def edit(path: Path, position: int) -> None:
    """Flip a byte and leave size and mtime as they were."""
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("name", ["items.npy", "offsets.npy", "times.npy", "items.parquet", "users.parquet"])
def test_truncated_edited_and_missing_files_are_refused(store: Store, name: str) -> None:
    path = store.path / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=rf"{name} has \d+ bytes"):
        Store.open(store.path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{name} was edited"):
        Store.open(store.path)
    path.unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        Store.open(store.path)


def test_an_edit_between_sampled_blocks_is_found_by_mtime_or_verify(store: Store) -> None:
    path = store.path / "items.npy"
    edit(path, 6000)
    Store.open(store.path)  # size, mtime and sampled blocks are those recorded
    with pytest.raises(UserError, match=r"items\.npy was edited"):
        Store.open(store.path, verify=True)
    with pytest.raises(UserError, match=r"items\.npy was edited"):
        describe(store.path, verify=True)
    os.utime(path)
    with pytest.raises(UserError, match=r"items\.npy was edited"):
        Store.open(store.path)


def test_a_copy_is_as_good_as_the_original(store: Store, tmp_path: Path) -> None:
    shutil.copytree(store.path, tmp_path / "copy", copy_function=shutil.copyfile)
    copy = Store.open(tmp_path / "copy")
    assert copy.hash == store.hash
    assert np.array_equal(copy.items_N, store.items_N)


def test_not_a_store(tmp_path: Path) -> None:
    for content in (None, "{", "[]", '{"schema": -1}'):
        if content is not None:
            (tmp_path / "meta.json").write_text(content)
        with pytest.raises(UserError, match=r"not a store|damaged"):
            Store.open(tmp_path)


def test_a_pickled_store_reopens_its_arrays(store: Store) -> None:
    assert isinstance(store.items_N, np.memmap)
    data = pickle.dumps(store)
    assert len(data) < store.items_N.nbytes / 10
    assert np.array_equal(pickle.loads(data).items_N, store.items_N)


def test_describe_prints_the_statistics(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    describe(store.path)
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["users"].strip() == "2"
    assert lines["interactions"].strip() == "50,003"


def test_describe_says_facts_and_features_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ["1,1,view,tv", "1,1,buy,", "1,2,view,pad"]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,kind,device", *rows]))
    options = {"event_column": "kind", "event_features": Features(categories=["device"]), "repeats": False}
    data = InteractionsDataModule(tmp_path / "log.csv", time_column=None, data_dir=tmp_path / "data", **options)
    data.prepare_data()
    describe(data.store_path)
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if "  " in line)
    found = [lines[name].strip() for name in ("repeats dropped", "event types", "values of device")]
    assert found == ["1", "buy, view", "2"]


def test_describing_a_store_imports_neither_lightning_nor_torch() -> None:
    code = "import sys, lrec.data.store.store; sys.exit(bool({'lightning', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
