"""Features from the raw file to the recommendations, in exports, in tasks and in a warm start."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from fit_arguments import fit_arguments

import lrec as library
from lrec.data.datasets import datamodule_of
from lrec.data.histories import histories_of
from lrec.errors import UserError
from lrec.model.sharded_table import OWN_ROWS, PROJECTION, VECTORS
from lrec.model.transformer import Transformer
from lrec.run import Run
from lrec.serving.recommender import Model
from lrec.training.module import SequentialRecommender
from lrec.training.warm_start import begin_from

ITEMS, LENGTH, USERS = 12, 12, 200


def step(device: str, price: str, country: str) -> int:
    """How far on the next item lies: each feature of the event and of the user decides a part."""
    return 1 + (device == "app") + 2 * (float(price or 0) > 5) + 4 * (country == "c1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log with two features of events and one of users, and a file of items, two of which are not in the log."""
    random, folder = np.random.default_rng(0), tmp_path_factory.mktemp("features")
    lines = ["user,item,timestamp,device,price,country"]
    for user in range(USERS):
        item = int(random.integers(ITEMS))
        for time in range(LENGTH):
            device, price = str(random.choice(["web", "app"])), str(random.choice(["1", "2.5", "9", ""]))
            lines.append(f"u{user},i{item},{time},{device},{price},c{user % 2}")
            item = (item + step(device, price, f"c{user % 2}")) % ITEMS
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    items = [f"i{item},{'even' if item % 2 == 0 else 'odd'}|t{item % 3},{item}" for item in range(ITEMS + 2)]
    (folder / "items.csv").write_text("\n".join(["item,tags,weight", *items]) + "\n")
    return folder


@pytest.fixture(scope="module")
def arguments(folder: Path) -> Callable[..., list[str]]:
    def of(run: Path, **changed: object) -> list[str]:
        options: dict[str, object] = {
            "data__split__trajectory": 4,
            "data__split__trajectory_min_length": 10,
            "data__event_features__categories": "[device, country]",
            "data__event_features__numbers": "[price]",
            "data__item_features": f"{{path: {folder / 'items.csv'}, lists: [tags], numbers: [weight]}}",
            "model__architecture__positions": "none",
            "model__optimizer__lr": 0.03,
            "trainer__max_epochs": 25,
            "trainer__check_val_every_n_epoch": 25,
        }
        return fit_arguments(run, folder / "log.csv", **(options | changed))

    return of


@pytest.fixture(scope="module")
def run(arguments: Callable[..., list[str]], folder: Path) -> Path:
    from lrec.cli import main

    main(arguments(folder / "run"))
    return folder / "run"


def first(found: pl.DataFrame) -> list[str]:
    return [items[0] for items in found["items"].to_list()]


@pytest.mark.slow
def test_features_are_learned_where_they_decide(run: Path) -> None:
    """Without features eight items are equally likely, a loss of 2.08."""
    assert json.loads((run / "metrics.json").read_text())["model"]["loss"] < 0.6


def test_a_store_lists_its_features(run: Path, lrec: Callable[..., str]) -> None:
    store = datamodule_of(Run(run).config.options).open_store()
    said = lrec("data", "describe", store.path)
    assert [line.split()[-1] for line in said.splitlines() if line.startswith("values of device")] == ["2"]
    assert [line.split()[-1] for line in said.splitlines() if line.startswith("values of price")] == ["numbers"]


HISTORIES = pl.DataFrame(
    {
        "user": ["a", "b"],
        "items": [["i1", "i3"]] * 2,
        "device": [["app", "web"], ["web", "app"]],
        "price": [[1.0, 9.0], [9.0, None]],
        "country": ["c0", "c1"],
    }
)


def test_histories_bring_their_features(run: Path) -> None:
    """In columns of lists, or in one row per event; a value that is not given or unknown counts as missing."""
    model = library.load(run)
    assert first(model.recommend(HISTORIES, exclude_seen=False)) == ["i6", "i9"]  # 1 + 2, and 1 + 1 + 4 further
    lists = ["items", "device", "price"]
    rows = HISTORIES.explode(lists).rename({"items": "item"})
    assert model.recommend(rows).equals(model.recommend(HISTORIES))
    unknown = HISTORIES.with_columns(country=pl.lit("c9"), device=pl.lit(["tv", "tv"]))
    assert model.recommend(unknown).equals(model.recommend(HISTORIES.drop("country", "device")))
    lacking = HISTORIES.with_columns(device=pl.Series([["app", "web"], None]), price=pl.Series([None, [9.0, None]]))
    nulls = lacking.with_columns(pl.col("device", "price").fill_null([None, None]))
    assert model.recommend(lacking).equals(model.recommend(nulls))
    assert model.recommend([["i1", "i3"]])["items"].list.len().to_list() == [10]
    with pytest.raises(UserError, match="price is not a number: dear"):
        model.recommend(HISTORIES.with_columns(price=pl.lit(["dear", "dear"])))


def test_files_bring_their_features(run: Path, folder: Path, tmp_path: Path, lrec: Callable[..., str]) -> None:
    out = tmp_path / "out.jsonl"
    options = ["recommend", f"--ckpt_path={run}", f"--histories={folder / 'log.csv'}", f"--out={out}", "--k=3"]
    lrec(*options)
    log = pl.read_csv(folder / "log.csv", infer_schema=False)
    expected = library.load(run).recommend(log.sort("user", maintain_order=True), 3)
    assert pl.read_ndjson(out)["items"].to_list() == expected["items"].to_list()
    HISTORIES.write_ndjson(tmp_path / "h.jsonl")
    options[2] = f"--histories={tmp_path / 'h.jsonl'}"
    lrec(*options, "--exclude_seen=false")
    assert first(pl.read_ndjson(out)) == ["i6", "i9"]


def test_new_items_have_rows(run: Path, folder: Path, tmp_path: Path) -> None:
    """New items in the file of the training, or in a later file."""
    assert {"i12", "i13"} <= set(library.load(run).item_ids)
    (tmp_path / "items.csv").write_text((folder / "items.csv").read_text() + "new,odd|t1,7\nold,,\n")
    later = library.load(run, item_vectors=tmp_path / "items.csv")
    assert set(later.item_ids) == {*(f"i{item}" for item in range(ITEMS + 2)), "new", "old"}
    like, other = (
        float(later.net.items.weight[index] @ later.net.items.weight[new]) for index, new in index_pairs(later)
    )
    assert like > other
    (tmp_path / "items.csv").write_text((folder / "items.csv").read_text().replace("i3,odd|t0,3", "i3,even|t0,3"))
    with pytest.raises(UserError, match="was trained with other vectors for its items"):
        library.load(run, item_vectors=tmp_path / "items.csv")


def index_pairs(model: Model) -> list[tuple[int, int]]:
    """Two pairs: an item with all features of `new` and `new`; an item with none of them and `new`."""
    like, other, new = model.index(pl.Series(["i7", "i0", "new"]))
    return [(int(like), int(new)), (int(other), int(new))]


def test_predict_knows_them(run: Path, lrec: Callable[..., str], folder: Path, tmp_path: Path) -> None:
    options = [f"--config={run / 'config.yaml'}", f"--trainer.default_root_dir={tmp_path}"]
    lrec("predict", *options, f"--ckpt_path={run}/checkpoints/best.ckpt", "--model.exclude_seen=false")
    found = dict(pl.read_parquet(tmp_path / "predictions.parquet").select("user", "items").iter_rows())
    last = pl.read_csv(folder / "log.csv", infer_schema=False).group_by("user", maintain_order=True).last()
    follows = [
        found[user][0] == f"i{(int(item[1:]) + step(device, price or '', country)) % ITEMS}"
        for user, item, _, device, price, country in last.iter_rows()
    ]
    assert np.mean(follows) > 0.8


def test_exported_networks_read_them(run: Path, tmp_path: Path, lrec: Callable[..., str]) -> None:
    lrec("export", f"--ckpt_path={run}", f"--out={tmp_path}/model.safetensors", "--card")
    known = "the 12 items of its training data, and 2 newer items with vectors or features."
    assert known in (tmp_path / "model.md").read_text()
    model = library.load(tmp_path / "model.safetensors")
    assert model.recommend(HISTORIES).equals(library.load(run).recommend(HISTORIES))


@pytest.mark.slow
def test_an_onnx_file_reads_them(run: Path, tmp_path: Path, lrec: Callable[..., str]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    lrec("export", f"--ckpt_path={run}", f"--out={tmp_path}/model.onnx")
    model = library.load(run)
    histories = histories_of(HISTORIES, features=[each.column for each in model.features])
    events = model.event_codes(histories).reshape(2, 2, -1)
    items = model.index(histories.rows["item"]).reshape(2, 2)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    events = np.concatenate([events, np.full((1, 2, events.shape[2]), model.net.config.event_types)])
    items, lengths = np.concatenate([items, items[:1]]), np.array([2, 2, 2])
    scores, *_ = session.run(None, {"items": items, "lengths": lengths, "events": events})
    found = model.recommend(HISTORIES, k=1, exclude_seen=False)
    assert scores[:2].max(1) == pytest.approx([each[0] for each in found["scores"].to_list()], abs=1e-4)
    assert np.isnan(scores[2]).all()  # there is no such row


def test_tasks_read_them(run: Path, tmp_path: Path, lrec: Callable[..., str]) -> None:
    lrec("tasks", f"--runs={run}", "--tasks=trajectory,robustness", f"--out={tmp_path}")
    tasks = json.loads((tmp_path / "tasks.json").read_text())["tasks"]
    clean = tasks["robustness"]["sections"][0]["groups"]["clean"]["scorers"]["3k"]
    result = json.loads((run / "metrics.json").read_text())["model"]
    assert clean["loss"]["value"] == pytest.approx(result["loss"], abs=1e-5)
    whole = tasks["trajectory"]["sections"][1]["groups"]["whole"]["scorers"]["3k"]
    assert whole["NDCG"]["value"] > 0.7


def test_another_run_begins_with_them(run: Path) -> None:
    """Values that both know keep their vectors, and items their rows; a new item's row follows from its features."""
    model, trained = (
        library.load(run, new_items=False),
        SequentialRecommender.load_from_checkpoint(run / "checkpoints" / "best.ckpt"),
    )
    old_VD, config = model.net.items.weight.detach(), trained.config
    rows = [name for each in model.features for name in each.row_names]
    mine = [*rows[1:], "event device=tv"]
    ids = pl.Series([*model.item_ids, "new"])
    net = Transformer(replace(config, n_items=len(ids)), seed=1)
    vectors_VW = trained.net.items.vectors
    assert vectors_VW is not None
    with torch.no_grad():
        net.get_parameter(VECTORS).copy_(torch.cat([vectors_VW, vectors_VW[7:8]]))
        begin_from(run, net, ids, mine, seed=1)
        own_VD = net.get_parameter(OWN_ROWS)
        table_VD = own_VD + net.get_parameter(VECTORS) @ net.get_parameter(PROJECTION)
    torch.testing.assert_close(table_VD[:-1], old_VD, rtol=1e-4, atol=1e-4)
    assert torch.cosine_similarity(table_VD[-1], table_VD[7], dim=0) > torch.cosine_similarity(
        table_VD[-1], table_VD[0], dim=0
    )
    assert net.events is not None
    assert trained.net.events is not None
    torch.testing.assert_close(net.events.weight[:-1], trained.net.events.weight[1:])


def test_a_run_goes_on_with_the_same_features_alone(
    run: Path, arguments: Callable[..., list[str]], folder: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    best = f"--ckpt_path={run}/checkpoints/best.ckpt"
    (tmp_path / "items.csv").write_text((folder / "items.csv").read_text().replace("i3,odd|t0,3", "i3,odd|t0,4"))
    other = f"{{path: {tmp_path / 'items.csv'}, lists: [tags], numbers: [weight]}}"
    for changed in ({"data__item_features": other}, {"data__event_features__categories": "[country]"}):
        said = refused("test", *arguments(tmp_path / "again", **changed)[1:], best)
        assert "was trained on other data" in said
    said = refused(*arguments(tmp_path / "vectors", model__item_vectors=tmp_path / "v.npy"))
    assert "give data.item_features or model.item_vectors, not both" in said
