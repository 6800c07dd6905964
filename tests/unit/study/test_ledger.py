"""Which forecasts a ledger has as made before their result."""

import json
import threading
from pathlib import Path

import pytest

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
