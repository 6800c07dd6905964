"""Item vectors from the file to the recommendations: items that nobody has chosen yet are found by their vectors."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from fit_arguments import fit_arguments

import lrec as library
from lrec.errors import UserError
from lrec.training.module import SequentialRecommender

KINDS, ITEMS = 6, 10  # kinds of item, and items of each kind in the log
NEW = 2  # items of each kind that only the file of vectors has


def kind_of(raw_id: str) -> int:
    return int(raw_id.partition("-")[0])


def chain(start: int, length: int, random: np.random.Generator) -> list[str]:
    """Random items whose kinds follow one another in a cycle."""
    return [f"{(start + place) % KINDS}-{random.integers(ITEMS)}" for place in range(length)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """log.csv, and vectors.parquet, where an item's vector is its kind plus noise."""
    folder, random = tmp_path_factory.mktemp("kinds"), np.random.default_rng(0)
    lines = ["user,item,timestamp"]
    for user in range(200):
        lines += [f"u{user},{item},{time}" for time, item in enumerate(chain(user % KINDS, 12, random))]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")
    items = [f"{kind}-{index}" for kind in range(KINDS) for index in range(ITEMS + NEW)]
    vectors = 3 + np.eye(KINDS, 8)[list(map(kind_of, items))] + random.normal(0, 0.1, (len(items), 8))
    pl.DataFrame({"item": items, "vector": vectors.tolist()}).write_parquet(folder / "vectors.parquet")
    return folder


Arguments = Callable[..., list[str]]
OPTIONS: dict[str, object] = {
    "model__optimizer__lr": 0.02,
    "model__parametrisation": "standard",
    "trainer__max_epochs": 6,
    "trainer__check_val_every_n_epoch": 6,
}


@pytest.fixture(scope="module")
def arguments(data: Path) -> Arguments:
    def of(run: Path, use: str | None, **changed: object) -> list[str]:
        vectors = {"model__item_vectors": data / "vectors.parquet", "model__item_vectors_use": use} if use else {}
        return fit_arguments(run, data / "log.csv", **(OPTIONS | vectors | changed))

    return of


@pytest.fixture(scope="module")
def trained(arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str | None], Path]:
    """Trains a run for a use of the vectors, each use once."""
    from lrec.cli import main

    folder, made = tmp_path_factory.mktemp("runs"), set()

    def train(use: str | None) -> Path:
        run = folder / str(use)
        if use not in made:
            main(arguments(run, use))
            made.add(use)
        return run

    return train


def histories(kind_at_end: int) -> list[list[str]]:
    random = np.random.default_rng(1)
    return [chain(kind_at_end + 1 - length, length, random) for length in (2, 4, 7)]


@pytest.mark.parametrize("use", ["fixed", "added"])
def test_new_items_are_recommended_by_their_kind(trained: Callable[[str | None], Path], use: str) -> None:
    """All items of the kind that follows come first, the new ones among them; popularity never lists a new item."""
    model = library.load(trained(use))
    assert len(model.item_ids) == KINDS * (ITEMS + NEW)
    hits = []
    for kind in range(KINDS):
        for items in model.recommend(histories(kind), k=ITEMS + NEW, exclude_seen=False)["items"]:
            hits += [f"{(kind + 1) % KINDS}-{ITEMS + index}" in items for index in range(NEW)]
    assert np.mean(hits) > 0.8  # one in six by chance
    popular = model.recommend([[]], k=10 * KINDS * ITEMS)["items"][0].to_list()
    assert len(popular) == KINDS * ITEMS
    assert not any(int(raw_id.split("-")[1]) >= ITEMS for raw_id in popular)


def test_items_of_other_domains_are_not_new(
    arguments: Arguments, data: Path, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    """A network of the domain of even kinds: the other kinds' items in the log are none of its new items."""
    log = pl.read_csv(data / "log.csv").with_columns(
        parity=pl.col("item").str.head(1).cast(pl.Int64).mod(2).replace_strict({0: "even", 1: "odd"})
    )
    log.write_csv(tmp_path / "log.csv")
    options = {"data__path": tmp_path / "log.csv", "data__domain_column": "parity", "data__only_domain": "even"}
    few = {"trainer__max_epochs": 1, "trainer__check_val_every_n_epoch": 1}
    lrec(*arguments(tmp_path / "run", "fixed", **options, **few))
    model = library.load(tmp_path / "run")
    never_chosen = {f"{kind}-{ITEMS + index}" for kind in range(KINDS) for index in range(NEW)}
    assert set(model.item_ids) == {*log.filter(parity="even")["item"], *never_chosen}


@pytest.mark.parametrize("use", ["fixed", "added"])
def test_histories_of_new_items_are_understood(trained: Callable[[str | None], Path], use: str) -> None:
    model = library.load(trained(use))
    found = model.recommend([[f"{kind}-{ITEMS}"] for kind in range(KINDS)], k=5)
    assert found["skipped"].sum() == 0
    kinds = [[kind_of(item) for item in items] for items in found["items"].to_list()]
    assert np.mean([(kind + 1) % KINDS == one for kind, listed in enumerate(kinds) for one in listed]) > 0.8


def test_items_that_are_new_since_training_come_from_another_file(
    trained: Callable[[str | None], Path],
    data: Path,
    tmp_path: Path,
    lrec: Callable[..., str],
    refused: Callable[..., str],
) -> None:
    """They replace the new items of the training's file."""
    run, table = trained("fixed"), pl.read_parquet(data / "vectors.parquet")
    old = table.filter(~pl.col("item").str.ends_with(str(ITEMS)))
    today = table.filter(pl.col("item") == "3-0").with_columns(item=pl.lit("3-today"))
    pl.concat([today, old]).write_parquet(tmp_path / "today.parquet")
    (tmp_path / "h.jsonl").write_text('{"user": "a", "items": ["2-0"]}\n')
    command = [
        "recommend",
        f"--ckpt_path={run}",
        f"--histories={tmp_path}/h.jsonl",
        f"--out={tmp_path}/o.jsonl",
        "--k=72",
    ]
    lrec(*command, f"--item_vectors={tmp_path}/today.parquet", "--exclude_seen=false")
    found = pl.read_ndjson(tmp_path / "o.jsonl")["items"][0].to_list()
    assert "3-today" in found[: ITEMS + 2]
    assert abs(found.index("3-today") - found.index("3-0")) <= 1  # the same vector
    assert f"3-{ITEMS}" not in found
    lrec("export", f"--ckpt_path={run}", f"--out={tmp_path}", f"--item_vectors={tmp_path}/today.parquet")
    assert library.load(tmp_path).item_ids.to_list()[-1] == "5-11"
    other = table.with_columns(vector=pl.col("vector").list.eval(pl.element() ** 2))
    other.write_parquet(tmp_path / "other.parquet")
    assert "was trained with other vectors" in refused(*command, f"--item_vectors={tmp_path}/other.parquet")
    command[1] = f"--ckpt_path={trained(None)}"
    assert "was trained without item vectors" in refused(*command, f"--item_vectors={tmp_path}/today.parquet")


def test_an_initial_table_is_a_table_like_any_other(trained: Callable[[str | None], Path]) -> None:
    """It knows no new items and only starts from the vectors."""
    model, plain = library.load(trained("initial")), library.load(trained(None))
    assert model.item_ids.to_list() == plain.item_ids.to_list()
    assert model.about["vector_width"] is None
    losses = [json.loads((trained(use) / "metrics.json").read_text())["model"]["loss"] for use in ("initial", None)]
    assert losses[0] < losses[1]


@pytest.mark.parametrize("use", ["fixed", pytest.param("added", marks=pytest.mark.slow)])
def test_a_checkpoint_needs_no_file(
    trained: Callable[[str | None], Path],
    data: Path,
    tmp_path: Path,
    lrec: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    use: str,
) -> None:
    """It recommends, is exported and is read by load_from_checkpoint without the file of vectors."""
    run, file = trained(use), data / "vectors.parquet"
    monkeypatch.setattr("lrec.model.item_vectors._READERS", {})  # no file of vectors can be read
    lrec("export", f"--ckpt_path={run}", f"--out={tmp_path}/model.safetensors")
    model, exported = library.load(run), library.load(tmp_path / "model.safetensors")
    assert exported.recommend(histories(0), k=5).equals(model.recommend(histories(0), k=5))
    again = SequentialRecommender.load_from_checkpoint(run / "checkpoints" / "best.ckpt")
    assert again.net.items.vectors is not None
    assert again.net.items.vectors.shape == (KINDS * ITEMS, 8)
    assert str(again.item_vectors) == str(file)


@pytest.mark.slow
@pytest.mark.parametrize("use", ["fixed", "added"])
def test_a_network_in_onnx_scores_alike(
    trained: Callable[[str | None], Path],
    tmp_path: Path,
    lrec: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    use: str,
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run = trained(use)
    monkeypatch.setattr("lrec.model.item_vectors._READERS", {})  # no file of vectors can be read
    lrec("export", f"--ckpt_path={run}", f"--out={tmp_path}/model.onnx")
    model = library.load(run)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    items = model.index(pl.Series(["0-1", "1-10"]))[None]
    (scores,) = session.run(["scores"], {"items": items, "lengths": np.array([2])})
    found = model.recommend([["0-1", "1-10"]], k=72, exclude_seen=False)
    by_item = dict(zip(found["items"][0], found["scores"][0], strict=True))
    assert scores[0] == pytest.approx([by_item[raw_id] for raw_id in model.item_ids], abs=1e-4)


def test_evaluation_is_over_the_catalogue(
    trained: Callable[[str | None], Path], tmp_path: Path, lrec: Callable[..., str]
) -> None:
    """New items change no loss and no rank, in the run's own test and in tasks."""
    run = trained("added")
    tested = json.loads((run / "metrics.json").read_text())["model"]
    assert library.load(run, new_items=False).item_ids.to_list() == library.load(trained(None)).item_ids.to_list()
    assert tested["loss"] == pytest.approx(math.log(ITEMS), abs=0.15)
    lrec("tasks", f"--runs={run}", "--tasks=robustness", f"--out={tmp_path}")
    sections = json.loads((tmp_path / "tasks.json").read_text())["tasks"]["robustness"]["sections"]
    clean = sections[0]["groups"]["clean"]["scorers"]["3k"]
    for metric in ("loss", "NDCG@10", "HR@1"):
        assert clean[metric]["value"] == pytest.approx(tested[metric], abs=1e-5)


def test_points_count_what_is_trained(trained: Callable[[str | None], Path]) -> None:
    points = {use: json.loads((trained(use) / "points.jsonl").read_text().splitlines()[-1]) for use in USES}
    table, projection = KINDS * ITEMS * 16, 8 * 16
    assert {point["N_head"] for point in points.values()} == {table}
    plain = points[None]["N_total"]
    assert [points[use]["N_total"] - plain for use in USES] == [0, 0, projection, projection - table]
    steps = points[None]["step"]
    flops = [points[use]["flops"] - points[None]["flops"] for use in USES]
    assert flops == [0, 0, 4 * table * 8 * steps, 4 * table * 8 * steps]


USES = (None, "initial", "added", "fixed")


def test_training_goes_on_with_the_same_vectors_alone(
    trained: Callable[[str | None], Path],
    arguments: Arguments,
    data: Path,
    tmp_path: Path,
    lrec: Callable[..., str],
    refused: Callable[..., str],
) -> None:
    run = trained("added")
    last = f"--ckpt_path={run}/checkpoints/last.ckpt"
    lrec(*arguments(tmp_path / "on", "added", trainer__max_epochs=7, trainer__check_val_every_n_epoch=1), last)
    torch.testing.assert_close(vectors_of(tmp_path / "on"), vectors_of(run))
    table = pl.read_parquet(data / "vectors.parquet")
    other = table.with_columns(vector=pl.col("vector").list.eval(pl.element() ** 2))
    other.write_parquet(tmp_path / "other.parquet")
    changed = arguments(
        tmp_path / "off", "added", model__item_vectors=tmp_path / "other.parquet", trainer__max_epochs=9
    )
    assert "was trained with other vectors than those of model.item_vectors" in refused(*changed, last)


def vectors_of(run: Path) -> torch.Tensor:
    model = SequentialRecommender.load_from_checkpoint(run / "checkpoints" / "best.ckpt")
    assert model.net.items.vectors is not None
    return model.net.items.vectors


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"model__item_vectors": "nowhere.parquet"}, "model.item_vectors nowhere.parquet: no such file"),
        ({"model__item_vectors_use": "somehow"}, "model.item_vectors_use"),
        ({"model__item_vectors": "null", "model__item_vectors_use": "fixed"}, "item_vectors_use fixed needs vectors"),
        (
            {"model__optimizer__touched_rows": "true", "model__loss": "SampledSoftmax"},
            "the projection of item vectors moves every row",
        ),
        ({"model__warm_start": "."}, "give model.warm_start or model.item_vectors, not both"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: Arguments, tmp_path: Path, refused: Callable[..., str], changed: dict[str, object], says: str
) -> None:
    assert says in refused(*arguments(tmp_path / "run", "added", **changed))
    assert not (tmp_path / "run").exists()


def test_each_item_of_the_catalogue_needs_a_vector(
    arguments: Arguments, data: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    some = pl.read_parquet(data / "vectors.parquet").filter(pl.col("item") != "2-3")
    some.write_parquet(tmp_path / "some.parquet")
    said = refused(*arguments(tmp_path / "run", "fixed", model__item_vectors=tmp_path / "some.parquet"))
    assert "some.parquet has no vector for 1 of the catalogue's 60 items, such as 2-3: give each item one" in said
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_with_vectors_is_not_loaded_without_them(trained: Callable[[str | None], Path]) -> None:
    with pytest.raises(UserError, match="has vector_width 8, the config None"):
        SequentialRecommender.load_from_checkpoint(trained("added") / "checkpoints" / "best.ckpt", item_vectors=None)
