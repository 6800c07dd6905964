"""What times and results bring to the recipe of tennis, and how far it is from the best baseline.

    python benchmarks/tennis.py --data tennis.parquet

Which opponent does a player meet next? The recipe configs/recipes/tennis.yaml trains on all matches before 2024, for
four epochs, and is tested on all matches of 2024: each is predicted from all earlier ones of the player. It reads who
won, and the time since the last match. The other arms leave out one of these inputs, or both. All opponents are
ranked, since players often meet again. Differences from the recipe with the same seeds are paired over targets. Their
90 % intervals resample players and seeds together.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import lrec
from lrec.common.files import write_text
from lrec.common.text_tables import rows_table
from lrec.data.datasets import datamodule_of
from lrec.evaluation.cases import cases_of_test, rank_by_net
from lrec.run import Run

HERE = Path(__file__).parent
RECIPE, K, DRAWS = "configs/recipes/tennis.yaml", 10, 1000
BASELINES = ("popularity", "recent-popularity", "repeat-last", "markov", "item-graph")
NO_RESULTS, NO_TIMES = {"data.event_column": "null"}, {"model.architecture.time": "none"}
ARMS = {
    "recipe": {},
    "without results": NO_RESULTS,
    "without times": NO_TIMES,
    "items alone": NO_RESULTS | NO_TIMES,
}


class Tested(NamedTuple):
    """A trained run, and its test by target."""

    run: Run
    users_C: np.ndarray
    loss_C: np.ndarray  # nan outside the catalogue
    ndcg_C: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="The raw file.")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/tennis"))
    parser.add_argument("--page", action="store_true", help="Train nothing: write the page of the runs there are.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds if not options.page else []:
        for arm in options.arms:
            test(train(options.runs / f"{arm.replace(' ', '-')}-seed{seed}", ARMS[arm], seed, options.data))
    write_text(HERE / "tennis.md", page(options.runs))


def train(folder: Path, given: dict[str, str], seed: int, data: Path) -> Run:
    """`lrec fit` into the folder, unless it is trained."""
    if Run(folder).result is None:
        values: dict[str, object] = {
            "data.path": data,
            "data.data_dir": folder.parent / "data",
            "trainer.default_root_dir": folder,
        }
        values |= {"seed_everything": seed, "trainer.enable_progress_bar": "false", **given}
        command = ["fit", f"--config={RECIPE}", *(f"--{name}={value}" for name, value in values.items())]
        subprocess.run([sys.executable, "-m", "lrec", *command], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return Run(folder)


def test(run: Run) -> None:
    """Keep loss and NDCG of each test target, in the run's folder."""
    kept = run.folder / "targets.npz"
    if not kept.exists():
        module = datamodule_of(run.config.options)
        module.setup("test")
        cases = cases_of_test(module.cuts, module.max_len)
        ranked = rank_by_net(lrec.load(run.folder, new_items=False).net.float(), cases)
        np.savez(kept, users=cases.users_C, loss=ranked.loss_C, rank=ranked.rank_C)


def interval(differences_SC: np.ndarray, users_C: np.ndarray) -> str:
    """The mean over seeds and targets, and the 5 % and 95 % quantiles of draws of seeds and players."""
    random, n_seeds = np.random.default_rng(0), len(differences_SC)
    known_C = ~np.isnan(differences_SC).any(0)
    rows_C = np.unique(users_C[known_C], return_inverse=True)[1]
    targets_U = np.bincount(rows_C)
    sums_SU = np.stack([np.bincount(rows_C, of_seed_C[known_C]) for of_seed_C in differences_SC])
    draws = []
    for _ in range(DRAWS):
        times_U = np.bincount(random.integers(len(targets_U), size=len(targets_U)), minlength=len(targets_U))
        sums_U = sums_SU[random.integers(n_seeds, size=n_seeds)].mean(0)
        draws.append((sums_U @ times_U) / (targets_U @ times_U))
    low, high = np.quantile(draws, [0.05, 0.95])
    return f"{differences_SC[:, known_C].mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def page(runs: Path) -> str:
    """benchmarks/tennis.md, from the runs that are trained and tested."""
    found: dict[str, dict[int, Tested]] = {}
    for arm in ARMS:
        for folder in sorted(runs.glob(f"{arm.replace(' ', '-')}-seed*")):
            if (folder / "targets.npz").exists():
                of = np.load(folder / "targets.npz")
                ndcg_C = np.where(of["rank"] <= K, 1 / np.log2(1 + of["rank"]), 0.0)
                seed = int(folder.name.rpartition("seed")[2])
                found.setdefault(arm, {})[seed] = Tested(Run(folder), of["users"], of["loss"], ndcg_C)
    head = ["arm", "seeds", "val NDCG@10", "test loss", "difference", "HR@10", "NDCG@10", "difference", "minutes"]
    rows = [head]
    for arm, of_seed in found.items():
        shared = [seed for seed in of_seed if seed in found["recipe"]]
        differences = ["", ""]
        if arm != "recipe" and shared:
            users_C, pairs = of_seed[shared[0]].users_C, [(of_seed[seed], found["recipe"][seed]) for seed in shared]
            differences[0] = interval(np.stack([mine.loss_C - other.loss_C for mine, other in pairs]), users_C)
            differences[1] = interval(np.stack([mine.ndcg_C - other.ndcg_C for mine, other in pairs]), users_C)
        points = [tested.run.result for tested in of_seed.values()]
        means = [
            np.mean([point.metric(name) for point in points if point is not None])
            for name in ("val/NDCG@10", "test/HR@10", "test/NDCG@10")
        ]
        loss = np.mean([np.nanmean(tested.loss_C) for tested in of_seed.values()])
        minutes = np.mean([tested.run.points[-1].wall_s / 60 for tested in of_seed.values()])
        row = [arm, ", ".join(map(str, of_seed)), f"{means[0]:.4f}", f"{loss:.4f}", differences[0], f"{means[1]:.4f}"]
        rows.append([*row, f"{means[2]:.4f}", differences[1], f"{minutes:.0f}"])
    point = next(iter(found["recipe"].values())).run.result
    assert point is not None
    for name in BASELINES:
        figures = [f"{point.metric(f'test/{name}/{metric}'):.4f}" for metric in ("HR@10", "NDCG@10")]
        rows.append([name, "", "", "", "", *figures, "", ""])
    title, command, about = (__doc__ or "").strip().split("\n\n")
    machine = f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, one core a run, torch {torch.__version__}."
    lists = [f"# Tennis: {title[0].lower()}{title[1:].rstrip('.')}", machine, command, about.replace("\n", " ")]
    return "\n\n".join([*lists, rows_table(rows, text=(0, 1)), FINDINGS.strip()]) + "\n"


FINDINGS = """
**The recipe's NDCG@10 is a third higher than that of `repeat-last`, the best baseline.** The items alone are already
better than all baselines. Results and times together lower the loss by 0.045 nats and raise NDCG@10 by 0.0013. Results
bring nearly all of this. With results, times raise the validation NDCG@10 from 0.0447 to 0.0480, but on the test they
bring no gain in NDCG@10, and at most 0.013 nats. With two seeds of the recipe and one of the items alone, we had
measured a gain of 0.0024 in NDCG@10: the third seed of the recipe has the lowest NDCG@10 of its three.

Validation has the last match before 2024 of 1,024 players, on whose histories no network trains. But each match is in
the log twice, once for each player, so the opponents' histories contain these matches too. The test does not have this
problem, because all its matches come after all matches of the training. We tried no other setting.
"""

if __name__ == "__main__":
    main()
