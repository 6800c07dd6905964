"""Amazon reviews in each year's layouts, alone and merged."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from lrec.data.sources.amazon import AmazonDataModule
from lrec.data.store.store import Store
from lrec.errors import UserError

# user, item, rating, second
BOOKS = [
    ("A1", "0000000001", "5.0", 1400000100),
    ("A2", "0000000001", "1.0", 1400000050),
    ("A1", "0000000002", "4.0", 1400000300),
    ("A1", "0000000001", "5.0", 1400000300),
]
TOYS = [
    ("A1", "B000000003", "3.0", 1400000200),
    ("A3", "B000000003", "3.0", 1400000000),
    ("A2", "0000000001", "2.0", 1400000040),
    ("A1", "B000000004", "3.0", 1400000300),
]


def csv_2014(rows: list[tuple]) -> str:
    return "".join(f"{user},{item},{rating},{time}\n" for user, item, rating, time in rows)


def csv_2018(rows: list[tuple]) -> str:
    return "".join(f"{item},{user},{rating},{time}\n" for user, item, rating, time in rows)


def csv_2023(rows: list[tuple]) -> str:
    header = "user_id,parent_asin,rating,timestamp\n"
    return header + "".join(f"{user},{item},{rating},{time}123\n" for user, item, rating, time in rows)


def reviews(rows: list[tuple]) -> str:
    """Reviews of 2014 and 2018: texts and optional keys, so that files differ in their columns."""
    lines = []
    for place, (user, item, rating, time) in enumerate(rows):
        line = {"overall": float(rating), "reviewerID": user, "asin": item, "unixReviewTime": time, "reviewText": "x"}
        if item.startswith("B") and place % 2:
            line |= {"style": {"Size:": "L"}, "vote": "2"}
        lines.append(json.dumps(line))
    return "\n".join(lines) + "\n"


def reviews_2023(rows: list[tuple]) -> str:
    return "".join(
        json.dumps(
            {
                "rating": float(rating),
                "text": "x",
                "images": [],
                "asin": "variant",
                "parent_asin": item,
                "user_id": user,
                "timestamp": time * 1000 + 123,
            }
        )
        + "\n"
        for user, item, rating, time in rows
    )


LAYOUTS = [
    (2014, "ratings_{}.csv", csv_2014),
    (2014, "reviews_{}_5.json.gz", reviews),
    (2014, "reviews_{}.json", reviews),
    (2018, "{}.csv", csv_2018),
    (2018, "amazon2018_{}.csv.gz", csv_2018),
    (2018, "{}_5.json.gz", reviews),
    (2018, "{}.json", reviews),
    (2023, "{}.csv.gz", csv_2023),
    (2023, "{}.jsonl.gz", reviews_2023),
    (2023, "{}.jsonl", reviews_2023),
]


def prepare(path: Path, stores: Path, **options: Any) -> Store:
    data = AmazonDataModule(path, data_dir=stores, **options)
    data.prepare_data()
    return Store.open(data.store_path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


def sequences(store: Store) -> dict[str, list[tuple[str, int]]]:
    """(item, second) by user."""
    items = store.item_table["raw_id"].gather(store.items_N).to_list()
    divide = {"s": 1, "ms": 1000}[store.facts["time_unit"]]
    pairs = list(zip(items, (store.times_N // divide).tolist(), strict=True))
    bounds = store.offsets_U1
    return {user: pairs[bounds[i] : bounds[i + 1]] for i, user in enumerate(store.raw_user_ids)}


@pytest.mark.parametrize(("year", "name", "text"), LAYOUTS)
def test_every_layout_alone_and_merged(tmp_path: Path, year: int, name: str, text) -> None:
    raw = tmp_path / "raw"
    write(raw / name.format("Books"), text(BOOKS))
    write(raw / name.format("Toys_and_Games"), text(TOYS))
    for other in ("meta_", "._"):  # macOS writes the second
        write(raw / f"{other}{name.format('Books')}", "no reviews")
    write(raw / "README.md", "no reviews")

    alone = prepare(raw / name.format("Toys_and_Games"), tmp_path, year=year)
    assert alone.path.name.startswith(f"amazon{year}-Toys_and_Games-")
    assert sequences(alone) == {
        "A1": [("B000000003", 1400000200), ("B000000004", 1400000300)],
        "A2": [("0000000001", 1400000040)],
        "A3": [("B000000003", 1400000000)],
    }
    assert prepare(raw, tmp_path, year=year, domains=["Toys_and_Games"]).path == alone.path
    assert alone.facts["time_unit"] == ("ms" if year == 2023 else "s")

    merged = prepare(raw, tmp_path, year=year)
    assert sequences(merged) == {
        "A1": [
            ("0000000001", 1400000100),
            ("B000000003", 1400000200),
            ("0000000002", 1400000300),  # ties: the first domain comes first, each in the order of its file
            ("0000000001", 1400000300),
            ("B000000004", 1400000300),
        ],
        "A2": [("0000000001", 1400000040), ("0000000001", 1400000050)],
        "A3": [("B000000003", 1400000000)],
    }
    assert merged.item_table.select("raw_id", "domain").rows() == [
        ("0000000001", "Books"),  # in both domains
        ("0000000002", "Books"),
        ("B000000003", "Toys_and_Games"),
        ("B000000004", "Toys_and_Games"),
    ]
    assert merged.statistics["domains"] == 2
    assert prepare(raw, tmp_path, year=year, domains=["Toys_and_Games", "Books"]).path == merged.path


def test_ratings_and_reviews_merge(tmp_path: Path) -> None:
    stores = []
    for books, toys in [("Books.csv", "Toys.csv"), ("Books.csv", "Toys_5.json"), ("Books.json", "Toys.csv")]:
        raw = tmp_path / f"raw{len(stores)}"
        for name, rows in ((books, BOOKS), (toys, TOYS)):
            write(raw / name, csv_2018(rows) if name.endswith("csv") else reviews(rows))
        stores.append(prepare(raw, tmp_path, year=2018))
    assert len({store.path for store in stores}) == 3
    for store in stores[1:]:
        assert sequences(store) == sequences(stores[0])
        assert store.item_table.equals(stores[0].item_table)


def test_a_row_in_two_domains_is_one_interaction(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write(raw / "Books.csv", csv_2018([*BOOKS, BOOKS[0]]))
    write(raw / "Toys.csv", csv_2018([*TOYS, BOOKS[0]]))
    store = prepare(raw, tmp_path, year=2018)
    assert store.statistics["duplicates_dropped"] == 2
    assert store.statistics["interactions"] == 8


def test_without_repeats_the_first_review_stays(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write(raw / "Books.csv", csv_2018(BOOKS))
    write(raw / "Toys.csv", csv_2018(TOYS))
    store = prepare(raw, tmp_path, year=2018, repeats=False)
    assert sequences(store)["A1"] == [
        ("0000000001", 1400000100),
        ("B000000003", 1400000200),
        ("0000000002", 1400000300),
        ("B000000004", 1400000300),
    ]
    assert sequences(store)["A2"] == [("0000000001", 1400000040)], "the first in time, not in the files"
    assert store.facts["repeats_dropped"] == 2


@pytest.mark.parametrize(("repeats", "k_core"), [(True, 0), (False, 0), (True, 2)])
def test_the_merged_store_does_not_depend_on_memory(tmp_path: Path, repeats: bool, k_core: int) -> None:
    raw = tmp_path / "raw"
    write(raw / "Books.csv", csv_2018([*BOOKS, BOOKS[0]]))
    write(raw / "Toys.csv", csv_2018([*TOYS, BOOKS[0]]))
    options = {"year": 2018, "repeats": repeats, "k_core": k_core}
    whole = prepare(raw, tmp_path / "whole", **options)
    little = prepare(raw, tmp_path / "little", memory_gib=1e-9, **options)
    assert (little.hash, little.statistics, little.facts) == (whole.hash, whole.statistics, whole.facts)
    assert sequences(little) == sequences(whole)
    assert little.item_table.equals(whole.item_table)
    assert whole.statistics["duplicates_dropped"] == 2
    assert whole.facts.get("repeats_dropped", 0) == (0 if repeats else 2)


def test_k_core_counts_merged_interactions(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write(raw / "Books.csv", csv_2018(BOOKS))
    write(raw / "Toys.csv", csv_2018(TOYS))
    store = prepare(raw, tmp_path, year=2018, k_core=2)
    assert sequences(store)["A2"] == [("0000000001", 1400000040), ("0000000001", 1400000050)]


@pytest.mark.parametrize(
    ("files", "options", "says"),
    [
        ({}, {}, r"raw: no .*option path"),
        ({"meta_Books.csv": "x"}, {}, r"raw: no .*option path"),
        ({"Books.csv": csv_2018(BOOKS)}, {"domains": ["Toys"]}, "no file of the domain Toys, only Books"),
        ({"Books.csv": csv_2018(BOOKS)}, {"domains": []}, "domains is empty"),
        ({"Books.csv": "", "Books_5.json": ""}, {}, r"several files of the domain Books \(Books.csv, Books_5.json\)"),
        ({"Books.csv": csv_2014(BOOKS)}, {}, "users where Amazon 2018 has items: set the option year to 2014"),
        ({"Books.csv": csv_2018(BOOKS)}, {"year": 2014}, "set the option year to 2018"),
        ({"Books.csv": csv_2023(BOOKS)}, {}, "has a header, as Amazon 2023 has"),
        ({"Books.csv": csv_2018(BOOKS).replace("00300", "x")}, {}, r"Books.csv, row 3: unixReviewTime is neither"),
        ({"Books.csv": csv_2018(BOOKS)}, {"year": 2023}, "has no user_id, which Amazon 2023 has"),
        ({"Books.json": reviews_2023(BOOKS)}, {}, "has no reviewerID, which Amazon 2018 has"),
        ({"Books.csv": csv_2018(BOOKS) + "B0,A1,5.0\n"}, {}, r"Books.csv, row 5: 3 fields where 4"),
        ({"Books.json": reviews(BOOKS) + "{cut"}, {}, r"Books.json, row 5: not one JSON object"),
    ],
)
def test_mistakes(tmp_path: Path, files: dict[str, str], options: dict[str, Any], says: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, text in files.items():
        write(raw / name, text)
    with pytest.raises(UserError, match=says):
        prepare(raw, tmp_path, **({"year": 2018} | options))
    with pytest.raises(UserError, match="nowhere does not exist"):
        prepare(raw / "nowhere", tmp_path, year=2018)


def counts(store: Store) -> tuple[int, int, int]:
    return tuple(store.statistics[name] for name in ("users", "items", "interactions"))


def test_magazines(interactions_dir: Path, tmp_path: Path) -> None:
    options = {"year": 2018, "domains": ["Magazine_Subscriptions"]}
    store = prepare(interactions_dir, tmp_path, **options)
    users, items, interactions = counts(store)
    assert (users, items) == (72_098, 2_428)
    assert interactions + store.statistics["duplicates_dropped"] == 89_689
    assert store.statistics["repeats"] + store.statistics["duplicates_dropped"] == 1_371
    assert store.item_table["domain"].unique().to_list() == ["Magazine_Subscriptions"]
    assert counts(prepare(interactions_dir, tmp_path, k_core=5, **options)) == (304, 134, 2_095)
    first = prepare(interactions_dir, tmp_path, repeats=False, **options)
    assert first.statistics["interactions"] == 89_689 - 1_371
    assert first.statistics["repeats"] == 0
    assert counts(prepare(interactions_dir, tmp_path, repeats=False, k_core=5, **options)) == (294, 132, 2_027)


def test_two_domains_in_two_layouts(interactions_dir: Path, tmp_path: Path) -> None:
    store = prepare(interactions_dir, tmp_path, year=2018, domains=["Magazine_Subscriptions", "AMAZON_FASHION"])
    assert store.item_table["domain"].value_counts().sort("domain")["count"].to_list() == [31, 2_428]
    assert store.statistics["interactions"] + store.statistics["duplicates_dropped"] == 89_689 + 3_176
