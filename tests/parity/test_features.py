"""Features of events and items against plain loops over the raw rows."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from lrec.data.features import Features, Vocabulary, as_plain, vectors_of_file
from lrec.data.histories import histories_of
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.errors import UserError
from lrec.model.config import TransformerConfig
from lrec.model.item_vectors import scaled
from lrec.model.transformer import Transformer
from lrec.serving.recommender import Model

USERS, ITEMS, LENGTH, WIDTH, BUCKETS = 30, 9, 8, 12, 4
Row = dict[str, Any]
USER_ROWS = {f"u{n}": {"sex": "mf"[n % 2], "age": "" if n % 7 == 0 else str(n * n)} for n in range(0, USERS, 2)}
ITEM_ROWS = {
    f"i{n}": {"brand": "xyz"[n % 3], "cost": "" if n == 4 else str(n / 3), "genres": "g|h" if n % 2 else "h"}
    for n in range(1, ITEMS + 2)
}


def raw_rows(seed: int = 0) -> list[Row]:
    """Events with missing values in each feature; each user's last two have values, and more of them at once, that the
    training part lacks. Two features are the same in all events of a user."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(USERS):
        for place in range(LENGTH):
            late = place >= LENGTH - 2
            rows.append(
                {
                    "user": f"u{user}",
                    "item": f"i{random.integers(ITEMS)}",
                    "timestamp": place,
                    "kind": random.choice(["view", "buy"]),
                    "device": random.choice(["web", "app", "tv" if late else "web", ""]),
                    "price": random.choice(
                        ["", *map(str, np.round(random.exponential(10, 3), 2)), "1000" if late else "5"]
                    ),
                    "tags": random.choice(["a|b" if late else "b", "b", "c | a" if late else "a", ""]),
                }
                | USER_ROWS.get(f"u{user}", {"sex": "", "age": ""})
            )
    return rows


def write(path: Path, rows: list[Row]) -> Path:
    pl.DataFrame(rows).write_csv(path)
    return path


def module(folder: Path, rows: list[Row], **options: Any) -> InteractionsDataModule:
    usual: dict[str, Any] = {
        "event_column": "kind",
        "event_features": Features(["device", "sex"], ["price", "age"], ["tags"], buckets=BUCKETS),
        "item_features": Features(
            ["brand"], ["cost"], ["genres"], path=write(folder / "i.csv", with_ids("item", ITEM_ROWS))
        ),
    }
    log = write(folder / "log.csv", rows)
    data = InteractionsDataModule(
        log, data_dir=folder / "stores", max_len=LENGTH, targets_per_step=64, **usual | options
    )
    data.prepare_data()
    data.setup("fit")
    return data


def with_ids(name: str, rows: dict[str, Row]) -> list[Row]:
    return [{name: raw_id, **row} for raw_id, row in rows.items()]


@pytest.fixture
def data(tmp_path: Path) -> InteractionsDataModule:
    return module(tmp_path, raw_rows())


def network(data: InteractionsDataModule, **shape: Any) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(data.n_items, LENGTH, 2, WIDTH, 2, event_types=len(data.event_rows), **shape)
    net = Transformer(config).double().eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return net


def bucket(edges: list[float], value: float) -> int:
    return sum(value >= edge for edge in edges)


def edges_of(numbers: list[float]) -> list[float]:
    """The distinct numbers at each 1 / BUCKETS of the sorted numbers, without the least number."""
    numbers = sorted(numbers)
    if len(set(numbers)) <= BUCKETS:
        return sorted(set(numbers))[1:]
    found = {numbers[part * len(numbers) // BUCKETS] for part in range(1, BUCKETS)}
    return sorted(found - {numbers[0]})


def names_of(entry: str, column: str, trained: list[str]) -> Iterator[str]:
    """The names of the values that are read from an entry; `trained` are the entries of the training part."""
    numbers = [float(each) for each in trained if each] if column in ("price", "age") else []
    if not entry:
        yield from ["missing"] if "" in trained else []
    elif numbers:
        yield str(bucket(edges_of(numbers), float(entry)))
    else:
        parts = {part.strip() for each in trained for part in each.split("|")}
        yield from (part.strip() for part in entry.split("|") if part.strip() in parts)


def columns_of(rows: list[Row]) -> dict[str, list[str]]:
    """Entries of the training part: of all events but each user's last two."""
    names = ("device", "sex", "price", "age", "tags")
    return {name: [row[name] for row in rows if row["timestamp"] < LENGTH - 2] for name in names}


@torch.inference_mode()
def test_what_a_network_reads_is_a_sum_over_raw_values(data: InteractionsDataModule) -> None:
    """The hidden states are those of a plain network whose items are the sums, one for each event of the batch."""
    net, rows = network(data), raw_rows()
    assert net.events is not None
    trained, items = columns_of(rows), data.item_table()["raw_id"].to_list()
    place = {name: row for row, name in enumerate(data.event_rows)}
    vectors: list[Tensor] = []
    for row in rows:
        vector = net.items.weight[items.index(row["item"])] + net.events.weight[place[row["kind"]]]
        for column, entries in trained.items():
            for name in names_of(row[column], column, entries):
                of_value = f"event {column}={name if name != 'missing' else chr(0) + name}"
                vector = vector + net.events.weight[place[of_value]]
        vectors.append(vector)
    plain = Transformer(TransformerConfig(len(rows), LENGTH, 2, WIDTH, 2)).double().eval()
    shared = {name: each for name, each in net.state_dict().items() if not name.startswith(("items.", "events."))}
    plain.load_state_dict(shared | {"items.weight": torch.stack(vectors)})
    seen = 0
    for batch in data.predict_dataloader():
        found_BLD = net(batch.items_BL, lambda hidden_BLD, _: hidden_BLD, events_BL=batch.events_BL)
        names = data.store.raw_user_ids.gather(batch.users_M.numpy())
        first_B = torch.tensor([LENGTH * int(name[1:]) for name in names])
        expected_BLD = plain(first_B[:, None] + torch.arange(LENGTH), lambda hidden_BLD, _: hidden_BLD)
        torch.testing.assert_close(found_BLD, expected_BLD, rtol=1e-9, atol=1e-9)
        seen += len(names)
    assert seen == USERS


def test_every_value_is_met(data: InteractionsDataModule) -> None:
    """The comparison above covers each row of the table, and values without a row."""
    codes = torch.cat(
        [batch.events_BL.flatten(0, 1) for batch in data.predict_dataloader() if batch.events_BL is not None]
    )
    assert set(codes.flatten().tolist()) == {-1, *range(len(data.event_rows))}


def test_a_row_of_the_item_table_is_its_own_and_its_features(data: InteractionsDataModule) -> None:
    assert data.learned.item_vectors is not None
    ids = data.item_table()["raw_id"]
    vectors_VW, new = scaled(*data.learned.item_vectors, ids, slice(None), "")
    costs = {name: float(row["cost"]) for name, row in ITEM_ROWS.items() if row["cost"] and name in ids}
    mean = sum(costs.values()) / len(costs)
    deviation = math.sqrt(sum((cost - mean) ** 2 for cost in costs.values()) / len(costs))

    def plain(name: str) -> list[float]:
        """Brands x, y, z and none; cost and whether there is none; genres g, h and none. Item i0 has no row."""
        row = ITEM_ROWS.get(name, {"brand": "", "cost": "", "genres": ""})
        brands = [float(row["brand"] == each) for each in ("x", "y", "z", "")]
        cost = (float(row["cost"]) - mean) / deviation if row["cost"] else 0.0
        genres = [float(each in row["genres"].split("|")) for each in ("g", "h", "")]
        return [*brands, cost, float(not row["cost"]), *genres]

    every = np.array([plain(name) for name in ids])
    centre = every.mean(0)
    length = math.sqrt(float(((every - centre) ** 2).sum(1).mean()))
    np.testing.assert_allclose(vectors_VW.numpy(), (every - centre) / length, atol=1e-6)
    assert sorted(new.ids) == sorted({*ITEM_ROWS, "i0"} - set(ids))
    np.testing.assert_allclose(
        new.vectors_NW.numpy(), (np.array([plain(name) for name in new.ids]) - centre) / length, atol=1e-6
    )
    net = network(data, vector_width=vectors_VW.shape[1])
    with torch.inference_mode():
        net.items.vectors.copy_(vectors_VW)  # type: ignore[union-attr]
        _, table_VD = net.items.fetch(torch.zeros(1, dtype=torch.int64))
        torch.testing.assert_close(table_VD, net.items.weight + vectors_VW.double() @ net.items.projection)


def test_features_of_a_target_change_nothing(tmp_path: Path) -> None:
    """The features of each user's last event, the test target, are not read in test; earlier ones are."""
    rows = raw_rows()
    for name in ("before", "after", "history"):
        (tmp_path / name).mkdir()
    last = [
        row | {"device": "app", "price": "3.5", "tags": "b"} if row["timestamp"] == LENGTH - 1 else row for row in rows
    ]
    earlier = [
        row | {"device": "app", "price": "3.5", "tags": "b"} if row["timestamp"] == LENGTH - 2 else row for row in rows
    ]
    losses = []
    for name, some in (("before", rows), ("after", last), ("history", earlier)):
        data = module(tmp_path / name, some)
        batch = next(iter(data.test_dataloader()))
        with torch.inference_mode():
            scores_MV = network(data)(
                batch.items_BL,
                lambda hidden_MD, table_VD: hidden_MD @ table_VD.T,
                positions_M=batch.positions_M,
                events_BL=batch.events_BL,
            )
        losses.append(torch.nn.functional.cross_entropy(scores_MV, batch.targets_M.clamp(min=0), reduction="none"))
    assert losses[0].equal(losses[1])
    assert not losses[0].equal(losses[2])


def test_vocabularies_come_from_the_training_part(data: InteractionsDataModule, tmp_path: Path) -> None:
    """Values that only held-out events have are in no vocabulary, and change no bucket."""
    of = {each.column: each for each in data.learned.vocabularies}
    assert of["device"].values == ["app", "web"]
    assert of["tags"].values == ["a", "b"]
    assert max(of["price"].edges) < 1000
    for row in (rows := raw_rows()):
        row["price"] = row["price"] if row["timestamp"] < LENGTH - 2 else "77"
    (tmp_path / "other").mkdir()
    other = module(tmp_path / "other", rows)
    assert other.learned.vocabularies == data.learned.vocabularies


def test_batches_are_the_same_from_workers(data: InteractionsDataModule, tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    two = module(tmp_path / "two", raw_rows(), num_workers=2)
    for mine, other in zip(data.train_dataloader(), two.train_dataloader(), strict=True):
        assert mine.events_BL is not None
        assert other.events_BL is not None
        assert mine.events_BL.equal(other.events_BL)
        assert mine.items_BL.equal(other.items_BL)
    assert data.data_hash == two.data_hash


def test_too_many_values_of_items_are_refused_before_they_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Vocabulary, "vectors", None)
    rows = [{"user": f"u{n % 30}", "item": f"i{n % 5000}", "timestamp": n, "kind": "buy"} for n in range(15_000)]
    path = write(tmp_path / "titles.csv", with_ids("item", {f"i{n}": {"title": f"t{n}"} for n in range(5000)}))
    with pytest.raises(UserError, match=r"item_features: 5,000 values; at most 4,096 are read"):
        module(tmp_path, rows, event_features=None, item_features=Features(["title"], path=path))


def test_a_new_item_has_all_its_values_however_many(tmp_path: Path) -> None:
    """The column of ids is not the first one, in the training and when the file is read again."""
    tags = {f"i{n}": {"tags": "a|b" if n % 2 else "c"} for n in range(ITEMS)} | {"new": {"tags": "a|b|c"}}
    path = write(tmp_path / "tags.csv", [{**row, "item": raw_id} for raw_id, row in tags.items()])
    chosen = Features(lists=["tags"], path=path, id_column="item")
    data = module(tmp_path, raw_rows(), event_features=None, item_features=chosen)
    ids, vectors_FW = data.learned.item_vectors or (pl.Series(), np.zeros(0))
    assert vectors_FW[ids.to_list().index("new")].tolist() == [1, 1, 1]
    again, same_FW = vectors_of_file(path, as_plain(data.learned.vocabularies), data.item_table()["raw_id"])
    assert again.equals(ids)
    assert same_FW.tolist() == vectors_FW.tolist()
    (tmp_path / "odd.csv").write_text("item,tags\ni1?,a\n")
    with pytest.raises(UserError, match=f"item_vectors .*odd.csv has none of the {ITEMS} items' ids"):
        vectors_of_file(tmp_path / "odd.csv", as_plain(data.learned.vocabularies), data.item_table()["raw_id"])
    (tmp_path / "odd.csv").write_text("i,tags\ni1,a\n")
    with pytest.raises(UserError, match=r"has no column item \(the column of ids in training\)"):
        vectors_of_file(tmp_path / "odd.csv", as_plain(data.learned.vocabularies), data.item_table()["raw_id"])


def test_the_column_of_ids_may_have_no_name(tmp_path: Path) -> None:
    """As the index in a file of pandas."""
    (tmp_path / "brands.csv").write_text(",brand\ni1,x\n")
    assert Features(["brand"], path=tmp_path / "brands.csv").read("data.item_features").rows() == [("i1", "x")]


def test_rows_without_an_id_are_left_out(tmp_path: Path) -> None:
    """Some writers quote every field, also a missing one."""
    (tmp_path / "brands.csv").write_text('"item","brand"\n"i1","x"\n"","y"\n"","z"\n')
    assert Features(["brand"], path=tmp_path / "brands.csv").read("data.item_features").rows() == [("i1", "x")]


@pytest.mark.parametrize("in_log", [False, True])
def test_a_feature_may_have_the_name_id(in_log: bool, tmp_path: Path) -> None:
    brands = {f"i{n}": {"id": "xy"[n % 2]} for n in range(ITEMS)}
    rows = [row | brands[row["item"]] if in_log else row for row in raw_rows()]
    path = None if in_log else write(tmp_path / "brands.csv", with_ids("item", brands))
    data = module(tmp_path, rows, event_features=None, item_features=Features(["id"], path=path))
    ids, vectors_FW = data.learned.item_vectors or (pl.Series(), np.zeros(0))
    assert sorted(ids) == sorted(data.item_table()["raw_id"])
    assert vectors_FW[:, 1].tolist() == [int(name[1:]) % 2 for name in ids]


def test_features_of_items_and_users_may_be_columns_of_the_log(tmp_path: Path) -> None:
    """An item has the first value of the training part. For a user, each event has the same value."""
    rows = [
        row | {"shelf": f"s{int(row['item'][1:]) % 4}", "country": f"c{int(row['user'][1:]) % 3}"} for row in raw_rows()
    ]
    options = {"item_features": Features(["shelf"]), "event_features": Features(["country"])}
    data = module(tmp_path, rows, event_column=None, **options)
    ids, vectors_FW = data.learned.item_vectors or (pl.Series(), np.zeros(0))
    assert ids.to_list() == data.item_table()["raw_id"].to_list()
    assert vectors_FW.argmax(1).tolist() == [int(name[1:]) % 4 for name in ids]
    for batch in data.predict_dataloader():
        assert batch.events_BL is not None
        countries = [int(name[1:]) % 3 for name in data.store.raw_user_ids.gather(batch.users_M.numpy())]
        assert batch.events_BL[:, :, 0].tolist() == [[each] * LENGTH for each in countries]


def test_a_value_for_each_user_is_one_for_each_event(tmp_path: Path) -> None:
    """In histories with a row per user, a feature that is the same in all events may be a single value."""
    data = module(tmp_path, raw_rows(), event_column=None, item_features=None, event_features=Features(["sex"]))
    net, about = Transformer(TransformerConfig(data.n_items, LENGTH, 1, 4, 1)), as_plain(data.learned.vocabularies)
    model = Model(net, data.item_table()["raw_id"], about)
    table = pl.DataFrame(raw_rows()).group_by("user").agg(items="item", sex=pl.col("sex").first()).sort("user")
    found = model.event_codes(histories_of(table, features=["sex"]))
    expected = data.cuts.events(np.arange(USERS * LENGTH))
    assert expected is not None
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"event_features": Features(["colour"])},
            "has no column colour that is named as a feature; its columns are user",
        ),
        ({"event_features": Features(numbers=["device"])}, r"log.csv, row \d+: device is not a number: (web|app)"),
        ({"event_features": Features(["device"], path=Path("x.csv"))}, "features of events are columns of the log"),
        ({"item_features": Features(["brand"], path=Path("none.csv"))}, "data.item_features.path none.csv: no .csv"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        module(tmp_path, raw_rows(), **options)


def test_a_feature_that_no_row_has_is_refused(tmp_path: Path) -> None:
    """A row of JSON lines may lack a key, but not all rows may."""
    first, *others = raw_rows()
    rows = [{name: value for name, value in first.items() if name != "device"}, *others]
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(row, default=str)}\n" for row in rows))
    options: dict[str, Any] = {"path": tmp_path / "log.jsonl", "data_dir": tmp_path / "stores"}
    InteractionsDataModule(**options, event_features=Features(["device"])).prepare_data()
    with pytest.raises(UserError, match="has no column devise that is named as a feature; its columns are "):
        InteractionsDataModule(**options, event_features=Features(["devise"])).prepare_data()


@pytest.mark.parametrize(
    ("file", "id_column", "says"),
    [
        (
            "name,brand\ni1,x\n",
            "item",
            r"has no column item \(data.item_features.id_column\); its columns are name, brand",
        ),
        ("item,colour\ni1,x\n", None, r"has no column brand \(data.item_features\)"),
        ("item,brand\ni1,x\ni1,y\n", None, "i1 is in it twice"),
        ("item,brand\nj1,x\n", None, "has none of the 9 items' ids"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path: Path, file: str, id_column: str | None, says: str) -> None:
    (tmp_path / "f.csv").write_text(file)
    with pytest.raises(UserError, match=says):
        module(tmp_path, raw_rows(), item_features=Features(["brand"], path=tmp_path / "f.csv", id_column=id_column))


def test_options_that_name_nothing_are_refused() -> None:
    for names in ({}, {"categories": ["a"], "lists": ["a"]}):
        with pytest.raises(UserError, match="name at least one column, and each once"):
            Features(**names)


def test_a_number_that_all_items_share_does_not_enlarge_another() -> None:
    """The deviation of equal numbers is 0, whatever it is when it is rounded."""
    price = Vocabulary.learned("price", "item", "numbers", pl.Series([0.1] * 3), 16)
    np.testing.assert_allclose(price.vectors(pl.Series([0.1, 0.3])), [[0], [0.2]], atol=1e-9)


def test_values_are_read_as_training_read_them() -> None:
    """Numbers of any type, missing values and lists in tables in memory."""
    stars = Vocabulary.learned("stars", "event", "categories", pl.Series(["5", "4", ""]), 16)
    for values in ([5.0, None, 4.0], [5.0, float("nan"), 4.0], [5, None, 4], ["5", "", "4"]):
        assert stars.codes(pl.Series(values)).tolist() == [[1], [2], [0]]
    tags = Vocabulary.learned("tags", "item", "lists", pl.Series(["a|2", "2"]), 16)
    for lists in (pl.Series([["2", "a"], []]), pl.Series(["2|a", ""])):
        assert tags.codes(lists).tolist() == [[0, 1], [-1, -1]]
        assert tags.vectors(lists).tolist() == [[1, 1], [0, 0]]
