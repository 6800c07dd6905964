"""How long each command takes to start, and what a run of a study costs in addition to its training.

Each command is a process of its own on a small input that is ready, so that only start-up is left. `fit` and a study's
run are stopped when their first training step would begin. The run is forked, as in a study. Seconds are medians.
Processor time is that of one thread; other work on the machine changes it less than the clock. The first rows are the
imports that commands cannot do without: torch for recommend and export, Lightning for fit and data prepare.

    OMP_NUM_THREADS=1 python benchmarks/startup.py --page benchmarks/startup.md
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from rows import commit

from lrec.common.files import locked, write_text
from lrec.data.sources.synthetic import SyntheticDataModule
from lrec.run import Run
from lrec.study.grid import planned_runs
from lrec.study.launch import Processes
from lrec.study.options import Study

SMALL = {"data.n_users": 400, "data.n_items": 60, "data.length": 14, "data.targets_per_step": 256}
FIT = ["--config=data/synthetic.yaml", "--config=trainer/laptop.yaml", "--model.size=3k"]
FIT += ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false", *(f"--{o}={v}" for o, v in SMALL.items())]
TABLE = "N,loss\n1000,3.31\n2000,3.18\n4000,3.08\n8000,3.02\n16000,2.98\n32000,2.95\n64000,2.93\n"
POINTS = ["--points=table.csv", "--x=N", "--y=loss", "--law=lsrm", "--holdout=1"]
STUDY: dict[str, Any] = {
    "name": "ladder", "configs": ["data/synthetic.yaml", "trainer/laptop.yaml"],
    "sizes": ["0.8k", "1.7k", "3k", "4.8k"], "holdout": 0, "law": None,
    "options": SMALL | {"trainer.max_epochs": 1, "trainer.enable_progress_bar": False},
}  # fmt: skip
IMPORTS = {"import torch": "import torch", "import of Lightning": "from lightning.pytorch import LightningDataModule"}
COMMANDS = {
    "lrec --help": ["--help"],
    "lrec sizes": ["sizes"],
    "lrec data describe": ["data", "describe", "STORE"],
    "lrec scaling plan": ["scaling", "plan", "--fit=fit/fit.json", "--size=1000000"],
    "lrec scaling compare": ["scaling", "compare", "--studies", "studies/ladder"],
    "lrec scaling fit": ["scaling", "fit", *POINTS, "--out=fit"],
    "lrec scaling study --help": ["scaling", "study", "--help"],
    "lrec recommend": ["recommend", "--ckpt_path=run", "--histories=log.csv", "--out=lists.parquet"],
    "lrec export": ["export", "--ckpt_path=run", "--out=model.safetensors"],
    "lrec data prepare, of a store that is there": ["data", "prepare", *FIT[:1], *FIT[-4:]],
    "lrec fit, to its first step": ["fit", *FIT, "--trainer.default_root_dir=begun"],
}


class FirstStep(Callback):
    """Ends the process when the first step would begin, and prints how much processor time it took until then."""

    def on_train_batch_start(self, *_: Any) -> None:
        """Print the time and end."""
        print(f"\n{time.process_time()}", flush=True)
        os._exit(0)


def lrec(*arguments: str) -> tuple[float, float]:
    """Seconds of the clock and of the processor that a command takes."""
    return python("-m", "lrec", *arguments)


def python(*arguments: str) -> tuple[float, float]:
    """The same for Python with these arguments."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - started, os.times()
    return seconds, after.children_user + after.children_system - before.children_user - before.children_system


def forked(study: Study) -> tuple[float, float]:
    """The same for a study's run, from the fork to its first step."""
    run = planned_runs(study)[0]
    folder = Run(Path("forked"))
    folder.folder.mkdir(exist_ok=True)
    folder.write_config(run.config)
    arguments = ["lrec", "fit", f"--config={folder.config_file}", "--trainer.callbacks=startup.FirstStep"]
    arguments += ["--trainer.default_root_dir=begun", "--points.study=ladder"]
    with locked(Path("lock")) as lock:
        started = time.perf_counter()
        assert Processes().run(arguments, folder.log_file, 1, lock) == 0, folder.log_file.read_text()
        return time.perf_counter() - started, float(folder.log_file.read_text().split()[-1])


def prepare() -> Path:
    """What the commands read, in the current folder; returns the store."""
    data = SyntheticDataModule(**{option.removeprefix("data."): value for option, value in SMALL.items()})
    data.prepare_data()
    Path("table.csv").write_text(TABLE)
    rows = "".join(f"u{n % 20},{n % 60:02d},{n}\n" for n in range(200))
    Path("log.csv").write_text(f"user,item,timestamp\n{rows}")
    Path("study.json").write_text(json.dumps(STUDY))
    lrec("fit", *FIT, "--trainer.default_root_dir=run")
    lrec("scaling", "fit", *POINTS, "--out=fit")
    lrec("scaling", "study", "--config=study.json")
    return data.store_path


def main() -> None:
    """Measure, in turn, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="Markdown page to write")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    page = options.page and options.page.absolute()
    here = Path(__file__).parent
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(here), os.environ.get("PYTHONPATH")]))
    sys.path.insert(0, str(here))
    lines = [
        "# How long commands take to start",
        "",
        *__doc__.split("\n\n", 1)[1].strip().splitlines(),
        "",
        f"Medians of {options.repeats}, {os.cpu_count()} cores {platform.machine()}, commit {commit()}.",
        "",
        "| command | seconds | of one processor |",
        "|---|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        store = str(prepare())
        study = Study(**STUDY)
        forked(study)  # the server imports once
        taken: dict[str, list[tuple[float, float]]] = {}
        for _ in range(options.repeats):
            for name, statement in IMPORTS.items():
                taken.setdefault(name, []).append(python("-c", statement))
            for name, arguments in COMMANDS.items():
                stop = ["--trainer.callbacks=startup.FirstStep"] if arguments[0] == "fit" else []
                mine = [store if argument == "STORE" else argument for argument in arguments]
                taken.setdefault(name, []).append(lrec(*mine, *stop))
            taken.setdefault("a study's run, from the fork to its first step", []).append(forked(study))
        os.chdir(here)
    for name, both in taken.items():
        seconds, processor = (statistics.median(each) for each in zip(*both, strict=True))
        lines.append(f"| {name} | {seconds:.2f} | {processor:.2f} |")
        print(lines[-1], flush=True)
    if page:
        write_text(page, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
