"""`lrec scaling outlook`: a data set in; what size and more data will bring, on the terminal and in a folder, out."""

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from lrec.common.files import check_folder, write_json, write_text
from lrec.common.text_tables import on_terminal, rows_table
from lrec.data.datasets import SequenceDataModule
from lrec.errors import check_range
from lrec.evaluation.ngrams import ORDERS
from lrec.study.outlook_evidence import measure
from lrec.study.outlook_rule import FROM, TO, Evidence, Outlook, judge


def outlook_command(data: SequenceDataModule, out: Path | None = None, seed: int = 0) -> None:
    """Say whether larger networks will pay on a data set, up to where, and what more data would bring.

    It counts n-grams and trains two tiny networks: about a minute of one core, whatever the number of interactions, and
    more where there are more than 100,000 items.

    Args:
        data: The data set; its store is written unless it is there.
        out: Folder for outlook.json and report.md; null writes none.
        seed: Seed of the sampled targets and of the short runs.
    """
    check_range("seed", seed, at_least=0)
    if out is not None:
        check_folder(out, "--out")
    data.prepare_data()
    data.setup("fit")
    evidence = measure(data, seed, begins=partial(print, file=sys.stderr, flush=True))
    outlook = judge(evidence)
    report = markdown(data.store.meta["name"], evidence, outlook)
    if out is not None:
        write_json(
            out / "outlook.json",
            {"schema": 1, "data_hash": data.data_hash, "seed": seed}
            | {"from": FROM, "to": TO, "outlook": asdict(outlook), "evidence": asdict(evidence)},
        )
        write_text(out / "report.md", report + "\n")
    print(on_terminal(report))


def markdown(name: str, evidence: Evidence, outlook: Outlook) -> str:
    """The tables of what was measured, and what follows in sentences."""
    counted = [["counted on", *ORDERS]]
    counted += [[f"{row.targets:,}", *(f"{row.losses[order]:.3f}" for order in ORDERS)] for row in evidence.counted]
    tiny = [["short run", "trained on", "validation", "users left out"]]
    tiny += [[run.size, f"{run.targets:,}", f"{run.loss:.3f}", f"{run.fresh_loss:.3f}"] for run in evidence.tiny]
    head = (
        f"# Outlook: {name}\n\n{evidence.targets:,} training targets, {evidence.items:,} items. Losses are nats, on "
        f"{evidence.cases:,} validation targets."
    )
    return "\n\n".join([head, rows_table(counted), rows_table(tiny, text=(0,)), " ".join(_sentences(outlook))])


def _sentences(outlook: Outlook) -> list[str]:
    """What size brings, up to where it pays, and what twice the data would bring."""
    if outlook.gain is None:
        gain = (
            f"What size brings is unknown: {outlook.why}. Other sets with as much data gained {outlook.by_amount:.2f} "
            f"nats from {FROM} to {TO}."
        )
    else:
        gain = (
            f"From {FROM} to {TO} parameters expect {outlook.gain:.2f} nats ({outlook.low:.2f} to {outlook.high:.2f}): "
            f"{outlook.why}."
        )
    pays = f"Size can pay up to about {_short(outlook.useful)} parameters of the blocks."
    more = f": the last doubling brought n-grams {outlook.doubling:.2f} nats"
    if outlook.more_gain is None or outlook.more_gain < 0.005:
        more = f"More data{more}."
    else:
        more = f"Twice the data{more}, and from {FROM} to {TO} it would be {outlook.more_gain:.2f} more."
    return [gain, pays if outlook.useful else "Size does not pay.", more]


def _short(parameters: float) -> str:
    """Two digits with k or m, as the ladder's names are written."""
    rounded = float(f"{parameters:.2g}")
    if rounded >= 1e6:
        return f"{rounded / 1e6:g}m"
    return f"{rounded / 1e3:g}k" if rounded >= 1e3 else f"{rounded:g}"
