"""A study writes its [forecasts](../laws.md#the-forecast) of test losses to the file `prediction.json` before it trains
its largest sizes. A miss is a measured loss outside the 90 % [interval](../glossary.md#interval) of its forecast: the
interval is then bold. The column "commit@time" has the commit that added the forecast, and its time. If the same commit
added the measured loss, both are in brackets: then only the study itself says that the forecast came first. The last
column has the forecast's file, and the first digits of the file's SHA-256. A second number after the parameters is the
number of training targets: the forecast was made from runs on fewer targets. If a row names hours (1h), the study had
[these hours](../study.md#step-2-a-study-of-so-many-hours). Keep such a ledger of your own studies with [`lrec scaling
register`](../study.md#a-ledger-of-forecasts).

    python benchmarks/ledger.py        reads git's history
"""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from statistics import mean
from typing import Any

from lrec.common.files import read_json, write_text
from lrec.common.text_tables import rows_table
from lrec.run import Point, read_points_file

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "results" / "ledger.md"
NAMES = {
    "go": "Go", "go/first": "Go, the first rule of rates", "decks": "decks", "globo": "clicks", "ciao": "Ciao",
    "quickstart": "quickstart", "quickstart/40000-users": "quickstart, earlier",
    "s3rec-beauty": "Beauty", "beauty": "Beauty", "ml-1m-lsrm": "MovieLens-1M",
    "ml-1m-lsrm/untuned": "MovieLens-1M, untuned", "ml-1m": "MovieLens-1M", "tennis": "tennis",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A forecast of a loss, and what came."""

    log: str  # the data set, and after a comma what is special about the study
    what: str  # the size, and the data where they were more than what was trained on
    predicted: float
    low: float
    high: float
    no_gain: float
    came: float
    file: str
    commit: str
    when: str
    before: bool  # whether it was committed before the result

    @property
    def set(self) -> str:
        return self.log.partition(", ")[0]

    @property
    def error(self) -> float:
        return 100 * (self.predicted / self.came - 1)

    @property
    def no_gain_error(self) -> float:
        return 100 * (self.no_gain / self.came - 1)

    @property
    def within(self) -> bool:
        return self.low <= self.came <= self.high


@cache
def first(number: float) -> tuple[str, str]:
    """Commit and time at which a number came into a file of the repository, to the last digit; nothing where it is
    new."""
    log = ["git", "log", f"-S{number!r}", "--reverse", "--format=%h %cd", "--date=format:%Y-%m-%d %H:%M:%S"]
    found = subprocess.run(
        [*log, "--", "*.json", "*.jsonl"], cwd=HERE.parent, capture_output=True, text=True, check=True
    )
    commit, _, when = found.stdout.split("\n")[0].partition(" ")
    return commit, when


def of_studies() -> Iterator[Entry]:
    """Those of studies that were planned by hand."""
    for file in sorted(HERE.rglob("prediction.json")):
        points = [point for point in read_points_file(file.with_name("all_points.jsonl")) if point.best]
        (ladder,) = (each for each in json.loads(file.read_text())["ladders"] if each["predictions"])
        most = max(point.U for point in points)
        whole = [point for point in points if most == point.U]
        largest = min(prediction["x"] for prediction in ladder["predictions"])
        no_gain = min(loss for n_body, loss in losses(whole).items() if n_body < largest)
        for p in ladder["predictions"]:
            measured = [
                point.test_loss for point in whole if point.N_body == int(p["x"]) and point.test_loss is not None
            ]
            yield entry(file, "", p, no_gain, measured)


def losses(points: list[Point]) -> dict[int, float]:
    """The mean test loss of each size."""
    sizes = sorted({point.N_body for point in points})
    return {n: mean(p.test_loss for p in points if p.N_body == n and p.test_loss is not None) for n in sizes}


def of_horizons() -> Iterator[Entry]:
    """Those in size and data, at their farthest: the most of both."""
    for file in sorted((HERE / "horizons").glob("*-prediction.json")):
        result = file.with_name(file.name.replace("-prediction", ""))
        for row in (row for row in read_json(result, []) if "measured" in row):
            what = f" / {row['D']:,.0f}"
            written = {"x": row["N_body"], **{name: row[name] for name in ("predicted", "low", "high")}}
            yield entry(file, what, written, row["no gain"], [row["measured"]], result.stem)


def of_hours() -> Iterator[Entry]:
    """Those of studies that were given their hours alone."""
    for file in sorted((HERE / "hours").glob("*.json")):
        study = json.loads(file.read_text())
        no_gain = min(run["test_loss"] for run in study["runs"] if not run["held_out"])
        for run in study["runs"]:
            if run["held_out"] and "predicted" in run:
                written = {"x": run["N_body"], **run}
                what = f", {study['hours']:g}h"
                yield entry(file, what, written, no_gain, [run["test_loss"]], study["set"])


def entry(
    file: Path, what: str, p: dict[str, Any], no_gain: float, measured: list[float], log: str | None = None
) -> Entry:
    """`p` is what was written down; `measured` the losses of as many seeds."""
    name, comma, variant = (log or file.parent.relative_to(HERE).as_posix()).partition(", ")
    where = f"`{file.relative_to(HERE.parent)}@{sha256(file.read_bytes()).hexdigest()[:12]}`"
    commit, when = first(p["predicted"])
    before = bool(when) and when < first(measured[0])[1]
    forecast = (p["predicted"], p["low"], p["high"], no_gain, mean(measured))
    return Entry(
        NAMES.get(name, name) + comma + variant,
        f"{p['x']:,.0f}{what}",
        *forecast,
        where,
        commit,
        when[:16].replace(" ", "T"),
        before,
    )


def scoreboard(entries: list[Entry]) -> str:
    """By data set: how many, how many within, mean errors and half-widths."""
    rows = [["data set", "forecasts", "within", "mean error", "no gain", "half-width of 90 %"]]
    for name in [*sorted({each.set for each in entries}), ""]:
        mine = [each for each in entries if each.set == name or not name]
        widths = [50 * (each.high - each.low) / each.predicted for each in mine]
        errors = [mean(abs(each.error) for each in mine), mean(abs(each.no_gain_error) for each in mine), mean(widths)]
        within = sum(each.within for each in mine)
        rows.append([name or "all", str(len(mine)), str(within), *(f"{error:.2f} %" for error in errors)])
    return rows_table(rows, text=(0,))


def every(entries: list[Entry]) -> str:
    """All of them: those outside their interval first, then by the size of the error."""
    errors_in = ["error, %", "no gain, %"]
    head = ["log", "parameters", "predicted", "90 % interval", "measured", *errors_in, "commit@time", "file@SHA-256"]
    rows = [head]
    for each in sorted(entries, key=lambda each: (each.within, -abs(each.error))):
        interval = f"{each.low:.3f}–{each.high:.3f}"
        interval = interval if each.within else f"**{interval}**"
        errors = [f"{each.error:+.2f}", f"{each.no_gain_error:+.2f}"]
        committed = f"{each.commit}@{each.when}"
        stated = [committed if each.before else f"({committed})", each.file]
        rows.append([each.log, each.what, f"{each.predicted:.3f}", interval, f"{each.came:.3f}", *errors, *stated])
    return rows_table(rows, text=(0, 1, 7, 8))


def main() -> None:
    """Write the page."""
    entries = [*of_studies(), *of_horizons(), *of_hours()]
    method, commands = __doc__.rstrip().split("\n\n")
    within = sum(each.within for each in entries)
    better = sum(abs(each.error) < abs(each.no_gain_error) for each in entries)
    said = (
        f"Of {len(entries)} measured losses, {within} are within the interval of their forecast. {better} forecasts "
        "have a smaller error than the [no-gain baseline](../glossary.md#no-gain-baseline), which predicts the lowest "
        "loss of the smaller sizes."
    )
    parts = ["# A ledger of forecasts", method.replace("\n", " "), said, "## By data set", scoreboard(entries)]
    parts += ["## All of them, misses first", every(entries), "## How it is made", commands]
    write_text(PAGE, "\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
