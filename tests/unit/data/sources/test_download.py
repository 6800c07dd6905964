"""Downloads from a server on this machine that cuts connections and damages files."""

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lrec.data.sources import movielens
from lrec.data.sources.download import fetch
from lrec.data.sources.movielens import MovieLensDataModule
from lrec.data.store.store import Store
from lrec.errors import UserError


class Site:
    """Files by name, and how the server misbehaves."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut_after: list[int] = []  # bytes that each of the next answers sends before the connection ends
        self.requests: list[str] = []
        self.url = ""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/")
            site.requests.append(name)
            data = site.files.get(name)
            if data is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: site.cut_after.pop(0)] if name.endswith(".zip") and site.cut_after else data)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        site.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("no_proxy", "*")
        monkeypatch.setattr(movielens, "OFFICIAL", site.url)
        yield site
        server.shutdown()
        thread.join()


WHOLE = bytes(range(256)) * 5000
MD5 = hashlib.md5(WHOLE).hexdigest()


@pytest.fixture
def target(site: Site, tmp_path: Path) -> Path:
    site.files["a.zip"] = WHOLE
    return tmp_path / "raw" / "a.zip"


@pytest.mark.parametrize("md5", [None, f"MD5 (a.zip) = {MD5}\n", f"{MD5.upper()}  a.zip\n"])
def test_a_whole_file(site: Site, target: Path, md5: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    if md5 is not None:
        site.files["a.zip.md5"] = md5.encode()
    fetch(f"{site.url}/a.zip", target)
    assert target.read_bytes() == WHOLE
    assert sorted(path.name for path in target.parent.iterdir()) == [".lock", "a.zip"]
    shown = capsys.readouterr().err.splitlines()
    assert shown == [f"fetching {site.url}/a.zip: 1.3 MB"]
    asked = len(site.requests)
    fetch(f"{site.url}/a.zip", target)
    assert len(site.requests) == asked, "what is there is not asked for again"


def test_a_cut_connection_leaves_nothing_and_the_next_attempt_fetches_all(site: Site, target: Path) -> None:
    site.cut_after = [100_000]
    with pytest.raises(UserError, match=r"ended after 100000 of 1280000 bytes\): run again.* put it at .*raw/a\.zip$"):
        fetch(f"{site.url}/a.zip", target)
    assert [path.name for path in target.parent.iterdir()] == [".lock"]
    fetch(f"{site.url}/a.zip", target)
    assert target.read_bytes() == WHOLE


def test_a_damaged_file_is_refused_and_fetched_anew(site: Site, target: Path) -> None:
    site.files["a.zip.md5"] = MD5.encode()
    site.files["a.zip"] = WHOLE[:1000] + b"x" + WHOLE[1001:]
    with pytest.raises(UserError, match=rf"its MD5 is [0-9a-f]+ where {MD5} is published"):
        fetch(f"{site.url}/a.zip", target)
    assert [path.name for path in target.parent.iterdir()] == [".lock"]
    site.files["a.zip"] = WHOLE
    fetch(f"{site.url}/a.zip", target)
    assert target.read_bytes() == WHOLE


def test_a_missing_file_and_a_missing_server_are_named(site: Site, target: Path) -> None:
    with pytest.raises(UserError, match=r"b\.zip cannot be fetched \(.*404.*\): run again.* put it at .*b\.zip$"):
        fetch(f"{site.url}/b.zip", target.with_name("b.zip"))
    with pytest.raises(UserError, match=r"cannot be fetched \(.*refused.*\)"):
        fetch("http://127.0.0.1:9/a.zip", target)
    assert not target.exists()


def official(version: str) -> bytes:
    rows = [("1", "10", "5", "100"), ("2", "10", "3", "50"), ("1", version, "4", "90")]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"ml-{version}/README.txt", "read me")
        if version == "100k":
            archive.writestr("ml-100k/u.data", "".join("\t".join(row) + "\n" for row in rows))
        elif version in ("1m", "10m"):
            archive.writestr(f"ml-{version}/ratings.dat", "".join("::".join(row) + "\n" for row in rows))
        else:
            lines = "userId,movieId,rating,timestamp\n" + "".join(",".join(row) + "\n" for row in rows)
            archive.writestr(f"ml-{version}/ratings.csv", lines)
    return buffer.getvalue()


@pytest.mark.parametrize("version", ["100k", "1m", "10m", "20m", "25m", "32m", "latest-small", "latest"])
def test_movielens_downloads_each_version_once(site: Site, tmp_path: Path, version) -> None:
    site.files[f"ml-{version}.zip"] = official(version)
    for _ in range(2):
        data = MovieLensDataModule(version=version, data_dir=tmp_path)
        data.prepare_data()
        store = Store.open(data.store_path)
        assert store.path.name.startswith(f"ml-{version}-")
        assert store.item_table["raw_id"].to_list() == ["10", version]
        assert (tmp_path / "raw" / f"ml-{version}.zip").read_bytes() == site.files[f"ml-{version}.zip"]
    assert sum(name.endswith(".zip") for name in site.requests) == 1


def test_movielens_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(movielens, "OFFICIAL", "http://127.0.0.1:9")
    data = MovieLensDataModule(version="1m", data_dir=tmp_path)
    with pytest.raises(UserError, match=r"ml-1m\.zip does not exist yet: `lrec data prepare` downloads it"):
        _ = data.store_path
    with pytest.raises(UserError, match=r"^http://127.0.0.1:9/ml-1m.zip cannot be .* put it at .*/raw/ml-1m\.zip$"):
        data.prepare_data()
    (tmp_path / "raw" / "ml-1m.zip").write_bytes(official("1m"))
    data.prepare_data()
    assert Store.open(data.store_path).statistics["interactions"] == 3
    with pytest.raises(UserError, match=r"option version\) or its file \(option path"):
        MovieLensDataModule(data_dir=tmp_path)
