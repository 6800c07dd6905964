"""Which forecasts a ledger has as made before their result."""

import json
import threading
from pathlib import Path

import pytest

from lrec.errors import UserError
from lrec.run import Point, Run
from lrec.study import ledger
from lrec.study.ledger import register


def test_a_result_of_one_ladder_is_none_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    study = tmp_path / "study"
    expected = {"x": 100, "d": None, "u": None, "predicted": 3.0, "low": 2.9, "high": 3.1}
    ladders = [{"ladder": name, "x": "N_body", "predictions": [expected]} for name in ("a", "b")]
    runs = [{"name": f"large-{name}", "ladder": name} for name in ("a", "b")]
    (study / "runs" / "large-a").mkdir(parents=True)
    (study / "study.json").write_text(json.dumps({"grid": {"runs": runs}}))
    held_out = {run["name"]: {} for run in runs}
    (study / "prediction.json").write_text(json.dumps({"ladders": ladders, "held_out_runs": held_out}))
    Run(study / "runs" / "large-a").write_points([Point(run="large-a", N_body=100, test_loss=3.0, best=True)])
    register(study)
    entries = [json.loads(line) for line in Path("ledger.jsonl").read_text().splitlines()]
    assert {entry["ladder"]: entry["before"] for entry in entries} == {"a": False, "b": True}
    register(study.rename(tmp_path / "copy"))
    assert [json.loads(line) for line in Path("ledger.jsonl").read_text().splitlines()] == entries


@pytest.mark.parametrize(
    "edited", [{"low": "2.9"}, {"predicted": None}, {"high": float("nan")}, {"low": 3.15}, {"x": 0}]
)
def test_an_edited_forecast_changes_no_ledger(edited: dict[str, object], tmp_path: Path) -> None:
    expected = {"x": 100, "d": None, "u": None, "predicted": 3.0, "low": 2.9, "high": 3.1}
    file, ledger = tmp_path / "prediction.json", tmp_path / "ledger.jsonl"

    def predict(expected: dict[str, object]) -> None:
        ladders = [{"ladder": "", "x": "N_body", "predictions": [expected]}]
        file.write_text(json.dumps({"ladders": ladders, "held_out_runs": {}}))

    predict(expected)
    register(tmp_path, ledger)
    line = ledger.read_text()
    predict(expected | edited)
    with pytest.raises(
        UserError, match=r"--study .*: its prediction\.json or study\.json is damaged, or was edited: restore it"
    ):
        register(tmp_path, ledger)
    assert ledger.read_text() == line
    ledger.write_text(line + json.dumps(json.loads(line) | edited))
    with pytest.raises(UserError, match=r"ledger\.jsonl, row 2: not a forecast that lrec registered; restore it"):
        register(tmp_path, ledger)


def test_a_record_of_another_shape_changes_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "prediction.json").write_text(json.dumps({"ladders": [], "held_out_runs": {}}))
    (tmp_path / "study.json").write_text("[]")
    with pytest.raises(UserError, match=r"study\.json is damaged, or was edited: restore it"):
        register(tmp_path, tmp_path / "ledger.jsonl")


@pytest.mark.parametrize("fit", [[], {"holdout": {"points": [{"x": 100}]}}, {"holdout": {"points": 3}}])
def test_a_damaged_fit_changes_no_ledger(fit: object, tmp_path: Path) -> None:
    expected = {"x": 100, "d": None, "u": None, "predicted": 3.0, "low": 2.9, "high": 3.1}
    ladders = [{"ladder": "", "x": "N_body", "predictions": [expected]}]
    (tmp_path / "prediction.json").write_text(json.dumps({"ladders": ladders, "held_out_runs": {}}))
    (tmp_path / "fit").mkdir()
    (tmp_path / "fit" / "fit.json").write_text(json.dumps(fit))
    with pytest.raises(UserError, match=r"its fit\.json of ladder '' is damaged, or was edited"):
        register(tmp_path, tmp_path / "ledger.jsonl")
    assert not (tmp_path / "ledger.jsonl").exists()


def test_a_ledger_that_is_no_text_or_whose_page_is_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prediction.json").write_text(json.dumps({"ladders": [], "held_out_runs": {}}))
    (tmp_path / "ledger.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="row 1: not a forecast"):
        register(tmp_path, tmp_path / "ledger.jsonl")
    (tmp_path / "other.md").mkdir()
    with pytest.raises(UserError, match=r"--ledger .*other\.md is a folder"):
        register(tmp_path, tmp_path / "other.jsonl")
    assert not (tmp_path / "other.jsonl").exists()


def test_no_forecast_is_lost_if_three_studies_register_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {"x": 100, "d": None, "u": None, "predicted": 3.0, "low": 2.9, "high": 3.1}
    file = tmp_path / "ledger.jsonl"
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        ladders = [{"ladder": name, "x": "N_body", "predictions": [expected]}]
        (tmp_path / name / "prediction.json").write_text(json.dumps({"ladders": ladders, "held_out_runs": {}}))
    first, *later = (threading.Thread(target=register, args=(tmp_path / name, file)) for name in ("a", "b", "c"))
    read, waiting = ledger._read, iter(later)

    def while_another_begins(path: Path) -> list[ledger.Entry]:
        entries = read(path)
        for other in waiting:
            other.start()
            other.join(0.3)  # it has to wait
            break
        return entries

    monkeypatch.setattr(ledger, "_read", while_another_begins)
    first.start()
    for thread in (first, *later):
        thread.join()
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(entry["study"] for entry in entries) == ["a", "b", "c"]
