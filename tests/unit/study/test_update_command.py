"""What an update says about numbers that are one, which runs it refuses, and to what it appends rows."""

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from lrec.common.pages import rendered
from lrec.data.splits.temporal import GlobalTemporal
from lrec.errors import UserError
from lrec.options.objects import as_plain
from lrec.run import RunConfig
from lrec.study import update
from lrec.study.grid import changed
from lrec.study.update import trained_on


def test_an_optimizer_without_a_learning_rate_is_refused() -> None:
    own = {"class_path": "mine.Own", "init_args": {"rate": 0.1}}
    config = RunConfig({"model": {"optimizer": own}, "data": {"max_len": 10}, "trainer": {}})
    with pytest.raises(UserError, match=r"model\.optimizer has no lr"):
        trained_on(config, 0)


def page_of(**changes: Any) -> str:
    """The page of an update with one target."""
    model = {f"{figure}{part}": 0.5 for figure in ("loss", "HR@10") for part in ("", "_se")} | {"unknown": 1}
    record: dict[str, Any] = {
        "run": "run",
        "figures": ["loss", "HR@10"],
        "window": {"targets": 1, "users": 1, "from": "Monday", "until": "Tuesday"},
        "models": {"old": model},
        "minutes": {},
        "kept": "old",
        "serve": "run",
        "recipe": {"lr": 0.1, "replay": 0.1},
        "drift": dict.fromkeys(("unknown_items", "distance", "distance_by_chance", "loss_in_window"), 0.1)
        | {"rows": 1, "loss_before": None},
        "late_rows": 1,
        "diverged": [],
    }
    record["models"]["old"] |= changes
    record["drift"] |= {"loss_in_window": changes.get("loss", 0.1)}
    return rendered("study", "update.md.j2", record)


def test_one_is_singular() -> None:
    page = page_of()
    assert "Judged on 1 target of 1 user, from Monday" in page
    assert "Drift of 1 new row: 10.0% are" in page
    assert "count as old rows, or are dropped as duplicates: 1." in page


def test_a_loss_without_a_known_target_is_not_known() -> None:
    page = page_of(loss=math.nan, loss_se=math.nan)
    assert "| old | not known | 0.5000 ± 0.5000 |" in page
    assert "and not known in the window." in page


def run_of(folder: Path, **options: Any) -> tuple[Path, pl.DataFrame]:
    """The folder of a run with these options of data, as far as an update looks at it before it trains, and its log."""
    times = range(1_600_000_000, 1_600_000_080)
    users, items = [f"u{n % 8}" for n in range(80)], [f"i{n % 5}" for n in range(80)]
    log = pl.DataFrame({"user": users, "item": items, "timestamp": times})
    log = log.with_columns(kind=pl.when(pl.col("item") == "i1").then(pl.lit("a")).otherwise(pl.lit("b")))
    log.write_csv(folder / "log.csv")
    data = {"path": str(folder / "log.csv"), "data_dir": str(folder / "data"), "max_len": 5} | options
    config = {"data": {"class_path": "lrec.InteractionsDataModule", "init_args": data}, "model": {}, "trainer": {}}
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "checkpoints" / "best.ckpt").touch()
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    update.datamodule_of(config).prepare_data()
    return folder / "run", log


def test_new_rows_are_appended_to_the_rows_of_all_domains(tmp_path: Path) -> None:
    """The drift is that of the one domain: as many new rows as old ones, of the same item."""
    run, log = run_of(tmp_path, domain_column="kind", only_domain="a")
    base = update._base(run, False)
    assert base.store.items_N.shape == (log.height,)
    assert base.trained_until in log.filter(kind="a")["timestamp"]
    log.with_columns(pl.col("timestamp") + 100).write_csv(tmp_path / "new.csv")
    new = update._reader(base, tmp_path / "new.csv")
    split, _ = update._windows(base, new, 0.2)
    store = update._appended(base, new, changes := {"data.split": as_plain(split)})
    data = update.datamodule_of(changed(base.config.options, changes | {"data.store": str(store)}))
    data.setup()
    drift = update._drift(base.store, data.store, pl.Series(["i1"]))
    assert (drift["rows"], drift["unknown_items"], drift["distance"]) == (log.filter(kind="a").height, 0, 0)


def test_new_rows_without_a_target_are_refused_and_not_kept(tmp_path: Path) -> None:
    run, log = run_of(tmp_path, event_column="kind", target_events=["a"])
    log.with_columns(pl.col("timestamp") + 100, kind=pl.lit("b")).write_csv(tmp_path / "new.csv")
    base = update._base(run, False)
    new = update._reader(base, tmp_path / "new.csv")
    split, _ = update._windows(base, new, 0.2)
    before = {*(tmp_path / "data").iterdir()}
    with pytest.raises(UserError, match="no validation target is of these types"):
        update._appended(base, new, {"data.split": as_plain(split)})
    assert {*(tmp_path / "data").iterdir()} == before


@pytest.mark.parametrize(("by", "validated"), [("time", "window"), ("last_item", "all")])
def test_validation_has_sets_if_that_of_the_run_has(by: Any, validated: str, tmp_path: Path) -> None:
    """A metric such as recall@10, which exists for sets only, may choose the checkpoints of the run."""
    run, log = run_of(tmp_path, split=as_plain(GlobalTemporal(targets="window", validate_by=by)))
    log.with_columns(pl.col("timestamp") + 100).write_csv(tmp_path / "new.csv")
    base = update._base(run, False)
    split, _ = update._windows(base, update._reader(base, tmp_path / "new.csv"), 0.2)
    assert (split.targets, split.test_targets or split.targets) == (validated, "all")


def test_features_of_events_are_refused(tmp_path: Path) -> None:
    run, _ = run_of(tmp_path, event_features={"categories": ["item"]})
    with pytest.raises(UserError, match="reads features of events"):
        update._base(run, False)


@pytest.mark.parametrize(("name", "separator"), [("new.log", ","), ("new.tsv", "\t")])
def test_new_rows_have_the_format_of_their_name_or_else_that_of_the_run(
    name: str, separator: str, tmp_path: Path
) -> None:
    run, log = run_of(tmp_path, format="csv")
    log.write_csv(tmp_path / name, separator=separator)
    frames: Any = update._reader(update._base(run, False), tmp_path / name).read().frame
    assert sum(frame.height for frame in frames) == log.height


def test_the_store_of_a_run_is_enough_if_its_name_came_from_a_file_that_is_gone(tmp_path: Path) -> None:
    run, log = run_of(tmp_path)
    rows = log.select(userId="user", movieId="item", rating=1, timestamp="timestamp")
    rows.write_csv(file := tmp_path / "ratings.csv")
    config = yaml.safe_load((run / "config.yaml").read_text())
    options = {"path": str(file), "data_dir": str(tmp_path / "data"), "max_len": 5}
    config["data"] = {"class_path": "lrec.MovieLensDataModule", "init_args": options}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    data = update.datamodule_of(config)
    data.prepare_data()
    data.setup()
    (run / "points.jsonl").write_text(json.dumps({"data_hash": data.data_hash}) + "\n")
    file.unlink()
    assert update._base(run, False).store.path == data.store.path
