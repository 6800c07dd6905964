"""The model card of an exported network (`lrec export --card`): what it was trained on, how good it is beside what it
has to beat, what its study forecast of it, and where not to trust it. All of it comes from the run's own files."""

import json
import math
from pathlib import Path
from typing import Any

from lrec.checkpoint.format import STATE
from lrec.common.files import write_text
from lrec.common.text_tables import counted, rows_table
from lrec.data.store.statistics import in_words
from lrec.errors import UserError
from lrec.run import Point, Run
from lrec.serving.recommender import Model

METRICS = ("loss", "HR@10", "NDCG@10", "HR@10_unseen", "NDCG@10_unseen")
SCORERS = ("model", "popularity", "recent-popularity", "repeat-last", "markov", "item-graph")
OF_90 = 1.645  # standard errors on either side of 90 %


def run_of(ckpt_path: Path) -> Run:
    """The run that a checkpoint lies in, or the folder of one; UserError where it is no run's."""
    folder = ckpt_path if ckpt_path.is_dir() and not (ckpt_path / STATE).exists() else ckpt_path.parent.parent
    if not Run(folder).config_file.is_file():
        raise UserError(f"--card: {ckpt_path} is neither a run's folder nor a checkpoint in one, whose tests it tells")
    return Run(folder)


def write_card(model: Model, run: Run, file: Path) -> None:
    """Write the card of a run's network; UserError where the run was not tested, or on other data."""
    found = _read(run.folder / "metrics.json")
    if found.get("stage") != "test" or found["data_hash"] != model.about["data_hash"] or run.result is None:
        raise UserError(f"--card: {run.folder} holds no test of this network: lrec test --config {run.config_file}")
    point, about = run.result, model.about
    shape = f"{counted(point.n_layers, 'block')} of width {point.d_model}, {point.n_heads} heads"
    network = [
        ("network", f"{shape}; {point.N_body:,} parameters in the blocks, {point.N_total:,} in all"),
        ("reads", f"the last {about['max_len']:,} items of a history, {len(model.item_ids):,} items known"),
        ("trained on", f"{point.D:,} targets (D), {point.U:,} of them unique (U); {point.flops:.3g} FLOPs"),
        ("seed, precision, commit", f"{point.seed}, {point.precision}, {found['commit'] or 'not known'}"),
    ]
    blocks = [f"# {point.size} of {point.study or 'lrec'}", "A next-item recommender, trained and tested by lrec."]
    blocks += [_table("network", network), "## Data", _table("data", _data(found)), "## Test", _tested(found)]
    blocks += ["## Forecast", _forecast(run, point), "## Limits", _limits(model, found)]
    write_text(file, "\n\n".join(blocks) + "\n")


def _table(what: str, rows: list[tuple[str, str]]) -> str:
    return rows_table([[what, ""], *(list(row) for row in rows)], text=(0, 1))


def _data(found: dict[str, Any]) -> list[tuple[str, str]]:
    hashed = [("data hash (store, split, reduction)", found["data_hash"])]
    if (data := found.get("data")) is None:
        return [*hashed, ("size and span", "not recorded: run lrec test again")]
    parts = ", ".join(f"{number:,} {part}" for part, number in data["counts"].items() if number)
    cut = [("split", data["split"]), ("parts", parts), ("trained on", data["reduction"])]
    return [*hashed, ("name", data["name"]), *in_words(data["statistics"], data["facts"]), *cut]


def _tested(found: dict[str, Any]) -> str:
    """The figures of the network and of every baseline, with 90 % intervals, targets being drawn."""

    def cell(figures: dict[str, Any], metric: str) -> str:
        if (value := figures.get(metric)) is None:
            return ""
        of_share = math.sqrt(value * (1 - value) / figures["targets"]) if 0 <= value <= 1 else math.nan
        return f"{value:.4f} ± {OF_90 * figures.get(f'{metric}_se', of_share):.4f}"

    scorers = [name for name in SCORERS if name in found]
    rows = [["scorer", *METRICS], *([name, *(cell(found[name], metric) for metric in METRICS)] for name in scorers)]
    n, users = found["model"]["targets"], found.get("users")
    whose = f" of {users:,} of {counted(found['users_in_all'], 'user')}" if users else ""
    note = f"{n:,.0f} targets{whose}, ranked among all items; ± holds 90 %, targets being drawn. Loss in nats."
    return f"{rows_table(rows, text=(0,))}\n\n{note}"


def _forecast(run: Run, point: Point) -> str:
    """What the run's study forecast for its size before it was trained, and what it says of larger ones."""
    study = run.folder.parent.parent
    record = _read(study / "study.json") if run.folder.parent.name == "runs" else {}
    planned = {each["name"]: each for each in record.get("grid", {}).get("runs", [])}.get(run.name)
    if planned is None:
        return "The network was trained alone: no study forecast what it would reach."
    said = [f"It is a run of the study {record['name']}."]
    ladders = {each["ladder"]: each for each in _read(study / "prediction.json").get("ladders", [])}
    if planned["held_out"] and (ladder := ladders.get(planned["ladder"])):
        at_size = [each for each in ladder["predictions"] if each["x"] == getattr(point, ladder["x"])]
        expected = max(at_size, key=lambda each: each["d"] or 0, default=None)
        came = getattr(point, ladder["y"])
        if expected is not None and planned.get("horizon", 1.0) == 1.0:
            inside = "inside" if expected["low"] <= came <= expected["high"] else "outside"
            said.append(
                f"Before it was trained, the study forecast a {ladder['y'].replace('_', ' ')} of "
                f"{expected['predicted']:.4f} (90 %: {expected['low']:.4f} to {expected['high']:.4f}); it has "
                f"{came:.4f}, {inside} the interval."
            )
    return " ".join([*said, *_read(study / "fit" / planned["ladder"] / "fit.json").get("verdict", [])])


def _limits(model: Model, found: dict[str, Any]) -> str:
    figures, data = found["model"], found.get("data") or {}
    ahead = [name for name in SCORERS[1:] if found.get(name, {}).get("HR@10", 0) >= figures["HR@10"]]
    limits = [f"**{' and '.join(ahead)} had an HR@10 at least as high on the same test.**"] if ahead else []
    limits += [
        f"It recommends the {len(model.item_ids):,} items of its training data alone: one that is new since is "
        "never in a list, unless the network has item vectors.",
        f"Its lists of ten name {100 * figures['coverage@10']:.1f} % of these items.",
    ]
    if outside := figures["targets_outside_catalogue"]:
        limits.append(f"{outside:,.0f} test targets were no such items, and count as misses.")
    if data.get("split", "").startswith("LastItems"):
        limits.append(
            "The split holds out each user's last items, while other users' later events were trained on: "
            "in use, where nobody's future is known, expect less."
        )
    limits.append(
        "The test asks for the one item that came next in a log. It does not tell what people would have taken "
        "had they been shown it, nor how groups of people fare."
    )
    return "\n".join(f"- {limit}" for limit in limits)


def _read(file: Path) -> dict[str, Any]:
    """The content of a JSON file; nothing where it is not there."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content
