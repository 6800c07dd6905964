"""Times as an input, from the raw file to the recommendations: each way of reading them learns what it can know."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest

import lrec as library
from lrec.errors import UserError

ITEMS, WEEK = 12, 7 * 86_400
BEGIN = 1_600_000_000


def log(path: Path, follows: str, unit: int = 1) -> Path:
    """After a short gap the next item follows, after a gap of a week the item after that. The gap that counts is the
    one before the last event (past) or after it (request)."""
    random = np.random.default_rng(0)
    lines = ["user,item,timestamp"]
    for user in range(300):
        item, time = int(random.integers(ITEMS)), BEGIN
        gaps = random.choice([60, WEEK], 12)
        for place, gap in enumerate(gaps):
            lines.append(f"u{user},i{item},{time * unit}")
            long = gaps[place - 1] == WEEK and place > 0 if follows == "past" else gap == WEEK
            item, time = (item + 1 + long) % ITEMS, time + int(gap)
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("logs")
    return {
        "past": log(folder / "past.csv", "past"),
        "request": log(folder / "request.csv", "request"),
        "milliseconds": log(folder / "milliseconds.csv", "past", 1000),
    }


@pytest.fixture(scope="module")
def trained(logs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains a run on a log with a way of reading times, each combination once."""
    from lrec.cli import main

    folder, made = tmp_path_factory.mktemp("runs"), {}

    def train(which: str, time: str, *options: str) -> Path:
        key = f"{which} {time} {' '.join(options)}"
        if key not in made:
            made[key] = folder / str(len(made))
            arguments = [
                "fit",
                "--config=data/csv.yaml",
                "--config=trainer/laptop.yaml",
                f"--data.path={logs[which]}",
                *(f"--data.{name}_column={column}" for name, column in COLUMNS.items()),
                f"--data.data_dir={folder / 'stores'}",
                "--data.max_len=12",
                "--data.targets_per_step=64",
                "--data.split.trajectory=4",
                "--data.split.trajectory_min_length=10",
                *("--model.layers=2", "--model.width=16", "--model.heads=1", "--model.size=null"),
                *("--model.optimizer.lr=0.03", "--model.optimizer.muon=null"),
                "--model.parametrisation=standard",
                "--model.optimizer.decay=cosine",
                "--trainer.max_epochs=14",
                "--trainer.check_val_every_n_epoch=14",
                "--trainer.enable_progress_bar=false",
                f"--trainer.default_root_dir={made[key]}",
                f"--model.architecture.time={time}",
                *options,
            ]
            main(arguments)
        return made[key]

    return train


COLUMNS = {"user": "user", "item": "item", "time": "timestamp"}
HSTU = (
    "--config=model/hstu.yaml",
    "--trainer.max_epochs=24",
    "--trainer.check_val_every_n_epoch=24",
)  # it learns more slowly


def best_loss(run: Path) -> float:
    return min(json.loads(line)["val_loss"] for line in (run / "points.jsonl").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), HSTU], ids=["softmax", "hstu"])
def test_past_gaps_are_learned_where_they_decide(trained: Callable[..., Path], options: tuple[str, ...]) -> None:
    assert best_loss(trained("past", "past", *options)) < 0.3 < 0.55 < best_loss(trained("past", "none"))


@pytest.mark.slow
def test_a_vector_for_the_gap_before_learns_it_too(trained: Callable[..., Path]) -> None:
    assert best_loss(trained("past", "input")) < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), HSTU], ids=["softmax", "hstu"])
def test_only_the_time_of_the_request_tells_what_depends_on_it(
    trained: Callable[..., Path], options: tuple[str, ...]
) -> None:
    assert best_loss(trained("request", "request", *options)) < 0.3


@pytest.mark.slow
def test_times_before_the_request_do_not_tell_what_depends_on_its_own(trained: Callable[..., Path]) -> None:
    assert best_loss(trained("request", "past")) > 0.55


@pytest.mark.slow
def test_the_unit_of_time_does_not_matter(trained: Callable[..., Path]) -> None:
    assert best_loss(trained("milliseconds", "past")) == best_loss(trained("past", "past"))


# Two events: with a single one, softmax would give it the weight 1, whatever its time.
HISTORY = pl.DataFrame({"user": ["a", "b"], "items": [["i1", "i3"]] * 2, "times": [[BEGIN - WEEK, BEGIN]] * 2})


def first(found: pl.DataFrame) -> list[str]:
    return [items[0] for items in found["items"].to_list()]


def test_now_decides_what_is_recommended(trained: Callable[..., Path]) -> None:
    model = library.load(trained("request", "request"))
    assert first(model.recommend(HISTORY, now=BEGIN + 60)) == ["i4", "i4"]
    assert first(model.recommend(HISTORY, now=BEGIN + WEEK)) == ["i5", "i5"]
    for now in ("2020-09-20T12:26:40", np.datetime64("2020-09-20T12:26:40"), pd.Timestamp("2020-09-20T12:26:40")):
        assert first(model.recommend(HISTORY, now=now)) == ["i5", "i5"]
    milliseconds = HISTORY.with_columns(pl.col("times") * 1000)
    assert first(model.recommend(milliseconds, now=(BEGIN + WEEK) * 1000)) == ["i5", "i5"]
    rows = pl.DataFrame({"user": ["a", "a"], "item": ["i2", "i3"], "time": [BEGIN - 60, BEGIN]})
    assert first(model.recommend(rows, now=BEGIN + WEEK)) == ["i5"]
    unknown = pl.DataFrame({"items": [["i2", "?", "i3", "?"], []], "times": [[BEGIN - 60, 5, BEGIN, BEGIN + 1], []]})
    assert first(model.recommend(unknown, now=BEGIN + WEEK, fallback=False).head(1)) == ["i5"]


def test_a_network_that_reads_no_times_does_not_look_at_them(trained: Callable[..., Path]) -> None:
    model = library.load(trained("past", "none"))
    odd = HISTORY.with_columns(times=pl.lit("whenever"))
    assert model.recommend(odd).equals(model.recommend(HISTORY.drop("times")))


def test_past_gaps_decide_what_is_recommended(trained: Callable[..., Path]) -> None:
    model = library.load(trained("past", "past"))
    histories = pl.DataFrame({"items": [["i2", "i3"], ["i2", "i3"]], "times": [[0, 60], [0, WEEK]]})
    assert first(model.recommend(histories)) == ["i4", "i5"]


@pytest.mark.parametrize(
    ("time", "histories", "now", "says"),
    [
        ("request", HISTORY, None, "reads the time of the request .*: give now"),
        ("request", HISTORY, pd.NaT, "now: NaT is neither"),
        ("request", HISTORY, BEGIN - 1, "now is before an event of user a: give a later now"),
        ("past", HISTORY, 5, "now is only for networks that read the time of the request"),
        ("past", HISTORY.drop("times"), None, "histories need a column times, or time"),
        ("past", HISTORY.with_columns(times=pl.lit([1])), None, "times has not as many entries as items"),
        ("past", HISTORY.with_columns(times=5), None, "times has not as many entries as items"),
        ("past", HISTORY.with_columns(times=pl.lit(["soon", "2020-01-01"])), None, "histories: times: soon is neither"),
    ],
)
def test_times_that_are_missing_or_wrong_are_refused(
    trained: Callable[..., Path], time: str, histories: pl.DataFrame, now: object, says: str
) -> None:
    model = library.load(trained(time, time))
    with pytest.raises(UserError, match=says):
        model.recommend(histories, now=now)


def test_the_command_recommends_from_files_with_times(
    trained: Callable[..., Path],
    logs: dict[str, Path],
    tmp_path: Path,
    lrec: Callable[..., str],
    refused: Callable[..., str],
) -> None:
    run = trained("request", "request")
    (tmp_path / "h.jsonl").write_text(HISTORY.write_ndjson())
    arguments = ["recommend", f"--ckpt_path={run}", f"--histories={tmp_path}/h.jsonl", f"--out={tmp_path}/o.jsonl"]
    lrec(*arguments, f"--now={BEGIN + WEEK}")
    assert first(pl.read_ndjson(tmp_path / "o.jsonl")) == ["i5", "i5"]
    (tmp_path / "h.jsonl").write_text("not read\n")
    assert "give now" in refused(*arguments)
    arguments[2] = f"--histories={logs['request']}"
    lrec(*arguments, "--now=2021-01-01", "--exclude_seen=false")
    found = pl.read_ndjson(tmp_path / "o.jsonl")
    last = pl.read_csv(logs["request"]).group_by("user", maintain_order=True).last()
    after = dict(zip(found["user"], first(found), strict=True))
    follows = [after[user] == f"i{(int(item[1:]) + 2) % ITEMS}" for user, item, _ in last.iter_rows()]
    assert np.mean(follows) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "time", "options"),
    [("past", "past", ()), ("past", "input", ()), ("request", "request", HSTU), ("request", "request", ())],
)
def test_exported_networks_read_times(
    trained: Callable[..., Path],
    tmp_path: Path,
    lrec: Callable[..., str],
    which: str,
    time: str,
    options: tuple[str, ...],
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    run = trained(which, time, *options)
    lrec("export", f"--ckpt_path={run}", f"--out={tmp_path}/model.onnx")
    lrec("export", f"--ckpt_path={run}", f"--out={tmp_path}/model.safetensors")
    model, now = library.load(tmp_path / "model.safetensors"), BEGIN + WEEK
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    times = np.array([[BEGIN - 70, BEGIN, now, 0], [BEGIN, now, 0, 0]])
    items = model.index(pl.Series(["i1", "i3", "i0", "i3", "i0", "i0"])).reshape(2, 3)
    scores, listed, _ = session.run(None, {"items": items, "lengths": np.array([2, 1]), "times": times})
    histories = pl.DataFrame({"items": [["i1", "i3"], ["i3"]], "times": [[BEGIN - 70, BEGIN], [BEGIN]]})
    found = model.recommend(histories, now=now if time == "request" else None)
    assert [model.item_ids[int(row[0])] for row in listed] == first(found)
    assert np.take_along_axis(scores, listed[:, :1], 1)[:, 0] == pytest.approx(
        [scores[0] for scores in found["scores"].to_list()], abs=1e-4
    )


def test_tasks_read_times(trained: Callable[..., Path], tmp_path: Path, lrec: Callable[..., str]) -> None:
    run = trained("request", "request")
    lrec("tasks", f"--runs={run}", "--tasks=trajectory,robustness", f"--out={tmp_path}")
    sections = json.loads((tmp_path / "tasks.json").read_text())["tasks"]["robustness"]["sections"]
    clean = sections[0]["groups"]["clean"]["scorers"]["2x16"]
    tested = json.loads((run / "metrics.json").read_text())["model"]
    for metric in ("loss", "NDCG@10", "HR@1"):
        assert clean[metric]["value"] == pytest.approx(tested[metric], abs=1e-5)


def test_what_does_not_know_the_time_is_refused(
    trained: Callable[..., Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = trained("request", "request")
    assert "predict does not know when users will ask" in refused(
        "predict", f"--config={run / 'config.yaml'}", f"--ckpt_path={run}/checkpoints/best.ckpt"
    )
    config = [f"--config={run / 'config.yaml'}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    assert "the data have no times (--data.time_column)" in refused("fit", *config, "--data.time_column=null")
    assert "architecture.time" in refused("fit", *config, "--model.architecture.time=sometimes")
    assert not (tmp_path / "run").exists()
