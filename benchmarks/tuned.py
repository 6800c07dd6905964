"""lrec and RecTools' SASRec on ml-latest-small, each tuned with the same trials and tested with the same seeds.

    python benchmarks/tuned.py --data FOLDER [--seeds 1 2 3] [--jobs 2] [--environments data/peers]

Two blocks of width 64, two heads, full softmax, histories of 200, leave-one-out, seen items left out, whole catalogue.
Both engines try the same learning rates and dropout rates. The epoch of least validation loss is kept. The trial of
best validation NDCG@10 is trained with every seed. The outcome of a run is kept in benchmarks/tuned, and the run is not
trained again. Then benchmarks/tuned.md is written.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from peers import environment, write_log
from replicate import metrics_of

import lrec
from lrec.common.files import write_text
from lrec.run import Run
from lrec.tasks.intervals import UserResamples, estimate

HERE = Path(__file__).parent
OUTCOMES = HERE / "tuned"
FILE, MAX_LEN, USERS_PER_STEP, EPOCHS, PATIENCE = "ml-latest-small_ratings.csv.gz", 200, 8, 40, 5


class Setting(NamedTuple):
    """What is tuned."""

    lr: float
    dropout: float

    def __str__(self) -> str:
        return f"lr {self.lr:g}, dropout {self.dropout:g}"


TRIALS = [Setting(lr, dropout) for lr in (0.0005, 0.0015, 0.0045) for dropout in (0.2, 0.5)]


class Outcome(NamedTuple):
    """Ranks of held-out items among ten, in order of users, inf if they are not listed; epochs trained; and from lrec,
    which also tests popularity, HR@10 and NDCG@10 of popularity."""

    validation_U: np.ndarray
    test_U: np.ndarray
    epochs: int
    popularity: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder with the raw file.")
    parser.add_argument("--environments", type=Path, default=Path("data/peers"), help="Where RecTools' lies.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="Runs trained side by side, each on one core.")
    parser.add_argument("--runs", type=Path, default=Path("runs/tuned"))
    options = parser.parse_args()
    options.runs = options.runs.absolute()
    python = environment(options.environments, "rectools")
    write_log(options.data / FILE, options.runs, None)
    engines = {
        "lrec": lambda *run: train_lrec(options.runs, *run),
        "RecTools": lambda *run: train_rectools(python, options.runs, *run),
    }

    def outcome(engine: str, setting: Setting, seed: int) -> Outcome:
        file = OUTCOMES / f"{engine}-{setting.lr:g}-{setting.dropout:g}-seed{seed}.json"
        if not file.exists():
            write_text(file, json.dumps(engines[engine](setting, seed)) + "\n")
        kept = json.loads(file.read_text())
        validation_U, test_U = (
            np.array([np.inf if rank is None else rank for rank in kept[part]]) for part in ("validation", "test")
        )
        return Outcome(validation_U, test_U, kept["epochs"], kept.get("popularity", []))

    with ThreadPoolExecutor(options.jobs) as pool:

        def train(engine: str, settings: list[Setting], seeds: list[int]) -> list:
            return [pool.submit(outcome, engine, setting, seed) for setting in settings for seed in seeds]

        trials = {engine: train(engine, TRIALS, options.seeds[:1]) for engine in engines}
        tried = {engine: [run.result() for run in runs] for engine, runs in trials.items()}
        best = {
            engine: max(range(len(TRIALS)), key=lambda trial: validation_ndcg(runs[trial]))
            for engine, runs in tried.items()
        }
        finals = {engine: train(engine, [TRIALS[best[engine]]], options.seeds) for engine in engines}
        tested = {engine: [run.result() for run in runs] for engine, runs in finals.items()}
    write_text(HERE / "tuned.md", page(tried, best, tested, options))


def train_lrec(runs: Path, setting: Setting, seed: int) -> dict:
    """`lrec fit` and the lists of its best checkpoint."""
    folder = runs / f"lrec-{setting.lr:g}-{setting.dropout:g}-seed{seed}"
    if Run(folder).result is None:
        rates = ["embedding", "attention.first", "attention.last", "residual.first", "residual.last"]
        values = {
            "data": "lrec.InteractionsDataModule",
            "data.path": runs / "log.csv",
            "data.user_column": "user",
            "data.item_column": "item",
            "data.time_column": "time",
            "data.data_dir": runs / "data",
            "data.max_len": MAX_LEN,
            "data.targets_per_step": USERS_PER_STEP * MAX_LEN,
            "data.seed": seed,
            "seed_everything": seed,
            "model.size": "98k",
            "model.optimizer.lr": setting.lr,
            "model.optimizer.muon": "null",
            **{f"model.dropout.{name}": setting.dropout for name in rates},
            "trainer.accelerator": "cpu",
            "trainer.devices": 1,
            "trainer.max_epochs": EPOCHS,
            "trainer.gradient_clip_val": 1.0,
            "trainer.enable_progress_bar": "false",
            "early_stopping.patience": PATIENCE,
            "trainer.default_root_dir": folder,
        }
        command = [sys.executable, "-m", "lrec", "fit", *(f"--{name}={value}" for name, value in values.items())]
        run(command, os.environ | {"OMP_NUM_THREADS": "1"})
    log = pl.read_csv(runs / "log.csv", schema_overrides={"user": pl.String, "item": pl.String})
    histories = log.group_by("user", maintain_order=True).agg("item").filter(pl.col("item").list.len() >= 3)
    model = lrec.load(folder)

    def ranks(from_end: int) -> list[int | None]:
        """Rank of each user's item at this place from the end; None if it is not among ten."""
        known = histories.select("user", items=pl.col("item").list.head(pl.col("item").list.len() - from_end))
        lists = model.recommend(known, k=10)["items"].to_list()
        targets = histories["item"].list.get(-from_end).to_list()
        return [
            items.index(target) + 1 if target in items else None for items, target in zip(lists, targets, strict=True)
        ]

    point = Run(folder).result
    assert point is not None
    return {
        "validation": ranks(2),
        "test": ranks(1),
        "epochs": round(Run(folder).points[-1].epochs),
        "popularity": [point.metrics[f"test/popularity/{name}@10_unseen"] for name in ("HR", "NDCG")],
    }


def train_rectools(python: Path, runs: Path, setting: Setting, seed: int) -> dict:
    """RecTools in its own environment."""
    values = setting._asdict() | {
        "log": runs / "log.csv",
        "max_len": MAX_LEN,
        "epochs": EPOCHS,
        "patience": PATIENCE,
        "users_per_step": USERS_PER_STEP,
        "seed": seed,
    }
    command = [str(python), str(HERE.absolute() / "peers" / "tuned_rectools.py")]
    command += [f"--{name}={value}" for name, value in values.items()]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    found: dict = json.loads(run(command, variables).splitlines()[-1])
    return found


def run(command: list[str], variables: dict[str, str]) -> str:
    """What a command prints; the script ends if it fails."""
    finished = subprocess.run(command, env=variables, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{finished.stderr[-3000:]}")
    return finished.stdout


def validation_ndcg(outcome: Outcome) -> float:
    """The figure that chooses among the trials."""
    return float(metrics_of(outcome.validation_U)[1].mean())


def page(
    tried: dict[str, list[Outcome]],
    best: dict[str, int],
    tested: dict[str, list[Outcome]],
    options: argparse.Namespace,
) -> str:
    """benchmarks/tuned.md."""
    hits, gains = {}, {}
    for engine, runs in tested.items():
        hits[engine], gains[engine] = metrics_of(np.stack([run.test_U for run in runs]))
    users_U = np.arange(gains["lrec"].shape[1])
    resamples = UserResamples(users_U, seed=0)

    def difference(values: dict[str, np.ndarray]) -> str:
        return estimate(resamples.mean((values["lrec"] - values["RecTools"]).mean(0), users_U)).signed()

    lines = [
        "# lrec beside a tuned RecTools",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, one core a run, torch {torch.__version__}, Python "
        f"{platform.python_version()}, RecTools 0.19.0.",
        "",
        "    python benchmarks/tuned.py --data FOLDER",
        "",
        *(__doc__ or "").split("\n\n")[2].strip().splitlines(),
        "",
        f"ml-latest-small, {len(users_U)} users. At most {EPOCHS} epochs; a run ends after {PATIENCE} without a lower "
        "validation loss.",
        f"A step is {USERS_PER_STEP} rows of {MAX_LEN} positions in RecTools, {USERS_PER_STEP * MAX_LEN:,} targets in "
        "lrec.",
        "",
        "| test, mean of the seeds " + ", ".join(map(str, options.seeds)) + " | HR@10 | NDCG@10 | NDCG@10 of each seed "
        "| setting |",
        "|---|---:|---:|---:|---|",
    ]
    for engine in tested:
        each = ", ".join(f"{value:.4f}" for value in gains[engine].mean(1))
        lines.append(
            f"| {engine} | {hits[engine].mean():.4f} | {gains[engine].mean():.4f} | {each} | {TRIALS[best[engine]]} |"
        )
    lines.append(f"| lrec - RecTools, 95 % over users, paired | {difference(hits)} | {difference(gains)} | | |")
    lines += [
        "| popularity | {:.4f} | {:.4f} | | |".format(*tested["lrec"][0].popularity),
        "",
        "| trial | " + " | ".join(f"{engine}: validation NDCG@10 | epochs" for engine in tried) + " |",
    ]
    lines += ["|---|" + "---:|" * 2 * len(tried)]
    for trial, setting in enumerate(TRIALS):
        cells = [f"{validation_ndcg(runs[trial]):.4f} | {runs[trial].epochs}" for runs in tried.values()]
        lines.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
