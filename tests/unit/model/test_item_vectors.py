"""Given item vectors: which files are read or refused, and the table that a network makes from them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import save_file
from torch.nn import functional as F

from lrec.errors import UserError
from lrec.model import cost, memory
from lrec.model.config import TransformerConfig
from lrec.model.item_vectors import initial_parameters, read_item_vectors, read_width, vectors_of
from lrec.model.losses import FullSoftmax
from lrec.model.parallelize import fill
from lrec.model.sharded_table import OWN_ROWS, PROJECTION, VECTORS, whole_table
from lrec.model.transformer import Transformer

IDS = ["b", "7", "a", "c"]
VECTORS_FW = np.array([[1, 2, 0], [3, 4, 0], [5, 0, 2], [7, 7, 7]], dtype=np.float32)


def parquet(path: Path) -> Path:
    pl.DataFrame({"item": IDS, "vector": VECTORS_FW.tolist()}).write_parquet(path / "v.parquet")
    return path / "v.parquet"


def npy(path: Path) -> Path:
    np.save(path / "v.npy", VECTORS_FW)
    (path / "v.txt").write_text("\n".join(IDS) + "\n")
    return path / "v.npy"


def safetensors(path: Path) -> Path:
    save_file({"vectors": VECTORS_FW}, path / "v.safetensors", {"item_ids": json.dumps(IDS)})
    return path / "v.safetensors"


@pytest.mark.parametrize("write", [parquet, npy, safetensors])
def test_each_format_gives_the_same(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    ids, vectors_FW = read_item_vectors(path)
    assert ids.to_list() == IDS
    assert (vectors_FW == VECTORS_FW).all()
    assert read_width(path) == 3


def test_ids_beside_an_array_may_have_any_character_but_a_line_feed(tmp_path: Path) -> None:
    path = npy(tmp_path)
    (tmp_path / "v.txt").write_bytes("\ufeffb\r\n7\r\nä\u2028b\r\nc\x85\x0cd\r\n".encode())  # as Windows writes it
    assert read_item_vectors(path)[0].to_list() == ["b", "7", "ä\u2028b", "c\x85\x0cd"]


def test_vectors_are_centred_and_scaled_on_the_catalogue(tmp_path: Path) -> None:
    """Vectors of new items with the same mean and scale."""
    found_VW, new = vectors_of(parquet(tmp_path), pl.Series(["a", "b", "7"]))
    of_catalogue_VW = VECTORS_FW[[2, 0, 1]]
    centred_VW = of_catalogue_VW - of_catalogue_VW.mean(0)
    scale = np.sqrt((centred_VW**2).sum(1).mean())
    assert found_VW.numpy() == pytest.approx(centred_VW / scale)
    assert new.ids.to_list() == ["c"]
    assert new.vectors_NW.numpy() == pytest.approx((VECTORS_FW[[3]] - of_catalogue_VW.mean(0)) / scale)
    others = new.without(pl.Series(["z", "c"]))
    assert (others.ids.to_list(), others.vectors_NW.shape) == ([], (0, 3))
    assert others.without(pl.Series(["c"], dtype=pl.String)).vectors_NW.shape == (0, 3)


def rows(items: list, vectors: list) -> Callable[[Path], None]:
    return lambda path: pl.DataFrame({"item": items, "vector": vectors}, strict=False).write_parquet(path)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda path: None, "no such file"),
        (lambda path: path.write_bytes(b"PAR1 and so on"), "not a file of item vectors, or a damaged one"),
        (lambda path: pl.DataFrame({"id": [1]}).write_parquet(path), "has no column item; its columns are id"),
        (rows(["a", "b"], ["x", "y"]), "the column vector holds String, not lists of numbers"),
        (rows(["a", "b"], [["x"], ["y"]]), "not lists of numbers"),
        (rows([0.5, 1.5], [[1], [2]]), "the column item holds Float64, not text or integers"),
        (rows(["a", None], [[1], [2]]), "row 2: item is empty"),
        (rows(["a", "b"], [[1, 2], [2]]), "row 2: 1 values, but the first vector has 2"),
        (rows(["a", "b"], [[1, 2], None]), "row 2: 0 values, but the first vector has 2"),
        (rows(["a", "b", "a"], [[1], [2], [3]]), "item a is in it twice"),
        (rows(["a", "b"], [[1.0], [float("nan")]]), "the vector of item b is not finite"),
        (rows(["a", "b"], [[1.0], [None]]), "the vector of item b is not finite"),
        (rows(["a", "b"], [[], []]), "not lists of numbers"),
        (rows(["a"], [[1]]), "has no vector for 1 of the catalogue's 2 items, such as b: give each item one"),
        (rows(["a", "b"], [[1], [1]]), "the items' vectors are all the same"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, write: Callable[[Path], None], says: str) -> None:
    path = tmp_path / "v.parquet"
    write(path)
    with pytest.raises(UserError, match=says) as refused:
        vectors_of(path, pl.Series(["a", "b"]))
    assert str(path) in str(refused.value)


def test_what_is_wrong_with_other_formats_is_said(tmp_path: Path) -> None:
    path = npy(tmp_path)
    (tmp_path / "v.txt").write_text("a\nb\n")
    with pytest.raises(UserError, match="4 vectors and 2 item ids"):
        read_item_vectors(path)
    (tmp_path / "v.txt").unlink()
    with pytest.raises(UserError, match=r"v\.txt, with a raw id on each line, is missing"):
        read_item_vectors(path)
    (tmp_path / "v.txt").write_text("a\nb\nc\n")
    np.save(path, np.zeros(3))
    with pytest.raises(UserError, match=r"vectors of the shape \(3,\)"):
        read_width(path)
    for values, kind in ((np.array([["x"], ["y"]]), "<U1"), (np.full((3, 2), 1j), "complex128")):
        np.save(path, values)
        with pytest.raises(UserError, match=f"its values are {kind}, not real numbers"):
            read_item_vectors(path)
    save_file({"vectors": VECTORS_FW}, tmp_path / "v.safetensors")
    with pytest.raises(UserError, match="it needs a tensor vectors, and item_ids in the metadata"):
        read_item_vectors(tmp_path / "v.safetensors")
    with pytest.raises(UserError, match=r"its name must end in .parquet, .npy, .safetensors"):
        read_item_vectors(tmp_path / "v.csv")


V, W, LENGTH = 9, 4, 5
GIVEN_VW = torch.randn(V, W, generator=torch.Generator().manual_seed(1))


def config(own_rows: bool) -> TransformerConfig:
    return TransformerConfig(V, LENGTH, 2, 8, 2, vector_width=W, own_rows=own_rows)


def network(own_rows: bool) -> Transformer:
    """A network with vectors; its own rows, if any, are not 0."""
    net = Transformer(config(own_rows))
    fill(net, {VECTORS: GIVEN_VW})
    if own_rows:
        fill(net, {OWN_ROWS: torch.randn(V, 8, generator=torch.Generator().manual_seed(2))})
    return net


@pytest.mark.parametrize("own_rows", [True, False], ids=["added", "fixed"])
def test_the_table_is_the_sum_of_own_rows_and_projected_vectors(own_rows: bool) -> None:
    """Loss and gradients equal those of a network whose table, used at input and output, is that sum."""
    net, plain = network(own_rows), Transformer(TransformerConfig(V, LENGTH, 2, 8, 2))
    table_VD = GIVEN_VW @ net.items.projection.detach() + (net.items.weight.detach() if own_rows else 0)
    parameters = dict(net.named_parameters())
    assert torch.equal(whole_table(parameters), table_VD)
    shared = {name: each.detach() for name, each in parameters.items() if not name.startswith("items.")}
    plain.load_state_dict(shared | {OWN_ROWS: table_VD})
    random = torch.Generator().manual_seed(3)
    items_BL, targets_M = torch.randint(V, (3, LENGTH), generator=random), torch.randint(V, (15,), generator=random)
    for each in (net, plain):
        loss = each(
            items_BL, lambda hidden, table: FullSoftmax()(hidden.flatten(0, 1), table, targets_M, torch.ones(V))
        )
        loss.backward()
    grad_VD = plain.items.weight.grad
    assert grad_VD is not None
    assert net.items.vectors is not None
    assert net.items.vectors.grad is None
    torch.testing.assert_close(net.items.projection.grad, GIVEN_VW.T @ grad_VD)
    torch.testing.assert_close(net.blocks[0].attention.qkv.weight.grad, plain.blocks[0].attention.qkv.weight.grad)
    if own_rows:
        torch.testing.assert_close(net.items.weight.grad, grad_VD)
    else:
        assert OWN_ROWS not in parameters


def test_tables_have_the_same_initial_values_in_both_uses() -> None:
    """Own rows begin at 0, so only the projection's initial values count. The table is as large as any other."""
    wide = TransformerConfig(400, LENGTH, 1, 64, 2)
    given_VW = F.normalize(torch.randn(400, 300, generator=torch.Generator().manual_seed(0)))
    added = Transformer(TransformerConfig(400, LENGTH, 1, 64, 2, vector_width=300))
    fill(added, initial_parameters(added, given_VW, "added", seed=0))
    initial = Transformer(wide)
    fill(initial, initial_parameters(initial, given_VW, "initial", seed=0))
    table_VD = whole_table({name: each.detach() for name, each in added.named_parameters()})
    assert table_VD.std().item() == pytest.approx(0.02, rel=0.05)
    torch.testing.assert_close(initial.items.weight.detach(), table_VD)


@pytest.mark.parametrize("own_rows", [True, False], ids=["added", "fixed"])
def test_what_is_trained_is_counted(own_rows: bool) -> None:
    """Vectors are not trained. The table that scores has V d entries in both cases."""
    net = network(own_rows)
    trained = {name: each.numel() for name, each in net.named_parameters() if each.requires_grad}
    assert cost.n_total(net.config) == sum(trained.values())
    assert cost.parameters(net.config).items == trained.get(OWN_ROWS, 0)
    assert cost.parameters(net.config).positions == LENGTH * 8 + trained[PROJECTION]
    assert cost.n_head(net.config) == V * 8
    assert cost.projection_flops(net.config) == 4 * V * W * 8
    peak, plain = (memory.of_step(each, 64) for each in (net.config, TransformerConfig(V, LENGTH, 2, 8, 2)))
    own = V * 8 * (0 if own_rows else 1)
    assert peak.optimizer - plain.optimizer == 8 * (W * 8 - own)
    assert peak.parameters - plain.parameters == 4 * (W * 8 - own + V * W)
    assert peak.copies - plain.copies == 4 * V * 8
