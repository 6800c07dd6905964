"""`lrec update`: what it appends, trains, judges and keeps; what it refuses; and that kills leave no trace."""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from fit_arguments import fit_arguments

import lrec as package
from lrec.checkpoint.reading import read
from lrec.cli import main
from lrec.data.datasets import datamodule_of
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.store.store import Store
from lrec.run import Run
from lrec.study import update
from lrec.study.update import judged
from snapshot import snapshot

pytestmark = pytest.mark.usefixtures("warm_processes")


def log(users: range, items: range, start: int) -> pl.DataFrame:
    """Histories in which an item is mostly followed by the next one, in order of time."""
    chance, rows = random.Random(start), []
    for user in users:
        item = chance.choice(items)
        for step in range(8):
            rows.append((f"u{user}", f"i{item}", start + 3600 * step + user, "buy" if step % 3 else "view"))
            item = items[(item - items[0] + 1) % len(items)] if chance.random() < 0.8 else chance.choice(items)
    return pl.DataFrame(rows, schema=["user", "item", "timestamp", "done"], orient="row").sort("timestamp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a log, and two later logs with users and items of their own."""
    folder = tmp_path_factory.mktemp("update")
    parts = {"old": (range(120), range(20)), "new": (range(60, 180), range(3, 24)), "newer": (range(200), range(30))}
    for place, (name, (users, items)) in enumerate(parts.items()):
        log(users, items, 1_600_000_000 + 10**6 * place).drop("done").write_csv(folder / f"{name}.csv")
    options = {"trainer__max_epochs": 3, "model__size": "0.8k", "trainer__precision": "32-true"}
    main(fit_arguments(folder / "run", folder / "old.csv", **options))
    return folder


@pytest.fixture
def desk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, which a test may change."""
    shutil.copytree(folder, tmp_path / "desk", symlinks=True)
    (tmp_path / "desk" / "run" / "config.yaml").write_text(
        (folder / "run" / "config.yaml").read_text().replace(str(folder), str(tmp_path / "desk"))
    )
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


def record(out: str) -> dict[str, Any]:
    return json.loads(Path(out, "update.json").read_text())


@pytest.mark.slow
def test_updates_follow_each_other(desk: Path, lrec: Callable[..., str], refused: Callable[..., str]) -> None:
    command = ("update", "run", "--data", "new.csv", "--out", "day1", "--full", "true")
    printed = lrec(*command)
    first = record("day1")
    assert set(first["models"]) == {"old", "updated", "full", "popularity"}
    assert first["kept"] in ("updated", "full")
    assert f"Kept: {first['kept']}, {desk / 'day1' / first['kept']}." in printed
    assert package.load("day1").about == package.load(first["serve"]).about
    figures = {name: each["NDCG@10"] for name, each in first["models"].items()}
    assert figures[first["kept"]] == max(figures[name] for name in ("old", "updated", "full"))
    assert first["models"]["old"]["unknown"] > 0
    assert first["drift"]["rows"] == 960
    assert 0 < first["drift"]["unknown_items"] < 0.3

    # The windows are the newest of the new rows; nothing trains on them.
    times = pl.read_csv("new.csv")["timestamp"].sort()
    assert first["split"]["validate_from"] == times[int(0.7 * 960)]
    assert first["split"]["test_from"] == times[int(0.8 * 960)]
    data = datamodule_of(Run(Path("day1/updated")).config.options)
    data.setup("fit")
    part = data.batch_plan.part
    trained = [slice(start, start + length) for start, length in zip(part.starts_U, part.lengths_U, strict=True)]
    latest = max(data.store.times_N[rows].max() for rows in trained if rows.stop > rows.start)
    assert latest < first["split"]["validate_from"]

    # The store equals one built from all rows at once.
    pl.concat([pl.read_csv("old.csv"), pl.read_csv("new.csv")]).write_csv("all.csv")
    whole = InteractionsDataModule(Path("all.csv"), data_dir=Path("whole"))
    whole.prepare_data()
    for file in whole.store_path.glob("*.[np]*"):
        assert file.read_bytes() == Path(first["store"], file.name).read_bytes()

    assert lrec(*command) == printed
    assert "holds another update" in refused(*command, "--steps", "5")
    Path("run/checkpoints/best.ckpt").write_bytes(Path("day1/updated/checkpoints/best.ckpt").read_bytes())
    assert "holds another update" in refused(*command), "the run was trained again"

    lrec("update", "day1", "--data", "newer.csv", "--out", "day2", "--steps", "5", "--replay", "1")
    second = record("day2")
    assert second["split"]["validate_from"] > first["split"]["test_from"]
    assert Run(Path("day2/updated")).points[-1].step == 5
    assert Run(Path("day2/updated")).config.value("data.reduction.since") == first["split"]["validate_from"]
    assert Run(Path("day2/updated")).config.value("model.optimizer.lr") == 0.002  # a quarter of the first run's
    assert "name the folder of this update" in refused("update", "day1/updated", "--data", "newer.csv")


@pytest.mark.parametrize("lr", [0.5, pytest.param(1e30, marks=pytest.mark.slow)])
def test_a_worse_model_is_not_kept(lr: float, desk: Path, lrec: Callable[..., str]) -> None:
    Path("current").symlink_to("run")
    lrec("update", "current", "--data", "new.csv", "--lr", lr, "--steps", "30")
    found = record("current-updated")
    assert found["kept"] == "old"
    assert found["serve"] == str(desk / "run"), "and not the link, which may soon name another folder"
    if lr > 1:
        assert found["diverged"] == ["updated"]
    else:
        assert found["models"]["updated"]["difference"] < 0
    assert Store.open(Path(found["store"])).statistics["interactions"] == 1920


@pytest.mark.parametrize("command", ["copytree", "move"])
def test_a_moved_or_copied_update_serves_its_own_model(command: str, desk: Path) -> None:
    shutil.move("run", "day1/updated")
    Path("day1/update.json").write_text(json.dumps({"kept": "updated", "serve": str(desk / "day1" / "updated")}))
    getattr(shutil, command)("day1", "elsewhere")
    shutil.rmtree("day1", ignore_errors=True)
    assert package.load("elsewhere").about["step"] > 0


def test_a_model_is_judged_as_lrec_test_judges_it(desk: Path) -> None:
    run = Run(Path("run"))
    data = datamodule_of(run.config.options)
    data.setup("test")
    frame = judged(package.load("run"), data.cuts, data.cuts.test_targets)
    expected = json.loads(Path("run/metrics.json").read_text())["model"]
    for name in ("loss", "HR@10", "NDCG@10"):
        assert np.isclose(frame[name].mean(), expected[name], rtol=1e-5)


def test_new_types_of_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lrec: Callable[..., str]) -> None:
    monkeypatch.chdir(tmp_path)
    log(range(80), range(20), 1_600_000_000).write_csv("old.csv")
    new = log(range(40, 120), range(22), 1_601_000_000)
    new.with_columns(pl.col("done").replace("view", "add")).write_csv("new.csv")
    options = {"data__event_column": "done", "model__size": "0.8k", "trainer__max_epochs": 1}
    lrec(*fit_arguments(tmp_path / "run", tmp_path / "old.csv", **options))
    lrec("update", "run", "--data", "new.csv")
    assert Store.open(Path(record("run-updated")["store"])).event_types == ["add", "buy", "view"]
    assert len(package.load("run-updated/updated").net.events.weight) == 3


@pytest.mark.parametrize("of", ["data.item_features", pytest.param("model.item_vectors", marks=pytest.mark.slow)])
def test_rows_that_began_with_vectors(of: str, desk: Path, lrec: Callable[..., str]) -> None:
    """The features and vectors set only the first rows of the run: those of its update are trained rows."""
    items = pl.DataFrame({"item": [f"i{n}" for n in range(20)]}).with_row_index("kind")
    items.with_columns(vector=pl.concat_list(pl.col("kind") % 4, 1.0)).write_parquet("items.parquet")
    value = {"data.item_features": "{numbers: [kind], id_column: item, path: items.parquet}"}.get(of, "items.parquet")
    options = {"model__item_vectors_use": "initial", "model__size": "0.8k", "trainer__max_epochs": 1}
    lrec(*fit_arguments(desk / "first", desk / "old.csv", **options), f"--{of}={value}")
    lrec("update", "first", "--data", "new.csv", "--steps", 1)
    assert record("first-updated")["diverged"] == []


NEW = pl.DataFrame({"user": ["u1"] * 40, "item": ["i1", "i2"] * 20, "timestamp": range(1_700_000_000, 1_700_000_040)})
REFUSED: dict[str, tuple[pl.DataFrame, list[str], str]] = {
    "another column": (NEW.rename({"item": "thing"}), [], "no column item"),
    "no rows": (NEW.clear(), [], "no rows"),
    "no times": (NEW.with_columns(timestamp=pl.lit("soon")), [], "soon"),
    "another unit": (NEW.with_columns(pl.col("timestamp") * 1000), [], "times of more.csv are in ms: give them in s"),
    "old rows": (NEW.with_columns(pl.col("timestamp") - 10**8), [], "0 of 40 rows are newer"),
    "rows of one time": (NEW.with_columns(timestamp=pl.lit(1_700_000_000)), [], "or too many have the same time"),
    "the store's rows again": (pl.DataFrame(), [], "has all of its rows already"),
    "no run": (NEW, ["none"], "no run there"),
    "a folder in use": (NEW, ["run", "--out", "stores"], "holds another update"),
    "a rate of nothing": (NEW, ["run", "--lr", "0"], "--lr"),
    "a window of everything": (NEW, ["run", "--judge", "0.9"], "--judge"),
    "a row a user": (NEW.with_columns(user=pl.format("n{}", "timestamp")), [], "earlier interaction of its user. Take"),
    "no file": (NEW, ["run", "--data", "none.csv"], "does not exist"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_changes_nothing(name: str, desk: Path, refused: Callable[..., str]) -> None:
    new, options, says = REFUSED[name]
    (new if new.width else pl.read_csv("old.csv")).write_csv("more.csv")
    before = snapshot(desk)
    assert says in refused("update", *(options or ["run"]), *([] if "--data" in options else ["--data", "more.csv"]))
    assert snapshot(desk) == before


def test_a_damaged_base_is_refused_before_anything_is_written(desk: Path, refused: Callable[..., str]) -> None:
    checkpoint = desk / "run" / "checkpoints" / "best.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    before = snapshot(desk)
    assert "best.ckpt: not a checkpoint that lrec wrote, or a damaged one" in refused("update", "run", "--data=new.csv")
    assert snapshot(desk) == before


@pytest.mark.parametrize("log_of_run", [pytest.param("grown", marks=pytest.mark.slow), "gone"])
def test_the_store_of_a_run_is_enough(
    log_of_run: str, desk: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    """A log grows, or moves away, but the store that was made of it stays."""
    pl.concat([pl.read_csv("old.csv"), pl.read_csv("new.csv")]).write_csv("all.csv")
    rows = "all.csv" if log_of_run == "grown" else "new.csv"
    lrec("update", "run", "--data", rows, "--out", "expected")
    if log_of_run == "grown":
        shutil.copy("all.csv", "old.csv")
        lrec("data", "prepare", "--config", "run/config.yaml")
    else:
        Path("old.csv").unlink()
    lrec("update", "run", "--data", rows, "--out", "found")
    expected, found = record("expected"), record("found")
    assert [found[name] for name in ("models", "late_rows")] == [expected[name] for name in ("models", "late_rows")]
    shutil.rmtree(Path(datamodule_of(Run(desk / "run").config.options).data_dir))
    says = "does not exist" if log_of_run == "gone" else "not a store"
    assert says in refused("update", "run", "--data", "newer.csv")


def test_an_update_without_new_rows_asks_for_them(refused: Callable[..., str]) -> None:
    for given in ([], ["run"]):
        assert "name a run and its new rows: lrec update RUN --data FILE" in refused("update", *given)


def test_a_k_core_is_refused(desk: Path, lrec: Callable[..., str], refused: Callable[..., str]) -> None:
    options = {"data__k_core": 2, "model__size": "0.8k", "trainer__max_epochs": 1}
    lrec(*fit_arguments(desk / "core", desk / "old.csv", **options))
    before = snapshot(desk)
    assert "k_core 2" in refused("update", "core", "--data", "new.csv")
    assert snapshot(desk) == before


def outcome(desk: Path) -> dict[str, Any]:
    """What an update leaves, except clocks."""
    found = {name: value for name, value in record("out").items() if name != "minutes"}
    weights = read(desk / "out" / "updated" / "checkpoints" / "best.ckpt")["state_dict"]
    files = {path.name: path.read_bytes() for path in Path(found["store"]).glob("*.[np]*")}
    names = sorted(str(path.relative_to(desk)) for path in desk.rglob("*") if "tfevents" not in path.name)
    return {
        "record": found,
        "weights": {name: w.tolist() for name, w in weights.items()},
        "files": files,
        "names": names,
    }


COMMAND = ["update", "run", "--data", "new.csv", "--out", "out", "--replay", "1"]


@pytest.mark.slow
def test_an_update_that_ends_at_any_stage_goes_on(
    desk: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = set(desk.rglob("*"))
    lrec(*COMMAND)
    expected = outcome(desk)
    clear(desk, fresh)

    class Killed(BaseException):
        pass

    for stage in ("append_to", "_appended", "carry_out", "_judge", "rendered", "write_text"):
        for after in (False, True):
            whole = getattr(update, stage)

            def ends(*arguments: Any, whole: Any = whole, after: bool = after) -> None:
                if after:
                    whole(*arguments)
                raise Killed

            with monkeypatch.context() as patched:
                patched.setattr(update, stage, ends)
                with pytest.raises(Killed):
                    lrec(*COMMAND)
    lrec(*COMMAND)
    assert outcome(desk) == expected


@pytest.mark.slow
def test_kills_leave_no_trace(desk: Path) -> None:
    command = [sys.executable, "-m", "lrec", *COMMAND]
    fresh = set(desk.rglob("*"))
    began = time.monotonic()
    subprocess.run(command, check=True)
    duration, expected = time.monotonic() - began, outcome(desk)
    chance = random.Random(0)
    clear(desk, fresh)
    killed = 0
    while killed < 20:
        process = subprocess.Popen(command)
        try:
            assert process.wait(timeout=chance.uniform(0, duration)) == 0
            assert outcome(desk) == expected
            clear(desk, fresh)
        except subprocess.TimeoutExpired:
            process.kill()  # its training lives on, and the next update waits for it
            process.wait()
            killed += 1
    subprocess.run(command, check=True)
    assert outcome(desk) == expected


def clear(desk: Path, fresh: set[Path]) -> None:
    """Remove all paths that are not in `fresh`."""
    for path in sorted(desk.rglob("*"), reverse=True):
        if path not in fresh:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


OF_UPDATE = {"kept": "updated", "serve": "run", "store": "stores", "trained_until": 1}


@pytest.mark.parametrize(
    "content",
    [
        *([1], {"kept": "old"}, OF_UPDATE | {"options": {}}, OF_UPDATE | {"options": None}),
        *(OF_UPDATE | {"options": {"data": None, "model": {}}}, OF_UPDATE | {"options": {}, "trained_until": None}),
    ],
)
def test_results_of_another_shape_are_refused(content: object, desk: Path, refused: Callable[..., str]) -> None:
    Path("run/update.json").write_text(json.dumps(content))
    assert "update.json is damaged" in refused("update", "run", "--data", "new.csv")
