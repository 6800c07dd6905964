"""A run writes into its own folder, wherever its configuration comes from, and keeps the best of its evaluations."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from lrec.cli import main
from lrec.options.config_files import with_shipped_configs
from lrec.run import Run
from lrec.training.checkpoint_callbacks import BestAndLast
from snapshot import snapshot

OPTIONS = (
    "--config=data/csv.yaml",
    "--config=trainer/laptop.yaml",
    "--data.user_column=who",
    "--data.item_column=what",
    "--data.time_column=when",
    "--data.max_len=10",
    "--data.targets_per_step=256",
    "--model.size=0.8k",
    "--model.optimizer.lr=0.01",
    "--trainer.max_epochs=3",
    "--trainer.enable_progress_bar=false",
    # By NDCG the last epoch is better than the first; by loss it may be worse by chance.
    "--checkpoint.monitor=val/NDCG@10",
    "--early_stopping.monitor=val/NDCG@10",
)


@pytest.fixture(scope="module")
def run(log_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, whose best checkpoint ranks best."""
    folder = tmp_path_factory.mktemp("folder")
    paths = [f"--data.path={log_csv}", f"--data.data_dir={folder / 'stores'}"]
    main(["fit", *OPTIONS, *paths, f"--trainer.default_root_dir={folder / 'run'}"])
    return folder / "run"


def points_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "points.jsonl").read_text().splitlines()]


def test_the_best_checkpoint_is_the_one_that_ranks_best(run: Path) -> None:
    points = points_of(run)
    (best,) = [point for point in points if point["best"]]
    ranked = [point["metrics"]["val/NDCG@10"] for point in points]
    assert best["metrics"]["val/NDCG@10"] == max(ranked) > min(ranked)


def test_a_run_reports_its_progress(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("lrec.training.callbacks.Progress.TELL_S", 0.0)
    monkeypatch.setattr(Run, "write_progress", lambda _, doing: told.append(doing))
    fit = ["fit", f"--config={run / 'config.yaml'}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    main(fit)
    assert told[0] == "training: step 1 of 24"
    assert re.fullmatch(r"training: step 24 of 24, at most \d+ s left", next(t for t in told if "step 24 " in t))
    assert {"evaluating: batch 1 of 1", "testing: batch 1 of 1"} <= set(told)
    (tmp_path / "run" / "progress").touch()  # as if the run had been killed during its test
    main([*fit, "--ckpt_path=last"])
    assert not (tmp_path / "run" / "progress").exists()


@pytest.mark.parametrize("group", ["checkpoint", "early_stopping"])
def test_a_direction_that_contradicts_the_metric_is_refused(
    group: str, run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    fit = ["fit", f"--config={run / 'config.yaml'}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    error = refused(*fit, f"--{group}.mode=min")
    assert f"--{group}.mode min: the best val/NDCG@10 is its max" in error
    callback = json.dumps({"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/HR@1", "mode": "min"}})
    assert "ModelCheckpoint.mode min: the best val/HR@1" in refused(*fit, f"--trainer.callbacks+={callback}")
    assert "choose one of val/loss" in refused(*fit, f"--{group}.monitor=val/popularity@10")
    assert not (tmp_path / "run").exists()


def test_a_configuration_used_again_leaves_the_first_run_alone(
    run: Path, tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    before = snapshot(run)
    again = tmp_path / "again"
    fit = ["fit", f"--config={run / 'config.yaml'}", f"--trainer.default_root_dir={again}", "--trainer.max_epochs=1"]
    elsewhere = tmp_path / "elsewhere"
    error = refused(*fit, f"--checkpoint.dirpath={elsewhere}")
    assert f"--checkpoint.dirpath {elsewhere}: a run keeps its checkpoints in {again / 'checkpoints'}" in error
    assert not again.exists()
    lrec(*fit)
    assert snapshot(run) == before
    assert (again / "checkpoints" / "best.ckpt").is_file()
    assert points_of(again)[0]["best"]


def test_a_run_that_was_moved_knows_what_was_best(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    states = torch.load(moved / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    (state,) = [state for name, state in states.items() if name.startswith("BestAndLast")]
    callback = BestAndLast("val/NDCG@10", dirpath=str(moved / "checkpoints"))
    callback.load_state_dict(state)
    assert callback.best_model_path == callback.kth_best_model_path == str(moved / "checkpoints" / "best.ckpt")
    (best,) = [point for point in points_of(run) if point["best"]]
    assert float(callback.best_model_score) == pytest.approx(best["metrics"]["val/NDCG@10"])
    elsewhere = BestAndLast("val/NDCG@10", dirpath=str(tmp_path))
    elsewhere.load_state_dict(state)
    assert elsewhere.best_model_path == "", "another run's best is not this one's"


def test_a_run_that_was_copied_leaves_the_first_one_alone(
    run: Path, tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "copy")
    before = snapshot(run)
    (tmp_path / "copy" / "metrics.json").unlink()
    monkeypatch.chdir(tmp_path)
    lrec("test", "--config=copy/config.yaml")
    assert (tmp_path / "copy" / "metrics.json").is_file()
    assert f"{tmp_path / 'copy'} holds a run already" in refused("fit", "--config=copy/config.yaml")
    printed = lrec("fit", "--config=copy/config.yaml", "--ckpt_path=last", "--trainer.max_epochs=4")
    assert len(points_of(tmp_path / "copy")) > len(points_of(run))
    since = points_of(run)[-1]["step"]
    assert json.loads((tmp_path / "copy" / "throughput.json").read_text())["since_step"] == since > 0
    assert f" GiB, since step {since}\n" in printed
    assert snapshot(run) == before


def test_each_command_of_a_process_chooses_its_own_folder(
    log_csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes that Lightning starts for a run use the folder of this run."""
    from lrec.training.lightning_cli import CommandLine

    monkeypatch.chdir(tmp_path)
    options = with_shipped_configs([*OPTIONS, f"--data.path={log_csv}", f"--data.data_dir={tmp_path / 'stores'}"])
    with patch.dict(os.environ):
        first, second = (CommandLine("fit", options).run.folder for _ in range(2))
        assert first != second
        with patch("os.getpid", lambda: 1):
            assert CommandLine("fit", options).run.folder == second
        main(["fit", *OPTIONS, f"--data.path={log_csv}", "--trainer.fast_dev_run=true"])
        assert "LREC_RUN" not in os.environ


def test_the_home_folder_may_be_a_tilde(
    run: Path, tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fit = ["fit", f"--config={run / 'config.yaml'}", "--trainer.default_root_dir=~/mine", "--trainer.max_epochs=1"]
    lrec(*fit)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert "holds a run already" in refused(*fit)


def test_evaluations_further_apart_than_an_epoch_are_refused(
    run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    fit = ["fit", f"--config={run / 'config.yaml'}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    error = refused(*fit, "--trainer.val_check_interval=9")
    assert "--trainer.val_check_interval 9 is more than the 8 batches of an epoch" in error
    assert not (tmp_path / "run").exists()


HOLD = """
import sys
from pathlib import Path
from lrec.run import Run
with Run(Path(sys.argv[1])).alone():
    print(flush=True)
    input()
"""


def test_two_processes_do_not_train_one_run(
    run: Path, tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    """The second is refused before it writes, and a killed process does not hold the folder any more."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    on = ["fit", f"--config={folder / 'config.yaml'}", "--ckpt_path=last", "--trainer.max_epochs=4"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], **pipes) as other:  # type: ignore[call-overload]
        other.stdout.readline()
        before = snapshot(folder)
        assert f"{folder} is being trained by another process" in refused(*on)
        assert snapshot(folder) == before
        other.kill()
    lrec(*on)
    assert len(points_of(folder)) == 4
    assert "holds a run already" in refused(on[0], on[1])
    lrec(*on[:3], "--trainer.max_epochs=5")  # a process that has ended does not hold the folder
    assert len(points_of(folder)) == 5
