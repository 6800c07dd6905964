"""`lrec backtest`: from a log to a report, again after an interruption, and without looking into the future."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import pytest

from lrec.cli import main

pytestmark = pytest.mark.usefixtures("warm_processes")

DAY = 86_400
TINY = [
    "--sizes=[0.8k]",
    "--folds=2",
    "--every=7d",
    "--options.trainer.max_epochs=1",
    "--options.trainer.precision=32-true",
    "--options.data.targets_per_step=128",
    "--options.data.max_len=10",
]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    """60 days of walks along a circle of 20 items; every week the step grows by one item."""
    random, rows = np.random.default_rng(0), list[tuple[str, str, int]]()
    for user in range(120):
        time, item = 1_600_000_000 + int(random.integers(0, 20 * DAY)), int(random.integers(0, 20))
        while time < 1_600_000_000 + 60 * DAY:
            rows.append((f"u{user}", f"i{item:02}", time))
            time += int(random.exponential(3 * DAY)) + 1
            item = (item + 1 + (time - 1_600_000_000) // (7 * DAY)) % 20
    return pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").sort("time", maintain_order=True)


def backtest(folder: Path, rows: pl.DataFrame, *options: str) -> None:
    """Backtest the rows, in a folder of their own."""
    folder.mkdir(exist_ok=True)
    if not (folder / "log.csv").exists():
        rows.write_csv(folder / "log.csv")
    with contextlib.chdir(folder), patch.dict(os.environ):
        main(["backtest", "--data.path=log.csv", *TINY, *options])


@pytest.fixture(scope="module")
def tested(warm_processes: None, log: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole backtest."""
    folder = tmp_path_factory.mktemp("tested") / "whole"
    backtest(folder, log)
    return folder


def windows_of(folder: Path, run: str, of: str = "windows") -> pl.DataFrame:
    return pl.read_parquet(folder / "backtests" / "backtest" / "runs" / run / f"{of}.parquet")


@pytest.mark.slow
def test_a_backtest_says_what_age_and_updates_bring(
    tested: Path, refused: Callable[..., str], log: pl.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tested / "backtests" / "backtest"
    found = json.loads((out / "backtest.json").read_text())
    assert sorted(found["windows"]) == ["1", "2"]
    assert {row["update"] for row in found["updates"]} == {"none", "warm", "full"}
    assert "NDCG@10 markov" in (out / "report.md").read_text()
    assert "the best baseline is " in found["verdict"]
    assert "http" not in (out / "report.html").read_text().replace("http://www.w3.org", "")
    # Kept results are read again: nothing else is trained or tested anew.
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("*.parquet")}
    report = (out / "report.md").read_text()
    later = "[0.8k-warm-2-seed1,0.8k-full-2-seed1]"
    backtest(tested, log, f"--restart={later}")
    assert "What an update keeps" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in kept if "full-1" in str(path)} == {
        path: time for path, time in kept.items() if "full-1" in str(path)
    }
    again = json.loads((out / "backtest.json").read_text())
    for row in [*found["updates"], *again["updates"]]:
        row["seconds"] = row["cost"] = None  # they depend on the clock
    assert again == found
    assert (out / "report.md").read_text().splitlines()[:12] == report.splitlines()[:12]
    # The record has the points of a run whose folder is lost, but nothing to test.
    shutil.rmtree(out / "runs" / "0.8k-warm-2-seed1")
    with contextlib.chdir(tested):
        assert "--restart '[0.8k-warm-2-seed1]' trains it again" in refused("backtest", "--data.path=log.csv", *TINY)


@pytest.mark.slow
def test_recent_popularity_counts_the_share_that_was_asked_for(tested: Path, log: pl.DataFrame, tmp_path: Path) -> None:
    """Counted over all interactions instead of the last tenth, it ranks as popularity does."""
    whole, run = tmp_path / "whole", "0.8k-full-1-seed1"

    def ranks_as_popularity(folder: Path) -> bool:
        table = windows_of(folder, run, "baselines")
        recent, all_of_them = (table.filter(scorer=name)["rank"] for name in ("recent-popularity", "popularity"))
        return recent.equals(all_of_them)

    backtest(whole, log, "--update=[none]", "--data.recent_popularity=1.0")
    assert (ranks_as_popularity(tested), ranks_as_popularity(whole)) == (False, True)
    backtest(whole, log, "--update=[none]", f"--restart=[{run}]")
    assert not ranks_as_popularity(whole)


def test_other_windows_after_the_same_origin_are_tested_anew(log: pl.DataFrame, tmp_path: Path) -> None:
    run, figures = "0.8k-full-1-seed1", ["user", "step", "loss", "rank"]
    backtest(tmp_path, log, "--update=[none]", "--folds=3")
    third = windows_of(tmp_path, run).filter(window=3)
    backtest(tmp_path, log, "--update=[none]", "--every=14d", "--horizon=7d")
    assert windows_of(tmp_path, run).filter(window=2).select(figures).equals(third.select(figures))


def test_the_class_of_the_data_may_be_among_the_options(
    log: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options that are not given keep the values of the configuration, such as time_column; options of --data that are
    not used are named."""
    monkeypatch.chdir(tmp_path)
    log.write_csv("log.csv")
    given = {"data": {"class_path": "lrec.InteractionsDataModule", "init_args": {"path": "log.csv"}}}
    main(["backtest", "--sizes=[0.8k]", "--folds=2", f"--options={json.dumps(given)}", "--dry_run"])
    assert "0.8k-full-2-seed1" in capsys.readouterr().out
    main(["backtest", *TINY, "--data.path=other.csv", "--options.data.path=log.csv", "--dry_run"])
    assert "not used: --data.path other.csv, because of --options.data.path log.csv" in capsys.readouterr().out


@pytest.mark.slow
def test_the_future_changes_nothing(tested: Path, log: pl.DataFrame, tmp_path: Path) -> None:
    """Other items and users after the first window leave its networks and baselines as they are."""
    last = log["time"].max()
    later = log.filter(pl.col("time") > last - 7 * DAY)
    shuffled = later.with_columns(item=pl.col("item").shuffle(1))
    new = later.with_columns(user="a" + pl.col("user"), item="a" + pl.col("item"))
    other = pl.concat([log.filter(pl.col("time") <= last - 7 * DAY), shuffled, new])
    changed = tmp_path / "changed"
    backtest(changed, other, "--update=[none]")
    figures = ["scorer", "step", "loss", "rank", "rank_unseen"]
    networks = [windows_of(folder, "0.8k-full-1-seed1").select("window", *figures) for folder in (tested, changed)]
    counted = [windows_of(folder, "0.8k-full-1-seed1", "baselines") for folder in (tested, changed)]
    for mine, others in (networks, counted):
        first = [table.filter(window=1).select(figures).sort(figures) for table in (mine, others)]
        assert first[0].height > 50
        assert first[0].equals(first[1])
    later_windows = [table.filter(window=2) for table in networks]
    assert not later_windows[0].equals(later_windows[1])


@pytest.mark.slow
def test_training_begins_at_a_time(log: pl.DataFrame, tmp_path: Path) -> None:
    """Older interactions change no network."""
    begin = 1_600_000_000 + 25 * DAY
    old = pl.col("time") < begin
    other = log.with_columns(item=pl.when(old).then(pl.col("item").shuffle(1)).otherwise(pl.col("item")))
    for name, rows in (("one", log), ("two", other)):
        backtest(tmp_path / name, rows, "--update=[none]", f"--train_from={begin}", "--options.data.max_len=2")
    one, two = (
        json.loads(
            (tmp_path / name / "backtests" / "backtest" / "runs" / "0.8k-full-1-seed1" / "points.jsonl").read_text()
        )
        for name in ("one", "two")
    )
    assert one["train_loss"] == two["train_loss"]
    assert one["U"] < int((log["time"] >= begin).sum())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--folds=40"], "begin before the data"),
        (["--every=soon"], "is no duration"),
        (["--horizon=0d"], "is no duration"),
        (["--until=2021-01-01"], "has no interaction"),
        (["--train_from=2020-11-09"], "must lie before the first origin"),
        (["--options.data.k_core=5"], "a backtest needs data.k_core 0"),
        (["--data.time_column=null"], "a backtest needs times"),
        (["--options.data.split.targets=first"], "data.split.targets: a backtest sets data.split itself"),
        (["--train_from=2020-10-01", "--update=[none]", "--data.reduction.users=0.5"], "data.reduction.users 0.5: "),
        (["--data.reduction.recent=0.5"], "data.reduction.recent 0.5: --train_from and --update warm set"),
        (["--size_options={0.8k: {data.reduction.users: 0.25}}"], "data.reduction.users 0.25: "),
        (["--update=[cold]"], "--update"),
        (["--restart=[0.8k]"], "--restart: 0.8k is none of the backtest's runs"),
        (
            ["--options.trainer.accelerator=auto", "--cluster.timeout_min=5"],
            "seed1 has trainer.accelerator auto, which",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    options: list[str],
    said: str,
    log: pl.DataFrame,
    refused: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    log.write_csv("log.csv")
    assert said in refused("backtest", "--data.path=log.csv", *TINY, *options)
    assert not (tmp_path / "backtests").exists()


@pytest.mark.slow
def test_twenty_kills_change_nothing(log: pl.DataFrame, tmp_path: Path) -> None:
    """A backtest that is killed at random times, with all its processes, and restarted ends with the same result."""
    command = [sys.executable, "-m", "lrec", "backtest", "--data.path=log.csv", *TINY, "--update=[none,full]"]
    found, lasted = dict[str, Any](), 0.0
    for name in ("undisturbed", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        log.write_csv(folder / "log.csv")
        begun = time.monotonic()
        if name == "killed":
            random = np.random.default_rng(0)
            for _ in range(20):
                process = subprocess.Popen(command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(random.uniform(0.05, 1) * lasted)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        lasted = time.monotonic() - begun
        found[name] = json.loads((folder / "backtests" / "backtest" / "backtest.json").read_text())
        for row in found[name]["updates"]:
            del row["seconds"]
            row.pop("cost", None)
    assert found["killed"] == found["undisturbed"]
