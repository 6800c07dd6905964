"""The files of docs/cluster, run here: two "nodes" of one process each on loopback."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running import OPTIONS, Fit, environment, losses, points, run_here

from lrec.checkpoint.reading import read
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.options.config_files import find_config

pytestmark = pytest.mark.usefixtures("warm_processes")

REPOSITORY = Path(__file__).parents[2]
EVERY_FIFTH = "--trainer.val_check_interval=5"
LONG = ["--trainer.max_steps=100", "--last.every_n_steps=3"]
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
    """The environment of both recipes, with this Python's commands first and stand-ins for SLURM's commands."""
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


@pytest.fixture(scope="module")
def undisturbed(fit: Fit) -> list[float]:
    """Losses of a run of LONG on one node."""
    return losses(fit("cluster-steady", 0, *LONG))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def check(run: Path, alone: Path, printed: list[str]) -> None:
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    assert [point["world_size"] for point in points(run)] == [2] * len(points(alone))
    assert sum("NDCG" in text for text in printed) <= 1, "one process speaks"


def two_nodes(cluster: dict[str, str], arguments: list[str]) -> "list[subprocess.Popen[str]]":
    """Start fit.sh on two "nodes"."""
    variables = {"NODES": "2", "DEVICES": "1", "PORT": str(free_port()), "LOCAL_ADDRESS": "127.0.0.1", "PAUSE": "1"}
    return [
        subprocess.Popen(
            [REPOSITORY / "docs/cluster/fit.sh", *arguments],
            cwd=REPOSITORY,
            env=cluster | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]


def ended(nodes: "list[subprocess.Popen[str]]", codes: list[int]) -> list[str]:
    """Wait for the nodes, which must exit with `codes`; what each printed."""
    printed = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == codes, "\n".join(printed)
    return printed


@pytest.mark.slow
def test_two_nodes_train_from_one_store_without_its_raw_files(
    log_csv: Path, cluster: dict[str, str], tmp_path: Path
) -> None:
    shutil.copy(log_csv, tmp_path / "log.csv")
    columns = {"user_column": "who", "item_column": "what", "time_column": "when"}
    raw = InteractionsDataModule(path=tmp_path / "log.csv", data_dir=tmp_path / "data", **columns)  # type: ignore[arg-type]
    raw.prepare_data()
    store = shutil.copytree(raw.store_path, tmp_path / "store")
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "log.csv").unlink()
    arguments = [
        *("--data=lrec.InteractionsDataModule", f"--data.store={store}", "--data.max_len=8"),
        *("--data.targets_per_step=256", "--model.size=0.8k", "--model.optimizer.lr=0.01", "--trainer.max_epochs=2"),
        "--trainer.enable_progress_bar=false",
    ]
    printed = ended(two_nodes(cluster, arguments), [0, 0])
    alone = tmp_path / "alone"
    here = ["fit", f"--config={find_config('trainer/laptop.yaml')}", f"--trainer.default_root_dir={alone}"]
    run_here([*("python", "-m", "lrec"), *here, *arguments])
    check(Path(cluster["RUN"]), alone, printed)
    assert not list(tmp_path.glob("data*"))


@pytest.mark.slow
def test_torchrun_on_two_nodes(folder: Path, alone: Path, cluster: dict[str, str]) -> None:
    printed = ended(two_nodes(cluster, options(folder)), [0, 0])
    check(Path(cluster["RUN"]), alone, printed)
    assert (Path(cluster["RUN"]) / "ended").read_text() == "finished\n"


@pytest.mark.slow
@pytest.mark.parametrize("told", [0, 1])
def test_both_nodes_end_when_one_is_told_to(told: int, folder: Path, cluster: dict[str, str]) -> None:
    run = Path(cluster["RUN"])
    nodes = two_nodes(cluster, [*OPTIONS, f"--data.data_dir={folder / 'data'}", *LONG])
    wait_for_steps(run, nodes)
    nodes[told].terminate()
    stopped = time.monotonic()
    ended(nodes, [75, 75])
    assert time.monotonic() - stopped < 30
    assert (run / "ended").read_text() == "interrupted\n"
    last = read(run / "checkpoints" / "last.ckpt")
    assert 0 < last["global_step"] < 100


@pytest.mark.parametrize("told", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_both_nodes_end_when_one_is_told_to_before_they_train(told: int, folder: Path, cluster: dict[str, str]) -> None:
    nodes = two_nodes(cluster, [*OPTIONS, f"--data.data_dir={folder / 'data'}", *LONG])
    time.sleep(1)  # they are looking for each other, or have just met
    nodes[told].terminate()
    stopped = time.monotonic()
    ended(nodes, [75, 75])
    assert time.monotonic() - stopped < 30
    assert (Path(cluster["RUN"]) / "ended").read_text() == "interrupted\n"


@pytest.mark.slow
def test_a_process_that_dies_is_started_again(folder: Path, undisturbed: list[float], cluster: dict[str, str]) -> None:
    run = Path(cluster["RUN"])
    arguments = [*OPTIONS, f"--data.data_dir={folder / 'data'}", *LONG]
    nodes = two_nodes(cluster, arguments)
    wait_for_steps(run, nodes)
    os.kill(process_of(run, b"RANK=1"), signal.SIGKILL)
    ended(nodes, [0, 0])
    assert losses(run) == pytest.approx(undisturbed, rel=1e-5)


@pytest.mark.slow
def test_nobody_trains_on_without_its_agent(folder: Path, undisturbed: list[float], cluster: dict[str, str]) -> None:
    """SIGKILL to torchrun, as when memory runs out: its process ends too, and both nodes start again."""
    run = Path(cluster["RUN"])
    nodes = two_nodes(cluster, [*OPTIONS, f"--data.data_dir={folder / 'data'}", *LONG])
    wait_for_steps(run, nodes)
    orphan = Path("/proc") / str(process_of(run, b"RANK=1"))
    agent = int((orphan / "stat").read_text().rpartition(")")[2].split()[1])
    os.kill(agent, signal.SIGKILL)
    killed = time.monotonic()
    while orphan.exists():
        assert time.monotonic() - killed < 90
        time.sleep(0.05)
    ended(nodes, [0, 0])
    assert losses(run) == pytest.approx(undisturbed, rel=1e-5)


def wait_for_steps(run: Path, nodes: "list[subprocess.Popen[str]]") -> None:
    """Wait until the run has saved a checkpoint."""
    while not (run / "checkpoints" / "last.ckpt" / "state.pt").exists():
        assert all(node.poll() is None for node in nodes), [node.communicate() for node in nodes]
        time.sleep(0.02)


def process_of(run: Path, variable: bytes) -> int:
    """The process that trains the run with this variable in its environment."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            mine = str(run).encode() in (folder / "cmdline").read_bytes()
            if mine and variable in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
    raise AssertionError(f"no process of {run} has {variable!r}")


@pytest.mark.parametrize(
    ("how", "code", "failures", "exits", "requeued"),
    [
        ("interrupted", 75, None, 75, True),
        ("interrupted", 1, 2, 75, True),  # even if srun exits with another code
        ("finished", 0, 2, 0, False),
        ("", 1, None, 1, True),
        ("", 1, 3, 1, False),  # the fourth failure in a row
        ("", 2, None, 2, False),
    ],
)
def test_what_slurm_does_afterwards(
    how: str, code: int, failures: int | None, exits: int, requeued: bool, cluster: dict[str, str], tmp_path: Path
) -> None:
    run = Path(cluster["RUN"])
    run.mkdir()
    (run / "ended").write_text("finished\n")  # from an earlier attempt
    if failures is not None:
        (run / "failed").write_text(f"{failures}\n")
    note = f'echo {how} > "$RUN/ended"' if how else ""
    (tmp_path / "srun").write_text(f"#!/bin/sh\n{note}\nexit {code}\n")
    slurm = {"SLURM_JOB_ID": "1", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "1"}
    slurm |= {"SCONTROL_LOG": str(tmp_path / "scontrol.log")}
    job = subprocess.run([REPOSITORY / "docs/cluster/fit.sbatch"], env=cluster | slurm, check=False)
    assert job.returncode == exits
    assert (tmp_path / "scontrol.log").exists() == requeued
    failed = int((run / "failed").read_text()) if (run / "failed").exists() else 0
    assert failed == {"interrupted": 0, "finished": 0, "": (failures or 0) + (requeued and not how)}[how]


@pytest.mark.slow
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
