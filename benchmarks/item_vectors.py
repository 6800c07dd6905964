"""Vectors of titles and genres on MovieLens-1M: what they bring if an item has few training interactions, or none.

    python benchmarks/item_vectors.py --data FOLDER [--size 98k] [--epochs 5] [--runs runs/item_vectors]

A film's vector is made offline from its line of movies.dat: the words of its title, its genres and its decade are
hashed into 4,096 columns and weighted by the logarithm of how rare they are; the vector has the first 64 singular
directions. Leave-one-out on MovieLens-1M has only 6 test targets with fewer than five training interactions, so we made
some films rare. A tenth of all films, chosen by hash, keeps only ratings that are a user's last one. Another tenth also
keeps four others. The same network is trained without vectors and with each use of them: same seed, same epochs.
NDCG@10 and HR@100 are over items that the user has not seen, with new films. Differences from the network without
vectors are paired over users. A film without a training interaction is a miss for a network that does not know it.
"""

import argparse
import lzma
import os
import platform
import re
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import polars as pl
import torch

import lrec
from lrec.common.files import write_text
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.run import Run
from lrec.tasks.intervals import UserResamples, estimate

HERE = Path(__file__).parent
COLUMNS, WIDTH, MAX_LEN, LISTED = 4096, 64, 200, 100
USES = ("none", "added", "fixed", "initial")
GROUPS = {"none": (0, 0), "1 to 4": (1, 4), "fewer than 5": (0, 4), "5 or more": (5, 10**9), "all": (0, 10**9)}
KEPT = 4  # ratings of a film in the second tenth, in addition to those that are a user's last one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder with ml-1m_ratings.dat.xz, ml-1m_movies.dat.")
    parser.add_argument("--size", default="98k")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path("runs/item_vectors"))
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    vectors = options.runs / "vectors.parquet"
    items, values = film_vectors(options.data / "ml-1m_movies.dat")
    pl.DataFrame({"item": items, "vector": values}).write_parquet(vectors)
    log = options.runs / "log.csv"
    rare_log(options.data / "ml-1m_ratings.dat.xz").write_csv(log)
    for use in USES:
        train(use, log, vectors, options)
    data = InteractionsDataModule(log, data_dir=options.runs / "data", time_column="time", max_len=MAX_LEN)
    data.prepare_data()
    data.setup("test")
    write_text(HERE / "item_vectors.md", page(data, options))


def rare_log(ratings: Path) -> pl.DataFrame:
    """Users, items and times, without most ratings of the films that are made rare."""
    rows = [line.split("::") for line in lzma.decompress(ratings.read_bytes()).decode().splitlines()]
    log = pl.DataFrame(rows, schema=["user", "item", "rating", "time"], orient="row").cast({"time": pl.Int64})
    log = log.select("user", "item", "time").sort("user", "time", maintain_order=True)
    parts = {item: zlib.crc32(f"part of {item}".encode()) % 10 for item in log["item"].unique()}
    log = log.with_columns(part=pl.col("item").replace_strict(parts), last=pl.col("user").is_last_distinct())
    nth = pl.int_range(pl.len()).shuffle(seed=0).over("item", "last")
    stays = pl.col("last") | (pl.col("part") > 1) | ((pl.col("part") == 1) & (nth < KEPT))
    return log.filter(stays).drop("part", "last")


def film_vectors(movies: Path) -> tuple[list[str], np.ndarray]:
    """Raw ids, and vectors (films, WIDTH)."""
    lines = re.findall(r"^(\d+)::(.*)\((\d{4}).*::(.*)$", movies.read_text(encoding="latin-1"), re.MULTILINE)
    words = [
        [*re.findall(r"\w+", title.lower()), *(f"genre {genre}" for genre in genres.split("|")), f"decade {year[:3]}"]
        for _, title, year, genres in lines
    ]
    counts = np.zeros((len(lines), COLUMNS))
    for film, its_words in enumerate(words):
        for word in its_words:
            counts[film, zlib.crc32(word.encode()) % COLUMNS] += 1
    weighted = counts * np.log(len(lines) / np.maximum((counts > 0).sum(0), 1))
    weighted /= np.linalg.norm(weighted, axis=1, keepdims=True)
    left, singular, _ = np.linalg.svd(weighted - weighted.mean(0), full_matrices=False)
    return [raw_id for raw_id, *_ in lines], left[:, :WIDTH] * singular[:WIDTH]


def train(use: str, log: Path, vectors: Path, options: argparse.Namespace) -> None:
    """`lrec fit`, unless the run is there."""
    folder = options.runs / use
    if Run(folder).result is not None:
        return
    values = {
        "data.path": log,
        "data.data_dir": options.runs / "data",
        "data.max_len": MAX_LEN,
        "data.seed": options.seed,
        "seed_everything": options.seed,
        "model.size": options.size,
        "trainer.max_epochs": options.epochs,
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": folder,
    }
    if use != "none":
        values |= {"model.item_vectors": vectors, "model.item_vectors_use": use}
    configs = [f"--config={name}" for name in ("data/csv.yaml", "trainer/laptop.yaml")]
    command = [sys.executable, "-m", "lrec", "fit", *configs, *(f"--{name}={value}" for name, value in values.items())]
    if subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode:
        raise SystemExit(f"the run {folder} failed")


def ranks(use: str, data: InteractionsDataModule, users_C: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    """Rank of each user's test target among the items that the user has not seen; inf beyond LISTED."""
    model, store = lrec.load(options.runs / use), data.store
    raw_items = store.item_table["raw_id"]
    found = []
    for start in range(0, len(users_C), 500):
        users = users_C[start : start + 500]
        places = [(store.offsets_U1[user], store.offsets_U1[user] + data.cuts.test_U[user]) for user in users]
        histories = [raw_items.gather(store.items_N[first:last]).to_list() for first, last in places]
        targets = raw_items.gather(store.items_N[[last for _, last in places]]).to_list()
        lists = model.recommend(histories, k=LISTED)["items"].to_list()
        found += [
            items.index(target) + 1 if target in items else np.inf for items, target in zip(lists, targets, strict=True)
        ]
    return np.array(found)


def page(data: InteractionsDataModule, options: argparse.Namespace) -> str:
    """The text of benchmarks/item_vectors.md."""
    cuts, store = data.cuts, data.store
    users_C = cuts.test_users
    targets_C = cuts.catalogue_index_I[store.items_N[store.offsets_U1[users_C] + cuts.test_U[users_C]]]
    counts_C = np.where(targets_C < 0, 0, cuts.counts_V[targets_C])
    ranks_C = {use: ranks(use, data, users_C, options) for use in USES}
    metrics_C = {
        use: (np.where(found <= 10, 1 / np.log2(1 + found), 0.0), (found <= LISTED).astype(np.float64))
        for use, found in ranks_C.items()
    }
    points = {use: Run(options.runs / use).result for use in USES}
    lines = [
        "# Item vectors",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, one core, torch {torch.__version__}.",
        "",
        f"    python benchmarks/item_vectors.py --data FOLDER --size {options.size} --epochs {options.epochs}",
        "",
        *(__doc__ or "").split("\n\n")[2].strip().splitlines(),
        "",
        f"{options.size}, {options.epochs} epochs, seed {options.seed}, histories of {MAX_LEN}; intervals of 95 %.",
        "",
        "| vectors | N_total | test loss | FLOPs |",
        "|---|---:|---:|---:|",
    ]
    for use, point in points.items():
        assert point is not None
        lines.append(f"| {use} | {point.N_total:,} | {point.test_loss:.4f} | {point.flops:.3g} |")
    lines += [
        "",
        "| training interactions of the target | targets | vectors | NDCG@10 | beside none | HR@100 | beside none |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for name, (least, most) in GROUPS.items():
        in_group_C = (counts_C >= least) & (counts_C <= most)
        if not in_group_C.any():
            continue
        resamples = UserResamples(users_C[in_group_C], seed=0)
        for use in USES:
            cells = []
            for mine_C, plain_C in zip(metrics_C[use], metrics_C["none"], strict=True):
                difference = estimate(resamples.mean((mine_C - plain_C)[in_group_C], users_C[in_group_C])).signed()
                cells += [f"{mine_C[in_group_C].mean():.4f}", "" if use == "none" else difference]
            lines.append(f"| {name} | {in_group_C.sum():,} | {use} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
