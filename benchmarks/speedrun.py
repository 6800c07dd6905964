"""The speedrun: the processor time of entries to a fixed figure on validation, with one thread.

    python benchmarks/speedrun.py benchmarks/speedrun/beauty/01-first-recipe.yaml --data FILE --seeds 1 2 3
    python benchmarks/speedrun.py

An entry is a configuration of `lrec fit` whose first comment says date, commit and what changed. The file named after
its folder, such as benchmarks/speedrun/beauty.yaml, has the track's rules and its target, and replaces what an entry
sets of them. With an entry, the script prepares the data, which does not count. It trains each seed until
early_stopping.stopping_threshold is reached: the processor time of this process, user and system, counts whole. `lrec
validate` then ranks all items for all validation users with the kept checkpoint. If a seed does not reach the target,
the script ends with exit code 2 and writes nothing; otherwise it writes a JSON file beside the entry. Without an entry,
the script writes the tables of docs/speedrun.md.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from operator import ge, le
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from rows import MACHINE, commit

from lrec.common.files import write_json, write_text
from lrec.common.text_tables import rows_table
from lrec.errors import UserError
from lrec.run import Run

HERE = Path(__file__).resolve().parent
TRACKS = HERE / "speedrun"
PAGE = HERE.parent / "docs" / "speedrun.md"
HEAD = re.compile(r"# (?P<date>\d{4}-\d\d-\d\d), (?P<commit>[0-9a-f]{7}): (?P<changed>.+(\n# .+)*)")


class Entry(NamedTuple):
    """A configuration, what its first comment says, and its measured seeds, each by its number."""

    name: str
    date: str
    commit: str
    changed: str
    seeds: dict[str, dict[str, Any]]

    @property
    def minutes(self) -> float:
        """Minutes of the processor, the median of the seeds."""
        return statistics.median(seed["processor_s"] for seed in self.seeds.values()) / 60


def read_entry(path: Path) -> Entry:
    """The entry of a configuration; UserError if its first comment is none."""
    head = HEAD.match(path.read_text(encoding="utf-8"))
    if head is None:
        raise UserError(f"{path}: begin with a comment such as `# 2026-11-25, 0a1b2c3: What changed.`")
    outcome = path.with_suffix(".json")
    seeds = json.loads(outcome.read_text()) if outcome.exists() else {}
    return Entry(path.stem, head["date"], head["commit"], head["changed"].replace("\n# ", " "), seeds)


def measured(path: Path, data: Path, seeds: Sequence[int], folder: Path) -> dict[str, dict[str, Any]]:
    """Train the seeds of an entry in `folder`, and verify them; UserError if one does not reach the target."""
    rules = path.resolve().parent.with_suffix(".yaml")
    files = [f"--config={path.resolve()}", f"--config={rules}"]
    files += [f"--data.path={data.resolve()}", f"--data.data_dir={folder / 'stores'}"]
    lrec("data", "prepare", *files)
    return {str(seed): measured_seed(path, rules, files, seed, Run(folder / f"seed{seed}")) for seed in seeds}


def measured_seed(path: Path, rules: Path, files: list[str], seed: int, run: Run) -> dict[str, Any]:
    """The same for one seed."""
    quiet = [f"--trainer.default_root_dir={run.folder}", "--trainer.enable_progress_bar=false"]
    seconds = lrec("fit", *files, *quiet, f"--seed_everything={seed}", f"--data.seed={seed}")
    if run.config.value("model.architecture.time") == "request":
        raise UserError(f"{path}: time: request is another task, whose network knows when the target comes")
    lrec("validate", f"--config={run.config_file}", f"--config={rules}", "--data.validation_users=all", *quiet)
    metric, target = (run.config.value(f"early_stopping.{name}") for name in ("monitor", "stopping_threshold"))
    reached = json.loads((run.folder / "metrics.json").read_text())["model"][metric.removeprefix("val/")]
    better = {"min": le, "max": ge}[run.config.value("early_stopping.mode")]
    if reached is None or not better(reached, target):
        raise UserError(f"{path}: seed {seed} has a {metric} of {reached} after {seconds:.0f} s, not {target}")
    last = run.points[-1]
    spent = {"processor_s": round(seconds, 2), metric: round(reached, 5), "epochs": round(last.epochs, 2)}
    return spent | {"step": last.step, "commit": commit(), "machine": MACHINE}


def lrec(*arguments: str) -> float:
    """Run lrec with one thread; returns the seconds of the processor that it takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "lrec", *arguments]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"lrec {arguments[0]} failed: {done.stderr.strip().splitlines()[-1]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(track: Path) -> str:
    """The measured entries of a track in the order of their names, each with its share of the record before it."""
    rows = [["entry", "date", "commit", "what changed", "minutes", "each seed", "of the record before"]]
    record = None
    for entry in entries_of(track):
        share = "" if record is None else f"{entry.minutes / record:.0%}"
        is_record = record is None or entry.minutes < record
        record = entry.minutes if record is None else min(record, entry.minutes)
        minutes = f"**{entry.minutes:.2f}**" if is_record else f"{entry.minutes:.2f}"
        each = ", ".join(f"{entry.seeds[seed]['processor_s'] / 60:.2f}" for seed in sorted(entry.seeds, key=int))
        rows.append([f"`{entry.name}`", entry.date, entry.commit, entry.changed, minutes, each, share])
    return rows_table(rows, text=(0, 1, 2, 3))


def entries_of(track: Path) -> Iterator[Entry]:
    """The entries that have been measured."""
    return (entry for entry in map(read_entry, sorted(track.glob("*.yaml"))) if entry.seeds)


def with_tables(page: str, tracks: Path = TRACKS) -> str:
    """The page with the table of each track between the comments that name it."""
    for track in sorted(path.with_suffix("") for path in tracks.glob("*.yaml")):
        begin, end = f"<!-- {track.name} -->\n", "<!-- end -->"
        before, rest = page.split(begin)
        page = f"{before}{begin}{table(track)}\n{end}{rest.split(end, 1)[1]}"
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("entry", type=Path, nargs="?", help="Configuration in the folder of a track.")
    parser.add_argument("--data", type=Path, help="The raw file of the track.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args(arguments)
    if options.entry is None:
        write_text(PAGE, with_tables(PAGE.read_text(encoding="utf-8")))
        return
    if options.data is None:
        parser.error("name the raw file with --data")
    try:
        entry = read_entry(options.entry)
        with TemporaryDirectory() as folder:
            seeds = measured(options.entry, options.data, options.seeds, Path(folder))
    except UserError as error:
        parser.exit(2, f"{error}\n")
    write_json(options.entry.with_suffix(".json"), entry.seeds | seeds)


if __name__ == "__main__":
    main()
