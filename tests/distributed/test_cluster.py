"""The files of docs/cluster, run here: two "nodes" of one process each on loopback."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from running import OPTIONS, Fit, environment, losses, points

pytestmark = pytest.mark.usefixtures("warm_processes")

REPOSITORY = Path(__file__).parents[2]
EVERY_FIFTH = "--trainer.val_check_interval=5"
SRUN = """#!{python}
import os, subprocess, sys
command = [word for word in sys.argv[1:] if not word.startswith("--kill-on-bad-exit")]
tasks = [
    subprocess.Popen(command, env=os.environ | {{"SLURM_PROCID": str(n), "SLURM_NODEID": str(n), "SLURM_LOCALID": "0"}})
    for n in range(int(os.environ["SLURM_NTASKS"]))
]
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = '#!/bin/sh\necho "$@" >> "$SCONTROL_LOG"\n'


@pytest.fixture
def cluster(folder: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of both recipes, with this Python's commands first and stand-ins for those of SLURM."""
    commands = {"srun": SRUN.format(python=sys.executable), "scontrol": SCONTROL}
    for name, module in (("lrec", "lrec"), ("torchrun", "torch.distributed.run")):
        commands[name] = f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n'
    for name, text in commands.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    return environment() | {"PATH": path, "RUN": str(tmp_path / "run"), "TRAINER": "configs/trainer/fsdp-cpu.yaml"}


def options(folder: Path) -> list[str]:
    return [*OPTIONS, EVERY_FIFTH, f"--data.data_dir={folder / 'data'}", "--trainer.max_steps=20"]


@pytest.fixture(scope="module")
def alone(fit: Fit) -> Path:
    return fit("alone", 0, EVERY_FIFTH)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def check(run: Path, alone: Path, printed: list[str]) -> None:
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    assert [point["world_size"] for point in points(run)] == [2] * len(points(alone))
    assert sum("NDCG" in text for text in printed) <= 1, "one process speaks"


def test_torchrun_on_two_nodes(folder: Path, alone: Path, cluster: dict[str, str]) -> None:
    variables = {"NODES": "2", "DEVICES": "1", "PORT": str(free_port()), "LOCAL_ADDRESS": "127.0.0.1"}
    nodes = [
        subprocess.Popen(
            [REPOSITORY / "docs/cluster/fit.sh", *options(folder)],
            cwd=REPOSITORY,
            env=cluster | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    printed = [node.communicate(timeout=200)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], printed
    check(Path(cluster["RUN"]), alone, printed)


def test_slurm_on_two_nodes(folder: Path, alone: Path, cluster: dict[str, str], tmp_path: Path) -> None:
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "lrec",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "SCONTROL_LOG": str(tmp_path / "scontrol.log"),
    }
    job = subprocess.run(
        [REPOSITORY / "docs/cluster/fit.sbatch", *options(folder)],
        cwd=REPOSITORY,
        env=cluster | slurm,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert job.returncode == 0, job.stdout + job.stderr
    check(Path(cluster["RUN"]), alone, [job.stdout])
    assert not (tmp_path / "scontrol.log").exists(), "a finished job is not requeued"
