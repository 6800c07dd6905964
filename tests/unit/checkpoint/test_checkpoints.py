"""Checkpoints that are whole or absent, and one exported file."""

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import lrec
from lrec.checkpoint.reading import ITEMS, check, find_last, read
from lrec.checkpoint.trained import CATALOGUE, items_as_tensors, trained_in
from lrec.checkpoint.writing import write
from lrec.errors import UserError
from lrec.model.sharded_table import split
from lrec.model.transformer import Transformer
from lrec.serving.export import export
from small_checkpoints import ABOUT, CONFIG, IDS, checkpoint, write_by_hand


def rows_of(process: int, n: int) -> Callable[[str, int], slice]:
    return lambda name, rows: split(rows, [(process, n)])


@given(st.integers(0, 40), st.integers(1, 9))
def test_rows_are_shared_out_once(n_rows: int, n: int) -> None:
    rows = [row for process in range(n) for row in range(n_rows)[split(n_rows, [(process, n)])]]
    assert rows == list(range(n_rows))


@pytest.mark.parametrize("written", [0, 1, 2, 3, 11])
@pytest.mark.parametrize("readers", [1, 2, 5])
def test_any_number_of_processes_reads_what_any_other_wrote(written: int, readers: int, tmp_path: Path) -> None:
    """`written` 0 stands for a file from one process. With 11 shards some hold no rows."""
    whole, path = checkpoint(Transformer(CONFIG)), tmp_path / "last.ckpt"
    if written:
        write_by_hand(path, whole, written)
    else:
        write(path, whole)
    check(path)
    parts = [read(path, rows_of(process, readers))["state_dict"] for process in range(readers)]
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(torch.cat([part[name] for part in parts]), tensor)
    about, weights, *_ = trained_in(read(path))
    assert about == ABOUT | {"step": 3}
    assert weights.keys() == dict(Transformer(CONFIG).named_parameters()).keys()


def test_damage_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(UserError, match=r"last\.ckpt: no such checkpoint"):
        check(path)
    write_by_hand(path, checkpoint(Transformer(CONFIG)), 2)
    shard = path / "token-00001-of-00002.safetensors"
    whole, state = shard.read_bytes(), (path / "state.pt").read_bytes()
    for damage in (whole[:-1], whole[:20], b"", None):
        shard.write_bytes(damage) if damage is not None else shard.unlink()
        with pytest.raises(UserError, match=r"last\.ckpt: .*damaged"):
            check(path)
    shard.write_bytes(whole)
    for damage in (state[:-100], b"who,what,when\n"):
        (path / "state.pt").write_bytes(damage)
        with pytest.raises(UserError, match=r"last\.ckpt: not a checkpoint that lrec wrote, or a damaged one"):
            check(path)
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"other\.ckpt: not a checkpoint that lrec wrote"):
        check(tmp_path / "other.ckpt")


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "best.ckpt"
    path.touch()

    def open_file(file: Path) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("lrec.checkpoint.reading.ZipFile", open_file)
    error = refused("export", "--ckpt_path", path, "--out", tmp_path / "out.safetensors")
    assert error == f"lrec: error: {path}: Permission denied"


def test_shards_that_do_not_make_a_whole_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_by_hand(path, checkpoint(Transformer(CONFIG)), 3)
    state = torch.load(path / "state.pt", weights_only=True)
    write(path / "state.pt", state | {"shards": state["shards"][:2]})
    with pytest.raises(UserError, match="damaged"):
        read(path)


def test_the_last_checkpoint_is_the_last_that_was_completed(tmp_path: Path) -> None:
    last = tmp_path / "last.ckpt"
    assert find_last(tmp_path) is None
    last.mkdir()
    assert find_last(tmp_path) is None
    write(tmp_path / "last-0.ckpt", checkpoint(Transformer(CONFIG)))  # as a kill may leave it
    assert find_last(tmp_path) == tmp_path / "last-0.ckpt"
    last.rmdir()
    write_by_hand(last, checkpoint(Transformer(CONFIG)), 2)
    assert find_last(tmp_path) == last


def test_a_file_replaces_a_folder(tmp_path: Path) -> None:
    path, whole = tmp_path / "last.ckpt", checkpoint(Transformer(CONFIG))
    write_by_hand(path, whole, 2)
    write(path, whole)
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt"]
    check(path)


def run_folder(folder: Path, net: Transformer) -> Path:
    (folder / "checkpoints").mkdir()
    write(folder / "checkpoints" / "best.ckpt", checkpoint(net))
    return folder / "checkpoints" / "best.ckpt"


def hidden(hidden_BLD: Tensor, table_VD: Tensor) -> Tensor:
    return hidden_BLD


@pytest.mark.parametrize("out", ["model", "model.safetensors"])
def test_an_exported_file_is_the_network_and_its_items(out: str, tmp_path: Path) -> None:
    net = Transformer(CONFIG, seed=4)
    best = run_folder(tmp_path, net)
    export(best, tmp_path / "out" / out)
    models = [lrec.load(best), lrec.load(tmp_path / "out" / out), lrec.load(str(tmp_path / "out" / out))]
    items_BL = torch.tensor([[1, 2, 3], [6, 5, 0]])
    for model in models:
        assert model.net.config == CONFIG
        assert torch.equal(model.net(items_BL, hidden), net.eval()(items_BL, hidden))
        assert model.item_ids.to_list() == [f"item {i} é" for i in range(7)]
        assert model.about["step"] == 3
    (described,) = (tmp_path / "out").rglob("*.json")
    assert json.loads(described.read_text())["data_hash"] == "abc"
    assert set(load_file(described.with_suffix(".safetensors"))) == {*net.state_dict(), *CATALOGUE}


def test_a_runs_folder_stands_for_its_best_checkpoint_even_after_an_export_into_it(tmp_path: Path) -> None:
    best = run_folder(tmp_path, Transformer(CONFIG))
    export(tmp_path, tmp_path)
    write(best, checkpoint(Transformer(CONFIG)) | {"global_step": 9})
    assert lrec.load(tmp_path).about["step"] == 9
    best.unlink()
    assert lrec.load(tmp_path).about["step"] == 3


def test_what_cannot_be_exported_or_loaded(tmp_path: Path) -> None:
    best = run_folder(tmp_path, Transformer(CONFIG))
    whole = checkpoint(Transformer(CONFIG))
    few = items_as_tensors(pl.Series(["a"]), np.ones(1))
    for items in (few, {}):
        write(best, whole | {ITEMS: items})
        with pytest.raises(UserError, match=r"best\.ckpt: not a checkpoint that lrec wrote, or a damaged one"):
            export(best, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    broken = tmp_path / "model.safetensors"
    broken.write_bytes(b"no")
    with pytest.raises(UserError, match=r"model\.safetensors: not a file that lrec export wrote"):
        lrec.load(broken)
    with pytest.raises(UserError, match="no such checkpoint"):
        lrec.load(tmp_path / "nowhere")


def whole_run(folder: Path) -> dict[str, Any]:
    """A checkpoint as a run writes it, with its items."""
    whole = checkpoint(Transformer(CONFIG, seed=4)) | {"optimizer_states": [torch.zeros(99)]}
    write(folder / "best.ckpt", whole)
    return whole


def test_a_flipped_bit_anywhere_in_what_was_stored_is_refused(tmp_path: Path) -> None:
    whole_run(tmp_path)
    export(tmp_path / "best.ckpt", tmp_path / "model.safetensors")
    with zipfile.ZipFile(tmp_path / "best.ckpt") as archive:
        entries = [info.header_offset + 200 for info in archive.infolist() if info.file_size > 300]
    for path in ("best.ckpt", "model.safetensors"):
        stored = (tmp_path / path).read_bytes()
        assert lrec.load(tmp_path / path).item_ids[3] == "item 3 é"
        for place in entries if path == "best.ckpt" else range(len(stored) // 2, len(stored), 97):
            (tmp_path / path).write_bytes(stored[:place] + bytes([stored[place] ^ 1]) + stored[place + 1 :])
            with pytest.raises(UserError, match=rf"{path}: not a .*, or a damaged one"):
                lrec.load(tmp_path / path)
        (tmp_path / path).write_bytes(stored)


def edited(whole: dict[str, Any], name: str) -> dict[str, Any]:
    """A checkpoint in which one part was exchanged."""
    weights, items = dict(whole["state_dict"]), dict(whole[ITEMS])
    table = weights["net.items.weight"]
    match name:
        case "items shuffled":
            items = items_as_tensors(IDS[[1, 0, 2, 3, 4, 5, 6]], np.arange(7) + 1)
        case "rows swapped":
            weights["net.items.weight"] = table[[1, 0, *range(2, 7)]]
        case "other heads":
            return whole | {"lrec": whole["lrec"] | {"heads": 4}}
    return whole | {"state_dict": weights, ITEMS: items}


@pytest.mark.parametrize("name", ["items shuffled", "rows swapped", "other heads"])
def test_a_checkpoint_with_an_exchanged_part_is_refused(name: str, tmp_path: Path) -> None:
    """Each part by itself is valid, and so is the archive's CRC."""
    whole_run(tmp_path)
    stored = torch.load(tmp_path / "best.ckpt", weights_only=True)
    torch.save(edited(stored, name), tmp_path / "best.ckpt")
    with pytest.raises(UserError, match=r"best\.ckpt: not a checkpoint that lrec wrote, or a damaged one"):
        lrec.load(tmp_path / "best.ckpt")
    with pytest.raises(UserError, match="damaged"):
        check(tmp_path / "best.ckpt")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("net.norm.weight"), r"best\.ckpt lacks the parameter norm\.weight"),
        (lambda state: state.update({"net.more": torch.ones(2)}), r"best\.ckpt also has the parameter more"),
        (
            lambda state: state.update({"net.norm.weight": torch.ones(9)}),
            r"best\.ckpt has norm\.weight as \(9,\) floats, its network as \(8,\) floats",
        ),
        (
            lambda state: state.update({"net.norm.weight": torch.ones(8, dtype=torch.int64)}),
            r"norm\.weight as \(8,\) integers",
        ),
        (
            lambda state: state.update({"net.norm.weight": torch.full((8,), torch.nan)}),
            r"best\.ckpt: the parameter norm\.weight is not finite",
        ),
        (
            lambda state: [state.pop(name) for name in list(state) if name.startswith("net.blocks.1.")],
            r"best\.ckpt has the parameters of 1 blocks, its network has 2",
        ),
    ],
    ids=["missing", "extra", "misshapen", "integers", "not finite", "a block fewer"],
)
def test_parameters_that_do_not_make_the_network_are_named(change: Any, says: str, tmp_path: Path) -> None:
    whole = whole_run(tmp_path)
    change(whole["state_dict"])
    write(tmp_path / "best.ckpt", whole)
    with pytest.raises(UserError, match=says):
        lrec.load(tmp_path / "best.ckpt")


def test_a_shard_that_is_not_as_it_was_written_is_refused(tmp_path: Path) -> None:
    path, whole = tmp_path / "last.ckpt", checkpoint(Transformer(CONFIG))
    write_by_hand(path, whole, 2)
    one, two = sorted(path.glob("*.safetensors"))
    check(path)
    assert read(path)["state_dict"].keys() == whole["state_dict"].keys()
    stored = two.read_bytes()
    two.write_bytes(stored[:-3] + bytes([stored[-3] ^ 4]) + stored[-2:])
    for reader in (check, read):
        with pytest.raises(UserError, match=r"last\.ckpt: .*damaged"):
            reader(path)
    read(path, rows_of(0, 2))  # the shard that it needs is whole
    with pytest.raises(UserError, match="damaged"):
        read(path, rows_of(1, 2))
    two.write_bytes(one.read_bytes())
    with pytest.raises(UserError, match="damaged"):
        check(path)


def test_an_exported_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    whole_run(tmp_path)
    export(tmp_path / "best.ckpt", tmp_path / "model.safetensors")
    (tmp_path / "other").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
