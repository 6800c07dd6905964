"""Downloads from a server on this machine that cuts connections, damages files and knows ranges or not."""

import hashlib
import io
import re
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
        self.ranges = True
        self.cut_after: list[int] = []  # bytes that each of the next answers sends before the connection ends
        self.edition = "1"
        self.requests: list[tuple[str, str, str | None]] = []
        self.url = ""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            name, asked = self.path.removeprefix("/"), self.headers["Range"]
            site.requests.append((self.command, name, asked))
            data = site.files.get(name)
            if data is None:
                self.send_error(404)
                return
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and site.ranges else 0
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("ETag", site.edition)
            self.end_headers()
            if body:
                sent = data[start:]
                if name.endswith(".zip") and site.cut_after:
                    sent = sent[: site.cut_after.pop(0)]
                self.wfile.write(sent)

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


def ranges_of(site: Site) -> list[str | None]:
    return [asked for command, name, asked in site.requests if command == "GET" and name == "a.zip"]


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
    assert shown[-1] == f"fetching {site.url}/a.zip: 100 % of 1.3 MB"
    assert len(shown) <= 11
    asked = len(site.requests)
    fetch(f"{site.url}/a.zip", target)
    assert len(site.requests) == asked, "what is there is not asked for again"


def test_a_cut_connection_is_taken_up_again(site: Site, target: Path) -> None:
    site.cut_after = [100_000, 1, 300_000]
    fetch(f"{site.url}/a.zip", target)
    assert target.read_bytes() == WHOLE
    assert ranges_of(site) == [f"bytes={n}-" for n in (0, 100_000, 100_001, 400_001)]


def test_a_failed_download_is_gone_on_with_by_the_next(site: Site, target: Path) -> None:
    site.cut_after = [100_000, 0]
    with pytest.raises(UserError, match=r"ended after 100000 of 1280000 bytes\): run again.* put it at .*raw/a\.zip$"):
        fetch(f"{site.url}/a.zip", target)
    assert not target.exists()
    fetch(f"{site.url}/a.zip", target)
    assert target.read_bytes() == WHOLE
    assert ranges_of(site)[-1] == "bytes=100000-"


def test_another_edition_is_not_appended(site: Site, target: Path) -> None:
    site.cut_after = [100_000, 0]
    with pytest.raises(UserError, match="ended after"):
        fetch(f"{site.url}/a.zip", target)
    site.files["a.zip"], site.edition = WHOLE[::-1], "2"
    fetch(f"{site.url}/a.zip", target)
    assert target.read_bytes() == WHOLE[::-1]
    assert sorted(path.name for path in target.parent.iterdir()) == [".lock", "a.zip"]


def test_a_server_without_ranges_sends_all_again(site: Site, target: Path) -> None:
    site.ranges, site.cut_after = False, [100_000]
    fetch(f"{site.url}/a.zip", target)
    assert target.read_bytes() == WHOLE
    target.unlink()
    site.cut_after = [100_000, 50_000]
    with pytest.raises(UserError, match="ended after 50000 of"):
        fetch(f"{site.url}/a.zip", target)


def test_a_damaged_file_is_refused_and_fetched_anew(site: Site, target: Path) -> None:
    site.files["a.zip.md5"] = MD5.encode()
    site.files["a.zip"] = WHOLE[:1000] + b"x" + WHOLE[1001:]
    with pytest.raises(UserError, match=rf"its MD5 is [0-9a-f]+ where {MD5} is published"):
        fetch(f"{site.url}/a.zip", target)
    assert [path.name for path in target.parent.iterdir()] == [".lock"]
    site.files["a.zip"] = WHOLE
    fetch(f"{site.url}/a.zip", target)
    assert target.read_bytes() == WHOLE


def test_nothing_there_and_nobody_there(site: Site, target: Path) -> None:
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
    assert sum(command == "GET" and name.endswith(".zip") for command, name, _ in site.requests) == 1


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
