"""Features of events, items and users on seven sets: what they bring to the test loss and NDCG@10, and a step's cost.

    python benchmarks/features.py --data FOLDER [--epochs 5] [--seeds 0 1 2] [--runs runs/features] [--sets NAME ...]

On MovieLens-1M (a tenth of the users train, all are tested), events have the rating and items the genres as features.
On Ciao (10-core), events have the rating and items have the category. On Go (a 64th of the games), items are points of
the board, with row and column. On MovieLens-100K (the files of RecBole), events have the rating, items the genres and
the year, and users the age, gender and occupation. The others have features of events that the log itself tells: on
decks (a 128th of the players), how many cards of the deck came before; on news clicks (Globo, 5-core, a 20th of the
users), the hour of the day and how many clicks came before within the session, which ends after half an hour without
clicks; on tennis (a quarter of the players), whether a match was won. A log also tells since when a user is known, the
time of the first event: on MovieLens-1M, decks, news clicks and tennis, this is the feature of users. On tennis, a
player has a second feature, men's or women's tour. A feature of a user is a feature of events that is the same in all
events of the user. The row of MovieLens-100K is older: ranges of ages then had equally many users, not events.

Beside a network with no features, features of users changed the test loss by -0.008 [-0.031, +0.015] on MovieLens-1M,
+0.056 [+0.045, +0.067] on decks, +0.080 [-0.017, +0.173] on news clicks and -0.131 [-0.188, -0.077] on tennis, in three
seeds and five epochs. These four were measured with lrec's former option for features of users, which entered the
network in the same way.

The split is leave-one-out, but by time for tennis (20,000 of the test targets, sampled softmax). The same network (one
layer of width 32, histories of 50) is trained with no features and with each kind: same seeds, same epochs, no choice
of an epoch. Differences from the network with neither are paired over test targets; 90 % intervals draw targets and
seeds again, together. A lower loss and a higher NDCG@10 are better.

The last column is the equivalent size: how many times the parameters in blocks would lower the test loss as much, by a
ladder of networks with neither, of widths 8 to 128 (`lrec.laws.equivalents`). It is "more" if no network of the ladder,
and none up to ten times its largest, would. On Ciao, the width 8 has the lowest loss of the ladder.
"""

import argparse
import lzma
import platform
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from small_network import LADDER, equivalent_size, interval, told, trained

from lrec.common.files import write_text

HERE = Path(__file__).parent
SIDE = 19  # points of a side of the board
SESSION_MS = 30 * 60 * 1000
SINCE: dict[str, object] = {"data.event_features.numbers": "[since]"}


@dataclass(frozen=True)
class Set:
    """A data set: its options, and those of each kind of feature."""

    options: dict[str, object]
    event: dict[str, object] = field(default_factory=dict)
    item: dict[str, object] = field(default_factory=dict)
    user: dict[str, object] = field(default_factory=dict)
    most: int | None = None  # test targets

    @property
    def arms(self) -> list[str]:
        features = [arm for arm in ("event", "item", "user") if getattr(self, arm)]
        return ["neither", *features, *(f"width {width}" for width in LADDER)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder with the files of the sets.")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/features"))
    parser.add_argument(
        "--finished", action="store_true", help="Train nothing more: seeds of which all runs are there."
    )
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="Others keep their rows.")
    options = parser.parse_args()
    options.runs.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    sets = {name: SETS[name](options.data, options.runs) for name in options.sets}
    found = {
        (name, arm, seed): measured(name, sets[name], arm, seed, options)
        for seed in options.seeds
        for name in sets
        for arm in sets[name].arms
        if not options.finished or all(kept_file(name, each, seed, options).exists() for each in sets[name].arms)
    }
    write_text(HERE / "features.md", page(found, options))


def known_since(time_column: str) -> pl.Expr:
    """The time of the user's first event."""
    return pl.col(time_column).min().over("user").alias("since")


def movielens(data: Path, runs: Path) -> Set:
    """Ratings as a CSV file, and a file of genres."""
    log, films = runs / "ml-1m.csv", runs / "films.csv"
    rows = [
        line.split("::") for line in lzma.decompress((data / "ml-1m_ratings.dat.xz").read_bytes()).decode().splitlines()
    ]
    table = pl.DataFrame(rows, schema=["user", "item", "rating", "timestamp"], orient="row")
    table.with_columns(pl.col("timestamp").cast(pl.Int64)).with_columns(known_since("timestamp")).write_csv(log)
    found = re.findall(r"^(\d+)::.*::(.*)$", (data / "ml-1m_movies.dat").read_text(encoding="latin-1"), re.MULTILINE)
    pl.DataFrame(found, schema=["item", "genres"], orient="row").write_csv(films)
    return Set(
        {"data.path": log, "data.time_column": "timestamp", "data.reduction.users": 0.1},
        {"data.event_features.categories": "[rating]"},
        {"data.item_features.lists": "[genres]", "data.item_features.path": films},
        SINCE,
    )


def ciao(data: Path, _: Path) -> Set:
    """The category is a column of the log."""
    return Set(
        {"data.path": data / "ciao_ratings.csv.gz", "data.time_column": "timestamp", "data.k_core": 10},
        {"data.event_features.categories": "[rating]"},
        {"data.item_features.categories": "[category]"},
    )


def go(data: Path, runs: Path) -> Set:
    """A file of the row and the column of each point."""
    points = runs / "points.csv"
    table = {"item": range(SIDE**2), "row": np.arange(SIDE**2) // SIDE, "column": np.arange(SIDE**2) % SIDE}
    pl.DataFrame(table).write_csv(points)
    return Set(
        {"data.path": data / "go_games.txt.zst", "data.reduction.users": 1 / 64},
        {},
        {"data.item_features.categories": "[row, column]", "data.item_features.path": points},
    )


def movielens_100k(data: Path, runs: Path) -> Set:
    """The files of RecBole, whose columns are named name:type."""
    log, films, people = runs / "ml-100k.csv", runs / "films-100k.csv", runs / "people.csv"
    for name, made in ("inter", log), ("item", films), ("user", people):
        table = pl.read_csv(data / f"ml-100k.{name}", separator="\t", infer_schema=False, quote_char=None)
        table = table.rename({column: column.split(":")[0] for column in table.columns})
        table = table.rename({"user_id": "user", "item_id": "item", "class": "genres"}, strict=False)
        if name == "item":
            table = table.with_columns(pl.col("genres").str.replace_all(" ", "|"))
        table.write_csv(made)
    pl.read_csv(log).join(pl.read_csv(people), on="user", how="left", maintain_order="left").write_csv(log)
    return Set(
        {"data.path": log, "data.time_column": "timestamp"},
        {"data.event_features.categories": "[rating]"},
        {
            "data.item_features.lists": "[genres]",
            "data.item_features.categories": "[release_year]",
            "data.item_features.path": films,
        },
        {
            "data.event_features.numbers": "[age]",
            "data.event_features.categories": "[gender, occupation]",
        },
    )


def decks(data: Path, runs: Path) -> Set:
    """How many cards of the deck came before."""
    log, place = runs / "decks.parquet", pl.int_range(pl.len()).over("user", "time")
    pl.read_parquet(data / "mtg_decks.parquet").with_columns(known_since("time"), place=place).write_parquet(log)
    return Set(
        {"data.path": log, "data.time_column": "time", "data.reduction.users": 1 / 128},
        {"data.event_features.numbers": "[place]"},
        user=SINCE,
    )


def clicks(data: Path, runs: Path) -> Set:
    """The hour, and how many clicks of the session came before."""
    log = runs / "clicks.parquet"
    names = {"user_id": "user", "click_article_id": "item", "click_timestamp": "time"}
    table = pl.read_parquet(data / "globo_clicks.parquet").rename(names).sort("user", "time", maintain_order=True)
    begins = pl.col("time").diff().over("user").fill_null(SESSION_MS) >= SESSION_MS
    hour, session = pl.col("time") // 3_600_000 % 24, begins.cast(pl.Int32).cum_sum()
    table = table.with_columns(known_since("time"), hour=hour, session=session)
    table.with_columns(place=pl.int_range(pl.len()).over("session")).drop("session").write_parquet(log)
    return Set(
        {"data.path": log, "data.time_column": "time", "data.k_core": 5, "data.reduction.users": 0.05},
        {"data.event_features.numbers": "[place]", "data.event_features.categories": "[hour]"},
        user=SINCE,
    )


def tennis(data: Path, runs: Path) -> Set:
    """Whether the match was won, and the tour of the player, the first letter of the id."""
    log, tour = runs / "tennis.parquet", pl.col("user").str.head(1)
    pl.read_parquet(data / "tennis.parquet").with_columns(known_since("time"), tour=tour).write_parquet(log)
    by_time = {"data.split": "GlobalTemporal", "data.split.validate_from": 0.9, "data.split.test_from": 0.95}
    sampled = {"model.loss": "SampledSoftmax", "model.loss.negatives": 1024, "model.loss.power": 1}
    options = {"data.path": log, "data.time_column": "time", "data.reduction.users": 0.25}
    user = SINCE | {"data.event_features.categories": "[tour]"}
    return Set(options | by_time | sampled, {"data.event_features.categories": "[event]"}, user=user, most=20_000)


SETS = {
    "MovieLens-1M": movielens,
    "Ciao": ciao,
    "Go": go,
    "MovieLens-100K": movielens_100k,
    "Decks": decks,
    "News clicks": clicks,
    "Tennis": tennis,
}


class Measured(NamedTuple):
    """A run's test, by target, and its cost."""

    users_C: np.ndarray
    loss_C: np.ndarray  # nan outside the catalogue
    ndcg_C: np.ndarray
    step_ms: float  # processor time of a step, evaluation included
    parameters: int


def kept_file(name: str, arm: str, seed: int, options: argparse.Namespace) -> Path:
    """The file with what was measured of a run."""
    return Path(options.runs) / f"{name}-{arm}-{seed}.npz"


def measured(name: str, data: Set, arm: str, seed: int, options: argparse.Namespace) -> Measured:
    """Train a run, unless it is there, and test its best checkpoint by target."""
    kept = kept_file(name, arm, seed, options)
    if not kept.exists():
        of_arm = {"event": data.event, "item": data.item, "user": data.user}
        of_arm |= {f"width {width}": {"model.width": width} for width in LADDER}
        given = data.options | of_arm.get(arm, {})
        tested = trained(kept.with_suffix(""), given, seed, options.epochs, data.most)
        assert tested.run.result is not None
        cost = np.array([tested.step_ms, tested.run.result.N_total])
        np.savez(kept, users=tested.users_C, loss=tested.loss_C, ndcg=tested.ndcg_C, cost=cost)
    read = np.load(kept)
    return Measured(read["users"], read["loss"], read["ndcg"], float(read["cost"][0]), int(read["cost"][1]))


def page(found: dict[tuple[str, str, int], Measured], options: argparse.Namespace) -> str:
    """The text of benchmarks/features.md."""
    given = " ".join(str(seed) for seed in sorted({seed for *_, seed in found}))
    lines = [
        "# Features",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, one core, torch {torch.__version__}.",
        "",
        f"    python benchmarks/features.py --data FOLDER --epochs {options.epochs} --seeds {given}",
        "",
        *"\n\n".join((__doc__ or "").strip().split("\n\n")[2:]).splitlines(),
        "",
        f"{options.epochs} epochs. Times are the processor time of a whole run, start and tests included, per step.",
        "",
        "| data | features | seeds | N_total | test loss | beside neither | NDCG@10 | beside neither | ms a step "
        "| times the size |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    kept = (HERE / "features.md").read_text().splitlines()
    lines += [row for row in kept if row.split(" | ")[0].removeprefix("| ") in SETS.keys() - set(options.sets)]
    for name, arm in {(name, arm): None for name, arm, _ in found}:
        seeds = [seed for seed in options.seeds if (name, arm, seed) in found]
        mine, plain = ([found[name, each, seed] for seed in seeds] for each in (arm, "neither"))
        loss_SC, ndcg_SC = (np.stack([getattr(run, each) for run in mine]) for each in ("loss_C", "ndcg_C"))
        known_C = ~np.isnan(loss_SC).any(0)
        beside, worth = ["", ""], ""
        if arm != "neither":
            plain_loss_SC, plain_ndcg_SC = (
                np.stack([getattr(run, each) for run in plain]) for each in ("loss_C", "ndcg_C")
            )
            differences = (loss_SC - plain_loss_SC)[:, known_C], ndcg_SC - plain_ndcg_SC
            beside = [told(interval(each)) for each in differences]
            if not arm.startswith("width"):
                worth = equivalent_size(interval(differences[0]), found, name, "neither", known_C)
        cells = [name, arm, str(len(seeds)), f"{mine[0].parameters:,}", f"{loss_SC[:, known_C].mean():.4f}", beside[0]]
        cells += [f"{ndcg_SC.mean():.4f}", beside[1], f"{np.mean([run.step_ms for run in mine]):.1f}", worth]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
