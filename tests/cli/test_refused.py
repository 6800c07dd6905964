"""A command that is refused leaves every byte of a run's folder as it was."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lrec.cli import main
from lrec.run import Point
from lrec.study.grid import planned_runs
from lrec.study.options import Study
from lrec.study.record import Record
from snapshot import snapshot

QUICK = (
    "--config=data/csv.yaml",
    "--config=trainer/laptop.yaml",
    "--data.user_column=who",
    "--data.item_column=what",
    "--data.time_column=when",
    "--data.max_len=10",
    "--data.targets_per_step=256",
    "--model.size=0.8k",
    "--trainer.enable_progress_bar=false",
)


@pytest.fixture(scope="module")
def run(log_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and beside it the log that it was trained on."""
    folder = tmp_path_factory.mktemp("refused")
    shutil.copy(log_csv, folder / "log.csv")
    options = [f"--data.path={folder / 'log.csv'}", f"--data.data_dir={folder / 'stores'}", "--trainer.max_epochs=2"]
    main(["fit", *QUICK, *options, f"--trainer.default_root_dir={folder / 'run'}"])
    return folder / "run"


REFUSED = {
    "fit over a run": (["fit"], "holds a run already"),
    "fit with another's checkpoint": (["fit", "--ckpt_path={other}"], "holds a run already"),
    "fit on with another network": (["fit", "--ckpt_path=last", "--model.size=3k"], "the checkpoint has width"),
    "the same, sharded": (
        ["fit", "--ckpt_path=last", "--model.size=3k", "--trainer.strategy=fsdp2"],
        "the checkpoint has width",
    ),
    "fit on with other data": (["fit", "--ckpt_path=last", "--data.k_core=3"], "trained on other data"),
    "fit on with another optimizer": (
        ["fit", "--ckpt_path=last", "--model.optimizer=torch.optim.Adagrad", "--trainer.max_epochs=9"],
        "--model.optimizer.class_path",
    ),
    "fit on with another rate of Muon": (
        ["fit", "--ckpt_path=last", "--model.optimizer.muon=1", "--trainer.max_epochs=9"],
        "muon",
    ),
    "fit on at another rate": (
        ["fit", "--ckpt_path=last", "--model.optimizer.lr=0.001", "--trainer.max_epochs=9"],
        "--model.optimizer.lr 0.008, not 0.001",
    ),
    "fit on with another update of the item table": (
        ["fit", "--ckpt_path=last", "--model.optimizer.touched_rows=true", "--trainer.max_epochs=9"],
        "--model.optimizer.touched_rows false, not true",
    ),
    "fit on with another decay of moments": (
        ["fit", "--ckpt_path=last", "--model.optimizer.betas=[0.9, 0.99]", "--trainer.max_epochs=9"],
        "--model.optimizer.betas [0.9, 0.98], not [0.9, 0.99]",
    ),
    "fit on with a switch": (
        ["fit", "--ckpt_path=last", "--model.optimizer.switch.at=2", "--trainer.max_epochs=9"],
        "--model.optimizer.switch.lr null, not 0.1",
    ),
    "fit on with another loss": (
        ["fit", "--ckpt_path=last", "--model.loss=GBCE", "--trainer.max_epochs=9"],
        '--model.loss.class_path "lrec.FullSoftmax", not "lrec.GBCE"',
    ),
    "fit on on a seed that is none": (["fit", "--ckpt_path=last", "--seed_everything=-1"], "--seed_everything"),
    "fit with an option that is none": (["fit", "--trainer.max_epohcs=2"], "max_epohcs"),
    "validate another network": (["validate", "--model.size=3k"], "the checkpoint has width"),
    "test another network": (["test", "--model.size=3k"], "the checkpoint has width"),
    "test on other data": (["test", "--data.k_core=3"], "another reduction: give the same; if the log has changed"),
    "predict without a checkpoint": (["predict", "--ckpt_path={other}.none"], "no such checkpoint"),
    "predict for another network": (["predict", "--model.size=3k"], "the checkpoint has width"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_s_folder_is_as_before(name: str, run: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    (command, *options), says = REFUSED[name]
    other = tmp_path / "other.ckpt"
    shutil.copy(run / "checkpoints" / "best.ckpt", other)
    before = snapshot(run)
    error = refused(command, f"--config={run / 'config.yaml'}", *(option.format(other=other) for option in options))
    assert says in error
    assert snapshot(run) == before


def test_a_log_that_changed_replaces_nothing(run: Path, refused: Callable[..., str]) -> None:
    """The run keeps the ids and options of its checkpoints."""
    before, log = snapshot(run), run.with_name("log.csv")
    rows = log.read_bytes()
    log.write_bytes(rows + b"u1,item-new,1700000000\nu2,item-new,1700000000\n")
    error = refused("fit", f"--config={run / 'config.yaml'}", "--ckpt_path=last", "--trainer.max_epochs=4")
    log.write_bytes(rows)
    assert "the checkpoint" in error
    assert snapshot(run) == before


def test_tasks_that_are_refused_leave_the_run_as_it_was(run: Path, refused: Callable[..., str]) -> None:
    before = snapshot(run)
    for options, says in (
        (["--tasks=no_such"], "--tasks no_such"),
        (["--seed=-1"], "--seed"),
        ([f"--out={run / 'config.yaml'}"], "is not a folder"),
    ):
        assert says in refused("tasks", "--runs", run, f"--out={run / 'tasks'}", *options)
        assert snapshot(run) == before


STUDY = {
    "name": "kept",
    "configs": ["data/synthetic.yaml", "trainer/laptop.yaml"],
    "sizes": ["0.8k", "1.7k"],
    "holdout": 0,
    "law": None,
}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--options.model.optimizer.lr=0.5", '--restart=["0.8k-seed1"]'], "has run 1.7k-seed1 with other options"),
        pytest.param(["--options.trainer.max_epohcs=3"], "max_epohcs", marks=pytest.mark.slow),
        pytest.param(
            ["--options.trainer.strategy=fsdp"], "lrec trains with auto, ddp, or fsdp2", marks=pytest.mark.slow
        ),
        (['--restart=["2k-seed1"]'], "2k-seed1 is none of the study's runs"),
        (['--restart=["0.8k-seed1"]', '--skip=["0.8k-seed1"]'], "0.8k-seed1 is named by --restart and by --skip"),
        pytest.param(["--budget_hours=1e-9"], "--budget_hours", marks=pytest.mark.slow),
        (["--law=lsrm"], "needs at least"),
    ],
)
def test_a_study_that_is_refused_removes_nothing(
    options: list[str], says: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """Not even a run that --restart names."""
    study = Study(**STUDY, out=tmp_path / "kept")  # type: ignore[arg-type]
    record = Record(study, planned_runs(study))
    for run in record.runs:
        record.trained(run).write_points([Point(run=run.name, D=1)])
    record.enter([], [])
    config = tmp_path / "kept.yaml"
    config.write_text(yaml.safe_dump(STUDY | {"out": str(study.folder)}))
    before = snapshot(study.folder)
    assert says in refused("scaling", "study", f"--config={config}", *options)
    assert snapshot(study.folder) == before
