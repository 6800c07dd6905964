"""What do threads cost that sleep while they wait for each other (OMP_WAIT_POLICY=passive, as `lrec` sets it)?

Trainings of the embedded set on all cores, with passive and with active (spinning) waiting in turn: alone on the
machine, and beside one other process that is always busy. Seconds are those of the training steps alone.

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
from pathlib import Path

from lrec.common.files import write_text

POLICIES = ("passive", "active")
SIZES = {"3k": 400, "98k": 200}  # steps
BUSY = "while True: pass"


@contextmanager
def busy(beside: bool) -> Iterator[None]:
    """Another process that never rests, where one is asked for."""
    other = subprocess.Popen([sys.executable, "-c", BUSY]) if beside else None
    try:
        yield
    finally:
        if other is not None:
            other.kill()
            other.wait()


def seconds(size: str, steps: int, policy: str, folder: Path) -> float:
    """Of a training's steps."""
    run = folder / f"{size}-{policy}-{len(list(folder.iterdir()))}"
    command = [sys.executable, "-m", "lrec", "fit", "--config=data/synthetic.yaml", "--config=trainer/laptop.yaml"]
    command += [f"--data.data_dir={folder.parent / 'data'}", "--data.n_users=20000", "--data.targets_per_step=1024"]
    command += [f"--model.size={size}", f"--trainer.max_steps={steps}", "--trainer.precision=32-true"]
    command += [f"--trainer.default_root_dir={run}", "--trainer.enable_progress_bar=false"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_WAIT_POLICY": policy})
    *_, last = (run / "points.jsonl").read_text().splitlines()
    taken: float = json.loads(last)["wall_s"]
    return taken


def page(taken: dict[tuple[str, bool, str], list[float]], rounds: int) -> str:
    """The results as Markdown."""
    lines = [
        "# Threads that wait: sleeping or spinning",
        "",
        __doc__.split("\n\n")[1].replace("\n", " "),
        "",
        f"    {__doc__.strip().splitlines()[-1].strip()}",
        "",
        f"Medians of {rounds} rounds on {os.cpu_count()} cores {platform.machine()}; ratios are medians of those "
        "within a round.",
        "",
        "| size | steps | beside a busy process | passive, s | active, s | passive / active |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for size, steps in SIZES.items():
        for beside in (False, True):
            passive, active = (taken[size, beside, policy] for policy in POLICIES)
            ratio = statistics.median(a / b for a, b in zip(passive, active, strict=True))
            figures = f"{statistics.median(passive):.2f} | {statistics.median(active):.2f} | {ratio:.2f}"
            lines.append(f"| {size} | {steps // 10 if beside else steps} | {'yes' if beside else 'no'} | {figures} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train in turn, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    taken: dict[tuple[str, bool, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "runs"
        folder.mkdir()
        for size, steps in SIZES.items():
            seconds(size, steps // 10, "passive", folder)  # the store is made, the files are read
            for beside in (False, True):
                for _ in range(options.rounds):
                    for policy in POLICIES:
                        with busy(beside):
                            # Beside a busy process a tenth of the steps: spinning takes that much longer.
                            taken_s = seconds(size, steps // 10 if beside else steps, policy, folder)
                        taken.setdefault((size, beside, policy), []).append(taken_s)
                        print(f"{size} {policy} {'beside' if beside else 'alone'}: {taken_s:.2f} s", flush=True)
    text = page(taken, options.rounds)
    print(text)
    if options.page:
        write_text(options.page, text)


if __name__ == "__main__":
    main()
