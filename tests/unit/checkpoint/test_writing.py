"""Saves that training does not wait for: what is written, when, and what a failure leaves."""

import errno
import os
import resource
import threading
from collections import deque
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from lrec.checkpoint import writing
from lrec.checkpoint.reading import check, read
from lrec.checkpoint.writing import Save, Saver, link, shard_names, write
from lrec.errors import UserError
from lrec.model.transformer import Transformer
from small_checkpoints import CONFIG, checkpoint, write_by_hand


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A disk that writes nothing before the gate is opened."""
    opened, at_once = threading.Event(), writing.write

    def slow(path: Path, value: dict[str, Any]) -> None:
        assert opened.wait(timeout=20)
        at_once(path, value)

    monkeypatch.setattr(writing, "write", slow)
    return opened


def table_of(path: Path) -> torch.Tensor:
    table: torch.Tensor = read(path)["state_dict"]["net.items.weight"]
    return table


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, gate: threading.Event) -> None:
    net, saver, last = Transformer(CONFIG), Saver(), tmp_path / "last.ckpt"
    before = net.items.weight.detach().clone()
    saver.start(Save(last, checkpoint(net), copied=True), background=True)
    with torch.no_grad():
        net.items.weight += 1  # the next step
    saver.poll()
    assert not last.exists()
    gate.set()
    saver.join()
    assert torch.equal(table_of(last), before)


def test_a_save_waits_for_the_one_before(tmp_path: Path, gate: threading.Event) -> None:
    saver = Saver()
    saver.start(Save(tmp_path / "one.ckpt", checkpoint(Transformer(CONFIG)), copied=True), background=True)
    threading.Timer(0.2, gate.set).start()
    saver.start(Save(tmp_path / "two.ckpt", checkpoint(Transformer(CONFIG)), copied=True), background=True)
    assert (tmp_path / "one.ckpt").exists()
    saver.join()
    assert (tmp_path / "two.ckpt").exists()


def test_without_a_copy_training_waits(tmp_path: Path, gate: threading.Event) -> None:
    saver = Saver()
    threading.Timer(0.2, gate.set).start()
    saver.start(Save(tmp_path / "last.ckpt", checkpoint(Transformer(CONFIG)), copied=False), background=True)
    assert (tmp_path / "last.ckpt").exists()


def test_a_failure_is_raised_at_the_next_step_and_the_last_checkpoint_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver, last = Saver(), tmp_path / "last.ckpt"
    saver.start(Save(last, checkpoint(Transformer(CONFIG, seed=1)), copied=True), background=False)
    stored = last.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "flush", fail)
    saver.start(Save(last, checkpoint(Transformer(CONFIG, seed=2)), copied=True), background=True)
    saver.link_to(tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"last\.ckpt could not be written .*No space left.* an earlier one, if any,"):
        deque(iter(saver.poll, ...), maxlen=0)  # step after step
    assert last.read_bytes() == stored
    assert os.listdir(tmp_path) == ["last.ckpt"]
    saver.join()  # nothing is under way


def test_a_full_disk_is_named_whatever_torch_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "replacing", lambda path: nullcontext(Path("/dev/full")))
    large = checkpoint(Transformer(CONFIG)) | {"optimizer_states": [torch.zeros(10**6)]}
    save = Save(tmp_path / "last.ckpt", large, copied=False)
    with pytest.raises(UserError, match=r"No space left on device.*free some space and go on with --ckpt_path=last"):
        Saver().start(save, background=False)
    monkeypatch.undo()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, before[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            Saver().start(save, background=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_best_and_the_last_share_one_file_on_the_disk(tmp_path: Path) -> None:
    saver, best, last = Saver(), tmp_path / "best.ckpt", tmp_path / "last.ckpt"
    done: list[bool] = []
    saver.start(Save(best, checkpoint(Transformer(CONFIG, seed=1)), copied=True), background=True)
    saver.link_to(last)
    saver.afterwards(lambda: done.append(last.exists()))
    saver.join()
    assert done == [True]
    assert best.stat().st_ino == last.stat().st_ino
    stored = best.read_bytes()
    saver.start(Save(last, checkpoint(Transformer(CONFIG, seed=2)), copied=True), background=False)
    assert best.read_bytes() == stored != last.read_bytes()


def test_a_folder_that_cannot_be_linked_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver, best = Saver(), tmp_path / "best.ckpt"
    net = Transformer(CONFIG, seed=1)
    saver.start(Save(best, checkpoint(net), copied=True, shards=shard_names("new", 1)), background=True)
    saver.link_to(tmp_path / "last.ckpt")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writing, "link", fail)
    with pytest.raises(UserError, match="No space left"):
        saver.join()
    assert torch.equal(table_of(best), net.items.weight)


@pytest.mark.parametrize("other", ["nothing", "a file", "a folder"])
@pytest.mark.parametrize("hard_links", [True, False])
def test_a_folder_is_linked_file_by_file(
    other: str, hard_links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best, last, net = tmp_path / "best.ckpt", tmp_path / "last.ckpt", Transformer(CONFIG, seed=1)
    write_by_hand(best, checkpoint(net), 2)
    if other == "a file":
        write(last, checkpoint(Transformer(CONFIG)))
    elif other == "a folder":
        write_by_hand(last, checkpoint(Transformer(CONFIG)), 3)
    if not hard_links:

        def refuse(*_: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
    link(best, last)
    check(last)
    assert torch.equal(table_of(last), net.items.weight)
    assert {file.name for file in last.iterdir()} == {file.name for file in best.iterdir()}
    assert {file.samefile(best / file.name) for file in last.iterdir()} == {hard_links}
    assert sorted(os.listdir(tmp_path)) == ["best.ckpt", "last.ckpt"]
