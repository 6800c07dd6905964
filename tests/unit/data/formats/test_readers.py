"""Every format of raw interactions, and everything that may be wrong with a file."""

import gzip
import io
import json
import lzma
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import zstandard

from lrec.data.features import Features
from lrec.data.formats.readers import read_titles
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.store.store import Store
from lrec.errors import UserError

HEADER = "user,item,timestamp\n"
# Ids that must come out as they went in: leading zeros, case, blanks, quotes, separators, other scripts.
LONG_WINDOW = zstandard.ZstdCompressor(
    compression_params=zstandard.ZstdCompressionParameters(window_log=30)
).compressobj()  # as of zstd --long=30
IDS = ["007", "7", "a", "A", "x y", 'say "hi"', "1,5", "é", "日本"]


def prepare(path: Path, **options: Any) -> Store:
    data = InteractionsDataModule(path=path, data_dir=path.parent / "stores", **options)
    data.prepare_data()
    return Store.open(data.store_path)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def contents(store: Store) -> tuple:
    times = None if store.times_N is None else store.times_N.tolist()
    return (
        store.items_N.tolist(),
        store.offsets_U1.tolist(),
        times,
        store.item_table.rows(),
        store.raw_user_ids.to_list(),
    )


def as_parquet(frame: pl.DataFrame) -> bytes:
    file = io.BytesIO()
    frame.write_parquet(file)
    return file.getvalue()


def example_rows(ids: list[str]) -> list[tuple[str, str, int]]:
    random = np.random.default_rng(0)
    return [(ids[u], ids[i], int(t)) for u, i, t in zip(*random.integers(0, len(ids), (3, 200)), strict=True)]


@pytest.mark.parametrize("first", [0, 2000])
def test_json_whose_keys_are_data_is_refused_at_once(first: int, tmp_path: Path) -> None:
    lines = [{"user": f"u{n % 9}", "item": n % 7, "timestamp": n} for n in range(first)]
    lines += [{"user": f"u{n % 9}", "item": n % 7, "timestamp": n, f"key{n}": n} for n in range(20_000)]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    module = InteractionsDataModule(path=path, data_dir=tmp_path / "stores")
    began = time.process_time()
    with pytest.raises(UserError, match=rf"log\.jsonl, row {first + 998}: more than 1,000 different keys up to here"):
        module.prepare_data()
    assert time.process_time() - began < 5


def test_the_same_rows_through_every_format_give_the_same_store(write) -> None:
    rows = example_rows(IDS)
    frame = pl.DataFrame(rows, schema=["user", "item", "timestamp"], orient="row")
    csv = frame.write_csv().encode()
    files = {
        "log.csv": csv,
        "log.tsv": frame.write_csv(separator="\t"),
        "log.parquet": as_parquet(frame),
        "log.jsonl": frame.write_ndjson(),
        "bom.csv": b"\xef\xbb\xbf" + csv,
        "crlf.csv": csv.replace(b"\n", b"\r\n"),
        "log.csv.gz": gzip.compress(csv),
        "log.csv.xz": lzma.compress(csv),
        "log.csv.zst": zstandard.ZstdCompressor().compress(csv),
        "long.csv.zst": LONG_WINDOW.compress(csv) + LONG_WINDOW.flush(),
        "two.csv.zst": b"".join(zstandard.ZstdCompressor().compress(part) for part in (csv[:99], csv[99:])),
        "log.json.gz": gzip.compress(frame.write_ndjson().encode()),
    }
    stores = {name: contents(prepare(write(f"{name}.d/{name}", content))) for name, content in files.items()}
    users = {user for user, _, _ in rows}
    unique = list(dict.fromkeys(rows))
    for name, found in stores.items():
        assert found == stores["log.csv"], name
        assert found[4] == sorted(users)
        assert len(found[0]) == len(unique)


def test_one_user_per_line_equals_the_csv_in_that_order(write) -> None:
    rows = example_rows(["007", "7", "a", "A"])
    lines: dict[str, list[str]] = {}
    for user, item, _ in rows:
        lines.setdefault(user, []).append(item)
    text = "".join(f"{user} {' '.join(items)}\n" for user, items in lines.items())
    numbered = "".join(f"{user},{item},{t}\n" for t, (user, item, _) in enumerate(rows))
    store = prepare(write("log.txt.gz", gzip.compress(text.encode())))
    expected = prepare(write("log.csv", HEADER + numbered))
    assert store.items_N.tolist() == expected.items_N.tolist()
    assert store.offsets_U1.tolist() == expected.offsets_U1.tolist()
    assert store.times_N is None
    assert store.statistics["duplicates_dropped"] == 0
    assert store.statistics["repeats"] == expected.statistics["repeats"] > 0


@pytest.mark.parametrize("block", [20, 1 << 24])
def test_only_the_mark_at_the_file_s_start_is_taken_off(write, monkeypatch, block: int) -> None:
    monkeypatch.setattr("lrec.data.formats.streams.BLOCK", block)
    path = write("log.csv", "\ufeff" + HEADER + "\ufeff1,a,1\n2,b,2\n\ufeff3,c,3\n")
    assert prepare(path).raw_user_ids.to_list() == ["2", "\ufeff1", "\ufeff3"]


def test_integers_keep_their_decimal_text(write) -> None:
    frame = pl.DataFrame({"user": [7, 7], "item": [2**62, -1], "timestamp": [1, 2]})
    for path in (write("i.parquet", as_parquet(frame)), write("i.jsonl", frame.write_ndjson())):
        store = prepare(path)
        assert store.raw_user_ids.to_list() == ["7"]
        assert store.item_table["raw_id"].to_list() == ["-1", str(2**62)]


def test_a_whole_number_is_the_id_that_its_integer_is(write, tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": [1, 2], "item": [7, 8], "timestamp": [1, 2]})
    write("log/a.parquet", as_parquet(frame))
    write("log/b.parquet", as_parquet(frame.cast({"user": pl.Float64, "item": pl.Float32})))
    write("log/c.parquet", as_parquet(frame.with_columns(user=pl.Series([2.5, 1e300]), timestamp=3)))
    store = prepare(tmp_path / "log")
    assert store.raw_user_ids.to_list() == ["1", "1e+300", "2", "2.5"]
    assert store.item_table["raw_id"].to_list() == ["7", "8"]
    assert store.statistics["duplicates_dropped"] == 2
    titles = read_titles(write("titles.parquet", as_parquet(pl.DataFrame({"item": [7.0], "title": ["seven"]}))))
    assert titles.rows() == [("7", "seven")]


def test_a_number_is_the_same_in_every_type_of_column(write, tmp_path: Path) -> None:
    rows = {"user": [1, 1, 2], "item": [7, 8, 7], "timestamp": [1, 2, 3], "stars": [5, 4, 5], "tags": [[1], [2], [1]]}
    tags, missing = pl.Series([[1.0], [2.0], [float("nan")]]), pl.Series([5.0, float("nan"), 5.0])
    frame = pl.DataFrame(rows)
    types = (pl.Int64, pl.UInt64, pl.Int8, pl.Float32, pl.Float64, pl.Decimal(38, 10))
    for place, dtype in enumerate(types):
        write(f"log/{place}.parquet", as_parquet(frame.with_columns(pl.exclude("tags").cast(dtype))))
    features = Features(categories=["stars"], lists=["tags"])
    store = prepare(tmp_path / "log", event_features=features)
    assert store.statistics["duplicates_dropped"] == 3 * (len(types) - 1)
    assert (store.raw_user_ids.to_list(), store.item_table["raw_id"].to_list()) == (["1", "2"], ["7", "8"])
    odd = prepare(
        write("odd.parquet", as_parquet(frame.with_columns(stars=missing, tags=tags))), event_features=features
    )
    assert [odd.feature_values(name, slice(None)).to_list() for name in ("stars", "tags")] == [
        ["5", "", "5"],
        ["1", "2", ""],
    ]


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt16, pl.UInt64, pl.Int128])
def test_ids_of_every_width(write, dtype: pl.DataType) -> None:
    ids = pl.Series([0, 1, 100, 1], dtype=dtype)
    frame = pl.DataFrame({"user": ids, "item": ids, "timestamp": [1, 2, 3, 2], "more": ids})
    store = prepare(write("ids.parquet", as_parquet(frame)))
    assert store.raw_user_ids.to_list() == store.item_table["raw_id"].to_list() == ["0", "1", "100"]
    assert store.statistics["duplicates_dropped"] == 1


def test_other_column_names_domain_and_rating(write) -> None:
    path = write("log.csv", "who,stars,what,when,kind\nu,5,a,1,x\nu,2,b,2,y\nu,4.5,c,3,y\nv,1,a,1,x\n")
    names = {"user_column": "who", "item_column": "what", "time_column": "when", "domain_column": "kind"}
    store = prepare(path, **names, rating_column="stars", min_rating=4.5)
    assert store.raw_user_ids.to_list() == ["u"]
    assert store.item_table.select("raw_id", "domain").rows() == [("a", "x"), ("c", "y")]


def test_duplicates_are_rows_identical_in_every_column(write) -> None:
    text = "user,item,timestamp,device\nu,a,1,tv\nu,a,1,tv\nu,a,1,phone\nu,a,2,tv\nv,a,1,tv\n"
    store = prepare(write("log.csv", text))
    assert store.statistics["duplicates_dropped"] == 1
    assert store.statistics["interactions"] == 4
    assert store.statistics["repeats"] == 2


def test_rows_that_tie_in_time_keep_the_order_of_the_file(write) -> None:
    store = prepare(write("log.csv", HEADER + "u,c,5\nu,a,5\nu,b,1\nu,d,5\n"))
    assert store.item_table["raw_id"].gather(store.items_N).to_list() == ["b", "c", "a", "d"]


def test_without_a_time_column_rows_are_in_time_order(write) -> None:
    store = prepare(write("log.csv", "user,item\nu,c\nu,a\n"), time_column=None)
    assert store.times_N is None
    assert store.items_N.tolist() == [1, 0]


def test_without_a_time_column_equal_rows_are_repeats(write) -> None:
    path = write("log.csv", "user,item\n" + "".join(f"u,{item}\n" for item in "mbmmeb"))
    kept: dict[bool | str, str] = {True: "mbmmeb", "not_in_a_row": "mbmeb", False: "mbe"}
    for repeats, items in kept.items():
        store = prepare(path, time_column=None, repeats=repeats)
        assert "".join(store.item_table["raw_id"].gather(store.items_N)) == items
        assert store.statistics["duplicates_dropped"] == 0


def test_a_missing_value_leaves_json_lists_as_they_are(write) -> None:
    rows = [{"user": "u", "item": n, "timestamp": n, "tags": tags} for n, tags in enumerate([["a", "b"], None, []])]
    path = write("log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    store = prepare(path, event_features=Features(lists=["tags"]))
    assert store.feature_values("tags", slice(None)).to_list() == ["a|b", "", ""]


def test_each_json_list_is_decoded_and_other_text_is_kept(write) -> None:
    texts = ["", '["a", 1, 2.0, true, null]', "['a', 'b']", "[REC] film", '[{"id":1}]', '["\\ud800"]', "[]", "plain"]
    rows = [{"user": "u", "item": n, "timestamp": n, "tags": tags} for n, tags in enumerate(texts)]
    path = write("log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    store = prepare(path, event_features=Features(lists=["tags"]))
    assert store.feature_values("tags", slice(None)).to_list() == [texts[0], "a|1|2|true", *texts[2:6], "", texts[7]]


def test_text_of_few_values_is_read_as_text(write) -> None:
    """Columns of the Parquet types Categorical and Enum."""
    frame = pl.DataFrame({"user": ["u", "u"], "item": ["a", "b"], "timestamp": [1, 2], "stars": ["2", "4.5"]})
    for dtype in (pl.Categorical, pl.Enum(["u", "a", "b", "2", "4.5", "  "])):
        few = frame.cast({"user": dtype, "item": dtype, "stars": dtype})
        path = write("few.parquet", as_parquet(few))
        options = {"rating_column": "stars", "min_rating": 4, "event_features": Features(numbers=["stars"])}
        assert prepare(path, **options).item_table["raw_id"].to_list() == ["b"]
        blank = few.with_columns(item=pl.Series(["a", "  "], dtype=dtype))
        with pytest.raises(UserError, match=r"blank\.parquet, row 2: item is empty"):
            prepare(write("blank.parquet", as_parquet(blank)))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("numbers", [{"a": 1}]),
        ("numbers", [[1.0]]),
        ("categories", [{"a": 1}]),
        ("categories", [b"\xff"]),
        ("lists", [[{"a": 1}]]),
    ],
)
def test_features_of_other_types_are_refused(write, kind: str, values: list[Any]) -> None:
    frame = pl.DataFrame({"user": ["u"], "item": ["a"], "timestamp": [1], "odd": values})
    path = write("odd.parquet", as_parquet(frame))
    for read in (
        lambda: prepare(path, event_features=Features(**{kind: ["odd"]})),
        lambda: Features(**{kind: ["odd"]}, path=path).read("features"),
        lambda: Features(["item"], path=path, id_column="odd").read("features"),
        lambda: read_titles(path, title_column="odd"),
    ):
        with pytest.raises(UserError, match=r"odd\.parquet: column odd holds \w+.*, not text or numbers"):
            read()


def test_a_file_without_columns_is_refused(write) -> None:
    with pytest.raises(UserError, match=r"empty\.jsonl has no column of ids \(option title_item_column\)"):
        read_titles(write("empty.jsonl", "{}\n"))


def test_blanks_around_the_name_of_a_column_are_shown(write) -> None:
    with pytest.raises(UserError, match=r"has no column item .* its columns are user, ' item', 'timestamp '$"):
        prepare(write("log.csv", "user, item,timestamp \nu, a,1\n"))


def test_an_infinite_number_is_refused(write) -> None:
    path = write("log.csv", "user,item,timestamp,price\nu,a,1,2\nu,b,2,\nu,c,3,-inf\n")
    with pytest.raises(UserError, match=r"log\.csv, row 4: price is not a finite number: -inf"):
        prepare(path, event_features=Features(numbers=["price"]))


def test_keys_that_vary_from_block_to_block(write, monkeypatch) -> None:
    monkeypatch.setattr("lrec.data.formats.streams.BLOCK", 20)
    monkeypatch.setattr("lrec.data.formats.streams._PIECE", 10)
    rows = [{"item": "a"}, {"brand": "x", "item": "b", "title": "B"}, {"title": "C", "item": "c"}, {"brand": "y"}]
    path = write("items.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert read_titles(path).rows() == [("b", "B"), ("c", "C")]
    assert Features(["brand"], path=path).read("features").rows() == [("a", None), ("b", "x"), ("c", None)]
    with pytest.raises(UserError, match=r"no column colour \(features\); its columns are item, brand, title"):
        Features(["colour"], path=path).read("features")


@pytest.mark.parametrize(
    ("texts", "unit", "expected"),
    [
        (["978300760", "978302109"], "s", [978300760, 978302109]),
        (["978300760.0", "978302109"], "s", [978300760, 978302109]),
        (["978300760123", "978302109456"], "ms", [978300760123, 978302109456]),
        (["2001-01-01", "2001-01-02"], "us", [978307200 * 10**6, 978393600 * 10**6]),
        (["2001-01-01T00:00:01.5", "2001-01-01 00:00"], "us", [978307201_500000, 978307200 * 10**6]),
        (["2001-01-01T00:00:00Z", "2001-01-01T01:00:00+02:00"], "us", [978307200 * 10**6, 978303600 * 10**6]),
    ],
)
def test_times(write, texts: list[str], unit: str, expected: list[int]) -> None:
    path = write("log.csv", HEADER + "".join(f"u,{place},{text}\n" for place, text in enumerate(texts)))
    store = prepare(path)
    assert store.facts["time_unit"] == unit
    assert store.times_N.tolist() == sorted(expected)
    assert store.items_N.tolist() == np.argsort(expected).tolist()


def test_a_folder_or_glob_is_read_in_the_order_of_names(write, tmp_path: Path) -> None:
    write("logs/b.csv", HEADER + "u,second,1\n")
    write("logs/a.csv.gz", gzip.compress((HEADER + "u,first,1\nv,x,1\n").encode()))
    write("logs/c.jsonl", json.dumps({"user": "u", "item": "third", "timestamp": 1}))
    write("logs/README.md", "not data")
    write("logs/.hidden.csv", "not data")
    folder = prepare(tmp_path / "logs")
    assert folder.item_table["raw_id"].gather(folder.items_N).to_list() == ["first", "second", "third", "x"]
    some = prepare(tmp_path / "logs" / "[ab].csv*")
    assert some.statistics["interactions"] == 3


def test_a_store_is_reused_until_the_source_or_an_option_changes(write) -> None:
    path = write("log.csv", HEADER + "u,a,1\nu,b,2\n")
    first = prepare(path)
    assert prepare(path).path == first.path
    assert prepare(path, k_core=1).path != first.path
    path.write_text(HEADER + "u,a,1\nu,b,3\n")
    assert prepare(path).path != first.path


GOOD = HEADER + "u,a,1\n"
BAD_FILES = {
    "missing column": ("x.csv", "user,thing,timestamp\nu,a,1\n", "no column item.*user, thing, timestamp"),
    "empty file": ("x.csv", "", "x.csv is empty"),
    "only blank lines": ("x.csv", "\n\n", "x.csv is empty"),
    "no rows": ("x.csv", HEADER, "header but no rows"),
    "empty user": ("x.csv", GOOD + ",b,2\n", "x.csv, row 3: user is empty"),
    "blank user": ("x.csv", GOOD + "  ,b,2\n", "x.csv, row 3: user is empty"),
    "empty item": ("x.csv", GOOD + "u,,2\n", "x.csv, row 3: item is empty"),
    "empty time": ("x.csv", GOOD + "u,b,\n", "x.csv, row 3: timestamp is empty"),
    "time is a word": ("x.csv", GOOD + "u,b,now\n", "x.csv, row 3: timestamp is neither .*: now"),
    "time is a fraction": ("x.csv", GOOD + "u,b,1.5\n", "x.csv, row 3: timestamp is neither .*: 1.5"),
    "time is too large": ("x.csv", GOOD + f"u,b,{10**20}\n", "x.csv, row 3: timestamp is neither"),
    "no such date": ("x.csv", HEADER + "u,a,2001-01-01\nu,b,2001-02-30\n", "x.csv, row 3: timestamp is neither"),
    "short row": ("x.csv", GOOD + "u,b\n", "x.csv, row 3: 2 fields where 3"),
    "short row, unused column": ("x.csv", "user,item,timestamp,n\nu,a,1,1\nu,b,2\n", "x.csv, row 3: 3 fields"),
    "long row": ("x.csv", GOOD + "u,b,2,3\n", "x.csv, row 3: 4 fields where 3"),
    "blank row": ("x.csv", GOOD + "\nu,b,2\n", "x.csv, row 3: 0 fields where 3"),
    "open quote": ("x.csv", GOOD + 'u,"b,2\n', "x.csv, row 3"),
    "not UTF-8": ("x.csv", GOOD.encode() + b"\xff,b,2\n", "x.csv, row 3: not UTF-8"),
    "cut JSON": ("x.jsonl", '{"user":1,"item":2,"timestamp":3}\n{"user":1,', "x.jsonl, row 2: not one JSON object"),
    "JSON array": ("x.json", '[{"user":1,"item":2,"timestamp":3}]', "x.json, row 1: not one JSON object"),
    "JSON without a user": ("x.jsonl", '{"user":1,"item":2,"timestamp":3}\n{"item":2,"timestamp":3}', "row 2: user is"),
    "JSON not UTF-8": ("x.jsonl", b'{"user":1,"item":2,"timestamp":3}\n{"user":"\xff"}', "row 2: not UTF-8"),
    "user without items": ("x.txt", "1 2 3\n2\n", "x.txt, row 2: a user and at least one item"),
    "blank line": ("x.txt", "1 2 3\n\n2 3\n", "x.txt, row 2: a user and at least one item"),
    "user twice": ("x.txt", "1 2 3\n2 3\n1 4\n", "x.txt, row 3: user 1 has a line already"),
    "lines not UTF-8": ("x.txt", b"1 2\n2 \xff\n", "x.txt, row 2: not UTF-8"),
    "not Parquet": ("x.parquet", GOOD, "not a whole Parquet file"),
    "unknown format": ("x.log", GOOD, "set the option format"),
    "not gzip": ("x.csv.gz", GOOD, "x.csv.gz is cut off or damaged"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_gets_one_line_and_no_store(write, tmp_path: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    path = write(name, content)
    with pytest.raises(UserError, match=message) as raised:
        prepare(path)
    assert "\n" not in str(raised.value)
    left = {file.name for file in (tmp_path / "stores").glob("*")}
    assert left <= {".lock", "sources.json"}


@pytest.mark.parametrize(
    ("ending", "compress"),
    [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.ZstdCompressor().compress)],
)
def test_a_stream_cut_off_or_damaged_in_the_middle(write, ending: str, compress: Callable[[bytes], bytes]) -> None:
    text = HEADER + "".join(f"{n % 50},{n * 7919 % 1000},{n}\n" for n in range(5000))
    whole = compress(text.encode())
    assert prepare(write(f"whole.csv{ending}", whole)).statistics["interactions"] == 5000
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for broken in (whole[: len(whole) // 2], whole[:-1], bytes(flipped)):
        with pytest.raises(UserError, match=rf"broken.csv{ending} is cut off or damaged"):
            prepare(write(f"broken.csv{ending}", broken))


def test_options_that_do_not_fit(write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.csv does not exist \(option path\)"):
        prepare(tmp_path / "absent.csv")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no file of a known format"):
        prepare(empty)
    path = write("log.csv", "user,item,timestamp,stars\nu,a,1,2\nu,b,2,good\n")
    with pytest.raises(UserError, match="min_rating needs rating_column"):
        prepare(path, min_rating=1)
    with pytest.raises(UserError, match=r"row 3: stars is not a number: good"):
        prepare(path, min_rating=1, rating_column="stars")
    with pytest.raises(UserError, match="min_rating=3 leaves"):
        prepare(write("r.csv", "user,item,timestamp,stars\nu,a,1,2\n"), min_rating=3.0, rating_column="stars")
    for name, options in {
        "event_column": {"event_column": "stars"},
        "domain_column": {"domain_column": "stars"},
        "rating_column": {"min_rating": 3, "rating_column": "stars"},
    }.items():
        wrong = rf"lines\.txt has no column stars \(option {name}\); its columns are user, item$"
        with pytest.raises(UserError, match=wrong):
            prepare(write("lines.txt", "u a b\n"), **options)
    with pytest.raises(UserError, match="k_core=3"):
        prepare(write("k.csv", HEADER + "u,a,1\n"), k_core=3)
    for option in ({"max_len": 0}, {"targets_per_step": 99}, {"k_core": -1}, {"num_workers": -1}, {"seed": -1}):
        with pytest.raises(UserError, match=next(iter(option))):
            prepare(path, **option)


def test_files_of_a_folder_must_agree(write, tmp_path: Path) -> None:
    write("a/1.csv", GOOD)
    write("a/2.csv", "user,item,timestamp,more\nu,a,1,2\n")
    with pytest.raises(UserError, match=r"2\.csv has other columns than .*1\.csv"):
        prepare(tmp_path / "a")
    write("numbers/1.csv", GOOD)
    write("numbers/2.parquet", as_parquet(pl.DataFrame({"user": [1], "item": ["a"], "timestamp": [1]})))
    with pytest.raises(UserError, match=r"2\.parquet: .* different types \(user holds numbers here, text before\)"):
        prepare(tmp_path / "numbers")
    write("b/1.csv", HEADER + "u,a,978300760\n")
    write("b/2.csv", HEADER + "u,a,978300760123\n")
    with pytest.raises(UserError, match=r"different units: .*1\.csv \(s\), .*2\.csv \(ms\)"):
        prepare(tmp_path / "b")
    write("c/1.csv", GOOD)
    write("c/2.txt", "1 2 3\n")
    with pytest.raises(UserError, match="mixes"):
        prepare(tmp_path / "c")


def test_folders_named_column_and_value_add_that_column(write, tmp_path: Path) -> None:
    def parquet(rows: list[tuple[str, int]]) -> bytes:
        file = io.BytesIO()
        pl.DataFrame(rows, schema={"user": pl.String, "timestamp": pl.Int64}, orient="row").write_parquet(file)
        return file.getvalue()

    write("log/kind=x%20y/item=a/part-0.snappy.parquet", parquet([("u", 1), ("v", 1), ("v", 1)]))
    write("log/kind=x%20y/item=b/part-0.parquet", parquet([("u", 2)]))
    write("log/kind=z/item=b/part-0.parquet", parquet([("u", 2)]))
    write("log/kind=z/item=b/part-1.parquet", parquet([]))
    write("log/kind=z/_SUCCESS", "")
    write("log/kind=z/_committed_1.parquet", "not data")
    write("log/_temporary/part.parquet", "not data")
    store = prepare(tmp_path / "log", domain_column="kind")
    assert store.item_table.rows() == [("a", 2, "x y"), ("b", 2, "x y")]
    assert store.statistics["duplicates_dropped"] == 1
    assert store.offsets_U1.tolist() == [0, 3, 4]
    some = prepare(tmp_path / "log" / "kind=*" / "item=b")
    assert some.raw_user_ids.to_list() == ["u"]
    assert some.statistics["interactions"] == 2, "equal rows of different partitions are no duplicates"
    write("lost/kind=__HIVE_DEFAULT_PARTITION__/part.csv", HEADER + "u,a,1\n")
    with pytest.raises(UserError, match="row 2: kind is empty"):
        prepare(tmp_path / "lost", domain_column="kind")
    (tmp_path / "log").rename(tmp_path / "moved")
    (tmp_path / "moved" / "kind=z").rename(tmp_path / "moved" / "kind=w")
    assert prepare(tmp_path / "moved", domain_column="kind").path.name[-16:] != store.path.name[-16:]


@pytest.mark.parametrize("column", ["user", "item"])
def test_an_id_that_is_not_a_number_is_empty(write, column: str) -> None:
    frame = pl.DataFrame({"user": [1.0, 2.0], "item": [3.0, 4.0], "timestamp": [1, 2]})
    frame = frame.with_columns(
        pl.when(pl.col("timestamp") == 2).then(float("nan")).otherwise(pl.col(column)).alias(column)
    )
    with pytest.raises(UserError, match=rf"ids\.parquet, row 2: {column} is empty"):
        prepare(write("ids.parquet", as_parquet(frame)))


def test_users_and_items_are_two_columns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="user_column and item_column are both who: name two columns"):
        InteractionsDataModule(path=tmp_path, user_column="who", item_column="who")


def test_a_folder_is_read_with_the_folders_in_it(write, tmp_path: Path) -> None:
    write("log/2024/01/x.csv", HEADER + "u,a,1\n")
    write("log/2024/02/x.csv", HEADER + "u,b,2\n")
    write("log/2024/_drafts/x.csv", "not data")
    write("log/late.csv", HEADER + "u,c,3\n")
    store = prepare(tmp_path / "log")
    assert store.item_table["raw_id"].gather(store.items_N).to_list() == ["a", "b", "c"]
    assert prepare(tmp_path / "log" / "2024").statistics["interactions"] == 2, "its store lies in log, and is no data"
    assert prepare(tmp_path / "log").path == store.path


def test_links_to_folders_above_are_passed_over_and_links_to_nothing_refused(write, tmp_path: Path) -> None:
    write("log/2024/x.csv", "user,item\nu,a\n")
    (tmp_path / "log" / "2024" / "all").symlink_to(tmp_path / "log")
    (tmp_path / "log" / "linked").symlink_to(write("other/x.csv", "user,item\nu,b\n").parent)
    assert prepare(tmp_path / "log", time_column=None).statistics["interactions"] == 2
    (tmp_path / "log" / "gone.csv").symlink_to(tmp_path / "nothing.csv")
    with pytest.raises(UserError, match=r"gone\.csv is a link to nothing: correct or remove it"):
        prepare(tmp_path / "log", time_column=None)


@pytest.mark.parametrize(
    ("path", "items"),
    [
        *((path, "abc") for path in ("", "*", "**", "**/*", "**/*.csv", "[!b]*")),
        *((path, "bc") for path in ("*/*.csv", "**/20*", "20??/0*")),
        *(("**/latest/*.csv", "b"), ("2024/*.csv", "b"), ("_*/*.csv", "x")),
    ],
)
def test_every_file_is_read_once_whatever_the_glob_and_the_links(write, tmp_path: Path, path: str, items: str) -> None:
    names = {"a": "a.csv", "b": "2024/01.csv", "c": "2025/02.csv", "x": "_drafts/x.csv", "y": ".hidden/y.csv"}
    for item, name in names.items():
        write(f"log/{name}", f"user,item\nu,{item}\n")
    write("log/_SUCCESS", "")
    for link, folder in {
        "2024/all": "",
        "2025/all": "",
        "2025/2024": "2024",
        "2024/2025": "2025",
        "latest": "2024",
    }.items():
        (tmp_path / "log" / link).symlink_to(tmp_path / "log" / folder)
    store = prepare(tmp_path / "log" / path, time_column=None)
    assert sorted(store.item_table["raw_id"].gather(store.items_N)) == list(items)


def test_a_store_s_name_is_short_enough_for_a_file(write) -> None:
    for name, begins in (("日" * 72, "日" * 33 + "-"), ("日" * 33, "日" * 33 + "-"), ("a" * 100, "a" * 100 + "-")):
        assert prepare(write(f"{name}.csv", GOOD)).path.name.startswith(begins)


def test_a_name_that_is_no_utf_8_is_refused_for_parquet(write, tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": ["u"], "item": ["a"], "timestamp": [1]})
    write("log/caf\udce9.parquet", as_parquet(frame))
    with pytest.raises(UserError, match=r"caf\\udce9\.parquet' is not a name in UTF-8, as Parquet files need: rename"):
        prepare(tmp_path / "log")


@pytest.mark.parametrize("path", ["", "*", "**/*"])
def test_a_data_dir_may_hold_the_log(write, tmp_path: Path, path: str) -> None:
    write("data/log.csv", HEADER + "u,a,1\n")
    write("data/more/log.csv", HEADER + "u,b,2\n")
    stores = []
    for _ in range(2):
        data = InteractionsDataModule(tmp_path / "data" / path, data_dir=tmp_path / "data")
        data.prepare_data()
        stores.append(data.open_store())
    assert stores[0].path == stores[1].path
    assert stores[0].item_table["raw_id"].to_list() == ["a", "b"]


@pytest.mark.usefixtures("_no_pool_thread_left")
def test_a_refused_file_leaves_no_thread_behind(write: Callable[[str, str | bytes], Path]) -> None:
    file = write("log.csv", HEADER + "u,,1\n" + "u,a,1\n" * 2_000_000)
    with pytest.raises(UserError, match="row 2: item is empty"):
        prepare(file)
