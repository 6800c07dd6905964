"""Forecasts in size and data from the horizons of small networks: four times the data, eight times the size, both.

Each set's study (`benchmarks/horizons/SET.yaml`) is trained in part first: sizes of at most an eighth of the largest,
horizons of at most a quarter of the longest. From these alone the rest is predicted (`SET-prediction.json`, committed
before the rest was trained), by the forecast in size and data, by Chinchilla's law and by "no gain". `--page` writes
the tables.

    python benchmarks/horizons.py --sets globo decks --small
    python benchmarks/horizons.py --sets globo decks
    python benchmarks/horizons.py --page
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from lrec.common.files import write_json, write_text
from lrec.common.text_tables import rows_table
from lrec.laws.fit import fit_points
from lrec.laws.forecast import Forecast
from lrec.laws.loss_laws import law_named
from lrec.laws.table import naive
from lrec.study.options import ladder_n_body
from lrec.study.points import read_points

HERE = Path(__file__).parent
FOLDER, PAGE = HERE / "horizons", HERE / "horizons.md"
SIZE, DATA = 8, 4  # the largest over the largest known


def train(name: str, studies: Path, small: bool) -> list[Path]:
    """The points of the study, trained as far as it is not."""
    file = FOLDER / f"{name}.yaml"
    study = yaml.safe_load(file.read_text())
    options: list[str] = ["--out", str(studies / name)]
    if small:
        largest = max(map(ladder_n_body, study["sizes"]))
        sizes = [size for size in study["sizes"] if SIZE * ladder_n_body(size) <= largest]
        horizons = [horizon for horizon in study["horizons"] if DATA * horizon <= max(study["horizons"])]
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
        rows.append(row | {"chinchilla": float(law), "no gain": naive(known, {"x": p.x, "d": p.d})})
    return rows


def page(sets: dict[str, list[dict[str, Any]]]) -> str:
    """Every prediction beside what came, and the means by kind."""
    rows = [["set", "N_body", "D", "predicted", "90 %", "measured", "error", "inside", "Chinchilla", "no gain"]]
    errors: dict[str, list[list[float]]] = {}
    for name, each in sets.items():
        for p in (p for p in each if "measured" in p):
            loss = p["measured"]
            of = [100 * (p[key] / loss - 1) for key in ("predicted", "chinchilla", "no gain")]
            inside = p["low"] <= loss <= p["high"]
            errors.setdefault(p["kind"], []).append([*np.abs(of), inside])
            numbers = [f"{p['N_body']:,.0f}", f"{p['D']:,.0f}", f"{p['predicted']:.3f}"]
            numbers += [f"{p['low']:.3f} to {p['high']:.3f}", f"{loss:.3f}", f"{of[0]:+.2f} %"]
            rows.append([name, *numbers, "yes" if inside else "no", *(f"{value:+.2f} %" for value in of[1:])])
    means = [["beyond the known", "predictions", "mean error", "inside", "Chinchilla", "no gain"]]
    for kind, values in errors.items():
        error, law, none, inside = np.mean(values, axis=0)
        means.append([kind, str(len(values)), f"{error:.2f} %", f"{inside:.2f}", f"{law:.2f} %", f"{none:.2f} %"])
    title, method, commands = __doc__.rstrip().split("\n\n")
    tables = [rows_table(table, text=(0,)) for table in (means, rows)]
    return "\n\n".join([f"# {title.rstrip('.')}", method.replace("\n", " "), commands, *tables, READ.strip()]) + "\n"


READ = """
Losses are test losses in nats. Chinchilla's law (E + A/N^a + B/D^b) is fitted to the same points.
"""


def main() -> None:
    """Train, predict, judge, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=[])
    parser.add_argument("--small", action="store_true", help="train what is known, and predict the rest")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--studies", type=Path, default=Path("studies"))
    options = parser.parse_args()
    for name in options.sets:
        file = FOLDER / f"{name}-prediction.json"
        points = read_points(train(name, options.studies, options.small), shares=True)
        if options.small:
            study = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
            of_all = float((points["d"] / points["horizon"]).max())
            sizes, lengths = map(ladder_n_body, study["sizes"]), [of_all * horizon for horizon in study["horizons"]]
            x_most, d_most = points["x"].max(), points["d"].max()
            every = [
                (size, length)
                for size in sizes
                for length in lengths
                if length >= points["d"].min() and (size > x_most or length > d_most)
            ]
            write_json(file, predicted(points, every))
            continue
        came = {(x, round(d)): y for x, d, y in points.group_by("x", "d").agg(pl.col("y").mean()).iter_rows()}
        small = points.filter(
            pl.col("horizon") * DATA <= pl.col("horizon").max(), SIZE * pl.col("x") <= pl.col("x").max()
        )
        x_most, d_most = small["x"].max(), small["d"].max()
        rows = json.loads(file.read_text())
        for row in rows:
            larger, longer = row["N_body"] > x_most, row["D"] > 1.001 * d_most
            row["kind"] = "size and data" if larger and longer else "size" if larger else "data"
            if (key := (row["N_body"], round(row["D"]))) in came:
                row["measured"] = came[key]
        write_json(FOLDER / f"{name}.json", rows)
    if options.page:
        found = {
            path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json")) if "-" not in path.stem
        }
        write_text(PAGE, page(found))


if __name__ == "__main__":
    main()
