"""lrec.TargetWriter: a test's figures, target by target."""

import json
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from fit_arguments import fit_arguments

COLUMNS = {"data__user_column": "who", "data__item_column": "what", "data__time_column": "when"}
WRITER = "--trainer.callbacks+=lrec.TargetWriter"


def run_with(log: Path, folder: Path, **options: object) -> list[str]:
    return fit_arguments(folder, log, **COLUMNS, model__size="0.8k", trainer__max_epochs=1, **options)


@pytest.mark.parametrize("rule", ["LastItems", "GlobalTemporal"])
def test_the_means_over_the_targets_are_the_figures(
    rule: str, log_csv: Path, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    """Several targets of a user, items outside the catalogue and repeats included."""
    split = {"data__split": f"lrec.{rule}"} | ({"data__split__targets": "all"} if rule == "GlobalTemporal" else {})
    lrec(*run_with(log_csv, tmp_path / "run", **split))
    assert not (tmp_path / "run" / "targets.parquet").exists()
    said = lrec("test", "--config", tmp_path / "run" / "config.yaml", WRITER)
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())["model"]
    table = pl.read_parquet(tmp_path / "run" / "targets.parquet")
    assert f"{len(table)} targets written to" in said
    assert len(table) == figures["targets"]
    assert table["loss"].is_null().sum() == figures["targets_outside_catalogue"]
    assert table["loss"].mean() == pytest.approx(figures["loss"], rel=1e-5)
    assert (table["rank"] <= 10).mean() == pytest.approx(figures["HR@10"])
    assert (table["rank_unseen"] <= 10).mean() == pytest.approx(figures["HR@10_unseen"])
    log = pl.read_csv(log_csv, schema_overrides={"who": pl.String, "what": pl.String}).sort("when", maintain_order=True)
    histories = dict(log.group_by("who").agg("what").iter_rows())
    for user, item, position, rank, seen in table.select("user", "item", "position", "rank", "seen").iter_rows():
        history = histories[user]
        assert history[position] == item
        assert seen == (item in history[:position] if rank < float("inf") else None)
    assert table.select("user", "position").is_unique().all()


def test_sets_are_refused(log_csv: Path, tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]) -> None:
    split = {"data__split": "lrec.GlobalTemporal", "data__split__targets": "window"}
    lrec(*run_with(log_csv, tmp_path / "run", **split))
    assert "targets are sets of items, without a rank" in refused(
        "test", "--config", tmp_path / "run" / "config.yaml", WRITER
    )
    assert not list((tmp_path / "run").glob("targets*"))
