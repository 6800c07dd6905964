"""The model card of an exported network (`lrec export --card`), by `card.md.j2`: training data, test results and those
of the baselines, the study's forecast, and limits. All facts come from the files of the run and of its study."""

import math
import os
from pathlib import Path
from typing import Any

from lrec.checkpoint.reading import STATE
from lrec.common.files import read_json
from lrec.data.store.store import in_words
from lrec.errors import UserError
from lrec.run import Point, Run, served
from lrec.serving.recommender import Model

METRICS = ("loss", "HR@10", "NDCG@10", "HR@10_unseen", "NDCG@10_unseen")
SCORERS = ("model", "popularity", "recent-popularity", "repeat-last", "markov", "item-graph")
MARK = "trained and tested by lrec."  # by which an export knows a card
OF_90 = 1.645  # standard errors on either side of a 90 % interval


def card_of(model: Model, ckpt_path: Path) -> str:
    """The card of a run's best network; UserError if the run's last test was of another one, or of other data."""
    from lrec.common.pages import rendered  # imported here, because loading a network does not need it

    ckpt_path = Path(os.path.abspath(served(ckpt_path)))  # its parents are asked for
    run = Run(ckpt_path if ckpt_path.is_dir() and not (ckpt_path / STATE).exists() else ckpt_path.parent.parent)
    if not run.config_file.is_file():
        raise UserError(f"--card: {ckpt_path} is neither a run's folder nor a checkpoint in one; a card needs its test")
    found, point = read_json(run.metrics_file, {}), run.result
    checkpoint = run.best if ckpt_path == run.folder else ckpt_path
    same = found.get("stage") == "test" and all(found[name] == model.about[name] for name in ("data_hash", "D"))
    if not same or point is None:
        raise UserError(
            f"--card: {run.folder} holds no test of this network: "
            f"lrec test --config {run.config_file} --ckpt_path {checkpoint}"
        )
    if model.about["D"] != point.D:
        raise UserError(f"--card: {checkpoint} is not the best checkpoint of its run: give --ckpt_path {run.folder}")
    scorers, data = {name: found[name] for name in SCORERS if name in found}, found.get("data")
    most = found["model"]["HR@10"]
    n_new = 0 if model.counts_V is None else int((model.counts_V == 0).sum())
    shown = {
        "point": point,
        "about": model.about,
        "n_items": len(model.item_ids) - n_new,
        "n_new": n_new,
        "found": found,
        "statistics": in_words(data["statistics"], data["facts"]) if data else [],
        "mark": MARK,
        "metrics": METRICS,
        "scorers": scorers,
        "ahead": [name for name, figures in scorers.items() if name != "model" and figures.get("HR@10", 0) >= most],
        **_forecast(run, point),
    }
    return rendered("serving", "card.md.j2", shown, interval=_interval) + "\n"


def _interval(figures: dict[str, Any], metric: str) -> str:
    """A figure with its 90 % interval over the sampling of targets."""
    if (value := figures.get(metric)) is None:
        return ""
    n = figures.get("targets_sets", figures["targets"])  # a set of targets is one request
    of_share = math.sqrt(value * (1 - value) / n) if 0 <= value <= 1 else math.nan
    return f"{value:.4f} ± {OF_90 * figures.get(f'{metric}_se', of_share):.4f}"


def _forecast(run: Run, point: Point) -> dict[str, Any]:
    """The study's verdict, and its forecast for the run's size from before the training; empty without a study."""
    study = run.folder.parent.parent
    record = read_json(study / "study.json", {}) if run.folder.parent.name == "runs" else {}
    runs = {each["name"]: each for each in record.get("grid", {}).get("runs", [])}
    planned, longest = runs.get(run.name), max((each.get("horizon", 1.0) for each in runs.values()), default=1.0)
    if planned is None:
        return {}
    said = {"planned": planned, "study": record["name"]}
    said["verdict"] = read_json(study / "fit" / planned["ladder"] / "fit.json", {}).get("verdict", [])
    prediction = read_json(study / "prediction.json", {"ladders": []})
    ladder = {each["ladder"]: each for each in prediction["ladders"]}.get(planned["ladder"])
    before = run.name not in prediction.get("trained_before", [])
    if before and ladder is not None and planned["held_out"] and planned.get("horizon", 1.0) == longest:
        at_size = [each for each in ladder["predictions"] if each["x"] == getattr(point, ladder["x"])]
        said |= {"forecast_of": ladder["y"], "forecast": max(at_size, key=lambda each: each["d"] or 0, default=None)}
    return said
