"""How a study treats its runs: failures, skips, budgets, tuning, grids, and jobs of a cluster."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lrec.common.files import locked
from lrec.errors import UserError
from lrec.run import Run
from lrec.study import budget
from lrec.study.cluster import train_on_cluster
from lrec.study.grid import PlannedRun, planned_runs
from lrec.study.launch import Outcome, Training, is_running, lock_of, train
from lrec.study.options import Study
from lrec.study.prediction import LadderFit, fit_ladder
from lrec.study.record import Record
from lrec.study.tuning import Setting, Trial, Tuner, law_of
from lrec.study.work import Work

pytestmark = pytest.mark.usefixtures("warm_processes")

STUDY: dict[str, Any] = {
    "name": "runs",
    "configs": ["data/synthetic.yaml", "trainer/laptop.yaml"],
    "sizes": ["0.8k", "1.7k"],
    "holdout": 0,
    "law": None,
    "jobs": 2,
    "options": {
        "data.n_users": 100,
        "data.n_items": 30,
        "data.length": 10,
        "trainer.max_epochs": 1,
        "trainer.enable_progress_bar": False,
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for module in ("launch", "cluster"):
        monkeypatch.setattr(f"lrec.study.{module}.POLL_S", 0.1)
    Path("runs.yaml").write_text(yaml.safe_dump(STUDY))
    return tmp_path / "studies" / "runs"


def runs_of(**changes: Any) -> list[PlannedRun]:
    return planned_runs(Study(**STUDY | changes))


def state(folder: Path) -> dict[str, str]:
    return json.loads((folder / "study.json").read_text())["state"]


@pytest.mark.usefixtures("folder")
def test_a_run_that_lrec_fit_would_refuse_is_not_planned() -> None:
    with pytest.raises(UserError, match=r"--trainer\.max_epochs"):
        runs_of(size_options={"1.7k": {"trainer.max_epochs": "many"}})


def test_a_failed_run_is_reported_retried_and_skipped(
    folder: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    broken = ["--size_options", json.dumps({"1.7k": {"model.optimizer.switch.at": 1000}})]
    message = refused("scaling", "study", "--config", "runs.yaml", *broken)
    assert "run 1.7k-seed1 failed: optimizer.switch.at 1000: the run has" in message
    assert state(folder) == {"0.8k-seed1": "finished", "1.7k-seed1": "failed"}
    lrec("scaling", "study", "--config", "runs.yaml", *broken, "--skip", '["1.7k-seed1"]')
    report = (folder / "report.md").read_text()
    assert "| 0.8k | 1 |" in report
    assert "| 1.7k | 1 |" not in report
    lrec("scaling", "study", "--config", "runs.yaml", "--restart", '["1.7k-seed1"]')
    assert "| 1.7k | 1 |" in (folder / "report.md").read_text()
    table = lrec("scaling", "study", "--config", "runs.yaml", "--status", "true").splitlines()
    assert [line.split()[:3] for line in table[1:]] == [
        ["0.8k-seed1", "fitted", "finished"],
        ["1.7k-seed1", "fitted", "finished"],
    ]


def test_what_ends_one_run_leaves_the_others_alone(folder: Path, refused: Callable[..., str]) -> None:
    Path("fatal.py").write_text(
        "import os, signal\nfrom lightning.pytorch import Callback\n"
        "class Fatal(Callback):\n"
        "    def __init__(self, name: str):\n        self.name = name\n"
        "    def on_train_start(self, *_):\n        os.kill(os.getpid(), signal.Signals[self.name])\n"
    )
    fatal = {
        size: {"trainer.callbacks": [{"class_path": "fatal.Fatal", "init_args": {"name": name}}]}
        for size, name in (("0.8k", "SIGSEGV"), ("1.7k", "SIGKILL"))
    }
    options = ("--sizes", '["0.8k", "1.7k", "3k"]', "--size_options", json.dumps(fatal))
    message = refused("scaling", "study", "--config", "runs.yaml", *options)
    assert re.search(r"run \S+ failed: ended by SIG\w+.* \(see \S+\); so did 1 more", message)
    assert state(folder) == {"0.8k-seed1": "failed", "1.7k-seed1": "failed", "3k-seed1": "finished"}
    reasons = json.loads((folder / "study.json").read_text())["reasons"]
    assert reasons["0.8k-seed1"].startswith("ended by SIGSEGV (see ")
    assert reasons["1.7k-seed1"].startswith("ended by SIGKILL, perhaps because memory ran out (see ")


def test_without_a_terminal_a_study_says_what_is_under_way(folder: Path, lrec: Callable[..., str]) -> None:
    longer = ("--options.trainer.max_epochs", "3")
    said = lrec("scaling", "study", "--config", "runs.yaml", "--jobs", "1", "--sizes", '["0.8k"]', *longer)
    precision, few, begun, evaluated, ended, report, *_ = said.splitlines()
    assert precision == "precision: 32-true, chosen by auto"
    assert few.startswith("a run has no more than 3 optimizer steps")
    assert begun == "0.8k-seed1: beginning"
    figures = r"\d+ epochs?, train loss \d\.\d{4}, val loss \d\.\d{4}, \d+ s"
    doing = r"training: step \d+ of 3(, at most \d+ s left)?|evaluating: batch .*|testing: batch .*|measuring .*|ending"
    assert re.fullmatch(rf"0.8k-seed1: ({doing}), {figures}", evaluated)
    assert ended.startswith("[1/1 fitted] 0.8k-seed1: test loss ")
    assert report == "writing the report"


def test_a_signal_while_no_run_is_under_way_stops_a_study_too(
    folder: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit_and_stop(*arguments: Any) -> LadderFit:
        os.kill(os.getpid(), signal.SIGTERM)
        return fit_ladder(*arguments)

    monkeypatch.setattr("lrec.study.study.fit_ladder", fit_and_stop)
    ladder = ("--sizes", '["0.8k", "1.7k", "3k", "4.8k", "12k"]', "--holdout", "1", "--law", "lsrm")
    with pytest.raises(SystemExit) as stop:
        lrec("scaling", "study", "--config", "runs.yaml", *ladder)
    assert stop.value.code == 75
    assert (folder / "prediction.json").exists()
    assert not (folder / "runs" / "12k-seed1").exists()


UNDER_WAY = "another study is under way in studies/runs: wait for its end, or choose another --out"


def test_a_second_study_in_a_folder_is_refused(
    folder: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    command = ["scaling", "study", "--config", "runs.yaml"]
    folder.mkdir(parents=True, exist_ok=True)
    Path("link").symlink_to(folder.absolute())
    with locked(lock_of(folder)):
        assert UNDER_WAY in refused(*command)
        assert "another study is under way in link" in refused(*command, "--out", "link")
        assert "0.8k-seed1" in lrec(*command, "--status", "true")
    assert not (folder / "runs").exists()


@pytest.mark.usefixtures("folder")
def test_the_progress_of_a_study_in_a_folder_of_others_is_shown(
    lrec: Callable[..., str], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    assert "0.8k-seed1" in lrec("scaling", "study", "--config", "runs.yaml", "--status")
    assert "cannot be written to" in refused("scaling", "study", "--config", "runs.yaml")


@pytest.mark.slow
def test_a_study_goes_on_beside_one_that_is_refused(
    folder: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    waiting = subprocess.Popen(
        [sys.executable, "-m", "lrec", "scaling", "study", "--config", "runs.yaml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    while not (folder / "study.json").exists():
        assert waiting.poll() is None, waiting.communicate()[0].decode()
        time.sleep(0.01)
    before = state(folder)
    message = refused("scaling", "study", "--config", "runs.yaml", "--sizes", "[0.8k, 1.7k, 3k]")
    assert UNDER_WAY in message
    assert state(folder).keys() == before.keys()
    assert "0.8k-seed1" in lrec("scaling", "study", "--config", "runs.yaml", "--status", "true")
    assert waiting.wait() == 0, waiting.communicate()[0].decode()
    assert set(state(folder).values()) == {"finished"}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("budget_hours", 1e-4),
        pytest.param("budget_disk_gib", 1e-6, marks=pytest.mark.slow),
        pytest.param("memory_gib", 0.5, marks=pytest.mark.slow),
    ],
)
def test_what_may_take_more_than_allowed_does_not_start(
    option: str, value: float, folder: Path, refused: Callable[..., str]
) -> None:
    command = ["scaling", "study", "--config", "runs.yaml", "--sizes", '["0.8k"]']
    assert f"--{option} {value:g}: " in refused(*command, f"--{option}", value)
    assert not folder.exists()


def test_a_skipped_run_does_not_count_in_the_budget(
    folder: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    command = ["scaling", "study", "--config", "runs.yaml", "--sizes", '["0.8k", "829m"]', "--budget_hours", "0.02"]
    assert "--budget_hours 0.02: " in refused(*command, "--dry_run", "true")
    assert "829m" not in lrec(*command, "--dry_run", "true", "--skip", '["829m-seed1"]')


def test_nothing_starts_once_the_budget_is_spent(folder: Path, refused: Callable[..., str]) -> None:
    """The hours that a run has really taken count, not those of its plan."""
    point = {"best": False, "status": "running", "wall_s": 5 * 3600.0}
    points_file = folder / "runs" / "1.7k-seed1" / "points.jsonl"
    points_file.parent.mkdir(parents=True)
    points_file.write_text(json.dumps(point) + "\n")
    message = refused("scaling", "study", "--config", "runs.yaml", "--cores", 2, "--budget_hours", 4)
    assert "--budget_hours 4 are spent: not finished: 2 of 2 runs" in message
    assert not (folder / "runs" / "0.8k-seed1").exists()


def test_a_run_told_to_stop_saves_and_goes_on(folder: Path) -> None:
    options = STUDY["options"] | {"trainer.max_epochs": 16, "data.targets_per_step": 64}
    study, runs = Study(**STUDY | {"sizes": ["0.8k"], "options": options, "jobs": 1, "cores": 1}), folder / "runs"
    (run,) = planned_runs(study)
    last = runs / run.name / "checkpoints" / "last.ckpt"
    stopped = list(train(study, [run], watch=lambda: not last.exists()))
    assert [outcome.status for _, outcome in stopped] == ["stopped"]
    before = Run(runs / run.name).points
    assert 0 < len(before) < 16
    (outcome,) = (outcome for _, outcome in train(study, [run]))
    assert outcome.status == "finished"
    after = Run(runs / run.name).points
    assert len(after) == 16
    assert [p.val_loss for p in after[: len(before)]] == [p.val_loss for p in before]
    # As if killed after its test and before its losses by target were measured: only those are measured.
    (runs / run.name / "target_losses.parquet").unlink()
    Run(runs / run.name).write_points([replace(point, test_loss_se=None) for point in after])
    (outcome,) = (outcome for _, outcome in train(study, [run]))
    assert outcome.status == "finished"
    assert Run(runs / run.name).points == after
    assert (runs / run.name / "target_losses.parquet").exists()


def test_an_option_may_be_a_class_with_its_options(folder: Path, lrec: Callable[..., str]) -> None:
    optimizer = {"class_path": "lrec.Optimizer", "init_args": {"lr": 0.02}}
    options = STUDY["options"] | {"model.optimizer": optimizer}
    Path("runs.yaml").write_text(yaml.safe_dump(STUDY | {"options": options}))
    said = lrec("scaling", "study", "--config", "runs.yaml", "--dry_run", "true", "--size_seeds", "{3k: [1, 2]}")
    assert said.startswith("not used: --size_options and --size_seeds of 3k, which --sizes does not name")
    assert "2 runs" in said
    assert all(run.config.value("model.optimizer.lr") == 0.02 for run in runs_of(options=options))


@pytest.mark.slow
def test_grid_and_tuning(folder: Path, lrec: Callable[..., str]) -> None:
    """Every run of the grid has the rate that the trials call for; a second call trains nothing, and says the same."""
    command = ["scaling", "study", "--config", "runs.yaml", "--tune", '["lr"]']
    command += ["--grid", json.dumps({"trainer": {"max_epochs": [1, 2]}}), "--options.data.targets_per_step", "100"]
    command += ["--fractions", "[0.5]"]
    assert "targets_per_step-100" in lrec(*command, "--dry_run", "true")
    report = lrec(*command)
    tuning = folder.with_name("runs-tuning")
    tuned = json.loads((tuning / "tuned.json").read_text())
    trials = [Trial(**trial | {"setting": Setting(**trial["setting"])}) for trial in tuned["trials"]]
    for size, n_body in (("0.8k", 768), ("1.7k", 1728)):
        for epochs in (1, 2):
            run = folder / "runs" / f"{size}-users-0.5-max_epochs-{epochs}-seed1"
            config = yaml.safe_load((run / "config.yaml").read_text())
            assert config["trainer"]["max_epochs"] == epochs
            called_for = law_of(trials, scaled=True).choose(n_body, tuned["targets"], 100).rate
            assert config["model"]["optimizer"]["lr"] == pytest.approx(called_for, rel=1e-3)
    assert "Tuned by validation loss" in report
    assert "| 0.5 | 0.8k | max_epochs-2 |" in (folder / "report.md").read_text()
    best = min(tuned["trials"], key=lambda trial: trial["loss"])
    tried = [trial["setting"]["lr"] for trial in tuned["trials"]]
    assert min(tried) < best["setting"]["lr"] < max(tried)
    assert len(list((tuning / "runs").glob("*/points.jsonl"))) == len(tried)
    assert f"[trial {len(tried)}] " in report
    listed = [line.split()[0] for line in lrec(*command, "--status", "true").splitlines() if "-seed" in line]
    assert sorted(listed) == sorted(path.parent.name for path in folder.parent.glob("*/runs/*/points.jsonl"))
    trained = {path: path.stat().st_mtime_ns for path in tuning.glob("runs/*/points.jsonl")}
    assert lrec(*command).splitlines()[-1] == report.splitlines()[-1]
    assert {path: path.stat().st_mtime_ns for path in tuning.glob("runs/*/points.jsonl")} == trained
    options = STUDY["options"] | {"data.targets_per_step": 100}
    grid = {"trainer": {"max_epochs": [1, 2]}}
    study = Study(**STUDY | {"options": options, "grid": grid, "tune": ("lr",), "fractions": (0.5,)})
    work = Work(study)
    Tuner(study).tuned(work)
    (of_trials,) = work.records.values()
    assert len(of_trials.runs) == len(tried), "the budget counts the hours of trials also at a later start"


@pytest.mark.slow
@pytest.mark.slow
def test_a_tuned_study_grows_with_the_rules_that_it_has(folder: Path, lrec: Callable[..., str]) -> None:
    """Blocks without an MLP have fewer parameters than the size by which rules are read."""
    command = ["scaling", "study", "--config", "runs.yaml", "--tune", '["lr"]']
    command += ["--options.data.targets_per_step", "100", "--options.model.architecture.mlp", "none"]
    lrec(*command)
    tuned = folder.with_name("runs-tuning") / "tuned.json"
    before, trials = tuned.read_text(), len(list(tuned.parent.glob("runs/*/points.jsonl")))
    assert {trial["n_body"] for trial in json.loads(before)["trials"]} == {1728}
    rules = json.loads(before)["rules"]["model.optimizer.lr"]
    grown = ["--sizes", "[0.8k, 1.7k, 3k]"]
    assert f"{trials + 3} runs" in lrec(*command, *grown, "--dry_run", "true")
    assert "[trial" not in lrec(*command, *grown)
    assert tuned.read_text() == before
    assert set(state(folder).values()) == {"finished"}
    config = yaml.safe_load((folder / "runs" / "3k-seed1" / "config.yaml").read_text())
    assert config["model"]["optimizer"]["lr"] == pytest.approx(rules[0] * 3072 ** rules[1], rel=1e-3)
    restart = ["--restart", json.dumps([next(tuned.parent.glob("runs/1.7k*")).name, *state(folder)])]
    assert "[trial" in lrec(*command, *grown, *restart)


def test_hours_of_a_finished_run_are_those_of_the_cores_that_it_had(folder: Path) -> None:
    study = Study(**STUDY | {"sizes": ["0.8k"], "jobs": 1, "cores": 2})
    record = Record(study, planned_runs(study))
    runs = record.enter((), ())
    Work(study).train(record, runs, "fitted")
    hours = budget.hours_by_run(study, runs)
    assert budget.hours_by_run(replace(study, cores=8), runs) == hours
    assert min(hours.values()) > 0


def test_the_rate_belongs_to_what_is_tuned(refused: Callable[..., str], folder: Path) -> None:
    assert "add lr" in refused("scaling", "study", "--config", "runs.yaml", "--tune", '["dropout"]')
    assert not folder.exists()


@pytest.mark.slow
def test_jobs_of_a_cluster(folder: Path, lrec: Callable[..., str], refused: Callable[..., str]) -> None:
    """submitit's local executor: the same jobs as on SLURM, in processes of this machine."""
    command = ["scaling", "study", "--config", "runs.yaml", "--cluster"]
    mistyped = refused(*command, '{"cluster": "local", "slurm_partitoin": "gpu"}')
    assert mistyped.startswith("lrec: error: --cluster: ")
    assert "slurm_partitoin" in mistyped
    lrec(*command, '{"cluster": "local", "timeout_min": 5}')
    report = (folder / "report.md").read_text()
    assert "| 0.8k | 1 |" in report
    assert state(folder) == {"0.8k-seed1": "finished", "1.7k-seed1": "finished"}
    assert len(list((folder / "jobs").glob("*/*_log.out"))) == 2
    lrec(*command, '{"cluster": "local"}')
    assert (folder / "report.md").read_text() == report
    assert len(list((folder / "jobs").glob("*/*_log.out"))) == 2


LONG = {"trainer.max_epochs": 400, "early_stopping.patience": 400, "data.targets_per_step": 64}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_local_jobs_end_with_their_study(number: signal.Signals, folder: Path) -> None:
    Path("runs.yaml").write_text(yaml.safe_dump(STUDY | {"options": STUDY["options"] | LONG}))
    command = ["lrec", "scaling", "study", "--config", "runs.yaml", "--sizes", "[0.8k, 1.7k, 3k]"]
    study = subprocess.Popen(
        [sys.executable, "-m", *command, "--cluster", "{cluster: local}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    first, second, third = (folder / "runs" / f"{size}-seed1" for size in ("0.8k", "1.7k", "3k"))
    while not all((run / "checkpoints" / "last.ckpt").exists() for run in (first, second)):
        assert study.poll() is None, study.communicate()[0]
        time.sleep(0.05)
    assert not third.exists(), "--jobs 2"
    study.send_signal(number)
    said, _ = study.communicate(timeout=60)
    deadline = time.monotonic() + 60
    while is_running(first) or is_running(second) or jobs_under_way(folder):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for run in (first, second):
        assert (run / "ended").read_text() == "interrupted\n"
        assert 0 < len(Run(run).points) < LONG["trainer.max_epochs"]
    assert not third.exists()
    if number == signal.SIGTERM:
        assert study.returncode == 75, said
        assert "not finished: 3 of 3 runs" in said
        assert state(folder) == {"0.8k-seed1": "stopped", "1.7k-seed1": "stopped", "3k-seed1": "waiting"}


def jobs_under_way(folder: Path) -> list[bytes]:
    """The processes that submitit has started for a study."""
    commands = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            commands.append(process.read_bytes())
    return [command for command in commands if b"submitit" in command and str(folder / "jobs").encode() in command]


SLURM = {
    "sbatch": """
        cp "$1" submitted.sh
        for i in $(seq 0 $(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' "$1")); do
            SLURM_JOB_ID=$((8 + i)) SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=$i SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 \\
            SLURM_NODEID=0 SLURM_JOB_NODELIST=node SLURM_PROCID=0 SLURM_LOCALID=0 bash -c '
                bash submitted.sh
                while rm requeued-7_$SLURM_ARRAY_TASK_ID; do bash submitted.sh; done' > /dev/null 2>&1 &
        done
        echo Submitted batch job 7
    """,
    "srun": """
        while [[ $1 == --* ]]; do [[ $1 == --unbuffered || $1 == *=* ]] || shift; shift; done
        echo $$ > process-$SLURM_ARRAY_TASK_ID
        exec "$@"
    """,
    "scontrol": """
        [[ $1 == requeue ]] && touch requeued-$2
    """,
    "sacct": """
        printf 'JobID|State|NodeList\\n7_0|RUNNING|node\\n7_1|RUNNING|node\\n'
    """,
}


@pytest.fixture
def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for SLURM's commands, which start the array on this machine."""
    commands = Path("slurm").resolve()
    commands.mkdir()
    for name, script in SLURM.items():
        (commands / name).write_text("#!/bin/bash" + script)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_an_array_of_slurm(folder: Path, lrec: Callable[..., str]) -> None:
    """What is handed to SLURM and what its jobs do."""
    parameters = {"timeout_min": 60, "slurm_partition": "cpu"}
    command = ["scaling", "study", "--config", "runs.yaml", "--cores", 4]
    lrec(*command, "--cluster", json.dumps(parameters))
    assert state(folder) == {"0.8k-seed1": "finished", "1.7k-seed1": "finished"}
    asked = re.findall("^#SBATCH --(.*)$", Path("submitted.sh").read_text(), re.MULTILINE)
    assert {"array=0-1%2", "cpus-per-task=2", "job-name=runs", "partition=cpu", "time=60"} <= set(asked)
    assert re.search("^srun .* --kill-on-bad-exit=1", Path("submitted.sh").read_text(), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_job_that_is_preempted_saves_and_is_requeued(folder: Path) -> None:
    """submitit asks SLURM to send SIGUSR2."""
    options = STUDY["options"] | LONG | {"trainer.max_epochs": 20}
    study = Study(**STUDY | {"options": options, "cores": 2, "cluster": {"slurm_partition": "cpu"}})
    runs = planned_runs(study)
    trained = Run(folder / "runs" / runs[0].name)
    with ThreadPoolExecutor() as pool:
        submitted = pool.submit(lambda: list(train_on_cluster(study, runs)))
        while not trained.last.exists():
            assert not submitted.done(), submitted.result()
            time.sleep(0.02)
        os.kill(int(Path("process-0").read_text()), signal.SIGUSR2)
        ended = [outcome for _, outcome in submitted.result(timeout=100)]
    assert [(outcome.status, outcome.reason) for outcome in ended] == [("finished", "")] * 2
    assert len(trained.points) == 20
    assert len(re.findall(r"interrupted at step \d+;", trained.log_file.read_text())) == 1
    assert "time=1440" in Path("submitted.sh").read_text()


def test_a_job_has_the_nodes_and_gpus_of_its_run(
    folder: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = Path("slurm").resolve()
    commands.mkdir()
    (commands / "sbatch").write_text('#!/bin/bash\ncp "$1" $(mktemp submitted-XXXXXX)\necho Submitted batch job 7\n')
    (commands / "srun").write_text("#!/bin/bash\nexit 1\n")
    for command in commands.iterdir():
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    monkeypatch.setattr("submitit.SlurmJob.done", lambda job: True)  # do not wait for the jobs
    monkeypatch.setattr("lrec.study.cluster._outcome_of", lambda job: Outcome("stopped"))
    large = {"1.7k": {"trainer.num_nodes": 2, "trainer.devices": 8, "trainer.strategy": "fsdp2"}}
    options = ["--options.trainer.accelerator", "gpu", "--size_options", json.dumps(large)]
    command = ["scaling", "study", "--config", "runs.yaml", *options, "--cluster", '{"timeout_min": 60}']
    assert "not finished: 2 of 2 runs" in refused(*command)
    asked = [set(re.findall("^#SBATCH --(.*)$", path.read_text(), re.MULTILINE)) for path in Path().glob("submitted-*")]
    small, large_one = sorted(asked, key=lambda options: "nodes=2" in options)
    assert {"gpus-per-node=1", "nodes=1"} <= small
    assert {"gpus-per-node=8", "nodes=2"} <= large_one


@pytest.mark.slow
def test_several_nodes_train_one_run(folder: Path) -> None:
    """Two nodes of one process each, both on this machine."""
    trainer = {"trainer.num_nodes": 2, "trainer.devices": 1, "trainer.strategy": "fsdp2"}
    (run,) = runs_of(sizes=["0.8k"], options=STUDY["options"] | trainer)
    path = (folder / "runs" / run.name).resolve()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with ThreadPoolExecutor() as nodes:
        training = Training(run, path, "runs", threads=1)
        jobs = [nodes.submit(training.on_node(node, "127.0.0.1", port).carry_out) for node in (0, 1)]
        first, second = (job.result() for job in jobs)
    assert (first.status, second.status) == ("finished", "finished"), f"{first.reason}\n{second.reason}"
    assert first.point is not None
    assert first.point.world_size == 2
    assert first.point.test_loss_se is not None


def test_a_job_that_fails_is_reported(folder: Path, refused: Callable[..., str]) -> None:
    broken = ["--size_options", json.dumps({"1.7k": {"model.optimizer.switch.at": 1000}})]
    message = refused("scaling", "study", "--config", "runs.yaml", *broken, "--cluster", '{"cluster": "debug"}')
    assert "run 1.7k-seed1 failed: optimizer.switch.at 1000: the run has" in message
    assert state(folder) == {"0.8k-seed1": "finished", "1.7k-seed1": "failed"}


@pytest.mark.parametrize(("kind", "advises"), [("fitted", True), ("network", False), ("steps", False)])
def test_only_a_study_advises_to_skip_a_run_that_failed(
    kind: str, advises: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backtest and `lrec scaling exchange` have no --skip."""
    study = Study(**STUDY | {"out": tmp_path})
    record = Record(study, planned_runs(study))
    ended = [(run, Outcome("failed", reason="memory")) for run in record.runs]
    monkeypatch.setattr(Work, "_start", lambda *_: iter(ended))
    with pytest.raises(UserError, match=r"seed1 failed: memory") as refusal:
        Work(study).train(record, record.runs, kind)
    assert ("--skip" in str(refusal.value)) == advises


@pytest.mark.skipif(shutil.which("sbatch") is not None, reason="there is a cluster here")
def test_without_a_cluster_there_is_one_line(folder: Path, refused: Callable[..., str]) -> None:
    assert "--cluster: " in refused("scaling", "study", "--config", "runs.yaml", "--cluster", '{"timeout_min": 5}')


def test_what_a_job_trains_on_is_named(folder: Path, refused: Callable[..., str]) -> None:
    command = ["scaling", "study", "--config", "runs.yaml", "--options.trainer.accelerator", "auto", "--cluster"]
    assert "run 0.8k-seed1 has trainer.accelerator auto, which" in refused(*command, '{"timeout_min": 5}')
    assert not folder.exists()


def test_only_runs_of_the_study_are_skipped_and_restarted(folder: Path, refused: Callable[..., str]) -> None:
    for option in ("--skip", "--restart"):
        message = refused("scaling", "study", "--config", "runs.yaml", option, '["0.8k"]')
        assert "0.8k is none of the study's runs" in message
    every = refused("scaling", "study", "--config", "runs.yaml", "--skip", '["0.8k-seed1", "1.7k-seed1"]')
    assert "no run of a fitted size is left" in every


def test_a_run_under_way_is_not_restarted(folder: Path, lrec: Callable[..., str], refused: Callable[..., str]) -> None:
    command = ["scaling", "study", "--config", "runs.yaml", "--sizes", '["0.8k"]']
    lrec(*command)
    run = folder / "runs" / "0.8k-seed1"
    before = (run / "points.jsonl").read_text()
    with locked(lock_of(run)):
        assert "--restart 0.8k-seed1: it is under way" in refused(*command, "--restart", '["0.8k-seed1"]')
    assert (run / "points.jsonl").read_text() == before
