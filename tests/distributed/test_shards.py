"""Processes that share the item table by rows against one that has it all: steps, scores, lists, initial values."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, distributed, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from host_waits import HostWaits
from lrec.common import cpu_threads
from lrec.data.batching.train_batches import TrainBatch
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.losses import GBCE, FullSoftmax, Loss, NextItems, SampledSoftmax
from lrec.model.parallelize import Sharding, build, fill
from lrec.model.sharded_table import VECTORS, fetch, whole, whole_table
from lrec.model.transformer import Transformer
from lrec.ranking.scoring import score, top_items
from lrec.training.optim import Optimizer, Switch
from lrec.training.touched_rows import clip_by_norm

LENGTH = 6

SLOW = pytest.mark.slow


class Batch(NamedTuple):
    """Targets of rows of items."""

    items_BL: Tensor
    positions_M: Tensor
    targets_M: Tensor


def on_processes(shape: tuple[int, ...], folder: Path, work: Callable[[Sharding], Any]) -> list[Any]:
    """What `work` returns on each process of a mesh; they are forks of this one."""
    if distributed.is_initialized():  # left by a training in this process; forks would inherit it
        distributed.destroy_process_group()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    world = torch.Size(shape).numel()
    multiprocessing.start_processes(_process, (world, port, shape, folder, work), world, start_method="fork")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _process(rank: int, world: int, port: int, shape: tuple[int, ...], folder: Path, work: Callable) -> None:  # type: ignore[type-arg]
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    torch.save(work(Sharding(mesh)), folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def batches(n_items: int, step: int) -> list[Batch]:
    """The batches of four processes in a step; one has no targets, and one has few."""
    random = torch.Generator().manual_seed(step)
    found = []
    for rows in (3, 1, 5, 2):
        items_BL = torch.randint(n_items, (rows, LENGTH), generator=random)
        n_targets = 0 if rows == 1 else rows * LENGTH - 2
        found.append(Batch(items_BL, torch.arange(n_targets), torch.randint(n_items, (n_targets,), generator=random)))
    return found


def train(
    config: TransformerConfig, loss: Loss, accumulation: int, sharding: Sharding | None, touched_rows: bool = False
) -> dict[str, Any]:
    """Six steps with clipping and a switch; the mean loss of each, the last gradients' norm, the table at the end."""
    net = build(config, 0, sharding)
    if config.vector_width is not None:
        given_VW = torch.randn(config.n_items, config.vector_width, generator=torch.Generator().manual_seed(0))
        fill(net, {VECTORS: given_VW})
    optimizer, _ = Optimizer(lr=0.05, switch=Switch(at=3, lr=0.05), touched_rows=touched_rows).build(net, 6)
    world, rank = (1, 0) if sharding is None else (sharding.mesh.size(), sharding.mesh.get_rank())
    losses, norm = [], None
    for step in range(6):
        if step == 3:
            optimizer.begin_sgd(step)
        parts = batches(config.n_items, step)
        n_targets = sum(len(part.targets_M) for part in parts)
        total = torch.zeros(())
        cuts = [4 * n // (world * accumulation) for n in range(world * accumulation + 1)]
        for index in range(accumulation):
            mine = index * world + rank
            batch = joined(parts[cuts[mine] : cuts[mine + 1]])
            torch.manual_seed(100 * step + index)
            loss_sum = net(batch.items_BL, head_of(loss, batch, config.n_items), positions_M=batch.positions_M)
            (loss_sum * world / n_targets).backward()
            total += loss_sum.detach()
        if sharding is not None:
            distributed.all_reduce(total)
        losses.append(float(total) / n_targets)
        norm = clip_by_norm(list(net.parameters()), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    parameters = {name: each.detach() for name, each in net.named_parameters()}
    if sharding is not None:
        parameters = {name: each.full_tensor() for name, each in parameters.items()}  # type: ignore[operator]
    return {"losses": losses, "norm": float(norm), "table": whole_table(parameters)}  # type: ignore[arg-type]


def joined(parts: list[Batch]) -> Batch:
    """The parts as one batch."""
    starts = torch.tensor([0] + [part.items_BL.numel() for part in parts]).cumsum(0)
    positions = [part.positions_M + start for part, start in zip(parts, starts[:-1], strict=True)]
    targets = [part.targets_M for part in parts]
    return Batch(torch.cat([part.items_BL for part in parts]), torch.cat(positions), torch.cat(targets))


def head_of(loss: Loss, batch: Batch, n_items: int) -> Callable[[Tensor, Any], Tensor]:
    def head(hidden_MD: Tensor, table: Any) -> Tensor:
        table = table if loss.in_shards else whole(table)
        targets = batch.targets_M if loss.ahead == 1 else TrainBatch(*batch, 0, 0, 0, 0).next_targets(loss.ahead)
        return loss(hidden_MD, table, targets, torch.ones(n_items))

    return head


class OfWholeTable(FullSoftmax):
    """Full softmax that knows no shards."""

    in_shards = False

    def __call__(self, hidden_MD: Tensor, table_VD: Tensor, targets_M: Tensor, counts_V: Tensor) -> Tensor:
        loss: Tensor = torch.nn.functional.cross_entropy(hidden_MD @ table_VD.T, targets_M, reduction="sum")
        return loss


LOSSES = [FullSoftmax(), SampledSoftmax(7, 1.0, target_logq=True), GBCE(5), NextItems(), OfWholeTable()]


@pytest.mark.parametrize(
    ("shape", "n_items", "accumulation"),
    [
        ((2,), 11, 2),
        pytest.param((3,), 11, 1, marks=SLOW),
        pytest.param((2, 2), 9, 1, marks=SLOW),
        pytest.param((2,), 1, 1, marks=SLOW),
    ],
    ids=str,
)
def test_steps_are_those_of_one_process(
    shape: tuple[int, ...], n_items: int, accumulation: int, tmp_path: Path
) -> None:
    """The catalogue does not divide evenly, or is smaller than the number of processes."""
    config = TransformerConfig(n_items, LENGTH, 2, 8, 2)

    def with_all_losses(sharding: Sharding | None) -> list[dict[str, Any]]:
        rows_alone = train(config, LOSSES[1], accumulation, sharding, touched_rows=True)
        return [*(train(config, loss, accumulation, sharding) for loss in LOSSES), rows_alone]

    alone = with_all_losses(None)
    for found in on_processes(shape, tmp_path, with_all_losses):
        for several, one in zip(found, alone, strict=True):
            assert several["losses"] == pytest.approx(one["losses"], rel=1e-5)
            assert several["norm"] == pytest.approx(one["norm"], rel=1e-4)
            torch.testing.assert_close(several["table"], one["table"], rtol=1e-4, atol=1e-5)


def test_steps_with_additions_to_seen_items(tmp_path: Path) -> None:
    """The processes' histories have different lengths, and one has no targets."""
    config = TransformerConfig(11, LENGTH, 1, 8, 2, architecture=Architecture(seen=True))

    def with_losses(sharding: Sharding | None) -> list[dict[str, Any]]:
        return [train(config, loss, 1, sharding) for loss in LOSSES[:4]]

    alone = with_losses(None)
    for found in on_processes((2,), tmp_path, with_losses):
        for several, one in zip(found, alone, strict=True):
            assert several["losses"] == pytest.approx(one["losses"], rel=1e-5)
            assert several["norm"] == pytest.approx(one["norm"], rel=1e-4)
            torch.testing.assert_close(several["table"], one["table"], rtol=1e-4, atol=1e-5)


@SLOW
@pytest.mark.parametrize("own_rows", [True, False], ids=["added", "fixed"])
@pytest.mark.parametrize("shape", [(2,), (2, 2)], ids=str)
def test_a_table_made_of_vectors_takes_the_same_steps(shape: tuple[int, ...], own_rows: bool, tmp_path: Path) -> None:
    config = TransformerConfig(11, LENGTH, 2, 8, 2, vector_width=5, own_rows=own_rows)

    def with_all_losses(sharding: Sharding | None) -> list[dict[str, Any]]:
        return [train(config, loss, 1, sharding) for loss in LOSSES]

    alone = with_all_losses(None)
    for found in on_processes(shape, tmp_path, with_all_losses):
        for several, one in zip(found, alone, strict=True):
            assert several["losses"] == pytest.approx(one["losses"], rel=1e-5)
            torch.testing.assert_close(several["table"], one["table"], rtol=1e-4, atol=1e-5)


def test_no_step_asks_a_device_how_many_rows_are_here(tmp_path: Path) -> None:
    """Without touched_rows, which must know how many rows a step touches to update only those."""
    config = TransformerConfig(11, LENGTH, 1, 8, 2)

    def watch(sharding: Sharding) -> list[list[str]]:
        net = build(config, 0, sharding)
        optimizer, _ = Optimizer().build(net, 6)
        seen = []
        for loss in LOSSES[:3]:
            with HostWaits() as waits:
                batch = batches(config.n_items, 0)[2 * sharding.mesh.get_rank()]
                net(batch.items_BL, head_of(loss, batch, config.n_items), positions_M=batch.positions_M).backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()
            assert waits.operators > 100
            seen.append(waits.seen)
        return seen

    # The hosts know how many inputs and targets their process has, and agree on these two numbers.
    agreed = ["aten._local_scalar_dense.default"] * 2
    assert on_processes((2,), tmp_path, watch) == [[agreed] * 3] * 2


class Case(NamedTuple):
    """Rows to score, with many tied scores, and the seen items of each row."""

    hidden_BD: Tensor
    targets_B: Tensor
    seen_rows_S: Tensor
    seen_items_S: Tensor


def case_of(process: int, n_items: int) -> Case:
    """Each process has its own rows, and some have more; a few targets are outside the catalogue."""
    random = torch.Generator().manual_seed(process)
    rows = (3, 150, 1)[process]
    pairs = torch.randint(rows * n_items, (4 * rows,), generator=random).unique()
    return Case(
        torch.randint(-2, 3, (rows, 4), generator=random).float(),
        torch.randint(-1, n_items, (rows,), generator=random),
        pairs // n_items,
        pairs % n_items,
    )


def scored(case: Case, table: Any) -> list[Tensor]:
    """All that scoring finds for a case."""
    of_items = score(case.hidden_BD, table, case.targets_B, case.seen_rows_S, case.seen_items_S, 7)
    return [*of_items, *top_items(case.hidden_BD, table, case.seen_rows_S, case.seen_items_S, 7)]


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("n_items", [53, 2])
def test_ranks_ties_and_lists_are_those_of_one_process(
    n_items: int, on_cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the path of CPUs, and on the path that never asks a device for a number, here with CPUs too."""
    table_VD = torch.randint(-2, 3, (n_items, 4), generator=torch.Generator().manual_seed(9)).float()

    def score_here(sharding: Sharding) -> list[Tensor]:
        shared, case = (
            distribute_tensor(table_VD, sharding.mesh, [Shard(0)]),
            case_of(sharding.mesh.get_rank(), n_items),
        )
        with torch.no_grad(), HostWaits() as waits:
            table = fetch(shared, torch.zeros(1, 1, dtype=torch.int64))[1]
            found = scored(case, table)
        # The hosts agree on how many items are looked up, then twice on rows and pairs.
        assert on_cpu or waits.seen == ["aten._local_scalar_dense.default"] * 5
        return found

    with monkeypatch.context() as patched:
        patched.setattr(cpu_threads, "is_cpu", lambda device: on_cpu)
        found_by_processes = on_processes((3,), tmp_path, score_here)
    for process, (loss_B, *found) in enumerate(found_by_processes):
        expected_loss_B, *expected = scored(case_of(process, n_items), table_VD)
        torch.testing.assert_close(loss_B, expected_loss_B, rtol=1e-5, atol=1e-5, equal_nan=True)
        for mine, theirs in zip(found, expected, strict=True):
            assert torch.equal(mine, theirs)


def test_each_process_draws_its_rows_of_one_network(tmp_path: Path) -> None:
    config = TransformerConfig(2**15 + 3, LENGTH, 1, 64, 2)  # more numbers than are drawn at once

    def rows_here(sharding: Sharding) -> dict[str, Tensor]:
        return {name: parameter.full_tensor() for name, parameter in build(config, 3, sharding).named_parameters()}  # type: ignore[operator]

    one = dict(Transformer(config, 3).named_parameters())
    for parameters in on_processes((3,), tmp_path, rows_here):
        assert all(torch.equal(parameter, one[name]) for name, parameter in parameters.items())
