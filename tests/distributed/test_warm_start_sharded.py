"""A warm start on a catalogue that has grown, sharded over two processes, against one process."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import pytest
import torch
from running import Fit, fit_command, losses, points, run
from test_cluster import free_port
from torch import Tensor, distributed, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lrec.checkpoint.reading import ITEMS
from lrec.checkpoint.trained import items_as_tensors
from lrec.checkpoint.writing import write
from lrec.errors import UserError
from lrec.model import item_vectors, transformer
from lrec.model.config import TransformerConfig
from lrec.model.parallelize import Sharding, build
from lrec.model.sharded_table import local_rows
from lrec.model.transformer import Transformer
from lrec.serving.export import export
from lrec.training import warm_start
from small_checkpoints import ABOUT, checkpoint, write_by_hand

pytestmark = pytest.mark.usefixtures("warm_processes")

SHORT = (
    "--data.n_users=301",
    "--data.targets_per_step=512",
    "--model.size=3k",
    "--trainer.max_steps=3",
    "--trainer.val_check_interval=1",
)
BEST = Path("checkpoints", "best.ckpt")


@pytest.mark.slow
def test_two_processes_begin_as_one_from_a_file_and_from_shards(folder: Path, fit: Fit) -> None:
    # None of these catalogues divides by two, so the rows of each are cut at a different item.
    start = fit("catalogue-of-45", 0, *SHORT, "--data.n_items=45") / BEST
    assert start.is_file()
    for n_items in (51, 57):
        options = (*SHORT, f"--data.n_items={n_items}", f"--model.warm_start={start}")
        one, two = fit(f"{n_items}-on-one", 0, *options), folder / f"{n_items}-on-two"
        printed = run(fit_command(folder, two, 2, *options))
        assert printed.count(f"warm start from {start}: {n_items - 6} items kept, 6 new") == 1
        assert losses(two) == pytest.approx(losses(one), rel=1e-5)
        assert [p["val_loss"] for p in points(two)] == pytest.approx([p["val_loss"] for p in points(one)], rel=1e-5)
        start = two / BEST
        assert start.is_dir()


class Largest(TorchDispatchMode):
    """The size of the largest tensor made meanwhile, except views and what lies on the disk."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if not func.is_view and "set_" not in func.name():
            sizes = [each.numel() for each in tree_leaves(made) if isinstance(each, Tensor) and not each.is_meta]
            self.most = max([self.most, *sizes])
        return made


OLD, NEW = (TransformerConfig(n_items, 4, 1, 16, 2) for n_items in (2000, 2001))
STARTS = "file.ckpt", "shards.ckpt", "exported.safetensors"


def begin(folder: Path, sharding: Sharding | None) -> list[tuple[int, Tensor]]:
    """The largest tensor that a warm start from each kind of file makes, and the rows of the table that are here."""
    raw_ids = pl.Series([*(f"i{number}" for number in reversed(range(2000))), "new"])
    found = []
    for start in STARTS:
        net = build(NEW, 0, sharding)
        at_once = patch.object(warm_start, "AT_ONCE", 64), patch.object(transformer, "DRAWN_AT_ONCE", 1024)
        with at_once[0], at_once[1], Largest() as largest:
            warm_start.begin_from(folder / start, net, raw_ids, [], seed=0)
        found.append((largest.most, local_rows(net.items.weight).detach().clone()))
    return found


def process(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save(begin(folder, Sharding(init_device_mesh("cpu", (2,)))), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_no_process_holds_more_than_its_rows(tmp_path: Path) -> None:
    ids = pl.Series([f"i{number}" for number in range(2000)])
    old = checkpoint(Transformer(OLD, seed=1)) | {ITEMS: items_as_tensors(ids, None)}
    old["lrec"] = ABOUT | OLD.to_dict() | {"event_names": []}
    write(tmp_path / "file.ckpt", old)
    write_by_hand(tmp_path / "shards.ckpt", old, 3)
    export(tmp_path / "file.ckpt", tmp_path / "exported.safetensors")
    multiprocessing.start_processes(process, (free_port(), tmp_path), 2, start_method="spawn")
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for (most, rows), (others_most, others), (_, whole) in zip(first, second, begin(tmp_path, None), strict=True):
        assert torch.equal(torch.cat([rows, others]), whole)
        assert torch.equal(rows[0], old["state_dict"]["net.items.weight"][-1])
        assert max(most, others_most) <= len(rows) * 16 < 2000 * 16


def test_a_shard_of_nothing_but_items_is_verified(tmp_path: Path) -> None:
    old = checkpoint(Transformer(OLD)) | {ITEMS: items_as_tensors(pl.Series(map(str, range(2000))), None)}
    old["lrec"] = ABOUT | OLD.to_dict() | {"event_names": []}
    write_by_hand(tmp_path / "last.ckpt", old, 100)
    shard = tmp_path / "last.ckpt" / "token-00099-of-00100.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=r"last\.ckpt: not a checkpoint that lrec wrote, or a damaged one"):
        warm_start.begin_from(tmp_path / "last.ckpt", Transformer(NEW), pl.Series(["1"]), [], seed=0)


def test_vectors_are_those_of_the_rows_alone_to_the_last_digit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors_FW = np.random.default_rng(0).normal(size=(500, 7)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors_FW)
    (tmp_path / "v.txt").write_text("".join(f"i{number}\n" for number in range(500)))
    places_V = np.random.default_rng(1).permutation(450)
    raw_ids = pl.Series([f"i{place}" for place in places_V])
    centred_VW = vectors_FW[places_V] - vectors_FW[places_V].mean(0, dtype=np.float64)
    whole_VW = torch.from_numpy(centred_VW / np.sqrt((centred_VW**2).sum(1).mean())).float()
    monkeypatch.setattr(item_vectors, "AT_ONCE", 16)
    for rows in (slice(None), slice(0, 200), slice(200, 450)):
        found_HW, new = item_vectors.vectors_of(tmp_path / "v.npy", raw_ids, rows)
        assert torch.equal(found_HW, whole_VW[rows])
        assert len(new.ids) == len(new.vectors_NW) == 50
