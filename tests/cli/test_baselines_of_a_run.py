"""A run's baselines depend on its data alone; baselines whose counts do not fit into memory are left out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from fit_arguments import fit_arguments
from lightning.pytorch import Trainer

from lrec import GlobalTemporal, InteractionsDataModule, SequentialRecommender
from lrec.evaluation.baselines import BASELINES
from lrec.run import Run


def arguments(run: Path, log: Path, **options: object) -> list[str]:
    columns = {"data__user_column": "who", "data__item_column": "what", "data__time_column": "when"}
    return fit_arguments(run, log, **columns, model__size="0.8k", trainer__max_epochs=1, **options)


def figures(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


@pytest.mark.slow
def test_they_do_not_depend_on_the_model(log_csv: Path, tmp_path: Path, lrec: Callable[..., str]) -> None:
    lrec(*arguments(tmp_path / "first", log_csv))
    lrec(*arguments(tmp_path / "second", log_csv, seed_everything=5))
    first, second = (figures(tmp_path / run) for run in ("first", "second"))
    assert second["model"] != first["model"]
    for name in BASELINES:
        assert json.dumps(second[name]) == json.dumps(first[name])


def test_another_test_has_baselines_and_users_of_its_own(log_csv: Path, tmp_path: Path) -> None:
    def tested(model: SequentialRecommender, **options: Any) -> dict[str, float]:
        columns = {"user_column": "who", "item_column": "what", "time_column": "when"}
        data = InteractionsDataModule(
            log_csv, **columns, data_dir=tmp_path, max_len=10, split=GlobalTemporal(**options), targets_per_step=256
        )
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        (figures,) = Trainer(accelerator="cpu", enable_model_summary=False, **quiet).test(model, data, verbose=False)
        return dict(figures)

    model = SequentialRecommender(size="0.8k")
    tested(model, test_targets="all", test_until=0.95)
    again, alone = (tested(each, test_targets="all") for each in (model, SequentialRecommender(size="0.8k")))
    assert "test/popularity/NDCG@10_by_user" in again
    for name in BASELINES:
        mine = {figure: value for figure, value in alone.items() if figure.startswith(f"test/{name}/")}
        assert mine == {figure: again[figure] for figure in mine}


def test_the_next_evaluation_on_the_same_data_has_baselines_of_its_own_users(log_csv: Path, tmp_path: Path) -> None:
    columns = {"user_column": "who", "item_column": "what", "time_column": "when"}
    data = InteractionsDataModule(log_csv, **columns, data_dir=tmp_path, max_len=10, targets_per_step=256)
    model = SequentialRecommender(size="0.8k")
    for evaluate, stage in (("validate", "val"), ("test", "test")):
        for users in (40, "all"):
            data.validation_users = data.test_users = users
            quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
            trainer = Trainer(accelerator="cpu", enable_model_summary=False, **quiet)
            (figures,) = getattr(trainer, evaluate)(model, data, verbose=False)
            for name in BASELINES:
                assert figures[f"{stage}/{name}/targets"] == figures[f"{stage}/targets"]


def test_counts_without_room_are_left_out(
    log_csv: Path, tmp_path: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("lrec.evaluation.baselines.available_gib", lambda: 1e-5)
        printed = lrec(*arguments(tmp_path / "small", log_csv))
    assert (
        printed.count("left out: recent-popularity, markov, item-graph, whose counts take up to 0.0 GiB; 0.0 are free")
        == 1
    )
    lrec(*arguments(tmp_path / "large", log_csv))
    small, large = (figures(tmp_path / run) for run in ("small", "large"))
    assert {"recent-popularity", "markov", "item-graph"}.isdisjoint(small)
    assert large.keys() >= set(BASELINES)
    assert large["repeat-last"] == small["repeat-last"]


def test_losses_by_target_cover_the_test_users(log_csv: Path, tmp_path: Path, lrec: Callable[..., str]) -> None:
    lrec(*arguments(tmp_path / "run", log_csv, data__test_users=40, points__study="s", points__run="r"))
    point = Run(tmp_path / "run").result
    losses = pl.read_parquet(tmp_path / "run" / "target_losses.parquet")
    assert losses["user"].n_unique() == 40
    assert point is not None
    assert point.test_loss == pytest.approx(losses["loss"].mean(), abs=1e-5)
    assert point.test_loss_se == pytest.approx(point.metric("test/loss_se"), rel=0.05)
