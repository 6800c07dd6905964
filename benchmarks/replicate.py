"""The recipes of configs/recipes, three seeds each, and the published figures of the same data set and protocol.

    python benchmarks/replicate.py --data FOLDER [--recipes beauty-sasrec ...] [--seeds 1 2 3] [--jobs 2]

FOLDER holds the raw files. The outcome of a run is kept as benchmarks/replicate/RECIPE-seedN.json. Runs without this
file are trained under --runs, by `lrec fit` with one core each. Then benchmarks/replicate.md is written from all these
files. Intervals of 95 % are over users, of the mean over seeds, paired with our run of SASRec with sampled softmax on
the same data set.
"""

import argparse
import json
import math
import platform
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lrec.common.files import write_text
from lrec.data.batching.eval_batches import EvalBatch
from lrec.evaluation.baselines import BASELINES
from lrec.ranking.best_items import Pairs
from lrec.ranking.scoring import Scores, score
from lrec.run import Run
from lrec.tasks.intervals import UserResamples, estimate
from lrec.tasks.trained_runs import Data, TrainedRun, load_run

HERE = Path(__file__).parent
OUTCOMES = HERE / "replicate"
K = 10


class Protocol(NamedTuple):
    """A data set, how it is evaluated, and the published figures of this evaluation."""

    title: str
    recipes: str  # what the names of its recipes begin with
    file: str
    drop_unknown: bool  # users whose test item is in no training history are left out, or else are misses
    reference: str  # the recipe that the others are compared with
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


# The file that each recipe is trained on; recipes of other data sets are left out.
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
    names = [f"{recipe}-seed{seed}" for recipe in options.recipes for seed in options.seeds]
    names = [name for name in names if not (OUTCOMES / f"{name}.json").exists()]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda name: train_seed(options.runs / name, options.data), names))
    data = Data()
    for name in names:
        write_text(OUTCOMES / f"{name}.json", json.dumps(measured(options.runs / name, data)) + "\n")
    kept = {recipe: outcomes_of(recipe) for recipe in RECIPES}
    sections = [
        section(protocol, {recipe: runs for recipe, runs in kept.items() if runs and RECIPES[recipe] == protocol.file})
        for protocol in PROTOCOLS
    ]
    write_text(HERE / "replicate.md", page([text for text in sections if text]))


def train_seed(folder: Path, data: Path) -> None:
    """Train the recipe and the seed that the folder is named after."""
    recipe, seed = folder.name.rsplit("-seed", 1)
    train(folder, {"config": f"configs/recipes/{recipe}.yaml", "data.path": str(data / RECIPES[recipe])}, int(seed))


def train(folder: Path, options: dict[str, str], seed: int) -> None:
    """`lrec fit` into the folder, unless it is trained; a run that was interrupted goes on."""
    if Run(folder).result is not None:
        return
    options = options | {
        "data.seed": str(seed),
        "seed_everything": str(seed),
        "trainer.default_root_dir": str(folder),
        "trainer.enable_progress_bar": "false",
    }
    if (folder / "checkpoints" / "last.ckpt").exists():
        options["ckpt_path"] = "last"
    command = [sys.executable, "-m", "lrec", "fit", *(f"--{name}={value}" for name, value in options.items())]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("ab") as log:
        finished = subprocess.run(command, stdout=log, stderr=log)
    if finished.returncode:
        raise SystemExit(f"{folder} failed: see its log.txt")
    print(f"{folder.name}: {Run(folder).points[-1].wall_s / 60:.0f} min", flush=True)


def measured(folder: Path, data: Data, window: bool = False) -> dict:
    """The outcome of a run: figures, test ranks up to ten, and the users with a target outside the catalogue.

    With `window`, only the items that the network reads are left out of the ranking as seen, not those before.
    """
    point, last = Run(folder).result, Run(folder).points[-1]
    assert point is not None, f"{folder} is trained"
    ranks_U = ranks_of(load_run(Run(folder), data), data, window)
    figures = point.metrics
    return {
        "commit": (point.commit or "")[:7],
        "minutes": round(last.wall_s / 60, 1),
        "epochs": round(last.epochs),
        "validation": figures[f"val/NDCG@{K}_unseen"],
        "baselines": baselines_of(figures),
        "users": len(ranks_U),
        "unknown": np.flatnonzero(np.isnan(ranks_U)).tolist(),
        "ranks": {str(user): int(ranks_U[user]) for user in np.flatnonzero(ranks_U <= K)},
    }


def baselines_of(figures: dict[str, float | None]) -> dict[str, list[float | None]]:
    """HR@10 and NDCG@10 of each baseline of a run, on test; without times, there is no recent popularity."""
    return {
        baseline: [figures[f"test/{baseline}/{name}@{K}_unseen"] for name in ("HR", "NDCG")]
        for baseline in BASELINES
        if f"test/{baseline}/HR@{K}_unseen" in figures
    }


class Outcome(NamedTuple):
    """The outcome of a run, with its test ranks in order of users: inf beyond ten, nan outside the catalogue."""

    seed: int
    ranks_U: np.ndarray
    validation: float
    baselines: dict[str, list[float]]
    minutes: float
    commit: str


def outcomes_of(recipe: str, folder: Path = OUTCOMES) -> list[Outcome]:
    """The kept outcomes of a recipe's runs."""
    outcomes = []
    for path in sorted(folder.glob(f"{recipe}-seed*.json")):
        kept = json.loads(path.read_text())
        ranks_U = np.full(kept["users"], math.inf)
        ranks_U[kept["unknown"]] = math.nan
        ranks_U[[int(user) for user in kept["ranks"]]] = list(kept["ranks"].values())
        seed = int(path.stem.rsplit("seed", 1)[1])
        outcomes.append(Outcome(seed, ranks_U, kept["validation"], kept["baselines"], kept["minutes"], kept["commit"]))
    return outcomes


@torch.inference_mode()
def ranks_of(run: TrainedRun, data: Data, window: bool) -> np.ndarray:
    """Rank of each test target among the items its user has not seen, in order of users."""
    users, ranks = [], []
    datamodule = data.of(run.run)
    datamodule.with_times = run.net.reads_times
    for batch in datamodule.test_dataloader():
        seen = in_window(batch) if window else Pairs(batch.seen_targets_S, batch.seen_items_S)

        def head(
            hidden_MD: torch.Tensor,
            table_VD: torch.Tensor,
            targets_M: torch.Tensor = batch.targets_M,
            seen: Pairs = seen,
        ) -> Scores:
            return score(hidden_MD, table_VD, targets_M, *seen, K)

        users.append(batch.users_M)
        found = run.net(
            batch.items_BL, head, positions_M=batch.positions_M, times_BT=batch.times_BT, events_BL=batch.events_BL
        )
        rank_B = found.rank_unseen_B
        ranks.append(torch.where(batch.targets_M < 0, math.nan, rank_B))
    return torch.cat(ranks)[torch.cat(users).argsort()].numpy()


def in_window(batch: EvalBatch) -> Pairs:
    """The items that the network reads before each target, as seen pairs; each target has a row of its own."""
    length = batch.items_BL.shape[1]
    rows_M, last_M = batch.positions_M // length, batch.positions_M % length
    read_ML = torch.arange(length) <= last_M[:, None]
    targets_S, places_S = read_ML.nonzero(as_tuple=True)
    return Pairs(*torch.stack([targets_S, batch.items_BL[rows_M[targets_S], places_S]]).unique(dim=1))


def section(protocol: Protocol, recipes: dict[str, list[Outcome]]) -> str:
    """The section of a protocol, with the outcomes of its recipes; empty if there are none."""
    if not recipes:
        return ""
    ranks = {recipe: np.stack([run.ranks_U for run in runs]) for recipe, runs in recipes.items()}
    if not protocol.drop_unknown:  # an unknown target is a miss
        ranks = {recipe: np.where(np.isnan(ranks_SU), math.inf, ranks_SU) for recipe, ranks_SU in ranks.items()}
    first = next(iter(ranks.values()))[0]
    users_U, kept = np.arange(len(first)), int((~np.isnan(first)).sum())
    resamples = UserResamples(users_U, seed=0)
    lines = [
        f"## {protocol.title}",
        "",
        f"{kept:,} of {len(users_U):,} users are tested. A target that is in no training history is "
        + ("left out." if protocol.drop_unknown else "a miss."),
        "",
        "| | seeds | validation NDCG@10 | HR@10 | NDCG@10 | NDCG@10 of each seed | HR@10 against the reference | "
        "NDCG@10 against the reference | minutes a seed | commit |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for recipe, runs in recipes.items():
        hits, gains = metrics_of(ranks[recipe])
        against = ["", ""]
        if protocol.reference in recipes and recipe != protocol.reference:
            for place, (mine, theirs) in enumerate(
                zip((hits, gains), metrics_of(ranks[protocol.reference]), strict=True)
            ):
                against[place] = estimate(resamples.mean(mine.mean(0) - theirs.mean(0), users_U)).signed()
        mark = " (reference)" if recipe == protocol.reference else ""
        cells = [
            f"{recipe}{mark}",
            ", ".join(str(run.seed) for run in runs),
            f"{np.mean([run.validation for run in runs]):.4f}",
            f"{np.nanmean(hits):.4f}",
            f"{np.nanmean(gains):.4f}",
            ", ".join(f"{value:.4f}" for value in np.nanmean(gains, 1)),
            *against,
            f"{np.mean([run.minutes for run in runs]):.0f}",
            ", ".join(sorted({run.commit for run in runs})),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for baseline, figures in next(iter(recipes.values()))[0].baselines.items():
        hr, ndcg = (value * len(users_U) / kept for value in figures)
        lines.append(f"| {baseline} | | | {hr:.4f} | {ndcg:.4f} | | | | | |")
    for label, (hr, ndcg) in protocol.published.items():
        lines.append(f"| published: {label} | | | {hr:.4f} | {ndcg:.4f} | | | | | |")
    return "\n".join(lines) + "\n"


def metrics_of(ranks_SU: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """HR@10 and NDCG@10 of each seed and user."""
    hits_SU = np.where(np.isnan(ranks_SU), np.nan, ranks_SU <= K)
    return hits_SU, hits_SU / np.log2(1 + ranks_SU)


def page(sections: list[str]) -> str:
    """benchmarks/replicate.md."""
    return "\n".join(
        [
            "# Recipes beside published figures",
            "",
            f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, one core a run, torch {torch.__version__}, "
            f"Python {platform.python_version()}.",
            "",
            "    python benchmarks/replicate.py --data FOLDER",
            "",
            "The split is leave-one-out: the last item of a user is for the test, and the item before it for",
            "validation. The whole catalogue is ranked, without the items that the user had. Each recipe",
            "(configs/recipes) was chosen by validation NDCG@10, which also stops its runs. It was frozen before we",
            "saw its test figures, with one exception; replicate/choices.md says what was tried. Figures are means",
            "over the seeds. Differences are paired, with 95 % intervals over users. Only ml-1m-hstu-request knows",
            "when the target comes: do not compare it with the others. HSTU's recipes train in bf16-mixed, the",
            "others in float32. The runs shared the machine with other work, so alone they would take fewer minutes.",
            "This command trains the first seed of a recipe:",
            "",
            "    lrec fit --config configs/recipes/beauty-sasrec.yaml --data.path s3rec_Beauty.txt.gz --data.seed 1 "
            "--seed_everything 1",
            "",
            *sections,
        ]
    )


if __name__ == "__main__":
    main()
