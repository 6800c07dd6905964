"""A run's folder: everything is read back as it was written, and invalid files are refused in one line."""

import json
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrec.errors import UserError
from lrec.run import Point, Run, RunConfig, find_runs, read_points_file

LOSSES = st.none() | st.floats(allow_nan=False, allow_infinity=False)
POINTS = st.builds(
    Point,
    run=st.text(),
    N_body=st.integers(0, 2**60),
    D=st.integers(0, 2**60),
    val_loss=LOSSES,
    test_loss_se=LOSSES,
    metrics=st.dictionaries(st.text(), LOSSES),
    best=st.booleans(),
    floor=st.none() | st.dictionaries(st.sampled_from(["val", "test"]), st.floats(0, 10)),
    commit=st.none() | st.text(),
)

OPTIONS = {
    "seed_everything": 3,
    "model": {
        "size": "3k",
        "warm_start": None,
        "optimizer": {"lr": 0.01, "betas": [0.9, 0.98]},
        "loss": {"class_path": "lrec.GBCE", "init_args": {"negatives": 256}},
    },
    "data": {
        "class_path": "lrec.InteractionsDataModule",
        "init_args": {
            "path": "log.csv",
            "data_dir": "data",
            "max_len": 50,
            "only_domain": "Books",
            "split": {"class_path": "lrec.LastItems", "init_args": {"trajectory": 10}},
        },
    },
}


@settings(max_examples=30)
@given(st.lists(POINTS, min_size=1, max_size=5))
def test_points_are_read_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, points: list[Point]) -> None:
    run = Run(tmp_path_factory.mktemp("run"))
    run.write_points(points)
    assert run.points == points


def test_a_line_has_the_fields_in_order_and_those_of_studies_if_known(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_points([Point(run="a"), Point(run="a", test_loss_se=0.5)])
    plain, measured = (list(json.loads(line)) for line in (tmp_path / "points.jsonl").read_text().splitlines())
    names = [each.name for each in fields(Point)]
    assert plain == names[:-4]
    assert measured == names[:-3]


def test_a_run_in_the_current_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Run(Path()).name == Run(tmp_path / "other" / "..").name == tmp_path.name


def test_missing_fields_of_a_point_have_their_defaults(tmp_path: Path) -> None:
    line = {"schema": 1, "run": "a", "N_body": 768, "val_loss": 5.0, "best": True, "status": "finished"}
    (tmp_path / "points.jsonl").write_text(json.dumps(line) + "\n")
    assert Run(tmp_path).result == Point(run="a", N_body=768, val_loss=5.0, best=True, status="finished")


@pytest.mark.parametrize("line", ["{", "[1]", "7", '{"run": "a"', '{"size_": "a"}', "\x00", "\udcff"])
def test_a_line_that_is_no_point_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "points.jsonl"
    path.write_text(json.dumps(Point(run="a").to_dict()) + "\n" + line + "\n", errors="surrogateescape")
    with pytest.raises(UserError, match=r"points.jsonl, row 2: not a point that lrec wrote; correct or remove the row"):
        read_points_file(path)


def test_the_result_of_a_run(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert (run.result, run.diverged, run.occupied) == (None, False, False)
    first, second = Point(D=1, best=True, status="finished"), Point(D=2, status="finished")
    run.write_points([Point(D=1), Point(D=2)])
    assert (run.result, run.occupied) == (None, True)
    run.write_points([first, second])
    assert run.result == first
    run.write_points([first, Point(D=2, status="diverged")])
    assert (run.result, run.diverged) == (Point(D=2, status="diverged"), True)


def test_options_have_the_names_of_the_command_line(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.write_config(RunConfig(OPTIONS))
    config = run.config
    assert config.options == OPTIONS
    assert config.value("data.max_len") == 50
    assert config.value("model.loss.negatives") == 256
    assert config.value("model.loss.class_path") == "lrec.GBCE"
    assert config.value("data.split.trajectory") == 10
    assert config.value("model.warm_start", "none") == "none"
    assert (config.value("model.size"), config.value("data.only_domain")) == ("3k", "Books")
    nested = RunConfig(OPTIONS | {"model": {"class_path": "my.Model", "init_args": OPTIONS["model"]}})
    assert nested.value("model.size") == "3k"
    assert nested.value("model.class_path") == "my.Model"


def test_the_location_of_the_data_does_not_count_as_trained_with() -> None:
    moved = json.loads(json.dumps(OPTIONS))
    moved["data"]["init_args"] |= {"path": "elsewhere.csv", "data_dir": "stores", "num_workers": 4}
    moved["trainer"] = moved.get("trainer", {}) | {"precision": "32-true"}  # the same as no precision
    assert RunConfig(moved).trained_with == RunConfig(OPTIONS).trained_with
    moved["model"]["optimizer"]["betas"] = [0.9, 0.999]
    assert RunConfig(moved).trained_with != RunConfig(OPTIONS).trained_with


@pytest.mark.parametrize("text", ["", "- 1\n", "model: {}\n", "{", "\t", "a: !!python/object:os.system {}\n"])
def test_what_is_no_configuration_of_a_run_is_named(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="no run there"):
        _ = Run(tmp_path).config
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config.yaml is not the configuration of a run of lrec fit"):
        _ = Run(tmp_path).config


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    runs = [Run(tmp_path / "study" / "runs" / name) for name in ("a", "b")]
    for run in runs:
        run.write_config(RunConfig(OPTIONS))
        run.checkpoints.mkdir()
    with pytest.raises(UserError, match=r"has no checkpoints/best.ckpt: finish the run"):
        find_runs([tmp_path])
    for run in runs:
        run.best.touch()
    assert find_runs([tmp_path, tmp_path / "study"]) == runs
    runs[0].best.unlink()
    runs[0].write_points([Point(status="diverged")])
    assert find_runs([tmp_path]) == runs
    with pytest.raises(UserError, match="no such folder"):
        find_runs([tmp_path / "absent"])
    with pytest.raises(UserError, match="no run in or under this folder"):
        find_runs([runs[0].checkpoints])
