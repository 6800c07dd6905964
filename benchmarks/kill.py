"""Kill a run with SIGKILL at random moments: every restart goes on, and the result equals an undisturbed run.

    OMP_NUM_THREADS=1 python benchmarks/kill.py [--kills 20] [--processes 1|2] [--writing]

The run is trained once undisturbed. Then it is started again and again with --ckpt_path=last, and killed after a random
time: during start-up, training steps, evaluation, saving or the final test. A run that ends before all kills are spent
is followed by another one. With --writing, the kill waits, after the random time, until a checkpoint is being written
in the background, and comes at a random moment of this write. With two processes (FSDP2, sharded checkpoints), one of
them is killed at random. Every point of points.jsonl must be equal to the last bit, except clock times and names. The
script adds a row to benchmarks/kill.md.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rows import add_row

EVERY_N_STEPS = 25
OPTIONS = [
    "--config=data/synthetic.yaml", "--data.n_users=3000", "--data.n_items=201", "--data.length=30",
    "--data.targets_per_step=1024", "--model.size=25k", "--model.dropout.embedding=0.1", "--model.optimizer.lr=0.01",
    "--trainer.enable_progress_bar=false", f"--last.every_n_steps={EVERY_N_STEPS}",
]  # fmt: skip
LONGEST_WRITE_S = 0.02
MAY_DIFFER = ("run", "wall_s", "config_hash", "commit")
TITLES = (
    "processes", "kills", "of those during a write", "of those before the first checkpoint",
    "runs finished and compared", "steps of a run",
    "checkpoints found after kills, by step", "points compared", "test loss, undisturbed", "test loss, killed",
    "machine", "commit",
)  # fmt: skip
HEADER = f"""# Killed at random, and the same in the end

A run is killed with SIGKILL after random times and started again with `--ckpt_path=last`. With `--writing`, the kill
waits for the next write of a checkpoint. The run saves at each evaluation and every {EVERY_N_STEPS} steps. All points
of a finished run (losses, metrics, D, FLOPs, step) must equal those of the undisturbed run to the last bit, or the
benchmark fails.

    OMP_NUM_THREADS=1 python benchmarks/kill.py --processes 1
    OMP_NUM_THREADS=1 python benchmarks/kill.py --processes 2
    OMP_NUM_THREADS=1 python benchmarks/kill.py --processes 1 --writing --epochs 8 --longest 20
    OMP_NUM_THREADS=1 python benchmarks/kill.py --processes 2 --writing --epochs 8 --longest 20

| {" | ".join(TITLES)} |
|{"---|" * len(TITLES)}
"""


def start(arguments: argparse.Namespace, run: Path) -> "subprocess.Popen[bytes]":
    """Start `lrec fit`, from the last checkpoint if there is one, as the leader of a process group."""
    trainer = "trainer/fsdp-cpu.yaml" if arguments.processes > 1 else "trainer/laptop.yaml"
    command = [sys.executable, "-m", "lrec", "fit", *OPTIONS, f"--config={trainer}", "--ckpt_path=last"]
    command += [f"--data.data_dir={run.parent / 'data'}", f"--trainer.default_root_dir={run}"]
    command += [f"--trainer.max_epochs={arguments.epochs}", "--trainer.precision=32-true"]
    with run.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def step_reached(run: Path) -> int | None:
    """The step of the run's last checkpoint."""
    import torch

    from lrec.checkpoint.reading import find_last

    last = find_last(run / "checkpoints")
    if last is None:
        return None
    state = torch.load(last / "state.pt" if last.is_dir() else last, weights_only=True)
    return int(state["global_step"])


def unfinished(run: Path, processes: int) -> set[Path]:
    """Files of unfinished writes: those that wait to be renamed, and shards in a folder that has too many of them."""
    found: set[Path] = set()
    with contextlib.suppress(FileNotFoundError):  # a file was renamed meanwhile, or is not there yet
        for folder in [run / "checkpoints", *(run / "checkpoints").glob("*.ckpt/")]:
            files = list(folder.iterdir())
            shards = [file for file in files if file.suffix == ".safetensors"]
            found |= {file for file in files if file.suffix == ".tmp"}
            found |= set(shards) if len(shards) > processes else set()
    return found


def into_a_write(process: "subprocess.Popen[bytes]", run: Path, processes: int, moment: float) -> None:
    """Wait until a checkpoint is being written, and `moment` seconds more, or until the run ends."""
    before = unfinished(run, processes)
    while process.poll() is None and not unfinished(run, processes) - before:
        time.sleep(0.0005)
    time.sleep(moment)


def kill(process: "subprocess.Popen[bytes]", chance: random.Random) -> None:
    """SIGKILL a random process of the run, and within two seconds all others that are still alive."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except OSError:
        children = []
    with contextlib.suppress(ProcessLookupError):  # a child that has just ended
        os.kill(int(chance.choice([str(process.pid), *children])), signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=chance.uniform(0, 2))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def points(run: Path) -> list[dict[str, Any]]:
    lines = (run / "points.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in MAY_DIFFER} for line in lines]


def measure(arguments: argparse.Namespace, folder: Path) -> tuple[Any, ...]:
    """The cells of a row, except machine and commit."""
    chance = random.Random(arguments.seed)
    undisturbed = folder / "undisturbed"
    began = time.monotonic()
    assert start(arguments, undisturbed).wait() == 0, undisturbed.with_suffix(".log").read_text()
    longest = arguments.longest or (time.monotonic() - began) / 2
    expected = points(undisturbed)
    found: list[int | None] = []
    during = 0
    finished = 0
    while len(found) < arguments.kills:
        run = folder / f"killed-{finished}"
        while True:
            before, left = step_reached(run), unfinished(run, arguments.processes)
            process = start(arguments, run)
            try:
                life = chance.uniform(1, longest) if len(found) < arguments.kills else None
                status = process.wait(timeout=life)
                break
            except subprocess.TimeoutExpired:
                if arguments.writing:
                    into_a_write(process, run, arguments.processes, chance.uniform(0, LONGEST_WRITE_S))
                if process.poll() is not None:  # it has ended before its next write
                    status = process.returncode
                    break
                kill(process, chance)
                during += bool(unfinished(run, arguments.processes) - left)
            found.append(step_reached(run))
            assert (found[-1] or 0) >= (before or 0), "a kill has cost a checkpoint"
            print(f"kill {len(found)}: last checkpoint of step {before} -> {found[-1]}", file=sys.stderr, flush=True)
        assert status == 0, f"a restart from step {before} failed:\n{run.with_suffix('.log').read_text()[-4000:]}"
        for got, wanted in zip(points(run), expected, strict=True):
            different = {name: (value, wanted[name]) for name, value in got.items() if value != wanted[name]}
            assert not different, f"{run} differs from {undisturbed} at step {wanted['step']}: {different}"
        finished += 1
    tests = [next(point["test_loss"] for point in rows if point["best"]) for rows in (expected, points(run))]
    return (
        arguments.processes,
        len(found),
        during,
        found.count(None),
        finished,
        expected[-1]["step"],
        ", ".join(str(step) for step in found if step is not None),
        finished * len(expected),
        *tests,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--longest", type=float, help="longest life of an attempt in seconds; half the run's")
    parser.add_argument("--writing", action="store_true", help="kill while a checkpoint is being written")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lrec-kill-"))
    try:
        add_row(__file__, HEADER, *measure(arguments, folder))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
