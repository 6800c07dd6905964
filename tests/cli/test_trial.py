"""Parts of a run: a trial (fast_dev_run) leaves nothing, and limits of batches are what they say."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lrec.cli import main
from snapshot import snapshot

QUICK = (
    "--config=data/synthetic.yaml",
    "--config=trainer/laptop.yaml",
    "--data.n_users=2500",  # three batches of evaluation
    "--data.n_items=40",
    "--data.length=6",
    "--data.targets_per_step=2048",
    "--model.size=0.8k",
    "--trainer.max_epochs=1",
    "--trainer.enable_progress_bar=false",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("trial")
    main(["fit", *QUICK, f"--data.data_dir={folder}", f"--trainer.default_root_dir={folder / 'run'}"])
    return folder / "run"


def figures(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "metrics.json").read_text())["model"]
    return found


@pytest.mark.slow
def test_a_limit_of_one_batch_holds_and_is_reported(run: Path, lrec: Callable[..., str]) -> None:
    test = ["test", "--config", run / "config.yaml"]
    whole = lrec(*test), figures(run)
    first = lrec(*test, "--trainer.limit_test_batches=1"), figures(run)
    assert first[1]["NDCG@10"] != whole[1]["NDCG@10"]
    assert "these figures are of the first users only: --trainer.limit_test_batches is 1" in first[0]
    assert "first users" not in whole[0]
    for everything in ("1.0", "3"):
        all_of_them = lrec(*test, f"--trainer.limit_test_batches={everything}"), figures(run)
        assert all_of_them[1] == whole[1]
        assert "first users" not in all_of_them[0]


@pytest.mark.parametrize(("limit", "steps"), [("5", 3), ("0.4", 2), pytest.param("4", 2, marks=pytest.mark.slow)])
def test_a_limited_epoch_ends_with_a_step(
    limit: str, steps: int, run: Path, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    def fit(name: str, *options: str) -> tuple[str, dict[str, object]]:
        folders = [f"--data.data_dir={run.parent}", f"--trainer.default_root_dir={tmp_path / name}"]
        printed = lrec("fit", *QUICK, *folders, *options)
        (point,) = (json.loads(line) for line in (tmp_path / name / "points.jsonl").read_text().splitlines())
        return printed, point

    printed, limited = fit("limited", f"--trainer.limit_train_batches={limit}", "--trainer.accumulate_grad_batches=2")
    said, whole = fit("whole", f"--trainer.limit_train_batches={steps}", "--trainer.limit_val_batches=3")
    assert "first users" not in said
    for name in ("step", "D", "flops", "best"):
        assert limited[name] == whole[name]
    assert limited["val_loss"] == pytest.approx(whole["val_loss"], rel=1e-5)
    assert (limited["step"], limited["best"]) == (steps, True)
    assert ("so that the epoch ends with a step" in printed) == (limit != "4")


def test_a_trial_leaves_nothing(
    run: Path,
    tmp_path: Path,
    lrec: Callable[..., str],
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    fit = ["fit", *QUICK, f"--data.data_dir={run.parent}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    printed = lrec(*fit, "--trainer.fast_dev_run=true", "--trainer.limit_val_batches=1")
    assert "a trial; nothing is kept" in printed
    assert "--trainer.limit_val_batches 1: the first users alone choose the best checkpoint" in printed
    assert not (tmp_path / "run").exists()
    before = snapshot(run)
    for command in ("fit", "test", "predict"):
        lrec(command, "--config", run / "config.yaml", "--trainer.fast_dev_run=2")
        assert [*(tmp_path / "temporary").glob("lrec-*")] == []
    assert snapshot(run) == before
    assert not [warning for warning in recwarn if "batch indices" in str(warning.message)]
