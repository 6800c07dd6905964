"""What other blocks, vectors for items and a window of targets bring to the best recipe for Amazon Beauty.

    python benchmarks/beauty_parts.py --data s3rec_Beauty.txt.gz [--parts vectors window average] [--seeds 1 2 3]

All options are those of configs/recipes/beauty-modern.yaml, except those that the table names. Runs with new parts
train in bf16-mixed. The last part is configs/recipes/beauty-vectors.yaml. The data have no times. The item vectors are
made from the training part only: the first 128 singular directions of the positive pointwise mutual information of
items that are near each other in histories. The item table starts with these vectors. Averaged weights are Lightning's
`EMAWeightAveraging` with a decay of 0.999. The checkpoint has the best validation NDCG@10. Differences are from the
recipe with the same seeds; their 95 % intervals are over users, paired. Outcomes of runs are kept in
benchmarks/beauty_parts, and not measured again.
"""

import argparse
import gzip
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
from replicate import Outcome, measured, metrics_of, outcomes_of, train
from rows import here
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from lrec.common.files import write_text
from lrec.tasks.intervals import UserResamples, estimate
from lrec.tasks.trained_runs import Data

HERE = Path(__file__).parent
OUTCOMES, RECIPE = HERE / "beauty_parts", "beauty-modern"
WIDTH, REACH = 128, 10  # of the vectors; the largest distance of items that count as near
HSTU = {"norm": "layer", "attention": "hstu", "mlp": "none", "positions": "learned", "qk_norm": "false"}
AVERAGE = {"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.999}}
TITLES = {
    "position": "a bias by position",
    "hstu": "HSTU's blocks, with that bias",
    "vectors": "an item table that begins with vectors",
    "window": "these vectors, and a window of targets (`NextItems`)",
    "average": "these vectors, and averaged weights",
    "average-only": "averaged weights, without vectors",
    "scaled": "rates by group and Muon, as `fit` has by default, rate 0.001",
    "scaled-2": "the same, rate 0.002",
    "scaled-half": "the same, rate 0.0005",
    "scaled-quarter": "the same, rate 0.00025",
    "average-scaled": "vectors, averaged weights, rates by group and Muon, rate 0.0005",
}
SCALED = {"scaled": 0.001, "scaled-2": 0.002, "scaled-half": 0.0005, "scaled-quarter": 0.00025}
ELSE = """
Without rates by group, Muon (`--model.optimizer.muon 10`, with vectors and averaged weights, seed 1) is worse: we
stopped it after 28 epochs, with a validation NDCG@10 of 0.0669. Without Muon, the 28th epoch has 0.0740.
A width of 256 with as many directions is worse too: its validation NDCG@10 is at most 0.0701, after 19 epochs. We
stopped it after 22.
"""


def options_of(part: str, vectors: Path) -> dict[str, str]:
    """What a part changes in the recipe."""
    if part in ("position", "hstu"):
        blocks = {"position_bias": "true"} | (HSTU if part == "hstu" else {})
        return {f"model.architecture.{option}": value for option, value in blocks.items()}
    if part in SCALED:
        rates = {"model.optimizer.lr": str(SCALED[part]), "model.optimizer.muon": "2.0"}
        return {"model.parametrisation": "scaled"} | rates
    if part == "average-scaled":
        return {"config": "configs/recipes/beauty-vectors.yaml", "model.item_vectors": str(vectors)}
    options = {}
    if part != "average-only":
        options = {"model.item_vectors": str(vectors), "model.item_vectors_use": "initial"}
    if part == "window":
        options["model.loss"] = "NextItems"
    if part in ("average", "average-only"):
        options["trainer.callbacks"] = json.dumps([AVERAGE])
    return options


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="The raw file.")
    parser.add_argument("--parts", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--runs", type=Path, default=Path("runs/beauty_parts"))
    parser.add_argument("--jobs", type=int, default=2, help="Runs trained side by side, each on one core.")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    vectors = options.runs / "vectors.parquet"
    if not vectors.exists():
        write_vectors(options.data, vectors)
    with ThreadPoolExecutor(options.jobs) as pool:
        runs = [(part, seed) for seed in options.seeds for part in options.parts]
        list(pool.map(lambda run: keep(run[0], run[1], options.data, options.runs), runs))
    write_text(HERE / "beauty_parts.md", page())


def write_vectors(raw: Path, path: Path) -> None:
    """Write a vector for each item, from the items near it in the histories without their last two items."""
    with gzip.open(raw, "rt") as file:
        users = [line.split()[1:] for line in file]
    items = sorted({item for history in users for item in history}, key=int)
    place = {item: number for number, item in enumerate(items)}
    pairs = [
        (place[earlier], place[later], 1 / apart)
        for history in (user[:-2] for user in users)
        for start, earlier in enumerate(history)
        for apart, later in enumerate(history[start + 1 : start + 1 + REACH], 1)
        if earlier != later
    ]
    one, other, weight = (np.array(values) for values in zip(*pairs, strict=True))
    half = csr_matrix((weight, (one, other)), shape=(len(items), len(items)))
    near = (half + half.T).tocoo()
    total = np.asarray(near.sum(1)).ravel()
    context = total**0.75 / (total**0.75).sum()
    information = np.log(near.data / (total[near.row] * context[near.col]))
    keep = information > 0
    matrix = csr_matrix((information[keep], (near.row[keep], near.col[keep])), shape=near.shape)
    left, singular, _ = svds(matrix, k=WIDTH, random_state=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"item": items, "vector": (left * np.sqrt(singular)).astype(np.float32)}).write_parquet(path)


def keep(part: str, seed: int, data: Path, runs: Path) -> None:
    """Train and measure, unless that was done."""
    outcome = OUTCOMES / f"{part}-seed{seed}.json"
    if outcome.exists():
        return
    options = {"config": f"configs/recipes/{RECIPE}.yaml", "data.path": str(data), "trainer.precision": "bf16-mixed"}
    options |= options_of(part, runs / "vectors.parquet")
    folder = runs / f"{part}-seed{seed}"
    train(folder, options, seed)
    write_text(outcome, json.dumps(measured(folder, Data(trust=True))) + "\n")


def page() -> str:
    """The text of benchmarks/beauty_parts.md."""
    lines = [
        "# New parts on Amazon Beauty",
        "",
        f"{time.strftime('%Y-%m-%d')}, one core a run; {here()}.",
        "",
        "    python benchmarks/beauty_parts.py --data s3rec_Beauty.txt.gz",
        "    python benchmarks/beauty_parts.py --data s3rec_Beauty.txt.gz --seeds 1 2 3 \\",
        "        --parts vectors average average-scaled scaled scaled-half",
        "",
        (__doc__ or "").split("\n\n", 2)[2].strip(),
        "",
        "| | seeds | validation NDCG@10 | HR@10 | NDCG@10 | HR@10 against the recipe | NDCG@10 against the recipe |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    recipe = {run.seed: run for run in outcomes_of(RECIPE)}
    lines.append(row("the recipe, in float32", list(recipe.values()), []))
    for part, title in TITLES.items():
        runs = outcomes_of(part, OUTCOMES)
        if runs:
            lines.append(row(title, runs, [recipe[run.seed] for run in runs]))
    known = float((~np.isnan(recipe[1].ranks_U)).mean())
    for baseline, (hr, ndcg) in recipe[1].baselines.items():  # they count targets in no training history as misses
        lines.append(f"| {baseline} | | | {hr / known:.4f} | {ndcg / known:.4f} | | |")
    return "\n".join([*lines, ELSE])


def row(title: str, runs: list[Outcome], recipe: list[Outcome]) -> str:
    """A row of the table, without the targets that are in no training history, as in the table of recipes."""
    figures = metrics_of(np.stack([run.ranks_U for run in runs]))
    known_U = ~np.isnan(figures[0][0])
    users_U = np.flatnonzero(known_U)
    cells = [title, ", ".join(str(run.seed) for run in runs), f"{np.mean([run.validation for run in runs]):.4f}"]
    cells += [f"{values_SU[:, known_U].mean():.4f}" for values_SU in figures]
    if not recipe:
        return f"| {' | '.join([*cells, '', ''])} |"
    resamples = UserResamples(users_U, seed=0)
    for mine_SU, plain_SU in zip(figures, metrics_of(np.stack([run.ranks_U for run in recipe])), strict=True):
        change_U = (mine_SU.mean(0) - plain_SU.mean(0))[known_U]
        cells.append(estimate(resamples.mean(change_U, users_U)).signed())
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
