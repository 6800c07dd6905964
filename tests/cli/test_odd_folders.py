"""Folders that may not be written to, files that may not be read, a full disk, and names with spaces."""

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

pytestmark = [
    pytest.mark.usefixtures("warm_processes"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's capabilities"),
]

# Runs several commands of lrec, one after the other, and says how each ended.
RUN_ALL = """
import contextlib, io, json, resource, sys
from lrec.cli import main
if sys.argv[2] != "unlimited":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
for command in json.loads(sys.argv[1]):
    err, code = io.StringIO(), 0
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(command)
        except SystemExit as stop:
            code = stop.code
        except BaseException as error:
            code = repr(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    print(json.dumps([code, err.getvalue().strip().splitlines()[-1:]]))
    if sys.argv[2] != "unlimited":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
"""


def without_rights() -> None:
    """Make permission bits apply to this process, even if root starts it."""
    for capability in (1, 2):  # the rights to read, write and search in spite of the bits
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def ends(commands: list[list[object]], folder: Path, file_size: object = "unlimited") -> list[tuple[object, str]]:
    """Exit code and last line of each command's stderr."""
    texts = json.dumps([[str(part) for part in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, texts, str(file_size)],
        cwd=folder, preexec_fn=without_rights, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [(code, " ".join(line)) for code, line in map(json.loads, done.stdout.splitlines())]


COLUMNS = ["--data.user_column=who", "--data.item_column=what", "--data.time_column=when"]


def fit(log: Path, folder: Path, run: str = "run") -> list[object]:
    return [
        *("fit", "--config=data/csv.yaml", "--config=trainer/laptop.yaml", f"--data.path={log}", *COLUMNS),
        *("--data.max_len=10", "--data.targets_per_step=256", "--model.size=3k", "--trainer.max_epochs=1"),
        *("--trainer.enable_progress_bar=false", f"--data.data_dir={folder / 'stores'}"),
        f"--trainer.default_root_dir={folder / run}",
    ]


@pytest.fixture(scope="module")
def trained(log_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and its log, in a folder whose name has spaces and other unusual characters."""
    from lrec.cli import main

    folder = tmp_path_factory.mktemp("a folder") / "of [mine], 50% é"
    folder.mkdir()
    (folder / "my log.csv").write_bytes(log_csv.read_bytes())
    main([str(part) for part in fit(folder / "my log.csv", folder)])
    return folder


@pytest.mark.slow
def test_a_path_with_spaces(trained: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = trained / "out of it"
    monkeypatch.setenv("TMPDIR", str(trained))
    columns = ["--user_column=who", "--item_column=what", "--time_column=when"]
    lrec(
        "recommend", "--ckpt_path", trained / "run", "--histories", trained / "my log.csv", "--out", out / "a b.parquet"
    )
    assert pl.read_parquet(out / "a b.parquet", glob=False).height == 300
    lrec("export", "--ckpt_path", trained / "run", "--out", out)
    lrec("recommend", "--ckpt_path", out, "--histories", trained / "my log.csv", *columns)
    lrec("tasks", "--runs", trained / "run", "--tasks", "long_tail", "--out", out / "tasks")
    lrec("test", "--config", trained / "run" / "config.yaml")
    (store,) = (trained / "stores").glob("my_log-*")
    lrec("data", "describe", store)
    (trained / "points of it.csv").write_text("N,L\n" + "".join(f"{n},{4 + 9 / n**0.3}\n" for n in (9, 99, 999, 9999)))
    fit_command = ["scaling", "fit", "--points", trained / "points of it.csv", "--x", "N", "--y", "L", "--holdout", 0]
    lrec(*fit_command, "--compare", "false", "--out", out / "fit")
    lrec("scaling", "plan", "--fit", out / "fit" / "fit.json", "--size", 1e6)
    assert not list(trained.glob(".lrec*"))


@pytest.mark.slow
def test_folders_and_files_without_permission(trained: Path, tmp_path: Path) -> None:
    locked, secret = tmp_path / "locked", tmp_path / "secret.csv"
    locked.mkdir()
    (locked / "stores").mkdir()
    secret.write_bytes((trained / "my log.csv").read_bytes())
    points = tmp_path / "points.csv"
    points.write_text("N,L\n" + "".join(f"{n},{4 + 9 / n**0.3}\n" for n in (9, 99, 999, 9999)))
    (tmp_path / "secret.ckpt").write_bytes((trained / "run/checkpoints/best.ckpt").read_bytes())
    (tmp_path / "secret.yaml").write_text("model: {size: 3k}\n")
    (tmp_path / "secret.jsonl").write_text("{}\n")
    for path, mode in ((locked, 0o555), (locked / "stores", 0o555), *((p, 0) for p in tmp_path.glob("secret.*"))):
        path.chmod(mode)
    log, run = trained / "my log.csv", trained / "run"
    laws = ["scaling", "fit", "--x", "N", "--y", "L", "--holdout", 0, "--compare", "false"]
    cases: list[tuple[list[object], Path]] = [
        (["data", "prepare", *fit(secret, tmp_path)[1:2], f"--data.path={secret}", *COLUMNS], secret),
        (["data", "prepare", *fit(log, locked)[1:2], f"--data.path={log}", *COLUMNS,
          f"--data.data_dir={locked / 'stores'}"], locked),
        (fit(log, tmp_path, "locked/run"), locked),
        ([*fit(log, tmp_path), f"--config={tmp_path / 'secret.yaml'}"], tmp_path / "secret.yaml"),
        (["recommend", "--ckpt_path", run, "--histories", secret], secret),
        (["recommend", "--ckpt_path", run, "--histories", log, "--out", locked / "lists.csv"], locked),
        (["recommend", "--ckpt_path", tmp_path / "secret.ckpt", "--histories", log], tmp_path / "secret.ckpt"),
        (["export", "--ckpt_path", run, "--out", locked / "model.safetensors"], locked),
        (["tasks", "--runs", run, "--tasks", "long_tail", "--out", locked / "tasks"], locked),
        ([*laws, "--points", points, "--out", locked / "fit"], locked),
        ([*laws, "--points", tmp_path / "secret.jsonl"], tmp_path / "secret.jsonl"),
        ([*laws, "--points", secret], secret),
    ]  # fmt: skip
    for (command, named), (code, line) in zip(cases, ends([command for command, _ in cases], tmp_path), strict=True):
        assert (code, line[:13]) == (2, "lrec: error: "), (command, code, line)
        assert str(named) in line, (command, line)
    assert list(locked.iterdir()) == [locked / "stores"]


@pytest.mark.slow
def test_a_full_disk(trained: Path, tmp_path: Path) -> None:
    """No file may be larger than a few KB."""
    log, run, small = trained / "my log.csv", trained / "run", tmp_path / "small"
    small.mkdir()
    cases: list[tuple[list[object], str]] = [
        (["data", "prepare", "--config=data/csv.yaml", f"--data.path={log}", *COLUMNS,
          f"--data.data_dir={small / 'stores'}"], f"{small / 'stores'} has no room for the store"),
        (fit(log, small), "no room"),
        ([*fit(log, small), f"--data.data_dir={trained / 'stores'}"], "File too large"),
        (["recommend", "--ckpt_path", run, "--histories", log, "--out", small / "lists.parquet"], "File too large"),
        (["recommend", "--ckpt_path", run, "--histories", log, "--out", small / "lists.csv"], "File too large"),
        (["recommend", "--ckpt_path", run, "--histories", log, "--out", small / "lists.jsonl"], "File too large"),
        (["export", "--ckpt_path", run, "--out", small / "model"], f"{small / 'model/model.safetensors'}: File too"),
        (["tasks", "--runs", run, "--tasks", "long_tail", "--out", small / "tasks"], "File too large"),
    ]  # fmt: skip
    for (command, says), (code, line) in zip(cases, ends([c for c, _ in cases], tmp_path, 2000), strict=True):
        assert (code, line[:13]) == (2, "lrec: error: "), (command, code, line)
        assert says in line, (command, line)
    left = {path.name for path in small.rglob("*") if path.is_file() and "tfevents" not in path.name}
    assert left <= {".lock", "sources.json", "items.parquet", "tasks.json", "tasks.md"}, left
