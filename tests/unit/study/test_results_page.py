"""The page of results: every study whose points are committed is in its table, and the table says what they say."""

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
def test_the_table_says_what_the_points_say(results: dict[str, Any]) -> None:
    read = {study: results["read_study"](study) for study in results["STUDIES"]}
    shown = results["TABLE"].search(results["PAGE"].read_text()).group()
    assert results["studies_table"](read) + "\n" == shown
