"""`lrec scaling register`: a ledger of forecasts. Each one is written down before its result, and stays whatever comes.

`ledger.jsonl` has a line for each forecast, `ledger.md` the same as a table.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from math import inf
from pathlib import Path
from typing import Any

from lrec.common.files import check_writable, commit_of, file_hash, locked, read_json, write_text
from lrec.common.pages import rendered
from lrec.common.text_tables import on_terminal
from lrec.errors import UserError
from lrec.laws.intervals import Expected, came
from lrec.run import find_points, read_points_file
from lrec.study.launch import lock_of


@dataclass(frozen=True, kw_only=True)
class Entry(Expected):
    """A forecast of one size, and what its runs then reached: their mean, None before."""

    study: str
    ladder: str
    sha256: str  # of the study's prediction.json
    commit: str  # of the current folder's repository, "" without one
    registered: str  # the time in UTC
    before: bool  # whether no run of this size in the ladder had a result then
    measured: float | None = None
    no_gain: float | None = None  # of the no-gain baseline: the lowest loss of the fitted sizes

    def __post_init__(self) -> None:
        known = [each for each in (self.d, self.u, self.measured, self.no_gain) if each is not None]
        positive = [self.x, self.predicted, self.high, *known]
        if not 0 <= self.low <= self.high or not all(0 < each < inf for each in positive):
            raise ValueError("no forecast")  # or a TypeError above, if one of them is no number


def register(study: Path, ledger: Path = Path("ledger.jsonl")) -> None:
    """Add the forecasts of a study to a ledger, before its large runs; and after these, what they reached.

    Args:
        study: Folder of the study, with its prediction.json. The ledger has it by the name of this folder.
        ledger: File of the ledger. A page with the same name and the ending .md shows it. Commit both.
    """
    for file in (ledger, ledger.with_suffix(".md")):
        check_writable(file, "--ledger")
    if ledger.suffix == ".md":
        raise UserError(f"--ledger {ledger}: the page has this name; choose one such as {ledger.with_suffix('.jsonl')}")
    prediction = read_json(study / "prediction.json")
    if prediction is None:
        raise UserError(f"--study {study}: it has no prediction.json: train its fitted sizes first")
    with locked(lock_of(ledger)):  # the ledger itself is replaced, and with it a lock on it
        entries = _read(ledger)
        name, sha256 = study.resolve().name, file_hash(study / "prediction.json")
        if sha256 not in {each.sha256 for each in entries}:  # a copy of a study has the same forecasts
            files = [*find_points(study / "runs"), *study.glob("all_points.jsonl")]
            results = [point for file in files for point in read_points_file(file) if point.best]
            now = datetime.now(UTC).isoformat(timespec="seconds")
            stated: dict[str, Any] = {"study": name, "sha256": sha256, "registered": now}
            stated["commit"] = (commit_of(Path()) or "")[:12]
            record = read_json(study / "study.json", {"grid": {"runs": []}})
            try:
                ladder_of = {run["name"]: run["ladder"] for run in record["grid"]["runs"]}
                for ladder in prediction["ladders"]:
                    stated["ladder"] = of = ladder["ladder"]
                    mine = {run for run in prediction["held_out_runs"] if ladder_of.get(run, of) == of}
                    reached = {getattr(p, ladder["x"]) for p in results if p.run in mine}
                    for p in ladder["predictions"]:
                        expected = {field.name: p[field.name] for field in fields(Expected)}
                        entries.append(Entry(**expected, **stated, before=p["x"] not in reached))
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                what = "its prediction.json or study.json is damaged, or was edited: restore it"
                raise UserError(f"--study {study}: {what}") from error
        mine = {file_hash(path) for path in study.glob("prediction*.json")}  # with those that were replaced
        entries = [_measured(each, study) if each.sha256 in mine else each for each in entries]
        text = page(entries)
        write_text(ledger, "".join(json.dumps(asdict(each)) + "\n" for each in entries))
        write_text(ledger.with_suffix(".md"), text)
    print(on_terminal(text))


def _read(ledger: Path) -> list[Entry]:
    """The entries of a ledger, none if the file does not exist; UserError if a line is not an entry."""
    entries = []
    lines = ledger.read_bytes().splitlines() if ledger.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(Entry(**json.loads(line)))
        except (ValueError, TypeError):
            raise UserError(
                f"--ledger {ledger}, row {number}: not a forecast that lrec registered; restore it"
            ) from None
    return entries


def _measured(entry: Entry, study: Path) -> Entry:
    """The entry with the loss that the study's report has at its place, as far as there is one."""
    try:
        fit = read_json(study / "fit" / entry.ladder / "fit.json", {})
        for point in (fit.get("holdout") or {"points": []})["points"]:
            if (point["x"], point["d"], point["u"]) == (entry.x, entry.d, entry.u):
                no_gain = point["actual"] * (1 + point["naive_error_pct"] / 100)
                return replace(entry, measured=point["actual"], no_gain=no_gain)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        what = f"its fit.json of ladder '{entry.ladder}' is damaged, or was edited: start the study again"
        raise UserError(f"--study {study}: {what}") from error
    return entry


def page(entries: list[Entry]) -> str:
    """All entries as a page: those outside their interval first, then by the size of the error; open ones last."""
    judged = [(f, {} if f.measured is None or f.no_gain is None else came(f, f.measured, f.no_gain)) for f in entries]
    judged.sort(key=lambda each: (each[1].get("inside", 2), -abs(each[1].get("error_pct", 0.0))))
    known = [found for _, found in judged if found]
    better = sum(abs(found["error_pct"]) < abs(found["naive_error_pct"]) for found in known)
    return rendered("study", "ledger.md.j2", {"judged": judged, "known": known, "better": better})
