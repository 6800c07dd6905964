"""Mutated files end in a correct store or in one line that names the file, and the row if there is one."""

import csv
import gzip
import io
import json
import lzma
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import zstandard

from lrec.data.formats import parsing, streams
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.sources.movielens import MovieLensDataModule
from lrec.data.store.store import Store
from lrec.errors import UserError

TOKENS = [
    *(b"\xff", b"\0", b'"', b'""', b"\r", b"\r\n", b"\n", b"\n\n", b",", b",,", b"\t", b" ", b"\xef\xbb\xbf", b"\\"),
    *(b"99999999999999999999999", b"1e400", b"-0", b"nan", b"\xe9", "é".encode(), b"\\ud800", b'\\"', b"{", b"}"),
    *(b"\xc2\x85", b"\xe2\x80\xa8", b"null", b"[1]", b"user,item,timestamp\n", b"0x1", b"+7", b"'"),
]
# Messages about the whole file, which need not name a row.
WHOLE_FILE = re.compile(
    r"is empty|has no column|cut off or damaged|header but no rows|different (units|types)|not a whole Parquet"
    r"|no interactions are left|is not text or numbers|holds .*, not text|no column|are named neither"
)
LONGEST_S = 20


def rows(chance: random.Random) -> list[tuple[str, str, int]]:
    ids = ["007", "7", "a", "A", "x y", 'say "hi"', "1,5", "é", "日本", "b\nc"]
    return [(chance.choice(ids), chance.choice(ids), chance.randrange(10**9, 10**9 + 50)) for _ in range(30)]


def csv_file(chance: random.Random) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator=chance.choice(["\n", "\r\n"]))
    writer.writerows([("user", "item", "timestamp"), *rows(chance)])
    return out.getvalue().encode()


def plain_csv_file(chance: random.Random) -> bytes:
    numbers = [(chance.randrange(20), chance.randrange(20), chance.randrange(10**9, 10**9 + 50)) for _ in range(40)]
    return b"user,item,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in numbers).encode()


def jsonl_file(chance: random.Random) -> bytes:
    ascii_only = chance.random() < 0.5
    lines = [{"user": u, "item": i, "timestamp": t, "more": [t]} for u, i, t in rows(chance)]
    return "".join(json.dumps(line, ensure_ascii=ascii_only) + "\n" for line in lines).encode()


def lines_file(chance: random.Random) -> bytes:
    return "".join(f"u{u} {' '.join(str(chance.randrange(9)) for _ in range(5))}\n" for u in range(20)).encode()


def tsv_file(chance: random.Random) -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter="\t", lineterminator="\n").writerows([("user", "item", "timestamp"), *rows(chance)])
    return out.getvalue().encode()


def dat_file(chance: random.Random) -> bytes:
    numbers = [(chance.randrange(1, 20), chance.randrange(1, 20), 4, 10**9 + chance.randrange(50)) for _ in range(40)]
    return "".join("::".join(map(str, row)) + "\n" for row in numbers).encode()


def parquet_file(chance: random.Random) -> bytes:
    buffer = io.BytesIO()
    pl.DataFrame(rows(chance), schema=["user", "item", "timestamp"], orient="row").write_parquet(buffer)
    return buffer.getvalue()


def mutated(data: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.randrange(1, 4)):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice([1, 1, 2, 5, 40]))
        match chance.randrange(8):
            case 0 | 1 | 2:
                data = data[:start] + chance.choice(TOKENS) + data[start:]
            case 3:
                data = data[:start] + chance.randbytes(end - start) + data[end:]
            case 4:
                data = data[:start] + data[end:]
            case 5:
                data = data[:end] + data[start:end] + data[end:]
            case 6:
                data = data[:start] if chance.random() < 0.3 else data.replace(b"\n", b"\r\n", chance.randrange(1, 9))
            case 7:
                try:
                    data = data.decode().encode(chance.choice(["utf-8-sig", "utf-16", "latin-1", "cp1252"]))
                except UnicodeError:
                    data = data.replace(b"item", b"user", 1)
        if not data:
            return b"\n"
    return data


def read_csv(data: bytes, separator: str = ",") -> list[tuple[str, str]]:
    text = data.decode("utf-8-sig").rstrip("\r\n")
    header, *records = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    assert len(set(header)) == len(header)
    assert {len(record) for record in records} == {len(header)}
    places = [header.index(name) for name in ("user", "item")]
    return [tuple(record[place] for place in places) for record in records]


def read_jsonl(data: bytes) -> list[tuple[str, str]]:
    lines = [json.loads(line) for line in data.decode("utf-8-sig").rstrip("\r\n").split("\n")]
    return [tuple(_text(line[name]) for name in ("user", "item")) for line in lines]


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value)


def read_lines(data: bytes) -> list[tuple[str, str]]:
    # Python treats the four ASCII separators as whitespace; Unicode and Polars do not.
    lines = [
        [word for word in re.split(r"[^\S\x1c-\x1f]+", line) if word]
        for line in data.decode("utf-8-sig").rstrip("\r\n").split("\n")
    ]
    assert len({line[0] for line in lines}) == len(lines)
    return [(line[0], item) for line in lines for item in line[1:]]


def read_dat(data: bytes) -> list[tuple[str, str]]:
    """Read with csv, after each :: became a tab, which no field here has. Every row has four fields."""
    text = data.decode("utf-8-sig").rstrip("\r\n").replace("::", "\t")
    records = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True))
    assert {len(record) for record in records} == {4}
    return [(record[0], record[1]) for record in records]


def read_parquet(data: bytes) -> list[tuple[str, str]]:
    """Read the whole file at once."""
    return pl.read_parquet(io.BytesIO(data)).select(pl.col("user", "item").cast(pl.String)).rows()


POLARS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
FORMATS = {
    "log.csv": (csv_file, read_csv),
    "log.tsv": (tsv_file, lambda data: read_csv(data, "\t")),
    "log.jsonl": (jsonl_file, read_jsonl),
    "log.txt": (lines_file, read_lines),
    "ratings.dat": (dat_file, read_dat),
    "log.parquet": (parquet_file, read_parquet),
}
COMPRESSIONS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}
KINDS = {
    "log.csv": (csv_file, read_csv),
    "plain.csv": (plain_csv_file, read_csv),
    "log.jsonl": (jsonl_file, read_jsonl),
    "log.txt": (lines_file, read_lines),
}


def prepare(path: Path, data: bytes, stores: Path) -> Store | str:
    path.write_bytes(data)
    kind = MovieLensDataModule if path.name.startswith("ratings.dat") else InteractionsDataModule
    module = kind(path=path, data_dir=stores)
    try:
        module.prepare_data()
    except UserError as error:
        message = str(error)
        assert path.name in message or "no interactions" in message, message
        assert "\n" not in message
        assert re.search(r"rows? \d+", message) or WHOLE_FILE.search(message), message
        return message
    return Store.open(module.store_path)


def pairs(store: Store) -> Counter:
    users = store.raw_user_ids.to_list()
    items = store.item_table["raw_id"].gather(store.items_N).to_list()
    bounds = store.offsets_U1.tolist()
    return Counter((user, item) for u, user in enumerate(users) for item in items[bounds[u] : bounds[u + 1]])


def reference(read: Callable[[bytes], list[tuple[str, str]]], data: bytes) -> list[tuple[str, str]] | None:
    """(user, item) of every row; None if the file is not valid."""
    try:
        return read(data)
    except (ValueError, KeyError, IndexError, AssertionError, TypeError, csv.Error, *POLARS):
        return None


def check(name: str, seed: int, folder: Path) -> bool:
    """Mutate a file and prepare it. Returns whether it became a store."""
    chance = random.Random(seed)
    make, read = KINDS[name]
    data = mutated(make(chance), chance)
    return compare(prepare(folder / name, data, folder / "stores"), reference(read, data), data, seed)


def compare(result: Store | str, expected: list[tuple[str, str]] | None, data: bytes, seed: int) -> bool:
    """Return whether it became a store, which must hold what another reader finds."""
    if expected is None:
        assert isinstance(result, str), (seed, data)
    if isinstance(result, str):
        return False
    assert expected is not None
    assert set(pairs(result)) == set(expected), (seed, data)
    kept = result.statistics["interactions"] + result.statistics["duplicates_dropped"]
    assert kept == len(expected), (seed, data)
    return True


def fuzz(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    stores = 0
    for seed in range(count):
        # Short blocks, so that rows and quotes are cut at every place.
        monkeypatch.setattr(streams, "BLOCK", 1 << 24 if seed % 3 else 50)
        monkeypatch.setattr(streams, "_PIECE", 1 << 20 if seed % 3 else 7)
        stores += check(name, seed, folder)
    assert 0 < stores < count, "some mutations leave a sound file, some do not"


@pytest.mark.parametrize("name", KINDS)
def test_mutated_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz(name, tmp_path, monkeypatch, 45)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_thousands_of_mutated_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz(name, tmp_path, monkeypatch, 3000)


def attack(name: str, compression: str, seeds: range, folder: Path) -> int:
    """Change a file before or after it is compressed. Returns how often it became a store."""
    make, read = FORMATS[name]
    compress = COMPRESSIONS[compression]
    stores = 0
    for seed in seeds:
        chance = random.Random(seed)
        data = whole = make(chance)
        if seed % 2 and compression:
            stored = bytearray(compress(whole))
            for _ in range(chance.randrange(1, 4)):
                stored[chance.randrange(len(stored))] ^= 1 << chance.randrange(8)
            stored = stored[: chance.choice([None, None, chance.randrange(1, len(stored))])]
        else:
            data = mutated(whole, chance)
            stored = bytearray(compress(data))
        began = time.monotonic()
        result = prepare(folder / f"{name}{compression}", bytes(stored), folder / "stores")
        assert time.monotonic() - began < LONGEST_S, seed
        stores += compare(result, reference(read, data), data, seed)
    return stores


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_hundred_files_of_every_format_and_compression(name: str, compression: str, tmp_path: Path) -> None:
    attack(name, compression, range(5), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_three_thousand_files_of_every_format_and_compression(name: str, compression: str, tmp_path: Path) -> None:
    assert 0 < attack(name, compression, range(125), tmp_path) < 125


SPELLINGS = [
    b"0",
    b"7",
    b"07",
    b"70",
    b"+7",
    b"-7",
    b" 7",
    b"7 ",
    b"7.0",
    b"",
    b"a",
    b"99999999",
    b"9" * 20,
    b"\xc3\xa9",
]


@pytest.mark.parametrize(
    "seeds", [range(20), pytest.param(range(20, 150), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_integers_are_read_as_their_text_would_be(
    seeds: range, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "BLOCK", 60)
    monkeypatch.setattr(streams, "_PIECE", 60)
    stores = 0
    for seed in seeds:
        chance = random.Random(seed)
        odd = chance.random() * 0.1
        lines = [b"user,item,rating,timestamp"]
        for _ in range(30):
            fields = [b"%d" % chance.choice([1, 23, 456]), b"%d" % chance.randrange(9), b"%.1f" % chance.randrange(3)]
            fields.append(b"%d" % chance.randrange(999_999_990, 1_000_000_009))
            lines.append(b",".join(chance.choice(SPELLINGS) if chance.random() < odd else field for field in fields))
        data = chance.choice([b"\n", b"\r\n"]).join(lines)
        fast = prepare(tmp_path / "log.csv", data, tmp_path / f"fast-{seed}")
        with monkeypatch.context() as patch:
            patch.setattr(parsing, "_integer_block", lambda *_: None)
            slow = prepare(tmp_path / "log.csv", data, tmp_path / f"slow-{seed}")
        if isinstance(slow, Store):
            assert isinstance(fast, Store), (data, fast)
            assert (fast.hash, fast.statistics, fast.facts) == (slow.hash, slow.statistics, slow.facts)
            for file in ("items.parquet", "users.parquet"):
                assert (fast.path / file).read_bytes() == (slow.path / file).read_bytes()
            stores += 1
        else:
            assert fast == slow
    assert len(seeds) / 5 < stores < len(seeds)


@pytest.mark.parametrize("name", ["log.parquet", "log.csv.gz"])
def test_damaged_bytes(name: str, tmp_path: Path) -> None:
    chance = random.Random(0)
    frame = pl.DataFrame(rows(chance), schema=["user", "item", "timestamp"], orient="row")
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    whole = buffer.getvalue() if name.endswith("parquet") else gzip.compress(frame.write_csv().encode())
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        result = prepare(tmp_path / name, bytes(data[: chance.choice([None, None, chance.randrange(1, len(data))])]),
                         tmp_path / "stores")  # fmt: skip
        if isinstance(result, Store):
            assert result.statistics["interactions"] + result.statistics["duplicates_dropped"] == len(frame)
