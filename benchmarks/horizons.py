"""Forecasts from the horizons of small networks: for four times the data, eight times the size, and both.

Of each set's study (`benchmarks/horizons/SET.yaml`), only a part is trained first: sizes up to an eighth of the
largest, and horizons up to a quarter of the longest. From this part, the rest is predicted by the forecast in size and
data, by Chinchilla's law and by "no gain" (`SET-prediction.json`, committed before the rest was trained). `--page`
writes the tables. `--grids` does the same with public grids of language models: Chinchilla, and Porian et al. 2024
without those of a long warm-up. Their known part has sizes from 1/800 to 1/8 of the largest, and lengths from 1/40 to
1/4 of the longest.

    python benchmarks/horizons.py --grids ../shared/data/scaling
    python benchmarks/horizons.py --sets globo go --small
    python benchmarks/horizons.py --sets globo go
    python benchmarks/horizons.py --page
"""

import argparse
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from lrec.common.files import write_json, write_text
from lrec.common.text_tables import rows_table
from lrec.laws.fit import fit_points
from lrec.laws.forecast import LEAST_SIZES, Forecast
from lrec.laws.loss_laws import law_named
from lrec.laws.table import naive
from lrec.study.options import ladder_n_body
from lrec.study.points import read_points

HERE = Path(__file__).parent
FOLDER, PAGE = HERE / "horizons", HERE / "horizons.md"
SIZE, DATA = 8, 4  # the largest over the largest known


def known_part(study: dict[str, Any]) -> tuple[list[str], list[float]]:
    """The sizes and horizons in the known part of a study, from its configuration."""
    largest, longest = max(map(ladder_n_body, study["sizes"])), max(study["horizons"])
    sizes = [size for size in study["sizes"] if SIZE * ladder_n_body(size) <= largest]
    return sizes, [horizon for horizon in study["horizons"] if DATA * horizon <= longest]


def train(name: str, studies: Path, small: bool) -> list[Path]:
    """The points of the study; what is missing is trained."""
    file = FOLDER / f"{name}.yaml"
    options: list[str] = ["--out", str(studies / name)]
    if small:
        sizes, horizons = known_part(yaml.safe_load(file.read_text()))
        options += ["--sizes", json.dumps(sizes), "--horizons", json.dumps(horizons)]
    command = [sys.executable, "-m", "lrec", "scaling", "study", "--config", str(file), *options]
    subprocess.run(command, check=True)
    return [studies / name / "all_points.jsonl"]


def predicted(known: pl.DataFrame, places: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """What each method expects at places of size and data."""
    chinchilla = fit_points(law_named("chinchilla"), known)
    places_PV = np.array(places)
    rows = []
    for p, law in zip(Forecast(known).predict(places_PV), chinchilla.curve(places_PV), strict=True):
        row = {"N_body": p.x, "D": p.d, "predicted": p.predicted, "low": p.low, "high": p.high}
        rows.append(row | {"chinchilla": float(law), "no gain": naive(known)({"x": p.x, "d": p.d})})
    return rows


def grids(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The predictions for public grids and the measured losses, by name."""
    porian = pl.read_csv(folder / "porian_isoflop_points.csv").rename({"params": "x", "tokens": "d", "loss": "y"})
    short = porian.filter(~pl.col("config").str.contains("long"))
    tables = {name: grid for (name,), grid in short.group_by("config", maintain_order=True)}
    chinchilla = pl.read_csv(folder / "kyotakano_llm_df.csv")
    tables["chinchilla"] = chinchilla.select(x=pl.col("N").cast(pl.Float64), d=pl.col("D").cast(pl.Float64), y="loss")
    found = {}
    for name, grid in tables.items():
        x_most = float(grid["x"].to_numpy().max())
        longest = float(grid.filter(pl.col("x") >= x_most / 2)["d"].to_numpy().max())
        x, d = pl.col("x") / (x_most / SIZE * 1.001), pl.col("d") / (longest / DATA * 1.001)
        known = grid.filter(x.is_between(0.01, 1), d.is_between(0.1, 1)).with_columns(horizon=pl.col("d"))
        hidden = grid.filter(pl.col("d") <= longest, ((x > 1) & (d >= 0.5)) | ((x >= 1 / 3) & (d > 1))).with_columns(
            larger=x > 1, longer=d > 1
        )
        rows = predicted(known, hidden.select("x", "d").rows())
        for row, (larger, longer, loss) in zip(rows, hidden.select("larger", "longer", "y").iter_rows(), strict=True):
            row |= {"kind": kind_of(larger, longer), "measured": loss}
        found[name] = rows
    return found


def kind_of(larger: bool, longer: bool) -> str:
    """Which of size and data is beyond the known part."""
    return "size and data" if larger and longer else "size" if larger else "data"


def stopped(sets: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """How well the last loss of each size is known before its run begins, and after each horizon of that run."""
    table = [["set", "N_body", "own horizons known, shares of the longest", "error", "half-width", "inside"]]
    for name, rows in sets.items():
        known = [(p["N_body"], p["D"], p["loss"]) for p in json.loads((FOLDER / f"{name}-known.json").read_text())]
        all_x = known + [(p["N_body"], p["D"], p["measured"]) for p in rows if "measured" in p]
        most = max(d for _, d, _ in all_x)
        # Equal horizons differ by a few interactions: a horizon is the longest divided by a whole number.
        rows_3 = [(float(x), most / round(most / d), loss) for x, d, loss in all_x]
        points = pl.DataFrame(rows_3, ["x", "d", "y"], orient="row").with_columns(horizon=pl.col("d")).sort("x", "d")
        for x in points["x"].unique().sort()[LEAST_SIZES:]:
            own, smaller = points.filter(pl.col("x") == x), points.filter(pl.col("x") < x)
            longest, loss = own["d"][-1], own["y"][-1]
            for count in range(len(own)):
                forecast = Forecast(pl.concat([smaller, own[:count]])).predict(np.array([(x, longest)]))[0]
                shares = ", ".join(f"{d / longest:.3g}" for d in own["d"][:count]) or "none"
                half = (forecast.high - forecast.low) / 2 / forecast.predicted
                inside = "yes" if forecast.low <= loss <= forecast.high else "no"
                error = f"{100 * (forecast.predicted / loss - 1):+.2f} %"
                table.append([name, f"{x:,.0f}", shares, error, f"{100 * half:.2f} %", inside])
    return table


def means(sets: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """The mean error of each method over sets, by what is beyond the known part."""
    table = [["beyond the known", "sets", "predictions", "mean error", "inside", "Chinchilla", "no gain"]]
    for kind in ("size", "data", "size and data"):
        of_sets = []
        for each in sets.values():
            mine = [p for p in each if p.get("kind") == kind and "measured" in p]
            of = [[abs(p[key] / p["measured"] - 1) for key in ("predicted", "chinchilla", "no gain")] for p in mine]
            inside = [p["low"] <= p["measured"] <= p["high"] for p in mine]
            of_sets += [[*(100 * np.mean(of, axis=0)), np.mean(inside), len(mine)]] if mine else []
        if of_sets:
            error, law, none, inside, _ = np.mean(of_sets, axis=0)
            count = str(int(sum(each[-1] for each in of_sets)))
            numbers = [f"{error:.2f} %", f"{inside:.2f}", f"{law:.2f} %", f"{none:.2f} %"]
            table.append([kind, str(len(of_sets)), count, *numbers])
    return table


def page(sets: dict[str, list[dict[str, Any]]]) -> str:
    """Every prediction with its measured loss, and the means by kind, also for public grids."""
    rows = [["set", "N_body", "D", "predicted", "90 %", "measured", "error", "inside", "Chinchilla", "no gain"]]
    for name, each in sets.items():
        for p in (p for p in each if "measured" in p):
            loss = p["measured"]
            of = [100 * (p[key] / loss - 1) for key in ("predicted", "chinchilla", "no gain")]
            numbers = [f"{p['N_body']:,.0f}", f"{p['D']:,.0f}", f"{p['predicted']:.3f}"]
            numbers += [f"{p['low']:.3f} to {p['high']:.3f}", f"{loss:.3f}", f"{of[0]:+.2f} %"]
            inside = "yes" if p["low"] <= loss <= p["high"] else "no"
            rows.append([name, *numbers, inside, *(f"{value:+.2f} %" for value in of[1:])])
    title, method, commands = __doc__.rstrip().split("\n\n")
    head = [f"# {title.rstrip('.')}", method.replace("\n", " "), commands]
    tables = [rows_table(table, text=(0,)) for table in (means(sets), rows)]
    public = ["## Public grids", (FOLDER / "grids.md").read_text().strip()]
    early = ["## Stopping a run early", EARLY.strip(), rows_table(stopped(sets), text=(0,))]
    return "\n\n".join([*head, "## Studies of lrec", *tables, READ.strip(), *early, *public]) + "\n"


READ = """
Losses are test losses in nats. Chinchilla's law (E + A/N^a + B/D^b) is fitted to the same points.

For clicks, a first version of the forecast let the loss fall in D as it does in N. It was 3 to 6 % too low. In the
second version, the loss falls in D like the curves in amounts of data that the constants were fitted to, and horizons
of fewer than 300 steps are left out. The table above has the predictions of this second version. Those for clicks
were written before the rest was trained, but we already knew losses of 4.75 to 5.28 on all of these data from another
study. Those for Go were written without a change of the forecast. Five sizes of Go's longest horizon were trained
later, as runs of their own. The two large sizes are better than forecast, by 2.5 and 2.3 % (5.0 and 5.3 % for "no
gain"), and one of them is outside: with as much data, they learn some skill that smaller and shorter runs do not show.
The predictions for decks and tennis, which train with Muon, were committed before the rest was trained, and are those
of the third version. For the largest size with all data, a quarter of the data, and the sizes up to an eighth with all
data, their errors are 0.6, 1.2 and 0.5 % on decks, and 0.8, 0.1 and 0.2 % on tennis; the errors of "no gain" are
10.4, 1.5 and 7.7 %, and 8.7, 0.8 and 8.3 %.

In the third version, more data make the fall in size steeper by the same amount at every size. In the
second version, this effect faded as sizes grew. The third version was chosen on the public grids below. There, the
error for size and data together was 2.70 % with the second version, and 78 % of the losses were inside. The small
networks of clicks and Go were trained again to compare both versions. On clicks, the third is off by 0.42 % (size),
0.88 % (data) and 0.60 % (both), the second by 0.12, 0.95 and 0.26 %. On Go, without the longest horizon, the third is
off by 0.49 % (size) and 0.19 % (data), the second by 0.61 and 0.20 %. All are inside. If the known part of the grids is
16 times smaller and 8 times shorter than the largest run, both versions are off by 2 %. At 32 and 8 times, they are off
by 7 %, always too low.

In today's version, curves in the size flatten faster, because all sizes have the same data
([forecasts.md](forecasts.md)). From the same known parts, its mean errors are 0.41 % (size), 0.65 % (data) and 0.84 %
(both), and all losses but one of Go are inside. Those of the third version are 0.50, 0.68 and 0.96 %.

We also held out the two largest sizes of clicks, with horizons of 0.125 to 1. The forecast in size and data is off by
0.8 % for both, with half-widths of 1.7 and 2.8 %. From the longest runs alone, it is off by 0.9 and 0.8 %, with
half-widths of 2.2 and 3.8 %. "No gain" is off by 2.5 and 3.4 %.

A study of the quickstart's kind has eight sizes with one seed, and these four horizons, in place of twelve runs: `lrec
scaling study --config configs/study/quickstart.yaml --sizes '[0.8k,1.7k,3k,4.8k,6.9k,12k,49k,111k]' --size_seeds '{}'
--horizons '[0.125,0.25,0.5,1]' --options.model.optimizer.decay wsd`. At the longest horizon, its forecasts are 0.25 and
0.44 % too low (no gain: 1.5 and 1.8 % too high). The quickstart's are 0.27 and 0.13 % too high. Both studies took as
long, one after the other, beside other programs: 4:40 and 4:55 minutes. So four horizons cost no more hours than four
more runs, but the forecast is a little worse than with two seeds of three sizes.

The longest runs of clicks are as good as separate runs. With 15,552 parameters and one seed, val losses after all
1,019,693 targets are 6.053 (wsd, warm-up of 0.0125), 6.057 (wsd, 0.05), 6.058 (linear, 0.05) and 6.075 (cosine,
0.05). With half of the learning rate, they are 0.003 to 0.04 higher. Each horizon equals a separate run to the last
bit (`pytest tests/cli/test_horizons.py`), so there is nothing else to compare.

Is a run with a constant rate that falls at the end (wsd) as good as one with cosine? Three sizes of clicks, decks and
Go (N_body 1,728, 4,800 and 9,408; two seeds each) were trained with both, at the data and rates of the studies above,
with warm-ups of 0.00625 (wsd, as in the longest run of a study) and 0.05 (cosine):

    python -m lrec scaling study --config benchmarks/horizons/go.yaml --config benchmarks/horizons/schedules.yaml

| loss with wsd, compared with cosine | validation: each size | mean | test: each size | mean |
|---|---|---:|---|---:|
| clicks | -0.21, -0.12, -0.15 % | -0.16 ± 0.08 % | +0.90, +0.12, +0.09 % | +0.37 ± 0.17 % |
| decks | +0.32, +0.13, -0.11 % | +0.11 ± 0.10 % | +0.20, +0.28, -0.02 % | +0.15 ± 0.13 % |
| Go | -0.17, -0.48, -1.02 % | -0.55 ± 0.16 % | -0.18, -0.50, -1.03 % | -0.57 ± 0.16 % |

Figures are means over two pairs with the same seed; ± is one standard error over all pairs. On Go, wsd is better. On
decks, the two do not differ by more than chance. On clicks, wsd is better on validation and worse on test, most of all
for the smallest size.

Four horizons of 0.125 to 1 take 1.13 times the steps of the longest alone, and 0.60 times those of separate runs.
With 0.25, 0.5, 0.75 and 1, these are 1.23 and 0.49 times. Each horizon also adds a start, evaluations and a test. In
the short runs of decks and tennis (10 to 100 seconds), these take as long as the training: four horizons took 1.9 and
1.4 times the time of the longest alone, beside other programs.
"""

EARLY = """
Can a large run be stopped when its forecast is exact enough? Each size is forecast at its longest horizon from all
smaller sizes and from the shorter horizons of its own run. Its own horizons hardly help: the first of them makes the
interval a third narrower at best, and each later one a tenth narrower at best. The smaller sizes already decide how
wide the interval is, before the run begins. At a half-width of 1 %, one run of clicks would stop after half of its
data. The sizes of Go would not be trained at all, or would stop at their first horizon. So a study has no option that
stops a run. If 1 % is enough for you, read the forecast, and train no held-out sizes (`--holdout 0`).
"""


def main() -> None:
    """Train, predict, judge, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=[])
    parser.add_argument("--small", action="store_true", help="train what is known, and predict the rest")
    parser.add_argument("--grids", type=Path, help="folder of the public grids")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--studies", type=Path, default=Path("studies"))
    options = parser.parse_args()
    for name in options.sets:
        file, study = FOLDER / f"{name}-prediction.json", yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        sizes, horizons = known_part(study)
        points = read_points(train(name, options.studies, options.small), shares=True)
        passes = float((points["d"] / points["horizon"]).to_numpy().max())  # interactions of a horizon of 1
        x_most, d_most = max(map(ladder_n_body, sizes)), passes * max(horizons)
        if options.small:
            known = points.select(N_body="x", D="d", loss="y").sort("N_body", "D")
            write_json(FOLDER / f"{name}-known.json", known.to_dicts())
            shortest = float(points["d"].to_numpy().min())
            lengths = [passes * horizon for horizon in study["horizons"] if passes * horizon >= shortest]
            places = product(map(ladder_n_body, study["sizes"]), lengths)
            write_json(file, predicted(points, [(x, d) for x, d in places if x > x_most or d > d_most]))
            continue
        came = {(x, round(d)): y for x, d, y in points.group_by("x", "d").agg(pl.col("y").mean()).iter_rows()}
        rows = json.loads(file.read_text())
        for row in rows:
            row["kind"] = kind_of(row["N_body"] > x_most, row["D"] > 1.001 * d_most)
            if (key := (row["N_body"], round(row["D"]))) in came:
                row["measured"] = came[key]
        write_json(FOLDER / f"{name}.json", rows)
    if options.grids is not None:
        write_text(FOLDER / "grids.md", rows_table(means(grids(options.grids)), text=(0,)) + "\n")
    if options.page:
        found = {
            path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json")) if "-" not in path.stem
        }
        write_text(PAGE, page(found))


if __name__ == "__main__":
    main()
