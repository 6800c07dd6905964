"""One run, trained once, tested on targets of several kinds."""

import json
from pathlib import Path

import pytest
from fit_arguments import fit_arguments


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 users act on days 0 to 29; new items appear until the end."""
    path = tmp_path_factory.mktemp("log") / "log.csv"
    rows = [f"u{u},i{(u * 7 + day * day) % (20 + day)},{day * 86_400 + u}" for day in range(30) for u in range(40)]
    path.write_text("\n".join(["user,item,timestamp", *rows]) + "\n")
    return path


def test_a_monitor_that_the_targets_do_not_have_is_refused(refused, log: Path, tmp_path: Path) -> None:
    fit = fit_arguments(tmp_path / "run", log, trainer__max_epochs=2, data__split="GlobalTemporal")
    monitors = ["--checkpoint.monitor=val/recall@10", "--early_stopping.monitor=val/NDCG@10_by_user"]
    said = refused(*fit, *monitors)
    assert "validation on targets of this kind does not have this metric" in said
    assert not (tmp_path / "run").exists()
    assert "choose one of val/loss" in refused(*fit, "--checkpoint.monitor=val/loss_by_user")


def test_a_monitored_mean_over_users_is_there_if_each_user_has_one_target(lrec, log: Path, tmp_path: Path) -> None:
    """As in an update of a run that monitors it, if the new rows are few. The test has no such mean."""
    fit = fit_arguments(tmp_path / "run", log, trainer__max_epochs=1, data__split="GlobalTemporal")
    lrec(*fit, "--checkpoint.monitor=val/NDCG@10_by_user")
    (point,) = map(json.loads, (tmp_path / "run" / "points.jsonl").read_text().splitlines())
    assert point["best"]
    assert point["metrics"]["val/NDCG@10_by_user"] == pytest.approx(point["metrics"]["val/NDCG@10"])
    assert "HR@10_by_user" not in json.loads((tmp_path / "run" / "metrics.json").read_text())["model"]


def test_the_recipe_of_beauty_by_time_reads_reviews(lrec, tmp_path: Path) -> None:
    """Reviews in the format of 2014 stand in for the real ones, which a test cannot download."""
    reviews = tmp_path / "reviews_Beauty_5.json"
    keys = ("reviewerID", "asin", "overall", "unixReviewTime")
    rows = [
        (f"A{u:03}", f"B{(u + day) % 30:09}", 5.0, 86_400 * (20 * u % 31 + day)) for u in range(40) for day in range(9)
    ]
    reviews.write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    data = [f"--data.path={reviews}", f"--data.data_dir={tmp_path / 'data'}", "--data.targets_per_step=256"]
    run = [f"--trainer.default_root_dir={tmp_path}", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    lrec("fit", "--config=recipes/beauty-time.yaml", *data, *run)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["model"]["targets"] > 0
    assert metrics["model"]["HR@10_unseen"] > 0


@pytest.mark.slow
def test_one_run_is_tested_in_several_ways(lrec, refused, log: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    by_time = {"split": "GlobalTemporal", "split.validate_from": "1970-01-21", "split.test_from": "1970-01-26"}
    options = {f"data__{name}": value for name, value in (by_time | {"split.targets": "last"}).items()}
    fit = fit_arguments(run, log, trainer__max_epochs=2, **options)
    lrec(*fit, "--checkpoint.monitor=val/NDCG@10_unseen")

    def tested(*given: str) -> tuple[dict[str, float], str]:
        said = lrec("test", f"--config={run / 'config.yaml'}", *(f"--data.{each}" for each in given))
        metrics = json.loads((run / "metrics.json").read_text())
        return metrics["model"] | {f"popularity/{k}": v for k, v in metrics["popularity"].items()}, said

    last, _ = tested()
    assert last["targets"] == 40
    assert not any(name.endswith(("_by_user", "_warm")) or name.startswith("recall") for name in last)
    every, said = tested("split.test_targets=all", "cold_targets=apart")
    assert every["targets"] == 40 * 5
    cold = every["targets_outside_catalogue"]
    assert cold > 0
    assert "  unseen/warm/user  HR" in said
    for name in ("HR@10", "NDCG@10_unseen", "popularity/HR@10"):
        # All users have the same number of targets, and a cold target is a miss.
        assert every[f"{name}_by_user"] == pytest.approx(every[name])
        assert every[f"{name}_warm"] == pytest.approx(every[name] * 200 / (200 - cold))
    dropped, _ = tested("split.test_targets=all", "cold_targets=dropped")
    assert (dropped["targets"], dropped["targets_outside_catalogue"]) == (200 - cold, 0)
    assert dropped["HR@10"] == pytest.approx(every["HR@10_warm"])
    assert dropped["NDCG@10_by_user"] == pytest.approx(every["NDCG@10_warm_by_user"])
    days, said = tested("split.test_targets=window", "split.test_until=2d")
    assert (days["targets_sets"], days["recall@10"] >= days["recall@5"]) == (40, True)
    assert days["targets"] <= 80
    assert "  recall  " in said
    assert f"{days['popularity/NDCG@10']:.4f}" in said
    lrec("export", "--ckpt_path", run, "--out", tmp_path / "model", "--card")
    assert " 40 validation, 40 test sets, " in (tmp_path / "model" / "model.md").read_text()
    assert tested()[0] == last
    others = refused("test", f"--config={run / 'config.yaml'}", "--data.split.validate_by=last_item")
    assert "the checkpoint was trained on other data, another split" in others
