"""Every mistake ends in one line that names it, exit code 2, and nothing half-written."""

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FIT = ["fit", "--data=lrec.SyntheticDataModule", "--model.size=98k"]


def prepare(path: Path, data_dir: Path, **columns: str) -> list[str]:
    names = {"user": "who", "item": "what", "time": "when"} | columns
    return [
        "data",
        "prepare",
        "--data=lrec.InteractionsDataModule",
        f"--data.path={path}",
        f"--data.data_dir={data_dir}",
        *(f"--data.{name}_column={column}" for name, column in names.items()),
    ]


def stores(data_dir: Path) -> list[Path]:
    return list(data_dir.rglob("meta.json"))


def test_missing_file(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "nowhere.csv" in refused(*prepare(tmp_path / "nowhere.csv", tmp_path / "data"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("who,what,when\n", "no "),
        ("who,thing,when\na,b,1\n", "what"),
        ("who,what,when\na,b,1\na,c,\na,d,3\n", "row 3"),
        ("who,what,when\na,b,1\na,c,soon\na,d,3\n", "row 3"),
        ("who,what,when\na,b,1\n,c,2\na,d,3\n", "row 3"),
    ],
)
def test_bad_rows(text: str, says: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    error = refused(*prepare(path, tmp_path / "data"))
    assert "log.csv" in error
    assert says in error
    assert not stores(tmp_path / "data")


def test_an_option_below_one_that_is_a_single_value(refused: Callable[..., str]) -> None:
    says = "lrec: error: --data is one value and has no options: --data VALUE"
    assert refused("update", "runs/a", "--data.path=log.csv") == says


@pytest.mark.parametrize(("items", "says"), [("ab", "at least 3 interactions"), ("abc", "no training target")])
def test_histories_too_short(items: str, says: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "log.csv"
    rows = [f"u{user},{item},{time}" for user in range(5) for time, item in enumerate(items)]
    path.write_text("\n".join(["who,what,when", *rows]))
    fit = ["fit", *prepare(path, tmp_path / "data")[2:], "--model.size=0.8k", "--config=trainer/laptop.yaml"]
    assert says in refused(*fit, f"--trainer.default_root_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("users", [1, 40])
def test_no_validation_target_in_the_catalogue(users: int, tmp_path: Path, refused: Callable[..., str]) -> None:
    """Each user's last two items belong to no other user, so there is no validation loss: an error, not divergence."""
    path = tmp_path / "log.csv"
    rows = [
        f"u{user},{item if item < 5 else f'{user}-{item}'},{time}"
        for user in range(users)
        for time, item in enumerate(range(7))
    ]
    path.write_text("\n".join(["who,what,when", *rows]))
    fit = ["fit", *prepare(path, tmp_path / "data")[2:], "--model.size=0.8k", "--config=trainer/laptop.yaml"]
    error = refused(*fit, f"--trainer.default_root_dir={tmp_path / 'run'}")
    assert f"none of the {users} validation targets is an item of the training part" in error
    assert not (tmp_path / "run").exists()


BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (bytes(range(256)) * 50, "is no text file, and so no configuration"),
        (b"data: \x01\n", "is no YAML"),
        (b"data: [\n", "is no YAML"),
        (b"trainer: &t {max_epochs: 1, more: *t}\n", "row 1: a value contains itself"),
        (b"data: &a [&b [*a]]\n", "row 1: a value contains itself"),
        (BOMB.encode(), "its aliases stand for more than 100,000 values"),
        (b"trainer:\n  max_epochs: !lots 3\n", "row 2: the tag !lots is not allowed"),
        (
            b"data: !!python/object/apply:os.getcwd []\n",
            "row 1: the tag tag:yaml.org,2002:python/object/apply:os.getcwd",
        ),
        (b"[" * 2000, "its values are nested too deeply"),
    ],
    ids=["binary", "control", "cut off", "itself", "itself in a list", "bomb", "tag", "python tag", "deep"],
)
@pytest.mark.parametrize("command", [["fit"], ["data", "prepare"], ["scaling", "study"]], ids=["fit", "own", "study"])
def test_what_is_no_configuration(
    command: list[str], data: bytes, says: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(data)
    assert f"{path}" in (error := refused(*command, f"--config={path}"))
    assert says in error


@pytest.mark.parametrize("given", ["--config=log.csv", "--data=log.csv", "--data log.csv"])
@pytest.mark.parametrize("command", [["fit"], ["data", "prepare"]], ids=["fit", "own"])
def test_a_log_is_no_configuration(
    command: list[str], given: str, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """YAML would read a log for minutes, and the error would have all of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.csv").write_text("user,item,time\n" * 100_000)
    error = refused(*command, *given.split())
    assert error.endswith(
        "log.csv is no configuration, whose name ends in .yaml: to read a log, write "
        "--config data/csv.yaml --data.path log.csv"
    )


def test_a_stored_configuration_that_contains_itself(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.ckpt").touch()
    for text in ("data: &d {a: *d}\nmodel: {}\n", BOMB + "data: {}\nmodel: {}\n"):
        (tmp_path / "config.yaml").write_text(text)
        error = refused("tasks", "--runs", tmp_path, "--out", tmp_path / "out")
        assert "config.yaml is not the configuration of a run of lrec fit" in error


def test_truncated_gzip(log_csv: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "log.csv.gz"
    whole = gzip.compress(log_csv.read_bytes())
    path.write_bytes(whole[: len(whole) // 2])
    assert "log.csv.gz" in refused(*prepare(path, tmp_path / "data"))
    assert not stores(tmp_path / "data")


def test_a_store_that_was_cut_or_edited(
    log_csv: Path, tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    lrec(*prepare(log_csv, tmp_path / "data"))
    (meta,) = stores(tmp_path / "data")
    store = meta.parent
    assert "300" in lrec("data", "describe", store)
    array = max(
        (path for path in store.iterdir() if path.suffix == ".npy" or path.suffix == ".bin"),
        key=lambda p: p.stat().st_size,
    )
    whole = array.read_bytes()
    array.write_bytes(whole[:-8])
    assert array.name in refused("data", "describe", store)
    array.write_bytes(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])
    assert array.name in refused("data", "describe", store)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fit", "--config=nowhere.yaml"], "nowhere.yaml"),
        (["fit", "--data=lrec.SyntheticDataModule", "--model.size=99k"], "unknown size '99k'"),
        (["fit", "--data=lrec.SyntheticDataModule", "--model.siez=98k"], "siez"),
        (["fit", "--data=lrec.SyntheticDataModule", "--model.size=98k", "--model.layers=2"], "not both"),
        (["fit", "--data=lrec.SyntheticDataModule"], "model.size"),
        (["fit", "--config=model/98k.yaml"], "configs/data/csv.yaml"),
        (["fit", "--data.path=log.csv"], "configs/data/csv.yaml"),
        (["data", "prepare"], "configs/data/csv.yaml"),
        (["fit", "--data=lrec.NoSuchDataModule", "--model.size=98k"], "NoSuchDataModule"),
        (["fit", "--data=lrec.SyntheticDataModule", "--model.size=98k", "--ckpt_path=no.ckpt"], "no.ckpt"),
        (
            [*FIT, "--data.targets_per_step=3"],
            "targets_per_step",
        ),
        ([*FIT, "--model.dropout.residual.first=2"], "dropout.residual.first"),
        ([*FIT, "--model.loss=null"], "--model.loss"),
        ([*FIT, "--model.parametrisation=null"], "--model.parametrisation"),
        ([*FIT, "--data.split=null"], "--data.split"),
        (
            [*FIT, "--model.loss=lrec.Loss"],
            "--model.loss: lrec.Loss is abstract: your class must define every abstract",
        ),
        ([*FIT, "--trainer.devices=0"], "devices"),
        (
            [*FIT, "--checkpoint.monitor=val/NDGC@10"],
            "val/NDCG@10",
        ),
        (["fut"], "fut"),
        (["scaling", "fit"], "points"),
        (["scaling", "fit", "points.csv"], "points.csv: a value needs the name of its option before it"),
        ([*FIT, "log.csv"], "log.csv: a value needs the name of its option before it"),
        (["scaling", "fit", "--bogus=3", "--points=x"], "unrecognized arguments: --bogus=3"),
        (["scaling", "fit", "--points", "nowhere.jsonl"], "nowhere.jsonl"),
        (["data", "describe", "nowhere"], "nowhere"),
        (["scaling", "study", "--name=x", "--configs=[data/synthetic.yaml]", "--sizes=[3k,6.9k,12k]"], "at least 4"),
        (["scaling", "study", "--config=study/quickstart.yaml", "--sizes=[3k,6.9k,12k,25k,55k,99k]"], "99k"),
        (["scaling", "study", "--config=study/quickstart.yaml", "--jbos=2"], "jbos"),
        (["scaling", "study", "--config=study/quickstart.yaml", '--options={"model.siez": 1}'], "siez"),
    ],
)
def test_options(
    arguments: list[str], says: str, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refused(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_key_in_a_yaml(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text("trainer:\n  max_epohcs: 3\n")
    error = refused("fit", f"--config={path}", "--data=lrec.SyntheticDataModule", "--model.size=98k")
    assert "max_epohcs" in error


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("model: {dropout: {residual: 0.1}}", "--model.dropout.residual: 0.1"),
        ("model: {dropout: 0.1}", "--model.dropout: 0.1"),
        ("data: {reduction: 0.5}", "--data.reduction: 0.5"),
        ("model: {size: 98k}\ntrainer:", "--trainer: null"),
        ("model: {size: 98k}\ncheckpoint:", "--checkpoint: null"),
    ],
)
def test_a_value_in_place_of_a_group_of_options(
    text: str, option: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = tmp_path / "value.yaml"
    path.write_text(text)
    error = refused("fit", "--data=lrec.SyntheticDataModule", f"--config={path}", "--trainer.max_epochs=1")
    assert f"{option} is no mapping of options" in error


def test_too_few_points(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "points.csv"
    path.write_text("N_body,test_loss\n1000,6\n2000,5.8\n4000,5.7\n")
    error = refused("scaling", "fit", "--points", path, "--holdout=0", f"--out={tmp_path / 'fit'}")
    assert "at least 4 distinct sizes, but there are 3" in error
    assert not (tmp_path / "fit").exists()


def test_output_that_nobody_reads_ends_in_one_line() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "lrec", "--help"]
    found = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (found.returncode, found.stderr) == (2, "lrec: error: the program that reads the output has ended\n")
