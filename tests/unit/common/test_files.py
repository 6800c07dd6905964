"""Files are whole or absent; locks pass to children; imports stay light."""

import os
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from lrec.common.files import commit_of, json_hash, locked, read_json, replacing, write_json
from lrec.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, {"old": True})

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert path.read_text() == '{\n  "old": true\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_null_for_numbers_that_it_cannot_store(tmp_path: Path) -> None:
    write_json(tmp_path / "value.json", {"high": float("inf"), "losses": [float("nan"), 1.5]})
    assert read_json(tmp_path / "value.json") == {"high": None, "losses": [None, 1.5]}


@pytest.mark.parametrize(
    "error", [OSError(28, "in Python"), RuntimeError("in Rust (os error 28)"), OSError("(os error 28)")]
)
def test_a_full_disk_names_the_file_whichever_library_says_so(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left on device") as found, replacing(tmp_path / "value.json"):
        raise error
    assert (found.value.errno, found.value.filename) == (28, str(tmp_path / "value.json"))


def test_a_failed_folder_is_removed(tmp_path: Path) -> None:
    def fill_half() -> None:
        with replacing(tmp_path / "store") as temporary:
            temporary.mkdir()
            (temporary / "items.npy").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_half()
    assert list(tmp_path.iterdir()) == []


def test_a_child_that_inherits_the_lock_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    try_lock = (
        "import fcntl, sys; file = open(sys.argv[1], 'w')\n"
        "try: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError: sys.exit(3)"
    )

    def is_free() -> bool:
        return subprocess.run([sys.executable, "-c", try_lock, str(path)], check=False).returncode == 0

    with locked(path) as lock:
        child = subprocess.Popen(["sleep", "60"], pass_fds=[lock])
    assert not is_free()
    child.kill()
    child.wait()
    assert is_free()


def killed_while_writing(path: Path) -> None:
    code = (
        "import os, sys, pathlib, signal; from lrec.common.files import replacing\n"
        "with replacing(pathlib.Path(sys.argv[1])) as whole:\n"
        "    whole.mkdir() if sys.argv[1].endswith('store') else whole.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9


@pytest.mark.parametrize("name", ["model.onnx", "store"])
def test_what_a_killed_process_left_goes_with_the_next_write(name: str, tmp_path: Path) -> None:
    killed_while_writing(tmp_path / name)
    (left,) = tmp_path.iterdir()
    other = tmp_path / left.name.replace(name, f"other-{name}")
    elsewhere = tmp_path / left.name.replace(left.name.split(".")[-4], "another-machine")
    other.touch()
    elsewhere.touch()
    with replacing(tmp_path / name) as mine, replacing(tmp_path / name) as second:
        assert set(tmp_path.iterdir()) == {other, elsewhere}, "what lives is left alone"
        mine.write_text("whole")
        second.write_text("whole")
    assert set(tmp_path.iterdir()) == {other, elsewhere, tmp_path / name}


def test_a_lock_that_another_process_holds_is_not_waited_for(tmp_path: Path) -> None:
    with locked(tmp_path / "lock"), pytest.raises(UserError, match="taken"), locked(tmp_path / "lock", "taken"):
        pass


def test_a_forked_process_that_outlives_its_parent_s_lock_does_not_hold_it(tmp_path: Path) -> None:
    context = get_context("fork")
    begun = context.Event()
    worker = context.Process(target=lambda: (begun.set(), time.sleep(60)))
    with locked(tmp_path / "lock"):
        worker.start()
        assert begun.wait(30)
    try:
        with locked(tmp_path / "lock", "taken"):
            assert worker.is_alive()
    finally:
        worker.kill()


def test_json_with_the_marks_of_a_merge_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text("<<<<<<< HEAD\n{}\n")
    with pytest.raises(UserError, match=r"study\.json is damaged .*: restore or remove it"):
        read_json(tmp_path / "study.json")


def test_a_lock_has_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    umask = os.umask(0o002)
    try:
        with locked(tmp_path / ".lock"):
            assert (tmp_path / ".lock").stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(umask)


def test_hashes_do_not_depend_on_the_order_of_keys() -> None:
    assert json_hash({"a": 1, "b": [2]}) == json_hash({"b": [2], "a": 1}) != json_hash({"a": 1, "b": [3]})


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import lrec, lrec.cli", {"lightning", "torch", "polars"}),
        ("from lrec.cli import own_command; own_command(['scaling', 'fit'])", {"lightning", "torch"}),
        ("from lrec.cli import own_command; own_command(['data', 'describe'])", {"lightning", "torch"}),
    ],
)
def test_commands_that_do_not_train_start_fast(code: str, absent: set[str]) -> None:
    check = f"{code}; import sys; print({absent!r} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_threads_spin_briefly_unless_told_otherwise(given: dict[str, str], spins: str) -> None:
    code = "import os; from lrec.cli import main; main(['--version']); print(os.environ.get('GOMP_SPINCOUNT'))"
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    others = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", code], env=others | given, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == spins


def test_a_commit_is_that_of_the_repository_if_it_has_the_file(tmp_path: Path) -> None:
    assert commit_of(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").touch()
    for command in (["init"], ["add", "file"], ["commit", "-m", "first"]):
        subprocess.run([*git, *command], capture_output=True, check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert commit_of(tmp_path) == commit_of(tmp_path, "file") == head
    assert commit_of(tmp_path, "other") is None
