"""`lrec scaling outlook`, compared with ladders that were trained: benchmarks/outlook.md and benchmarks/outlook/.

    python benchmarks/outlook.py --data DIR [--sets NAME ...]     measures, a minute a set, and writes the page
    python benchmarks/outlook.py                                  writes the page from benchmarks/outlook/ alone

DIR holds the files that SETS names. What was measured is kept in benchmarks/outlook/NAME.json. The page's tables are
made from these files and from the committed points of the ladders.
"""

import argparse
import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from lrec.cli import own_command
from lrec.common.text_tables import rows_table
from lrec.laws.forecast import Forecast
from lrec.options.config_files import with_shipped_configs
from lrec.study import outlook as rule
from lrec.study.outlook import Counted, Evidence, Outlook, Tiny, judge, measure
from lrec.study.points import read_points

HERE = Path(__file__).parent
FOLDER, PAGE = HERE / "outlook", HERE / "outlook.md"
SMALL, LARGE = 24576, 786432
NOISE = 0.05  # nats: what counts as no gain, measured or expected


class Set(NamedTuple):
    """A data set with the options of its ladder, and the file of the ladder's points."""

    name: str
    options: str
    ladder: str | None = None
    share: float = 1.0  # of the unique targets of the ladder's largest share


ML_1M = (
    "--config configs/data/ml-1m.yaml --data.path DIR/ml-1m_ratings.dat.xz --data.max_len 50 "
    "--data.split.trajectory 10 --data.split.held_out_users 0.1"
)
GO = "--config configs/data/go.yaml --data.path DIR/go_games.txt.zst --data.reduction.users"
SETS = {
    "ml-1m": Set("MovieLens-1M", ML_1M, "ml-1m-lsrm/all_points.jsonl"),
    "ml-1m-untuned": Set("MovieLens-1M, first ladder", ML_1M, "ml-1m-lsrm/untuned/all_points.jsonl"),
    "ml-1m-half": Set(
        "MovieLens-1M, recent half", f"{ML_1M} --data.reduction.recent 0.5", "ml-1m-lsrm/all_points.jsonl", 0.5
    ),
    "ml-1m-quarter": Set(
        "MovieLens-1M, recent quarter", f"{ML_1M} --data.reduction.recent 0.25", "ml-1m-lsrm/all_points.jsonl", 0.25
    ),
    "beauty": Set(
        "Amazon Beauty",
        "--config configs/data/s3rec-beauty.yaml --data.path DIR/s3rec_Beauty.txt.gz",
        "s3rec-beauty/all_points.jsonl",
    ),
    "ciao": Set(
        "Ciao",
        "--config configs/data/csv.yaml --data.path DIR/ciao_ratings.csv.gz --data.user_column user "
        "--data.item_column item --data.time_column timestamp --data.k_core 10 --data.split.trajectory 10",
        "ciao/all_points.jsonl",
    ),
    "ml-latest-small": Set(
        "MovieLens latest-small",
        "--config configs/data/ml-latest-small.yaml --data.path DIR/ml-latest-small_ratings.csv.gz --data.max_len 50",
        "ml-latest-small/points.csv",
    ),
    "quickstart": Set(
        "Quickstart (synthetic)", "--config configs/data/synthetic.yaml", "quickstart/40000-users/all_points.jsonl"
    ),
    "go": Set("Go, a quarter of the games", f"{GO} 0.25", "go/all_points.jsonl"),
    "go-sixteenth": Set("Go, a sixteenth of the games", f"{GO} 0.0625", "outlook/go-sixteenth.csv"),
    "globo": Set(
        "Globo", "--config configs/data/globo.yaml --data.path DIR/globo_clicks.parquet", "globo/all_points.jsonl"
    ),
    "decks": Set("Decks", "--config configs/data/decks.yaml --data.path DIR/mtg_decks.parquet"),
    "decks-eighth": Set(
        "Decks, an eighth of the players",
        "--config configs/data/decks.yaml --data.path DIR/mtg_decks.parquet --data.reduction.users 0.125",
        "decks/all_points.jsonl",
        0.5,
    ),
}


class Measured(NamedTuple):
    """What a ladder gained from 25k to its best size up to 786k, and how that is known."""

    gain: float
    how: str
    targets: float


def read_ladder(one: Set) -> tuple[np.ndarray, np.ndarray, float]:
    """Sizes, their mean test losses, and the unique targets, of the set's share of the data."""
    assert one.ladder is not None
    points = read_points([HERE / one.ladder], d="D", u="U")
    shares = points["u"].unique().to_numpy()
    u = shares[np.abs(np.log(shares / (one.share * shares.max()))).argmin()]
    means = points.filter(pl.col("u") == u).group_by("x").agg(pl.col("y").mean()).sort("x")
    return means["x"].to_numpy(), means["y"].to_numpy(), float(u)


def measured_gain(one: Set) -> Measured:
    """The gain between sizes by a line in log N, and beyond the largest by the forecast, if the largest is the best."""
    sizes, losses, targets = read_ladder(one)
    at_small = float(np.interp(math.log(SMALL), np.log(sizes), losses))
    larger = sizes >= SMALL
    best = float(losses[larger & (sizes <= LARGE)].min(initial=at_small))
    how = "trained" if LARGE in sizes else f"trained up to {sizes.max() / 1e3:.0f}k"
    if sizes.max() < LARGE and losses[-1] == losses.min() and len(sizes) > 4:
        table = pl.DataFrame({"x": sizes.astype(float), "y": losses})
        expected = Forecast(table).predict([LARGE])[0].predicted
        how += f", forecast beyond ({at_small - best:.2f} without)"
        best = min(best, expected)
    return Measured(at_small - best, how, targets)


def measure_set(key: str, data: Path) -> None:
    """Run the outlook on a set and keep what it measured."""
    options = shlex.split(SETS[key].options.replace("DIR", str(data)))
    _, parser, arguments = own_command(["scaling", "outlook", *options])
    module = parser.instantiate(parser.parse_args(with_shipped_configs(arguments)))["data"]
    module.prepare_data()
    module.setup("fit")
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{key}.json").write_text(json.dumps(asdict(measure(module, seed=0)), indent=1) + "\n")


def read_evidence(key: str) -> Evidence | None:
    """What was measured on a set; None if nothing was."""
    path = FOLDER / f"{key}.json"
    if not path.is_file():
        return None
    kept = json.loads(path.read_text())
    counted, tiny = ([kind(**row) for row in kept[name]] for name, kind in (("counted", Counted), ("tiny", Tiny)))
    return Evidence(**kept | {"counted": counted, "tiny": tiny})


def verdict(outlook: Outlook, measured: Measured | None) -> str:
    """Whether the gain is within a third of the measured one, or both are next to nothing."""
    if measured is None:
        return "not trained yet"
    if outlook.gain is None:
        return "said to be unknown"
    if max(outlook.gain, measured.gain) <= NOISE:
        return "yes: next to nothing"
    return "yes" if abs(outlook.gain - measured.gain) <= measured.gain / 3 else "**no**"


def record(found: dict[str, Evidence]) -> str:
    """A line for each set."""
    rows = [["set", "U", "popularity", "n-gram", "3k", "25k", "users left out", "expected gain", "by amount alone"]]
    rows[0] += ["measured gain", "how it is known", "within a third"]
    for key, evidence in found.items():
        outlook = judge(evidence)
        measured = measured_gain(SETS[key]) if SETS[key].ladder else None
        last, tiny = evidence.counted[-1], min(evidence.tiny, key=lambda run: run.loss, default=None)
        expected = (
            "unknown" if outlook.gain is None else f"{outlook.gain:.2f} ({outlook.low:.2f} to {outlook.high:.2f})"
        )
        rows.append(
            [SETS[key].name, f"{evidence.targets:,}", f"{last.losses['popularity']:.2f}", f"{last.best:.2f}"]
            + [f"{run.loss:.2f}" for run in evidence.tiny]
            + ["" if tiny is None else f"{tiny.fresh_loss:.2f}", expected, f"{outlook.by_amount:.2f}"]
            + (["", ""] if measured is None else [f"{measured.gain:.2f}", measured.how])
            + [verdict(outlook, measured)]
        )
    return rows_table(rows, text=(0, 10, 11))


def more_data(found: dict[str, Evidence]) -> str:
    """What the last doubling of the data brought to n-grams and networks, for sets whose shares were trained."""
    rows = [["from", "to", "n-grams", "25k", "best size", "said of the best size"]]
    for small, large in (("ml-1m-quarter", "ml-1m-half"), ("ml-1m-half", "ml-1m")):
        if small not in found or large not in found:
            continue
        losses = [read_ladder(SETS[key])[:2] for key in (small, large)]
        at_small = [float(np.interp(math.log(SMALL), np.log(sizes), loss)) for sizes, loss in losses]
        best = [float(loss.min()) for _, loss in losses]
        outlook = judge(found[small])
        said = outlook.doubling + rule.gain_by_amount(2 * found[small].targets) - outlook.by_amount
        brought = [at_small[0] - at_small[1], best[0] - best[1], said]
        rows.append([SETS[small].name, SETS[large].name, f"{outlook.doubling:.2f}", *(f"{x:.2f}" for x in brought)])
    return rows_table(rows, text=(0, 1))


FAMILIES = {
    "MovieLens-1M": ("ml-1m", "ml-1m-untuned", "ml-1m-half", "ml-1m-quarter"),
    "Amazon Beauty": ("beauty",),
    "Ciao": ("ciao",),
    "MovieLens latest-small": ("ml-latest-small",),
    "Go": ("go", "go-sixteenth"),
}


def constants(keys: Sequence[str]) -> tuple[float, float]:
    """Nats per decade and targets per parameter, by least squares over the sets, on a grid."""
    gains = [measured_gain(SETS[key]) for key in keys]
    u, gain = np.array([g.targets for g in gains]), np.array([g.gain for g in gains])
    error = {
        (rate, per): float(((rule_of(u, rate, per) - gain) ** 2).sum())
        for rate in np.arange(0.2, 0.601, 0.01)
        for per in np.arange(4, 41, 1.0)
    }
    return min(error, key=lambda pair: error[pair])


def rule_of(targets: np.ndarray, rate: float, per: float) -> np.ndarray:
    """The rule with other constants."""
    return rate * np.log10(np.clip(targets / per, SMALL, LARGE) / SMALL)


def left_out() -> str:
    """The rule by amount of data alone, with constants from the other families: a line for each family left out."""
    everything = [key for keys in FAMILIES.values() for key in keys]
    rows = [["left out", "nats per decade", "targets per parameter", "said of it", "measured"]]
    rows.append(["nothing", *(f"{x:.2f}" for x in constants(everything)), "", ""])
    for family, keys in FAMILIES.items():
        rate, per = constants([key for key in everything if key not in keys])
        gains = [measured_gain(SETS[key]) for key in keys]
        said = rule_of(np.array([g.targets for g in gains]), rate, per)
        values = [", ".join(f"{x:.2f}" for x in row) for row in (said, [g.gain for g in gains])]
        rows.append([family, f"{rate:.2f}", f"{per:.0f}", *values])
    return rows_table(rows, text=(0,))


def main() -> None:
    """Measure if there is a folder of data, and write the page's tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    arguments = parser.parse_args()
    for key in arguments.sets if arguments.data else ():
        if key == "ml-1m-untuned":
            continue  # the same data as ml-1m
        measure_set(key, arguments.data)
    found = {key: read_evidence(key.removesuffix("-untuned")) for key in SETS}
    evidence = {key: one for key, one in found.items() if one is not None}
    page = PAGE.read_text()
    for table in (record(evidence), left_out(), more_data(evidence)):
        head = re.escape(table.partition(" |")[0])
        found_tables = list(re.finditer(rf"^{head} \|.*\n(?:\|.*\n)*", page, flags=re.MULTILINE))
        assert len(found_tables) == 1, f"{PAGE} has {len(found_tables)} tables that begin with {head}"
        page = page[: found_tables[0].start()] + table + "\n" + page[found_tables[0].end() :]
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
