"""The recipes of configs/recipes, three seeds each, beside the published figures of the same data set and protocol.

    python benchmarks/replicate.py --data FOLDER [--recipes beauty-sasrec ...] [--seeds 1 2 3] [--jobs 2]

Trains what is not yet trained, `lrec fit` with one core a run, under --runs, and writes benchmarks/replicate.md. FOLDER
holds the raw files. Intervals are over users, 95 %, of the mean over seeds, paired with the data set's own re-run of
SASRec with sampled softmax.
"""

import argparse
import math
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lrec.baselines import BASELINES
from lrec.files import write_text
from lrec.metrics import Scores, score
from lrec.scaling.runs import finished_point, points_of
from lrec.tasks.bootstrap import Bootstrap, figure
from lrec.tasks.ladder import Data, TrainedRun, load_run

HERE = Path(__file__).parent


class Protocol(NamedTuple):
    """A data set, how it is evaluated, and what is published of it so."""

    title: str
    recipes: str  # what the names of its recipes begin with
    file: str
    drop_unknown: bool  # users whose test item stands in no training history are left out, or are misses
    reference: str  # the recipe that the others are set beside
    published: dict[str, tuple[float, float]]  # HR@10 and NDCG@10


PROTOCOLS = [
    Protocol(
        "Amazon Beauty of S3-Rec, length 50, protocol of transformer_benchmark (eSASRec)",
        "beauty-",
        "s3rec_Beauty.txt.gz",
        True,
        "beauty-sampled",
        {
            "SASRec, sampled softmax": (0.0921, 0.0531),
            "eSASRec": (0.0928, 0.0523),
            "HSTU": (0.0788, 0.0439),
            "FuXi-alpha": (0.0809, 0.0451),
        },
    ),
    Protocol(
        "MovieLens-1M, length 200, protocol of sasrec-bert4rec-recsys23",
        "ml-1m-",
        "ml-1m_ratings.dat.xz",
        False,
        "ml-1m-sampled",
        {
            "SASRec, BCE with one negative": (0.2500, 0.1341),
            "SASRec, full softmax": (0.3152, 0.1821),
            "SASRec, 3,000 negatives": (0.3159, 0.1857),
        },
    ),
    Protocol(
        "MovieLens-1M, length 200, protocol of transformer_benchmark (eSASRec)",
        "ml-1m-",
        "ml-1m_ratings.dat.xz",
        True,
        "ml-1m-sampled",
        {
            "SASRec, sampled softmax": (0.2929, 0.1684),
            "eSASRec": (0.3133, 0.1772),
            "HSTU": (0.3037, 0.1719),
            "FuXi-alpha": (0.3164, 0.1813),
        },
    ),
]


# The file that each recipe is trained on; those of other data sets are not at hand.
RECIPES = {
    path.stem: protocol.file
    for path in sorted((HERE.parent / "configs" / "recipes").glob("*.yaml"))
    for protocol in PROTOCOLS
    if path.stem.startswith(protocol.recipes)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder with the raw files.")
    parser.add_argument("--recipes", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--jobs", type=int, default=2, help="Runs trained side by side.")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.jobs) as pool:
        folders = [options.runs / f"{recipe}-seed{seed}" for recipe in options.recipes for seed in options.seeds]
        list(pool.map(lambda folder: train(folder, options.data), folders))
    outcomes = {recipe: outcome(recipe, options) for recipe in options.recipes}
    sections = [
        section(protocol, {recipe: found for recipe, found in outcomes.items() if recipe.startswith(protocol.recipes)})
        for protocol in PROTOCOLS
    ]
    write_text(HERE / "replicate.md", page([text for text in sections if text], options.seeds))


def train(folder: Path, data: Path) -> None:
    """Train the run, unless it is; one that was interrupted goes on."""
    if finished_point(folder) is not None:
        return
    recipe, seed = folder.name.rsplit("-seed", 1)
    command = [sys.executable, "-m", "lrec", "fit", "--config", f"configs/recipes/{recipe}.yaml"]
    command += ["--data.path", str(data / RECIPES[recipe]), "--data.seed", seed]
    command += ["--seed_everything", seed, "--trainer.default_root_dir", str(folder)]
    command += ["--trainer.enable_progress_bar", "false"]
    if (folder / "checkpoints" / "last.ckpt").exists():
        command += ["--ckpt_path", "last"]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        finished = subprocess.run(command, stdout=log, stderr=log)
    if finished.returncode:
        raise SystemExit(f"{folder} failed: see its log.txt")
    print(f"{folder.name}: {points_of(folder)[-1]['wall_s'] / 60:.0f} min", flush=True)


class Outcome(NamedTuple):
    """What the seeds of a recipe come to: test ranks among unseen items of seeds x users, and what they took.

    A target in no training history has rank nan.
    """

    ranks_SU: np.ndarray
    point: dict[str, Any]  # the tested point of the first seed
    val_ndcg: float
    minutes: float
    commit: str


def outcome(recipe: str, options: argparse.Namespace) -> Outcome:
    """Evaluate the runs of a recipe."""
    folders = [options.runs / f"{recipe}-seed{seed}" for seed in options.seeds]
    points, data = [finished_point(folder) for folder in folders], Data()
    return Outcome(
        np.stack([ranks_of(load_run(folder, data), data) for folder in folders]),
        points[0],
        float(np.mean([point["metrics"]["val/NDCG@10_unseen"] for point in points])),
        float(np.mean([points_of(folder)[-1]["wall_s"] / 60 for folder in folders])),
        ", ".join(sorted({point["commit"][:7] for point in points})),
    )


@torch.inference_mode()
def ranks_of(run: TrainedRun, data: Data) -> np.ndarray:
    """Rank of each test target among the items its user has not seen, in order of users."""
    users, ranks = [], []
    for batch in data.of(run.config).test_dataloader():

        def head(hidden_BD: torch.Tensor, table_VD: torch.Tensor, batch=batch) -> Scores:
            return score(hidden_BD, table_VD, batch.targets_B, batch.seen_rows_S, batch.seen_items_S)

        users.append(batch.users_B)
        rank_B = run.net(batch.items_BL, head, alone_B=batch.positions_B).rank_unseen_B
        ranks.append(torch.where(batch.targets_B < 0, math.nan, rank_B))
    return torch.cat(ranks)[torch.cat(users).argsort()].numpy()


def section(protocol: Protocol, outcomes: dict[str, Outcome]) -> str:
    """A data set's table by a protocol, of its recipes' outcomes; empty without recipes."""
    if not outcomes:
        return ""
    if not protocol.drop_unknown:  # an unknown target is a miss
        outcomes = {
            recipe: found._replace(ranks_SU=np.where(np.isnan(found.ranks_SU), math.inf, found.ranks_SU))
            for recipe, found in outcomes.items()
        }
    reference, first = outcomes.get(protocol.reference), next(iter(outcomes.values()))
    users_U = np.arange(first.ranks_SU.shape[1])
    kept = int((~np.isnan(first.ranks_SU[0])).sum())
    bootstrap = Bootstrap(users_U, seed=0)
    lines = [
        f"## {protocol.title}",
        "",
        f"{kept:,} test users of {len(users_U):,}; targets in no training history are "
        + ("left out." if protocol.drop_unknown else "misses."),
        "",
        "| | validation NDCG@10 | HR@10 | NDCG@10 | NDCG@10 of each seed | HR@10 against the reference | "
        "NDCG@10 against the reference | minutes a seed | commit |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for recipe, found in outcomes.items():
        hits, gains = metrics_of(found.ranks_SU)
        against = ["", ""]
        if reference is not None and recipe != protocol.reference:
            for place, (mine, theirs) in enumerate(zip((hits, gains), metrics_of(reference.ranks_SU), strict=True)):
                difference = figure(bootstrap.mean((mine - theirs).mean(0), users_U))
                against[place] = f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
        each = ", ".join(f"{value:.4f}" for value in np.nanmean(gains, 1))
        mark = " (reference)" if recipe == protocol.reference else ""
        lines.append(
            f"| {recipe}{mark} | {found.val_ndcg:.4f} | {np.nanmean(hits):.4f} | {np.nanmean(gains):.4f} | {each} "
            f"| {against[0]} | {against[1]} | {found.minutes:.0f} | {found.commit} |"
        )
    for baseline in BASELINES:
        figures = [first.point["metrics"].get(f"test/{baseline}/{name}@10_unseen") for name in ("HR", "NDCG")]
        if None in figures:  # recent popularity, where nothing is known of time
            continue
        hr, ndcg = (value * len(users_U) / kept for value in figures)
        lines.append(f"| {baseline} | | {hr:.4f} | {ndcg:.4f} | | | | | |")
    for label, (hr, ndcg) in protocol.published.items():
        lines.append(f"| published: {label} | | {hr:.4f} | {ndcg:.4f} | | | | | |")
    return "\n".join(lines) + "\n"


def metrics_of(ranks_SU: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """HR@10 and NDCG@10 of each seed and user."""
    hits_SU = np.where(np.isnan(ranks_SU), np.nan, ranks_SU <= 10)
    return hits_SU, hits_SU / np.log2(1 + ranks_SU)


def page(sections: list[str], seeds: list[int]) -> str:
    """benchmarks/replicate.md."""
    return "\n".join(
        [
            "# Recipes beside published figures",
            "",
            f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, one core a run, torch {torch.__version__}, Python "
            f"{platform.python_version()}.",
            "",
            "    python benchmarks/replicate.py --data FOLDER",
            "",
            "Leave-one-out: the last item of a user is the test, the one before validates; the whole catalogue is",
            "ranked, seen items left out. Each recipe (configs/recipes) was chosen and is stopped by validation",
            "NDCG@10, and was frozen before its test figures were looked at. Means over the seeds "
            f"{', '.join(map(str, seeds))};",
            "intervals hold 95 %, over users, paired. Each seed is",
            "",
            "    lrec fit --config configs/recipes/RECIPE.yaml --data.path FILE --data.seed N --seed_everything N",
            "",
            *sections,
        ]
    )


if __name__ == "__main__":
    main()
