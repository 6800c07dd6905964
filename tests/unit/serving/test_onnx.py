"""The ONNX file gives PyTorch's scores and lists, in onnxruntime."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from lrec.data.features import Vocabulary, as_plain
from lrec.data.histories import histories_of
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.transformer import Transformer
from lrec.serving.recommender import Model

N_ITEMS = 300
MAX_LEN = 50
CHOICES = {
    "default": {},
    "modern, scaled": {
        "architecture": Architecture(norm="rms", mlp="swiglu", positions="rotary", qk_norm=True),
        "parametrisation": "scaled",
    },
}


@pytest.fixture(scope="module", params=["default", pytest.param("modern, scaled", marks=pytest.mark.slow)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Any]:
    """A network whose scores lie far apart, and its file in onnxruntime."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed: the extra `onnx` has it")
    import onnxruntime

    from lrec.serving.onnx import write_onnx

    net = Transformer(TransformerConfig(N_ITEMS, MAX_LEN, 2, 64, 2, **CHOICES[request.param]), seed=1).eval()
    with torch.no_grad():
        net.items.weight.mul_(20)
    model = Model(net, pl.Series([f"m{i}" for i in range(N_ITEMS)]), {"step": 7})
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    write_onnx(model, file, 10)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    return model, onnxruntime.InferenceSession(file)


@pytest.mark.parametrize(
    "batch", [pytest.param(1, marks=pytest.mark.slow), 7, pytest.param(64, marks=pytest.mark.slow)]
)
def test_scores_and_lists_are_pytorch_s(batch: int, exported: tuple[Model, Any]) -> None:
    model, session = exported
    random = np.random.default_rng(batch)
    for length in range(1, MAX_LEN + 1):
        items_BL = random.integers(N_ITEMS, size=(batch, length))
        lengths_B = random.integers(1, length, size=batch, endpoint=True)
        lengths_B[0] = length
        scores_BV, top_BK, top_scores_BK = session.run(None, {"items": items_BL, "lengths": lengths_B})

        def head(hidden_BLD: torch.Tensor, table_VD: torch.Tensor, lengths_B=lengths_B) -> torch.Tensor:  # type: ignore[no-untyped-def]
            return hidden_BLD[torch.arange(len(lengths_B)), torch.from_numpy(lengths_B) - 1] @ table_VD.T

        with torch.inference_mode():
            expected_BV = model.net(torch.from_numpy(items_BL), head).numpy()
        np.testing.assert_allclose(scores_BV, expected_BV, rtol=0, atol=1e-4)
        histories = [[f"m{i}" for i in row[:n]] for row, n in zip(items_BL, lengths_B, strict=True)]
        found = model.recommend(histories, k=10)
        best_BK = np.array(found["scores"].to_list())
        np.testing.assert_allclose(top_scores_BK, best_BK, rtol=0, atol=1e-4)
        # The listed items have these scores; if two agree up to rounding, either may come first.
        np.testing.assert_allclose(np.take_along_axis(expected_BV, top_BK, 1), best_BK, rtol=0, atol=1e-4)
        for listed, row, n in zip(top_BK, items_BL, lengths_B, strict=True):
            assert len(set(listed) - set(row[:n])) == 10


@pytest.mark.slow
def test_a_row_with_fewer_unseen_items_than_k_lists_no_seen_one(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` has it")
    from lrec.serving.onnx import write_onnx

    model = Model(Transformer(TransformerConfig(6, 4, 1, 8, 1)).eval(), pl.Series(list("abcdef")), {"step": 7})
    write_onnx(model, tmp_path / "model.onnx", 10)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    _, top_BK, top_scores_BK = session.run(None, {"items": np.array([[1, 2, 4]]), "lengths": np.array([3])})
    assert sorted(top_BK[0]) == [-1, -1, -1, 0, 3, 5]
    assert np.isneginf(top_scores_BK[0, 3:]).all()


@pytest.mark.parametrize(
    ("max_len", "time"),
    [(1, "input"), *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, "none"), (2, "none"), (2, "input")])],
)
def test_a_network_of_very_short_histories(max_len: int, time: str, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` has it")
    from lrec.serving.onnx import write_onnx

    net = Transformer(TransformerConfig(6, max_len, 1, 8, 1, architecture=Architecture(time=time))).eval()
    write_onnx(Model(net, pl.Series(list("abcdef")), {"step": 7}), tmp_path / "model.onnx", 10)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for length in range(1, max_len + 1):
        items_BL, times_BT = torch.tensor([[3] * length]), torch.tensor([[60] * (length + 1)])
        given = {"times": times_BT.numpy()} if time == "input" else {}
        scores_BV, *_ = session.run(None, {"items": items_BL.numpy(), "lengths": np.array([length]), **given})
        with torch.inference_mode():
            expected_BV = net(items_BL, lambda h, t: h[:, -1] @ t.T, times_BT=times_BT if given else None)
        np.testing.assert_allclose(scores_BV, expected_BV.numpy(), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("max_len", [1, 3])
def test_events_may_have_more_values_than_in_training(max_len: int, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` has it")
    from lrec.serving.onnx import write_onnx

    tags = Vocabulary.learned("tags", "event", "lists", pl.Series(["a|b", "c", "d"]), 16)
    net = Transformer(TransformerConfig(6, max_len, 1, 8, 1, event_types=tags.size)).eval()
    model = Model(net, pl.Series(list("xyzuvw")), {"step": 7} | as_plain([tags]))
    write_onnx(model, tmp_path / "model.onnx", 10)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for given in ("a", "b|d", "a|b|c|d"):
        histories = histories_of(pl.DataFrame({"items": [["x"]], "tags": [[given]]}), features=["tags"])
        feed = {"items": np.array([[0]]), "lengths": np.array([1]), "events": model.event_codes(histories)[None]}
        _, top_BK, top_scores_BK = session.run(None, feed)
        listed = model.recommend(histories, k=5)
        assert [model.item_ids[place] for place in top_BK[0, :5].tolist()] == listed["items"][0].to_list()
        np.testing.assert_allclose(top_scores_BK[0, :5], listed["scores"][0].to_numpy(), rtol=0, atol=1e-4)


def test_a_row_that_is_no_history_has_no_answer(exported: tuple[Model, Any]) -> None:
    _, session = exported
    items_BL = np.tile([5, 6, 7, -9, N_ITEMS + 7], (7, 1))
    items_BL[4, 1], items_BL[5, 0], items_BL[6, 2] = -1, N_ITEMS, -(2**40)
    lengths_B = np.array([3, 0, -2, 6, 3, 3, 3])
    scores_BV, top_BK, top_scores_BK = session.run(None, {"items": items_BL, "lengths": lengths_B})
    alone = session.run(None, {"items": np.array([[5, 6, 7]]), "lengths": np.array([3])})
    for row, one in zip((scores_BV[:1], top_BK[:1], top_scores_BK[:1]), alone, strict=True):
        np.testing.assert_allclose(row, one, rtol=0, atol=1e-4)
    assert np.isnan(scores_BV[1:]).all()
    assert np.isnan(top_scores_BK[1:]).all()
    assert (top_BK[1:] == -1).all()


def test_the_file_knows_its_items(exported: tuple[Model, Any]) -> None:
    model, session = exported
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["item_ids"]) == model.item_ids.to_list()
    assert json.loads(metadata["lrec"]) == {"step": 7}


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    from lrec.errors import UserError
    from lrec.serving.onnx import write_onnx

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    model = Model(Transformer(TransformerConfig(5, 4, 1, 8, 1)), pl.Series(["a"] * 5), {})
    with pytest.raises(UserError, match=r'pip install "lrec\[onnx\]"'):
        write_onnx(model, tmp_path / "model.onnx", 3)
