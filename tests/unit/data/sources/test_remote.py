"""Raw data and stores behind URLs: copied, copied again if they changed, or refused in a line that says what to do."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from lrec.data.sources.amazon import AmazonDataModule
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.sources.movielens import MovieLensDataModule
from lrec.data.store.store import Store
from lrec.errors import UserError

LINES = ["user,item,timestamp", *(f"u{row % 4},i{row % 3},{row}" for row in range(24))]


@pytest.fixture
def bucket() -> Iterator[Any]:
    """An object store in memory, as memory://bucket."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/bucket", recursive=True)


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "stores[1]"  # in a glob, other brackets are a pattern


def put(bucket: Any, name: str, lines: list[str]) -> None:
    bucket.pipe(f"/bucket/{name}", ("\n".join(lines) + "\n").encode())


def prepared(path: str, data_dir: Path, **options: Any) -> Store:
    module = InteractionsDataModule(path=Path(path), data_dir=data_dir, **options)
    module.prepare_data()
    module.setup()
    return module.store


def test_a_file_behind_a_url_makes_the_store_that_it_makes_here(bucket: Any, data_dir: Path) -> None:
    put(bucket, "day/log.csv", LINES)
    Path("log.csv").write_text("\n".join(LINES) + "\n")
    here = prepared("log.csv", data_dir)
    assert prepared("memory://bucket/day/log.csv", data_dir).path == here.path
    assert sorted(file.name for file in data_dir.glob("raw/memory/bucket/day/*")) == ["log.csv"]


def test_a_url_of_a_file_on_this_machine_is_read_from_its_root(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("\n".join(LINES) + "\n")
    for path in (f"file://{tmp_path}/log.csv", f"file://{tmp_path}/*.csv"):
        assert prepared(path, data_dir).statistics["interactions"] == 24


@pytest.mark.parametrize("path", ["memory://bucket/logs", "memory://bucket/logs/", "memory://bucket/logs/*/*.csv",
                                  "memory://bucket/lo*", "memory://bucket/logs/**/*.csv"])  # fmt: skip
def test_folders_and_globs_keep_their_partitions(path: str, bucket: Any, data_dir: Path) -> None:
    put(bucket, "logs/shop=a/log.csv", LINES)
    put(bucket, "logs/shop=b/log.csv", LINES)
    put(bucket, "other/log.csv", LINES)
    store = prepared(path, data_dir, domain_column="shop")
    assert store.statistics["interactions"] == 48
    assert set(store.item_table["domain"]) == {"a"}
    assert not (data_dir / "raw" / "memory" / "bucket" / "other").exists()


def test_what_is_new_changed_or_gone_is_seen(bucket: Any, data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def rows() -> tuple[int, int]:
        counted = prepared("memory://bucket/logs", data_dir).statistics["interactions"]
        return counted, capsys.readouterr().err.count("fetching")

    put(bucket, "logs/one.csv", LINES)
    assert rows() == (24, 1)
    assert rows() == (24, 0)
    put(bucket, "logs/two.csv", [LINES[0], "u9,i9,99"])
    assert rows() == (25, 1)
    put(bucket, "logs/two.csv", [LINES[0], "u8,i8,98", "u8,i9,99"])
    assert rows() == (26, 1)
    bucket.rm("/bucket/logs/one.csv")
    put(bucket, "logs/two.csv", LINES[:17])
    assert rows() == (16, 1)


def test_a_file_that_is_gone_is_not_read_through_another_url(bucket: Any, data_dir: Path) -> None:
    put(bucket, "logs/one.csv", LINES)
    put(bucket, "logs/day/two.csv", LINES[:17])
    assert prepared("memory://bucket/logs/*.csv", data_dir).statistics["interactions"] == 24
    bucket.rm("/bucket/logs/one.csv")
    for path in ("memory://bucket/logs", "memory://bucket/lo*", "memory://bucket/logs/day"):
        assert prepared(path, data_dir).statistics["interactions"] == 16
    put(bucket, "logs/one.csv", LINES)
    assert prepared("memory://bucket/logs/day", data_dir).statistics["interactions"] == 16
    assert prepared("memory://bucket/logs", data_dir).statistics["duplicates_dropped"] == 16


def test_a_store_behind_a_url_is_fetched_and_its_raw_data_are_not(bucket: Any, data_dir: Path) -> None:
    Path("log.csv").write_text("\n".join(LINES))
    here = prepared("log.csv", Path("one"))
    bucket.put(str(here.path), "/bucket/stores/log", recursive=True)
    alone = InteractionsDataModule(
        path=Path("memory://bucket/nowhere"), store=Path("memory://bucket/stores/log"), data_dir=data_dir / "two"
    )
    alone.prepare_data()
    alone.setup()
    assert alone.store.hash == here.hash
    assert alone.store.path != here.path


def test_data_sets_of_files_take_urls(bucket: Any, data_dir: Path) -> None:
    put(bucket, "ratings.csv", ["userId,movieId,rating,timestamp", *(f"{r % 4},{r % 3},5,{r}" for r in range(24))])
    put(bucket, "amazon/Books.csv", [f"A{r % 4},B00000000{r % 3},5.0,{r}" for r in range(24)])
    for module in (
        MovieLensDataModule(Path("memory://bucket/ratings.csv"), data_dir=data_dir),
        AmazonDataModule(Path("memory://bucket/amazon"), 2014, data_dir=data_dir),
    ):
        module.prepare_data()
        module.setup()
        assert module.store.statistics["interactions"] == 24


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("memory://bucket/nowhere.csv", "does not exist"),
        ("memory://bucket/*.tsv", "does not exist"),
        ("s3://bucket/log.csv", "cannot be read: Install s3fs to access S3 (pip install 'lrec[cloud]')"),
        ("nothing://bucket/log.csv", "cannot be fetched (ValueError: Protocol not known: nothing"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(
    path: str, says: str, bucket: Any, data_dir: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    put(bucket, "log.csv", LINES)
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed
    said = refused("data", "prepare", "--config=data/csv.yaml", f"--data.path={path}", f"--data.data_dir={data_dir}")
    assert said.startswith(f"lrec: error: {path} {says}")


def test_no_name_leads_out_of_the_folder(bucket: Any, data_dir: Path) -> None:
    bucket.store["/bucket/logs/../../../log.csv"] = bucket.open("/bucket/log.csv", "wb")
    with pytest.raises(UserError, match=r"logs cannot be fetched \(ValueError: .*log\.csv leads out of the folder\)"):
        prepared("memory://bucket/logs", data_dir)


def test_a_file_that_the_store_fails_to_give_is_one_line_and_leaves_nothing(
    bucket: Any, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, "log.csv", LINES)

    def half(_: Any, source: str, place: str) -> None:
        Path(place).write_text(LINES[0])
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(type(bucket), "get_file", half)
    with pytest.raises(UserError, match=r"log\.csv cannot be fetched \(ConnectionError: reset by peer\)"):
        prepared("memory://bucket/log.csv", data_dir)
    assert [file.name for file in data_dir.rglob("*") if file.is_file()] == [".lock"]
