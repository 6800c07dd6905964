"""Signals, kills and full disks cost at most the steps since the last checkpoint."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from running import Fit, environment, fit_command, losses

from lrec.checkpoint.reading import check, find_last

pytestmark = pytest.mark.usefixtures("warm_processes")

# A checkpoint of 20 MB after every second step: one is nearly always being written.
LARGE = [
    *("--model.size=1.6m", "--model.optimizer.lr=0.001", "--data.targets_per_step=64", "--data.n_users=300"),
    *("--trainer.max_steps=48", "--trainer.val_check_interval=8", "--last.every_n_steps=2"),
]
LONG = ["--trainer.max_steps=60", "--trainer.val_check_interval=7", "--last.every_n_steps=3"]


def start(command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def interrupt(process: "subprocess.Popen[str]", run: Path, number: signal.Signals, which: int) -> str:
    """Send a signal to process `which` of a run once it has taken steps; returns what it printed."""
    last = run / "checkpoints" / "last.ckpt"
    before = newest(last)
    while newest(last) == before:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(second_process(run) if which else process.pid, number)
    return process.communicate(timeout=100)[0]


def second_process(run: Path) -> int:
    """The process that a run's first process has started."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            mine = str(run).encode() in (folder / "cmdline").read_bytes()
            if mine and b"LOCAL_RANK=1\0" in (folder / "environ").read_bytes():
                return int(folder.name)
    raise AssertionError(f"{run} has no second process")


def newest(checkpoint: Path) -> int:
    """When the checkpoint was completed."""
    path = checkpoint / "state.pt" if checkpoint.is_dir() else checkpoint
    return path.stat().st_mtime_ns if path.exists() else 0


def step_of(run: Path) -> int:
    """The step of a run's last checkpoint; 0 if there is none yet."""
    last = find_last(run / "checkpoints")
    if last is None:
        return 0
    check(last)
    step: int = torch.load(last / "state.pt" if last.is_dir() else last, weights_only=True)["global_step"]
    return step


@pytest.mark.slow
def test_two_processes_stopped_and_killed_end_as_if_undisturbed(folder: Path, fit: Fit) -> None:
    steady = fit("steady", 2, *LONG)
    run = folder / "disturbed"
    command = fit_command(folder, run, 2, *LONG, "--ckpt_path=last")

    stopped = start(command)
    printed = interrupt(stopped, run, signal.SIGTERM, which=1)  # only the second process gets the signal
    assert stopped.returncode == 75, printed
    assert f"interrupted at step {step_of(run)}; go on with --ckpt_path=last" in printed
    assert (run / "ended").read_text() == "interrupted\n"

    killed = start(command)
    interrupt(killed, run, signal.SIGKILL, which=1)
    assert killed.returncode not in (0, 2, 75)
    assert not (run / "ended").exists()
    assert step_of(run) > 0

    fit("disturbed", 2, *LONG, "--ckpt_path=last")
    assert losses(run) == pytest.approx(losses(steady), rel=1e-6)
    assert (run / "ended").read_text() == "finished\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_one_process_saves_on_a_signal(number: signal.Signals, folder: Path) -> None:
    run = folder / f"told-{number.name}"
    process = start(fit_command(folder, run, 0, "--trainer.max_steps=2000", "--last.every_n_steps=3"))
    printed = interrupt(process, run, number, which=0)
    assert process.returncode == 75, printed
    assert f"interrupted at step {step_of(run)}" in printed


def unfinished(run: Path) -> set[Path]:
    """The files of a run's checkpoints that nothing refers to yet."""
    kept = run / "checkpoints"
    named: set[str] = set()
    for state in kept.glob("*.ckpt/state.pt"):
        with contextlib.suppress(OSError):
            named |= set(torch.load(state, weights_only=True)["shards"])
    return {file for file in kept.glob("*.ckpt/*.safetensors") if file.name not in named} | set(kept.glob(".*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 2])
def test_twenty_stops_while_a_checkpoint_is_written_lose_nothing(processes: int, folder: Path, fit: Fit) -> None:
    steady, run = fit(f"large-{processes}", processes, *LARGE), folder / f"large-{processes}-stopped"
    command, chance = fit_command(folder, run, processes, *LARGE, "--ckpt_path=last"), random.Random(processes)
    reached = stops = 0
    while stops < 20:
        left, process = unfinished(run), start(command)
        while process.poll() is None:
            time.sleep(0.005)
            if not unfinished(run) <= left and chance.random() < 0.05:  # a random moment while one is being written
                stops, number = stops + 1, chance.choice([signal.SIGTERM, signal.SIGKILL])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(second_process(run) if processes else process.pid, number)
                break
        printed = process.communicate(timeout=100)[0]
        if f"interrupted at step {step_of(run)};" in printed:
            assert process.returncode == 75, printed
        elif process.returncode == 0:  # it finished before the signal came
            assert losses(run) == pytest.approx(losses(steady), rel=1e-6 if processes else 0)
            shutil.rmtree(run)
        else:
            assert number == signal.SIGKILL, printed
        reached, before = step_of(run) if run.exists() else 0, reached
        assert reached >= before or not run.exists(), "a stop has cost a checkpoint"
    fit(run.name, processes, *LARGE, "--ckpt_path=last")
    assert losses(run) == pytest.approx(losses(steady), rel=1e-6 if processes else 0)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 2])
def test_a_full_disk_leaves_the_last_checkpoint(processes: int, folder: Path, fit: Fit) -> None:
    name, large = f"full-{processes}", ["--model.size=221k", "--trainer.val_check_interval=2"]
    run = fit(name, processes, *large, "--trainer.max_steps=4")
    files = set((run / "checkpoints").rglob("*"))
    assert step_of(run) == 4
    full = subprocess.run(
        fit_command(folder, run, processes, *large, "--ckpt_path=last"),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000)),
    )
    assert full.returncode == 2, full.stdout + full.stderr
    (error,) = {line for line in full.stderr.splitlines() if line.startswith("lrec: error: ")}
    assert "could not be written" in error
    assert "File too large" in error, "what the system says of the limit"
    assert "Traceback" not in full.stderr
    assert step_of(run) == 4
    assert set((run / "checkpoints").rglob("*")) == files
