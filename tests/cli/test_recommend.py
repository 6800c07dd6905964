"""`lrec recommend` and `lrec.load(path).recommend` take raw ids and give the same lists as evaluation."""

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

import lrec as package
from lrec.data.formats.readers import Columns
from lrec.data.histories import histories_in, histories_of
from lrec.errors import UserError
from lrec.model.config import TransformerConfig
from lrec.model.transformer import Transformer
from lrec.serving.recommender import Model


def fit(log: Path, folder: Path, data: str = "lrec.InteractionsDataModule", **options: object) -> None:
    """Train a run on a log, with these options of its data."""
    from lrec.cli import main

    options = {
        "data": data,
        "data.path": log,
        "data.data_dir": folder.parent / "stores",
        **{f"data.{name}": value for name, value in options.items()},
        "data.max_len": 10,
        "data.targets_per_step": 256,
        "model.size": "3k",
        "model.optimizer.lr": 0.01,
        "trainer.max_epochs": 3,
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": folder,
    }
    arguments = [f"--{name}={value}" for name, value in options.items()]
    main(["fit", "--config=trainer/laptop.yaml", *arguments])


@pytest.fixture(scope="module")
def run(log_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with its predictions.parquet, made by evaluation's own scoring."""
    from lrec.cli import main

    folder = tmp_path_factory.mktemp("runs") / "first"
    fit(log_csv, folder, user_column="who", item_column="what", time_column="when")
    main(["predict", "--config", str(folder / "config.yaml"), "--model.top_k=7"])
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return package.load(run)


@pytest.fixture(scope="module")
def histories(log_csv: Path) -> pl.DataFrame:
    """Each user's items in time order."""
    log = pl.read_csv(log_csv).sort("who", "when", maintain_order=True)
    return log.group_by(pl.col("who").alias("user"), maintain_order=True).agg(pl.col("what").alias("items"))


def test_lists_do_not_depend_on_threads(model: Model, histories: pl.DataFrame) -> None:
    many = pl.concat(
        [histories.with_columns(pl.col("user") + f"-{copy}") for copy in range(1 + 4096 // len(histories))]
    )
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(model.recommend(many))
    torch.set_num_threads(before)
    same(*found)


def same(found: pl.DataFrame, expected: pl.DataFrame) -> None:
    """The same items for the same users, with scores that differ by no more than rounding."""
    found, expected = found.sort("user"), expected.sort("user")
    assert found["user"].to_list() == expected["user"].to_list()
    assert found["items"].to_list() == expected["items"].to_list()
    for mine, theirs in zip(found["scores"], expected["scores"], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_lists_are_those_of_evaluation(run: Path, model: Model, histories: pl.DataFrame) -> None:
    predicted = pl.read_parquet(run / "predictions.parquet")
    found = model.recommend(histories, k=7)
    same(found, predicted)
    assert found["user"].to_list() == histories["user"].to_list()
    assert found["skipped"].sum() == 0


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "jsonl", "parquet", "txt", "rows.jsonl", "rows.parquet"])
def test_every_form_of_histories_gives_them(
    ending: str, run: Path, log_csv: Path, histories: pl.DataFrame, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    file, out = tmp_path / f"histories.{ending}", tmp_path / "out.parquet"
    if ending in ("csv", "csv.gz"):
        # Interactions of all users mixed, out of order.
        mixed = pl.read_csv(log_csv).sample(fraction=1, shuffle=True, seed=3).write_csv().encode()
        file.write_bytes(gzip.compress(mixed) if ending == "csv.gz" else mixed)
    elif ending == "txt":
        file.write_text("".join(f"{user} {' '.join(items)}\n" for user, items in histories.iter_rows()))
    elif ending == "rows.jsonl":
        pl.read_csv(log_csv).write_ndjson(file)
    elif ending == "rows.parquet":
        pl.read_csv(log_csv).write_parquet(file)
    else:
        histories.write_ndjson(file) if ending == "jsonl" else histories.write_parquet(file)
    printed = lrec("recommend", "--ckpt_path", run, "--histories", file, "--k", 7, "--out", out)
    same(pl.read_parquet(out), pl.read_parquet(run / "predictions.parquet"))
    assert f"{len(histories)} users written to {out}; 0 unknown items" in printed


def test_columns_have_the_names_of_training_or_else_the_usual_ones(
    run: Path, log_csv: Path, tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    mixed = pl.read_csv(log_csv).sample(fraction=1, shuffle=True, seed=3)
    usual = {"who": "user", "what": "item", "when": "timestamp"}
    file, out = tmp_path / "mixed.csv", tmp_path / "out.parquet"
    lrec("export", "--ckpt_path", run, "--out", tmp_path / "exported")

    def recommended(log: pl.DataFrame, *options: str, model: Path = run) -> pl.DataFrame:
        log.write_csv(file)
        lrec("recommend", "--ckpt_path", model, "--histories", file, "--k=7", *options, "--out", out)
        return pl.read_parquet(out)

    expected = pl.read_parquet(run / "predictions.parquet")
    same(recommended(mixed), expected)
    same(recommended(mixed, model=tmp_path / "exported"), expected)
    same(recommended(mixed.rename(usual)), expected)
    both = mixed.with_columns(user=pl.lit("all"), item=pl.lit("item-1"), timestamp=pl.lit(7))
    same(recommended(both), expected)
    assert recommended(both, "--user_column=user")["user"].to_list() == ["all"]
    backwards = mixed.sort("when").with_columns(4_000_000_000 - pl.col("when"))
    same(recommended(backwards, "--time_column=null"), expected)
    mixed.rename({"who": "other"}).write_csv(file)
    error = refused("recommend", "--ckpt_path", run, "--histories", file)
    assert "has no column who (option user_column); its columns are other, what, when" in error


def test_what_training_left_out_is_left_out_here(log_csv: Path, tmp_path: Path, lrec: Callable[..., str]) -> None:
    file, out = tmp_path / "log.csv", tmp_path / "out.parquet"
    log = pl.read_csv(log_csv)
    log.with_columns(stars=pl.Series(np.arange(len(log)) * 7 % 5 + 1)).write_csv(file)
    names = {"user_column": "who", "item_column": "what", "time_column": "when", "rating_column": "stars"}
    fit(file, tmp_path / "run", **names, min_rating=3)
    lrec("predict", "--config", tmp_path / "run" / "config.yaml", "--model.top_k=7")
    lrec("export", "--ckpt_path", tmp_path / "run", "--out", tmp_path / "exported")
    for model in ("run", "exported"):
        lrec("recommend", "--ckpt_path", tmp_path / model, "--histories", file, "--k=7", "--out", out)
        same(pl.read_parquet(out), pl.read_parquet(tmp_path / "run" / "predictions.parquet"))


def test_repeats_are_dropped_as_in_training(log_csv: Path, tmp_path: Path, lrec: Callable[..., str]) -> None:
    file, out = tmp_path / "Books.csv", tmp_path / "out.parquet"
    columns = dict(zip(["who", "what", "when"], ["user_id", "parent_asin", "timestamp"], strict=True))
    log = pl.read_csv(log_csv).rename(columns).with_columns(rating=5.0)
    pl.concat([log, log.with_columns(pl.col("timestamp") + 1)]).write_csv(file)
    fit(file, tmp_path / "run", data="lrec.AmazonDataModule", year=2023, repeats="false")
    lrec("predict", "--config", tmp_path / "run" / "config.yaml", "--model.top_k=7")
    lrec("recommend", "--ckpt_path", tmp_path / "run", "--histories", file, "--k=7", "--out", out)
    same(pl.read_parquet(out), pl.read_parquet(tmp_path / "run" / "predictions.parquet"))


def test_without_times_in_training_and_in_the_file_rows_are_in_time_order(
    log_csv: Path, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    file, out = tmp_path / "log.csv", tmp_path / "out.parquet"
    pl.read_csv(log_csv).sort("when").drop("when").write_csv(file)
    fit(file, tmp_path / "run", user_column="who", item_column="what", time_column="null")
    found = []
    for options in ((), ("--time_column=null",)):
        lrec("recommend", "--ckpt_path", tmp_path / "run", "--histories", file, *options, "--out", out)
        found.append(pl.read_parquet(out))
    assert found[0].equals(found[1])


@pytest.mark.parametrize(
    ("name", "columns", "options"),
    [
        ("ratings.csv", ["userId", "movieId", "timestamp"], {"data": "lrec.MovieLensDataModule"}),
        ("Books.csv", ["user_id", "parent_asin", "timestamp"], {"data": "lrec.AmazonDataModule", "year": 2023}),
    ],
)
def test_a_public_data_set_is_read_with_the_columns_that_it_has(
    name: str, columns: list[str], options: dict[str, str], log_csv: Path, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    file, out = tmp_path / name, tmp_path / "out.parquet"
    log = pl.read_csv(log_csv)
    log.rename(dict(zip(log.columns, columns, strict=True))).with_columns(rating=5.0).write_csv(file)
    fit(file, tmp_path / "run", **options)
    lrec("recommend", "--ckpt_path", tmp_path / "run", "--histories", file, "--out", out)
    assert pl.read_parquet(out).select("user", "skipped").rows() == [(user, 0) for user in sorted(set(log["who"]))]


def test_checkpoint_exported_file_and_folder_agree(
    run: Path, model: Model, histories: pl.DataFrame, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    best = run / "checkpoints" / "best.ckpt"
    lrec("export", "--ckpt_path", best, "--out", tmp_path / "exported")
    expected = model.recommend(histories, k=5)
    lrec("export", "--ckpt_path", tmp_path / "exported", "--out", tmp_path / "again.safetensors")
    for path in (
        best,
        tmp_path / "exported",
        tmp_path / "exported" / "model.safetensors",
        tmp_path / "again.safetensors",
    ):
        assert package.load(path).recommend(histories, k=5).equals(expected)


def test_a_gap_in_a_table_does_not_change_its_ids() -> None:
    """pandas makes floats of integers with a missing value."""
    gap = pd.DataFrame({"user": [1, 1, 1], "item": [3, None, 4]})
    assert histories_of(gap).rows["item"].to_list() == ["3", None, "4"]


@pytest.mark.parametrize("table", [pd.DataFrame, lambda columns: pl.DataFrame(columns, strict=False)])
def test_a_table_may_have_ids_of_two_kinds_and_no_items(table: Callable[[dict[str, list]], object]) -> None:
    """As pandas reads a large file of ids, and joins a table of users."""
    rows = histories_of(table({"user": [1, "a", 1], "item": [3, "b", "c"]}))
    users = histories_of(table({"user": [1, "a", 2], "items": [["3", "c"], ["b"], None]}))
    assert rows.rows.equals(users.rows)
    assert (rows.lengths_B.tolist(), users.lengths_B.tolist()) == ([2, 1], [2, 1, 0])


def test_dictionaries_are_a_table_of_users() -> None:
    rows = [{"user": "u", "items": [1, "a"], "times": [5, 6], "age": 3}, {"items": [2], "times": [7]}, {"items": []}]
    found = histories_of(rows, with_times=True, features=["age"])
    assert found.users.to_list() == ["u", None, None]
    assert found.lengths_B.tolist() == [2, 1, 0]
    assert found.rows["item"].to_list() == ["1", "a", "2"]
    assert found.rows["time"].to_list() == [5, 6, 7]
    assert found.rows["feature.age"].to_list() == [3, 3, None]
    with pytest.raises(UserError, match="times has not as many entries as items"):
        histories_of([*rows, {"items": [4]}], with_times=True)


def test_users_at_the_end_of_a_file_may_lack_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row of JSON lines is a block here, with columns of its own."""
    monkeypatch.setattr("lrec.data.formats.streams.BLOCK", 1)
    monkeypatch.setattr("lrec.data.formats.streams._PIECE", 25)
    (tmp_path / "h.jsonl").write_text('{"user":1,"items":[5,6]}\n{"user":2,"since":"may"}\n')
    columns = Columns("user", "item", "timestamp")
    blocks = histories_in(tmp_path / "h.jsonl", None, columns, columns)
    assert [block.lengths_B.tolist() for block in blocks] == [[2], [0]]


@pytest.mark.parametrize("feature", ["user", "item", "time", "times", "event", "events"])
def test_a_feature_may_have_the_name_of_what_histories_have(feature: str, tmp_path: Path) -> None:
    """It is read as the feature, and as the time or type itself only if the network reads these."""
    named = f"feature.{feature}"
    own = {"user": ["a", "a", "b"], "item": ["i", "j", "k"], "time": [7, 8, 9], "event": ["x", "y", "x"]}
    rows = pl.DataFrame(own | ({feature: ["u", "v", "w"]} if feature not in own else {}))
    for reads in (False, True):
        found = histories_of(rows, reads, reads, [feature]).rows
        assert found[named].to_list() == rows[feature].to_list()
        assert found.drop(named).equals(rows.select("item", *["time", "event"] * reads))
    users = [{"user": "a", "items": ["i", "j"], feature: "u"}, {"user": "b", "items": ["k"], feature: "v"}]
    (tmp_path / "h.jsonl").write_text("\n".join(map(json.dumps, users)))
    columns = Columns("user", "item")
    (block,) = histories_in(tmp_path / "h.jsonl", None, columns, columns, features={feature: False})
    for found in (histories_of(users, features=[feature]).rows, block.rows):
        assert found.columns == ["item", named]
        assert found["item"].to_list() == ["i", "j", "k"]
        assert found[named].to_list() == ["u", "u", "v"]


def test_lists_of_one_length_are_lists() -> None:
    """Polars makes arrays of them."""
    table = pl.DataFrame({name: np.array([[1, 2], [3, 4]]) for name in ("items", "times", "price")})
    found = histories_of(table, with_times=True, features=["price"]).rows
    assert found["time"].to_list() == found["feature.price"].to_list() == [1, 2, 3, 4]


@pytest.mark.parametrize("of_one_user", [list, np.asarray])
@pytest.mark.parametrize("unit", ["m", "s", "ms", "ns"])
def test_times_may_be_dates_of_numpy(of_one_user: Callable[[np.ndarray], object], unit: str) -> None:
    times = of_one_user(np.array([60, 120], dtype="datetime64[s]").astype(f"datetime64[{unit}]"))
    for table in ([{"items": ["a", "b"], "times": times}], pd.DataFrame({"items": [["a", "b"]], "times": [times]})):
        assert histories_of(table, with_times=True).rows["time"].to_list() == [60, 120]


def test_an_item_of_a_file_may_have_a_list_of_values(tmp_path: Path) -> None:
    (tmp_path / "h.jsonl").write_text('{"user":1,"items":[5,6],"tags":[["a","b"],null]}\n')
    columns = Columns("user", "item")
    (block,) = histories_in(tmp_path / "h.jsonl", None, columns, columns, features={"tags": False})
    assert block.rows["feature.tags"].to_list() == [["a", "b"], None]


@pytest.mark.parametrize(
    "table",
    [
        pl.DataFrame,
        pd.DataFrame,
        lambda columns: columns["items"],
        lambda columns: [np.array(items, np.float32) for items in columns["items"]],
    ],
    ids=["Polars", "pandas", "lists", "arrays"],
)
def test_a_whole_number_in_a_list_is_the_same_id(table: Callable[[dict[str, list]], object]) -> None:
    assert histories_of(table({"items": [[3.0, 4.0], [5.5]]})).rows["item"].to_list() == ["3", "4", "5.5"]


@pytest.mark.parametrize("items", [{"items": [[["a"]]]}, {"items": [[{"id": "a"}]]}, {"user": [1], "item": [["a"]]}])
def test_items_that_are_no_ids_are_refused(items: dict[str, list]) -> None:
    with pytest.raises(UserError, match="of raw ids, not of "):
        histories_of(pl.DataFrame(items))


def test_tables_in_memory(model: Model, histories: pl.DataFrame) -> None:
    expected = model.recommend(histories)
    rows = histories.explode("items").rename({"items": "item"})
    assert model.recommend(rows).equals(expected)
    pandas = pd.DataFrame(rows.to_dict(as_series=False))
    assert model.recommend(pandas).equals(expected)
    assert model.recommend(rows.lazy()).equals(expected)
    assert model.recommend(pandas.assign(other=pd.Series([1, "mixed", None]))).equals(expected)
    assert model.recommend(pd.DataFrame(histories.to_dict(as_series=False))).equals(expected)
    gap = pd.DataFrame({"user": [1, 1, 1], "item": ["item-3", None, "item-4"]})
    without = model.recommend([["item-3", "item-4"]])
    assert model.recommend(gap).rows() == without.with_columns(user=1, skipped=1).rows()
    pairs = pl.DataFrame({"items": [["item-3", "item-4"]]})
    fixed = pairs.with_columns(pl.col("items").list.to_array(2))
    assert model.recommend(fixed).equals(model.recommend(pairs))
    assert model.recommend(pl.DataFrame({"items": []})).is_empty()
    lists = model.recommend(histories["items"].to_list())
    assert lists.drop("user").equals(expected.drop("user"))
    assert lists["user"].to_list() == list(range(len(histories)))
    assert model.recommend([]).is_empty()
    for wrong in (histories.rename({"items": "list"}), 3, "item-1", ["item-1", "item-2"]):
        with pytest.raises(UserError, match="histories"):
            model.recommend(wrong)


def test_unknown_items_are_skipped_and_counted(model: Model) -> None:
    found = model.recommend([["item-3", "item-4"], ["item-3", "new", "item-4", "new"], ["new"], []], k=4)
    assert found["skipped"].to_list() == [0, 2, 1, 0]
    assert found["items"][0].equals(found["items"][1])
    assert found["items"].list.len().to_list() == [4, 4, 4, 4]
    nothing = model.recommend([["item-3"], ["new"], []], k=4, fallback=False)
    assert nothing["items"].list.len().to_list() == [4, 0, 0]
    assert not nothing["fallback"].any()


def test_without_a_known_item_the_most_popular_ones_are_recommended(
    run: Path, model: Model, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    table = pl.read_parquet(run / "items.parquet").sort("count", "item", descending=[True, False])
    share = (table["count"] / table["count"].sum()).log()
    histories = [["item-3"], ["new"], [], ["item-4", "new"]]
    found = model.recommend(histories, k=7)
    assert found["fallback"].to_list() == [False, True, True, False]
    for row in (1, 2):
        assert found["items"][row].to_list() == table["raw_id"][:7].to_list()
        np.testing.assert_allclose(found["scores"][row], share[:7], rtol=1e-6)
    known = model.recommend([["item-3"], ["item-4"]], k=7)
    assert found["items"].gather([0, 3]).to_list() == known["items"].to_list()
    banned = table["raw_id"][:2].to_list()
    left = model.recommend(histories, k=3, exclude=banned)
    assert left["items"][1].to_list() == table["raw_id"][2:5].to_list()
    lrec("export", "--ckpt_path", run, "--out", tmp_path / "model.safetensors")
    assert package.load(tmp_path / "model.safetensors").recommend(histories, k=7).equals(found)


def test_seen_items_are_left_out_of_the_whole_history(model: Model) -> None:
    long = [f"item-{i}" for i in range(30)]  # max_len is 10
    unseen, every = (model.recommend([long], k=40, exclude_seen=e)["items"][0].to_list() for e in (True, False))
    assert set(unseen) == set(model.item_ids) - set(long)
    assert set(every) == set(model.item_ids)
    assert [item for item in every if item not in long] == unseen


def test_allowed_and_excluded_items(model: Model, histories: pl.DataFrame) -> None:
    every = model.recommend(histories, k=40)
    allowed = [f"item-{i}" for i in range(0, 40, 3)]
    exclude = ["item-6", "item-7"]
    for options, may in (
        ({"allowed": [*allowed, "unknown"]}, set(allowed)),
        ({"exclude": exclude}, set(model.item_ids) - set(exclude)),
        ({"allowed": allowed, "exclude": exclude}, set(allowed) - set(exclude)),
    ):
        found = model.recommend(histories, k=3, **options)
        expected = [[item for item in items if item in may][:3] for items in every["items"].to_list()]
        assert found["items"].to_list() == expected
    with pytest.raises(UserError, match="allowed and exclude"):
        model.recommend(histories, allowed=["unknown"])


@pytest.mark.parametrize("kind", [list, set, pl.Series, np.array, pd.Series, iter])
def test_allowed_and_excluded_items_of_any_kind(kind: Callable[[list[str]], object], model: Model) -> None:
    history = [["item-3", "item-4"]]
    first, second = model.recommend(history, k=2)["items"][0].to_list()
    assert model.recommend(history, k=1, exclude=kind([first]))["items"].to_list() == [[second]]
    assert model.recommend(history, k=2, allowed=kind([second]))["items"].to_list() == [[second]]
    assert model.similar_items(kind([first]), k=1)["item"].to_list() == [first]


def test_ids_of_a_column_that_a_missing_value_made_floats() -> None:
    model = Model(Transformer(TransformerConfig(4, 3, 1, 8, 1)).eval(), pl.Series(["1", "2", "3", "4"]), {})
    found = model.recommend([[4]], k=4, exclude=pd.Series([1, None, 3]))
    assert found["items"].to_list() == [["2"]]
    model = Model(model.net, pl.Series(["1", "2", "None", "nan"]), {})
    assert model.recommend([[1, math.nan]], k=4, exclude=[None, math.nan])["items"].list.len().to_list() == [3]
    assert model.recommend([[2]], allowed=pd.Series([1, pd.NA]))["items"].to_list() == [["1"]]


def test_what_is_no_list_of_ids_is_refused(model: Model) -> None:
    lists = ([["item-5"]], [("item-5",)], torch.tensor([5]), pl.Series([["item-5"]]))
    for wrong in ("item-5", b"item-5", 5, pl.DataFrame({"item": ["item-5"]}), *lists):
        with pytest.raises(UserError, match="exclude: a list or a column is expected, of raw ids, not "):
            model.recommend([["item-3"]], exclude=wrong)
        with pytest.raises(UserError, match="items: a list or a column is expected, of raw ids, not "):
            model.similar_items(wrong)
    for wrong in (torch.tensor([[5]]), [[("item-5",)]], [[{"item-5"}]]):
        with pytest.raises(UserError, match="a list of lists is expected, of raw ids, not "):
            model.recommend(wrong)
    assert model.similar_items([]).is_empty()


@pytest.mark.parametrize("k", [2.0, "2", True, None])
def test_the_length_of_a_list_is_a_whole_number(k: Any, model: Model) -> None:
    for lists in (lambda: model.recommend([["item-3"]], k=k), lambda: model.similar_items(["item-3"], k=k)):
        with pytest.raises(UserError, match="k must be a whole number, got "):
            lists()
    for option in ("exclude_seen", "fallback"):  # as from a request over HTTP
        with pytest.raises(UserError, match=rf"^{option} must be True or False, got 'no'"):
            model.recommend([["item-3"]], **{option: "no"})
    assert model.recommend([["item-3"]], k=np.uint8(2)).equals(model.recommend([["item-3"]], k=2))


def test_similar_items(model: Model) -> None:
    table = model.net.items.weight.detach().double().numpy()
    table /= np.linalg.norm(table, axis=1, keepdims=True)
    names = model.item_ids.to_list()
    found = model.similar_items(["item-5", "item-17"], k=6)
    for item, items, scores in found.iter_rows():
        cosines = table @ table[names.index(item)]
        best = [i for i in np.argsort(-cosines) if names[i] != item][:6]
        assert items == [names[i] for i in best]
        np.testing.assert_allclose(scores, cosines[best], atol=1e-6)
    with pytest.raises(UserError, match="'nothing' is not in the catalogue"):
        model.similar_items(["nothing"])


def test_integers_are_the_ids_that_spell_them(tmp_path: Path) -> None:
    import torch

    from lrec.model.config import TransformerConfig
    from lrec.model.transformer import Transformer

    net = Transformer(TransformerConfig(5, 4, 1, 8, 1)).eval()
    with torch.no_grad():
        small = Model(net, pl.Series(["10", "11", "12", "13", "14"]), {})
        assert small.recommend([[10, 12]]).equals(small.recommend([["10", "12"]]))
        lists = pl.DataFrame({"user": [7], "items": [[10, 12]]})
        assert small.recommend(lists)["items"].equals(small.recommend([["10", "12"]])["items"])


def test_files_with_titles(
    run: Path, model: Model, histories: pl.DataFrame, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    few = histories.head(3).vstack(pl.DataFrame({"user": ["stranger"], "items": [["new", "newer"]]}))
    few.write_parquet(tmp_path / "few.parquet")
    titles = tmp_path / "titles.csv"
    titles.write_text("id,title\n" + "".join(f'item-{i},"Film, the {i}th"\n' for i in range(0, 40, 2)))
    arguments = ("recommend", "--ckpt_path", run, "--histories", tmp_path / "few.parquet", "--k=4", "--titles", titles)
    expected = model.recommend(few, k=4)
    names = {f"item-{i}": f"Film, the {i}th" for i in range(0, 40, 2)}

    printed = lrec(*arguments, "--out", tmp_path / "out.jsonl")
    assert "4 users written" in printed
    assert "2 unknown items of the histories skipped" in printed
    assert "popular items for 1 user: the model knows no item of the history" in printed
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["items"] for row in rows] == expected["items"].to_list()
    assert [row["fallback"] for row in rows] == [False, False, False, True]
    assert [row["titles"] for row in rows] == [[names.get(i) for i in row["items"]] for row in rows]
    first = ", ".join(names.get(item, item) for item in rows[0]["items"])
    assert f"{rows[0]['user']}: {first}\n" in printed

    lrec(*arguments, "--out", tmp_path / "out.csv")
    flat = pl.read_csv(tmp_path / "out.csv")
    assert flat.columns == ["user", "rank", "item", "score", "title"]
    assert flat["item"].to_list() == [item for row in rows for item in row["items"]]
    assert flat["rank"].to_list() == [1, 2, 3, 4] * 4
    shown = lrec(*arguments)
    assert f"{rows[0]['user']}: {first}\n" in shown, "without --out the first users are shown"
    assert "2 unknown items of the histories skipped" in shown
    assert "popular items for 1 user:" in shown
    assert "nothing for 1 user: the model knows no item of the history" in lrec(*arguments, "--fallback", "false")


def test_what_is_wrong_is_said(
    run: Path, log_csv: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, refused: Callable[..., str]
) -> None:
    titles = tmp_path_factory.mktemp("titles") / "titles.csv"
    titles.write_text("title,id\nFilm,item-1\n")

    def error(**changed: object) -> str:
        options = {"ckpt_path": run, "histories": log_csv, "out": tmp_path / "out.csv"} | changed
        return refused("recommend", *(f"--{name}={value}" for name, value in options.items()))

    assert "has no column user (option user_column); its columns are who, what, when" in error(user_column="user")
    assert "--k must be at least 1" in error(k=0)
    assert "must end in .parquet, .jsonl, .csv" in error(out=tmp_path / "out.xls")
    assert f"{tmp_path} holds neither model.safetensors" in error(ckpt_path=tmp_path)
    assert "no such checkpoint" in error(ckpt_path=tmp_path / "nowhere")
    assert "does not exist" in error(histories=tmp_path / "no.csv")
    assert "option title_column" in error(titles=log_csv)
    assert "titles.csv names no item of the model" in error(titles=titles)
    assert "is a folder: name one file" in error(histories=log_csv.parent)
    assert "is the file of --histories: it would be lost" in error(histories=log_csv, out=log_csv)
    assert "is the file of --titles: it would be lost" in error(titles=titles, out=titles)
    (titles.parent / "folder.csv").mkdir()
    assert "is a folder: name a file" in error(out=titles.parent / "folder.csv")
    assert "titles.csv is not a folder" in error(out=titles / "out.csv")
    assert not list(tmp_path.iterdir())
