"""Kill six commands with SIGKILL at random moments: after a restart, the files must be as without a kill.

    OMP_NUM_THREADS=1 python benchmarks/kill_commands.py [--kills 20] [--commands fit,recommend]

Each command runs once undisturbed in a folder. Then it runs in an empty folder of the same name, and is killed after a
random time, at most its undisturbed time, again and again. If it ends before its kill, its files are compared, and it
begins anew. In the end it runs without a kill. The files must have the same names, and neither they nor TMPDIR may hold
temporary files of lrec. Contents must be equal too, except clock times; `content` says which files are not compared.

The processes begin with Lightning and torch imported (tests/warm_python.py), so that kills fall into lrec's own work.
The runs of a killed study live on, and the study that is started again waits for them. The script adds a row for each
command to benchmarks/kill_commands.md.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from rows import add_row

import warm_python

SMALL = [
    "--config=data/synthetic.yaml", "--data.n_users=400", "--data.n_items=60", "--data.length=14",
    "--data.targets_per_step=256", "--config=trainer/laptop.yaml", "--trainer.enable_progress_bar=false",
    "--trainer.precision=32-true",
]  # fmt: skip
STUDY = {
    "name": "killed", "configs": ["data/synthetic.yaml", "trainer/laptop.yaml"], "sizes": ["0.8k", "3k"],
    "holdout": 0, "law": None, "jobs": 2,
    "options": {
        "data.n_users": 400, "data.n_items": 60, "data.length": 14, "data.targets_per_step": 256,
        "trainer.max_epochs": 3, "trainer.enable_progress_bar": False, "last.every_n_steps": 5,
        "trainer.precision": "32-true",
    },
}  # fmt: skip
COMMANDS = {
    "prepare": ["data", "prepare", "--config=data/csv.yaml", "--data.path=../log.csv", "--data.k_core=3",
                "--data.data_dir=out", "--data.memory_gib=0.01"],
    "fit": ["fit", *SMALL, "--model.size=3k", "--trainer.max_epochs=8", "--last.every_n_steps=5",
            "--data.data_dir=../stores", "--trainer.default_root_dir=out", "--ckpt_path=last"],
    "recommend": ["recommend", "--ckpt_path=../run", "--histories=../log.csv", "--out=out/lists.parquet"],
    "export": ["export", "--ckpt_path=../run", "--out=out/model.onnx"],
    "study": ["scaling", "study", "--config=../study.json", "--out=out", "--options.data.data_dir=stores"],
    "tasks": ["tasks", "--runs=../run", "--out=out"],
}  # fmt: skip
TITLES = ("command", "undisturbed, s", "kills", "runs finished", "files compared", "leftovers", "machine", "commit")
HEADER = f"""# Six commands killed at random

Each command is killed with SIGKILL after random times and started again, until it has been killed twenty times and has
ended. The benchmark fails unless its files have the same names and contents as without a kill, and no temporary files
are left. Clock times, ONNX files, TensorBoard's files and some JSON files are not compared.

    OMP_NUM_THREADS=1 python benchmarks/kill_commands.py

| {" | ".join(TITLES)} |
|{"---|" * len(TITLES)}
"""


class Written(NamedTuple):
    """What a command left: a fingerprint of each file by its name."""

    files: dict[str, Any]
    leftovers: list[str]


def start(python: str, command: list[str], folder: Path) -> "subprocess.Popen[bytes]":
    """Start a command of lrec in a folder."""
    with (folder.parent / "log.txt").open("ab") as log:
        return subprocess.Popen([python, "-m", "lrec", *command], cwd=folder, stdout=log, stderr=log)


def written(folder: Path) -> Written:
    """What is in a command's folder."""
    files: dict[str, Any] = {}
    for path in sorted((folder / "out").rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and "tfevents" not in name:
            files[name] = content(path)
    left = [str(path) for path in (folder / "tmp").glob(".lrec*")] + [name for name in files if name.endswith(".tmp")]
    return Written(files, left)


def content(path: Path) -> Any:
    """A file's content without clock times; None if it is not compared."""
    if path.name.endswith("points.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [{name: value for name, value in line.items() if name not in ("wall_s", "commit")} for line in lines]
    if path.suffix == ".ckpt":
        from lrec.checkpoint.reading import read

        checkpoint = read(path)
        return {name: tensor.tolist() for name, tensor in checkpoint["state_dict"].items()}
    if path.name == "meta.json":
        facts = json.loads(path.read_text())
        return {**facts, "files": {name: entry["sha256"] for name, entry in facts["files"].items()}}
    if path.name in ("throughput.json", "log.txt", "sources.json", "study.json") or path.suffix == ".onnx":
        return None
    return hashlib.sha256(path.read_bytes()).hexdigest()


def measure(name: str, python: str, folder: Path, kills: int, chance: random.Random) -> tuple[Any, ...]:
    """The cells of a row, except machine and commit."""
    work = folder / "work"
    command = COMMANDS[name]

    def fresh() -> None:
        shutil.rmtree(work, ignore_errors=True)
        (work / "tmp").mkdir(parents=True)

    fresh()
    began = time.monotonic()
    assert start(python, command, work).wait() == 0, log_of(folder)
    duration = time.monotonic() - began
    expected = written(work)
    assert not expected.leftovers, expected.leftovers
    fresh()
    killed = finished = 0
    while killed < kills or not finished:
        process = start(python, command, work)
        try:
            status = process.wait(timeout=chance.uniform(0, duration) if killed < kills else None)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
            print(f"{name}: kill {killed}", file=sys.stderr, flush=True)
            continue
        assert status == 0, log_of(folder)
        found = written(work)
        assert found.files.keys() == expected.files.keys(), found.files.keys() ^ expected.files.keys()
        different = [file for file, value in found.files.items() if value != expected.files[file]]
        assert not different, different
        assert not found.leftovers, found.leftovers
        finished += 1
        if killed < kills:
            fresh()
    return name, f"{duration:.1f}", killed, finished, len(expected.files), 0


def log_of(folder: Path) -> str:
    return (folder / "log.txt").read_text()[-4000:]


def set_up(python: str, folder: Path) -> None:
    """Write what the commands read: a log, a run on it, and the configuration of a study."""
    chance = random.Random(0)
    rows = [f"u{user},i{chance.randrange(60)},{1_600_000_000 + 60 * step}" for user in range(6000) for step in range(9)]
    (folder / "log.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    (folder / "study.json").write_text(json.dumps(STUDY))
    fit = ["fit", "--config=data/csv.yaml", "--data.path=../log.csv", "--data.data_dir=../stores", "--model.size=3k",
           "--config=trainer/laptop.yaml", "--trainer.max_epochs=1", "--trainer.default_root_dir=../run"]  # fmt: skip
    assert start(python, fit, folder / "work").wait() == 0, log_of(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lrec-kill-"))
    (folder / "work" / "tmp").mkdir(parents=True)
    os.environ["TMPDIR"] = str(folder / "work" / "tmp")
    python, held = warm_python.start(folder)
    try:
        set_up(python, folder)
        for name in arguments.commands.split(","):
            add_row(__file__, HEADER, *measure(name, python, folder, arguments.kills, random.Random(arguments.seed)))
    finally:
        os.close(held)
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
