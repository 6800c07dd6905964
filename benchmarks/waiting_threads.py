"""How long should threads spin before they sleep while they wait for each other?

We train on the embedded set on all cores, with each way to wait in turn: alone on the machine, and next to one other
process that is always busy. Seconds are those of the training steps alone. libgomp's own choice is to spin for
milliseconds. Passive waiting does not spin at all. GOMP_SPINCOUNT is in between.

    python benchmarks/waiting_threads.py --page benchmarks/waiting_threads.md
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

from lrec.common.files import write_text

WAYS = {
    "libgomp's own": {"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "300000"},
    "100,000 spins": {"GOMP_SPINCOUNT": "100000"},
    "10,000 spins": {"GOMP_SPINCOUNT": "10000"},
    "1,000 spins": {"GOMP_SPINCOUNT": "1000"},
    "passive": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"},
}
SIZES = {"3k": 400, "98k": 200}  # steps
BUSY = "while True: pass"


@contextmanager
def busy(beside: bool) -> Iterator[None]:
    """Run another process that never rests, if `beside`."""
    other = subprocess.Popen([sys.executable, "-c", BUSY]) if beside else None
    try:
        yield
    finally:
        if other is not None:
            other.kill()
            other.wait()


def seconds(size: str, steps: int, way: str, folder: Path) -> float:
    """The seconds of a training's steps."""
    run = folder / str(len(list(folder.iterdir())))
    command = [sys.executable, "-m", "lrec", "fit", "--config=data/synthetic.yaml", "--config=trainer/laptop.yaml"]
    command += [f"--data.data_dir={folder.parent / 'data'}", "--data.n_users=20000", "--data.targets_per_step=1024"]
    command += [f"--model.size={size}", f"--trainer.max_steps={steps}", f"--trainer.val_check_interval={steps}"]
    command += ["--trainer.precision=32-true", f"--trainer.default_root_dir={run}"]
    command += ["--trainer.enable_progress_bar=false"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | WAYS[way])
    taken: float = json.loads((run / "throughput.json").read_text())["seconds"]
    return taken


def page(taken: dict[tuple[str, bool, str], list[float]], rounds: int) -> str:
    """The results as Markdown."""
    lines = [
        "# How long threads spin before they sleep",
        "",
        __doc__.split("\n\n")[1].replace("\n", " "),
        "",
        f"    {__doc__.strip().splitlines()[-1].strip()}",
        "",
        f"Milliseconds a step, medians of {rounds} rounds, {os.cpu_count()} cores {platform.machine()}.",
        "",
        "lrec sets 1,000 spins, unless the environment has `GOMP_SPINCOUNT` or `OMP_WAIT_POLICY`. Runs of a study have "
        "one thread each, so nothing waits.",
        "",
        "| size | beside a busy process | " + " | ".join(WAYS) + " |",
        "|---|---|" + "---:|" * len(WAYS),
    ]
    for size, beside in dict.fromkeys((size, beside) for size, beside, _ in taken):
        figures = [f"{1000 * statistics.median(taken[size, beside, way]):.1f}" for way in WAYS]
        lines.append(f"| {size} | {'yes' if beside else 'no'} | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train in turn, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    taken: dict[tuple[str, bool, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "runs"
        folder.mkdir()
        for size, steps in SIZES.items():
            seconds(size, steps // 10, "passive", folder)  # the store is made, the files are read
            for beside, _, way in product((False, True), range(options.rounds), WAYS):
                # Fewer steps next to a busy process, because spinning takes so much longer there.
                counted = steps // 10 if beside else steps
                with busy(beside):
                    of_step = seconds(size, counted, way, folder) / counted
                taken.setdefault((size, beside, way), []).append(of_step)
                print(f"{size} {way} {'beside' if beside else 'alone'}: {1000 * of_step:.1f} ms", flush=True)
    text = page(taken, options.rounds)
    print(text)
    if options.page:
        write_text(options.page, text)


if __name__ == "__main__":
    main()
