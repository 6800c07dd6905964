"""The table that compares a study's variants, against scipy's paired t-test."""

from dataclasses import replace

import pytest
from scipy.stats import ttest_rel

from lrec.run import Point
from lrec.study.grid import PlannedRun
from lrec.study.report import VARIANTS, variants_table

LOSSES = {  # by size and variant, over seeds 1, 2, 3
    ("25k", "both"): [5.60, 5.70, 5.65],
    ("25k", "neither"): [5.50, 5.61, 5.54],
    ("98k", "both"): [5.30, 5.40, 5.20],
    ("98k", "neither"): [5.35, 5.35, 5.25],
}


def make(losses: dict[tuple[str, str], list[float]]) -> tuple[list[PlannedRun], dict[str, Point]]:
    runs, points = [], {}
    for (size, variant), values in losses.items():
        for seed, loss in enumerate(values, start=1):
            runs.append(PlannedRun(f"{size}-{variant}-seed{seed}", size, seed, 1.0, variant, variant, False, {}))
            points[runs[-1].name] = Point(status="finished", metrics=dict.fromkeys(VARIANTS.values(), loss))
    return runs, points


def test_means_noise_and_differences() -> None:
    _, table, verdict = variants_table(*make(LOSSES))
    assert "| 25k | both | 3 | 5.6500 ± 0.0500 |  |" in table
    # Paired over seeds: -0.10, -0.09, -0.11, whose mean has the standard error 0.01 / sqrt(3).
    assert "| 25k | neither | 3 | 5.5500 ± 0.0557 | -0.1000 ± 0.0058 |" in table
    for size in ("25k", "98k"):
        apart = ttest_rel(LOSSES[size, "neither"], LOSSES[size, "both"]).pvalue < 0.05
        assert (f"test loss of neither at {size}" in verdict) == apart


def test_a_diverged_run_is_left_out() -> None:
    runs, points = make(LOSSES)
    points["25k-neither-seed2"] = Point(status="diverged")
    _, table, _ = variants_table(runs, points)
    assert "| 25k | neither | 2 | 5.5200 ± 0.0283 | -0.1050 ± 0.0050 |" in table


def test_shorter_runs_are_not_compared_with_longer_ones() -> None:
    runs, points = make(LOSSES)
    shorter = [replace(run, name=f"{run.name}-half", horizon=0.5) for run in runs]
    points |= {run.name: replace(points[run.name.removesuffix("-half")], metrics={}) for run in shorter}
    points["25k-neither-seed2"] = Point(status="diverged")
    _, table, _ = variants_table([*runs, *shorter], points)
    assert "| 25k | neither | 2 | 5.5200 ± 0.0283 | -0.1050 ± 0.0050 |" in table


def test_one_seed_has_no_noise() -> None:
    _, table, note = variants_table(*make({key: values[:1] for key, values in LOSSES.items()}))
    assert "| 98k | neither | 1 | 5.3500 | +0.0500 |" in table
    assert "No difference has two seeds" in note


@pytest.mark.parametrize("variants", [["both"], [""]])
def test_one_variant_is_no_comparison(variants: list[str]) -> None:
    assert variants_table(*make({("25k", variant): [5.0] for variant in variants})) == []
