"""MovieLens in each of its official layouts."""

import gzip
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lrec.data.sources.movielens import MovieLensDataModule
from lrec.data.store.store import Store
from lrec.errors import UserError

ROWS = [("1", "10", "5", "100"), ("2", "10", "3", "50"), ("1", "20", "4", "90"), ("1", "30", "1", "100")]
DATA = "".join("\t".join(row) + "\n" for row in ROWS)
DAT = "".join("::".join(row) + "\n" for row in ROWS)
CSV = "userId,movieId,rating,timestamp\n" + "".join(",".join(row) + "\n" for row in ROWS)


def prepare(path: Path, **options: Any) -> Store:
    data = MovieLensDataModule(path=path, data_dir=path.parent / "stores", **options)
    data.prepare_data()
    return Store.open(data.store_path)


@pytest.mark.parametrize(
    ("name", "text"), [("u.data", DATA), ("ratings.dat", DAT), ("ratings.csv", CSV), ("ml-1m_ratings.dat", DAT)]
)
@pytest.mark.parametrize("container", ["file", "folder", "parent", "gz", "xz", "zip", "zip in a folder"])
def test_every_layout_in_every_container(tmp_path: Path, name: str, text: str, container: str) -> None:
    folder = tmp_path / "raw" / "ml-x"
    folder.mkdir(parents=True)
    path = folder / name
    match container:
        case "gz":
            path = path.with_name(f"{name}.gz")
            path.write_bytes(gzip.compress(text.encode()))
        case "xz":
            path = path.with_name(f"{name}.xz")
            path.write_bytes(lzma.compress(text.encode()))
        case "zip" | "zip in a folder":
            path = folder / "ml-1m.zip"
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("ml-x/README", "read me")
                archive.writestr(f"../../ml-x/{name}", text)  # nothing is unpacked, so the path cannot escape
        case _:
            path.write_text(text)
    target = {"folder": folder, "parent": folder.parent, "zip in a folder": folder}.get(container, path)
    store = prepare(target)
    assert store.raw_user_ids.to_list() == ["1", "2"]
    assert store.item_table["raw_id"].gather(store.items_N).to_list() == ["20", "10", "30", "10"]
    assert store.times_N.tolist() == [90, 100, 100, 50]
    assert sorted(file.name for file in folder.iterdir() if file.name != "stores") == [path.name]


def test_the_version_chooses_among_several(tmp_path: Path) -> None:
    for folder, name, text in [
        ("ml-100k", "u.data", DATA),
        ("ml-10M100K", "ratings.dat", DAT.replace("30", "31")),
        ("ml-latest", "ratings.csv", CSV.replace("30", "32")),
        ("ml-latest-small", "ratings.csv", CSV.replace("30", "33")),
    ]:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    (tmp_path / "ml-100k.zip").write_bytes(b"an unpacked data set lies beside its zip")
    for version, item in [("100k", "30"), ("10m", "31"), ("latest", "32"), ("latest-small", "33")]:
        store = prepare(tmp_path, version=version)
        assert store.path.name.startswith(f"ml-{version}-")
        assert store.item_table["raw_id"].to_list() == ["10", "20", item]
    with pytest.raises(UserError, match=r"holds several MovieLens ratings: .*option version"):
        prepare(tmp_path)
    with pytest.raises(UserError, match="holds no ratings of MovieLens 25m"):
        prepare(tmp_path, version="25m")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ratings.dat", DAT + "1::2::3\n", r"ratings.dat, row 5: 3 fields where 4"),
        ("ratings.dat", DAT + "1::2::3::4::5\n", r"ratings.dat, row 5: 5 fields where 4"),
        ("ratings.dat", DAT + "1::2::3::x\n", r"ratings.dat, row 5: timestamp is neither"),
        ("ratings.dat", "", r"ratings.dat is empty"),
        ("u.data", "1\t2\t3\n", r"u.data, row 1: 3 fields where 4 are expected"),
        ("ratings.csv", "userId,movieId,rating\n1,2,3\n", r"no column timestamp"),
        ("ml-1m.zip", "not a zip", r"ml-1m.zip is cut off or damaged"),
        ("movies.csv", CSV, r"is named neither"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        prepare(tmp_path / name)


def test_zips_cut_off_and_without_ratings(tmp_path: Path) -> None:
    path = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ml-1m/movies.dat", "1::Toy Story")
    with pytest.raises(UserError, match="holds 0 MovieLens ratings files"):
        prepare(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ml-1m/ratings.dat", DAT * 500)
        archive.writestr("__MACOSX/ml-1m/._ratings.dat", "written by macOS")
    assert prepare(path).statistics["interactions"] == 4
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    for broken in (whole[: len(whole) // 2], bytes(flipped)):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"ml-1m\.zip is cut off or damaged"):
            prepare(path)
    with pytest.raises(UserError, match=r"absent\.zip does not exist"):
        prepare(tmp_path / "absent.zip")


def test_the_file_names_need_not_tell_the_version(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "ratings.csv").write_text(CSV)
    assert prepare(tmp_path / "raw", version="25m").statistics["interactions"] == 4


@pytest.mark.parametrize(("name", "text"), [("u.data", DATA), ("ratings.dat", DAT), ("ratings.csv", CSV)])
def test_the_store_is_the_same_with_hardly_any_memory(
    tmp_path: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrec.data.formats.streams.BLOCK", 20)
    (tmp_path / name).write_text(text)
    hashes = set()
    for memory_gib in (None, 1e-9):
        data = MovieLensDataModule(path=tmp_path / name, data_dir=tmp_path / str(memory_gib), memory_gib=memory_gib)
        data.prepare_data()
        hashes.add(Store.open(data.store_path).hash)
    assert len(hashes) == 1


def test_a_data_dir_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(CSV)
    (tmp_path / "file").write_text("")
    data = MovieLensDataModule(path=tmp_path / "ratings.csv", data_dir=tmp_path / "file")
    with pytest.raises(UserError, match=r"file cannot be used for stores .*option data_dir"):
        data.prepare_data()
    downloading = MovieLensDataModule(version="1m", data_dir=tmp_path / "file")
    with pytest.raises(UserError, match=r"ml-1m\.zip cannot be fetched"):
        downloading.prepare_data()
