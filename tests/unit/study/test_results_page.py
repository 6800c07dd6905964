"""The page of results: its table has every study whose points are committed, and it agrees with the points."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """The names of benchmarks/results.py."""
    return runpy.run_path(str(BENCHMARKS / "results.py"))


def test_every_study_with_committed_points_is_in_the_table(results: dict[str, Any]) -> None:
    committed = {path.relative_to(BENCHMARKS).as_posix() for path in BENCHMARKS.rglob("all_points.jsonl")}
    assert committed <= {study.points for study in results["STUDIES"]}
    shown = results["TABLE"].search(results["PAGE"].read_text()).group()
    assert [study.page for study in results["STUDIES"] if f"[{study.name}]({study.page})" not in shown] == []


@pytest.mark.slow
def test_what_was_committed_stands_beside_what_is_refitted_today(results: dict[str, Any]) -> None:
    shown = results["TABLE"].search(results["PAGE"].read_text()).group().split("\n\n")[1].splitlines()
    assert "committed before training" in shown[0]
    assert "refit today" in shown[0]
    for study in results["STUDIES"]:
        (line,) = (line for line in shown if f"[{study.name}]" in line)
        _, held_out = results["hold_out"](results["read_study"](study), study.holdout)
        actual = results["losses_by_size"](held_out)[1]
        assert line.split(" | ")[1] == results["errors_of"](*results["committed"](study), actual)
    go = next(study for study in results["STUDIES"] if study.name == "Go")
    by, predictions = results["committed"](go)
    committed = json.loads((BENCHMARKS / "go" / "prediction.json").read_text())["ladders"][0]["predictions"]
    assert by == "forecast"
    assert [p.predicted for p in predictions] == [each["predicted"] for each in committed]


@pytest.mark.slow
def test_the_tables_say_what_the_points_say(results: dict[str, Any]) -> None:
    read = {study: results["read_study"](study) for study in results["STUDIES"]}
    shown = results["TABLE"].search(results["PAGE"].read_text()).group()
    assert results["studies_table"](read) + "\n" == shown
    for name in {study.page.partition("#")[0] for study in results["STUDIES"]}:
        page = results["PAGES"] / name
        assert results["with_tables"](page, read) == page.read_text()


def test_the_page_of_costs_says_what_the_points_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    costs = runpy.run_path(str(BENCHMARKS / "costs.py"))
    assert costs["PAGE"].read_text() == costs["page"]()


def test_the_page_of_faults_says_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    faults = runpy.run_path(str(BENCHMARKS / "faults.py"))
    assert faults["PAGE"].read_text() == faults["page"]()
