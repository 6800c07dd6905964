"""The runs of a study: what each trains, and `lrec fit` as a subprocess for each, started at most once at a time."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lrec.errors import UserError
from lrec.files import locked, write_text
from lrec.net import Architecture, Dropout, OverDepth, TransformerConfig, find_size


@dataclass(frozen=True)
class Run:
    """One training of the grid.

    Attributes:
        name: Unique in the study; the name of its folder.
        variant: Which of the study's variants it is; "" where there is one only.
        ladder: The runs that one law is for share it: what sets them apart from others, but for size and seed.
        held_out: Whether its loss is predicted before it is trained.
        options: The whole configuration of its `lrec fit`, but for where it writes.
        starts_from: Name of the run whose best network it starts from; "" where it starts anew.
    """

    name: str
    size: str
    seed: int
    fraction: float
    variant: str
    ladder: str
    held_out: bool
    options: dict[str, Any]
    starts_from: str = ""

    def net_config(self, n_items: int) -> TransformerConfig:
        """The shape of the net it trains on a catalogue of `n_items`, without muP, which costs nothing."""
        model, max_len = self.options["model"], self.options["data"]["init_args"]["max_len"]
        rates = model["dropout"]
        dropout = Dropout(rates["embedding"], OverDepth(**rates["attention"]), OverDepth(**rates["residual"]))
        return TransformerConfig(
            n_items, max_len, *find_size(self.size), dropout, Architecture(**model["architecture"])
        )


class RunFailedError(RuntimeError):
    """A run ended with an error that is not the user's."""


def finished_point(folder: Path) -> dict[str, Any] | None:
    """What the run in `folder` came to: its best and tested point, the last one if it diverged, None if unfinished."""
    path = folder / "points.jsonl"
    if not path.is_file():
        return None
    points: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if points and points[-1]["status"] == "diverged":
        return points[-1]
    return next((point for point in points if point["best"]), None)


def train(runs: list[Run], folder: Path, study: str, jobs: int, threads: int) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Train those of `runs` that are not finished, `jobs` side by side; yield each run with its best point.

    Runs that start from another one's network come after all others.

    Raises:
        UserError, RunFailedError: the last line of the log of a run that failed; those under way are let finish.
    """
    for wave in ([run for run in runs if not run.starts_from], [run for run in runs if run.starts_from]):
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            futures = {pool.submit(_train_one, run, folder / run.name, study, threads): run for run in wave}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _train_one(run: Run, folder: Path, study: str, threads: int) -> dict[str, Any]:
    # The run inherits the lock, so one that outlived its killed study is waited for, not repeated.
    with locked(folder.with_name(f".{run.name}.lock")) as lock:
        point = finished_point(folder)
        if point is not None:
            return point
        # Resuming is exact: what a killed study left half-done goes on from its last checkpoint, or starts again.
        resumed = (folder / "checkpoints" / "last.ckpt").exists()
        if not resumed:
            shutil.rmtree(folder, ignore_errors=True)
        write_text(folder / "config.yaml", yaml.safe_dump(run.options, sort_keys=False))
        arguments = [f"--config={folder / 'config.yaml'}", f"--trainer.default_root_dir={folder}"]
        arguments += [f"--points.study={study}", f"--points.run={run.name}"]
        arguments += [f"--model.warm_start={folder.with_name(run.starts_from)}"] if run.starts_from else []
        arguments += ["--ckpt_path=last"] if resumed else []
        log = folder / "log.txt"
        with log.open("w") as out:
            result = subprocess.run(
                [sys.executable, "-m", "lrec", "fit", *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
                pass_fds=[lock],
                check=False,
            )
        point = finished_point(folder)
        if result.returncode or point is None:
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
            error = UserError if result.returncode == 2 else RunFailedError
            raise error(f"run {run.name} failed (see {log}): {last[0].removeprefix('lrec: error: ')}")
        return point
