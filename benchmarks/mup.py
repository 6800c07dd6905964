"""Does the best learning rate stay where it is when the net grows in width? Standard parametrisation against muP.

Nets of two blocks and widths 32, 64 and 128 (a head per 32) are trained for one pass over the embedded synthetic set,
no target seen twice, at every learning rate of a factor-2 grid. The base of muP is width 32: there both are one net.

A repeated call goes on from the runs in the results file.

    python benchmarks/mup.py --results mup.jsonl --page benchmarks/mup.md
"""

import argparse
import json
import math
import os
import platform
import subprocess
import time
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lrec.common.files import write_text
from lrec.data.sources.synthetic import SyntheticDataModule
from lrec.model.config import MuP, TransformerConfig
from lrec.model.losses import full_softmax
from lrec.model.transformer import Transformer
from lrec.training.optim import Optimizer

LAYERS, HEAD_WIDTH, BASE_WIDTH = 2, 32, 32
WIDTHS = (32, 64, 128)
EXPONENTS = range(-11, -2)  # learning rates 2^-11 .. 2^-3
TARGETS_PER_STEP = 1024


class Run(NamedTuple):
    """A training: standard or mup, the width and the learning rate's exponent of 2."""

    parametrisation: str
    width: int
    exponent: int


RUNS = [
    Run(parametrisation, width, exponent)
    # Widest last, the middle of the grid first: what has been measured so far always tells something.
    for width, exponent, parametrisation in product(
        WIDTHS, sorted(EXPONENTS, key=lambda e: abs(e + 8)), ("standard", "mup")
    )
    if parametrisation == "standard" or width != BASE_WIDTH
]


def mean_loss(net: Transformer, data: SyntheticDataModule) -> float:
    """Cross-entropy of the validation targets, in nats."""
    net.eval()
    total, targets = 0.0, 0.0
    with torch.inference_mode():
        for batch in data.val_dataloader():
            known_B = batch.targets_M >= 0
            positions_M, targets_M = batch.positions_M[known_B], batch.targets_M[known_B]

            def head(
                hidden_BLD: Tensor, table_VD: Tensor, where: Tensor = positions_M, what: Tensor = targets_M
            ) -> Tensor:
                return full_softmax(hidden_BLD.flatten(0, 1)[where], table_VD, what)

            total += float(net(batch.items_BL, head))
            targets += len(targets_M)
    return total / targets


def train(run: Run, data: SyntheticDataModule, steps: int) -> float:
    """Validation loss after one pass; infinite where training left the finite numbers."""
    mup = MuP(LAYERS, BASE_WIDTH, BASE_WIDTH // HEAD_WIDTH) if run.parametrisation == "mup" else None
    config = TransformerConfig(data.n_items, data.max_len, LAYERS, run.width, run.width // HEAD_WIDTH, mup=mup)
    net = Transformer(config, seed=0)
    optimizer, scheduler = Optimizer(lr=2.0**run.exponent, warmup=0.1, decay="linear").build(net, steps)
    for _, batch in zip(range(steps), data.train_dataloader(), strict=False):
        where, what = batch.positions_M, batch.targets_M
        loss = net(batch.items_BL, lambda h_BLD, t_VD: full_softmax(h_BLD.flatten(0, 1)[where], t_VD, what))  # noqa: B023
        optimizer.zero_grad()
        (loss / batch.step_targets).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    loss = mean_loss(net, data)
    return loss if math.isfinite(loss) else math.inf


def page(losses: dict[Run, float], steps: int, floor: float, seconds: float) -> str:
    """The results as Markdown."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        "# Learning rate over width: standard parametrisation against muP",
        "",
        __doc__.split("\n\n")[1].replace("\n", " "),
        "",
        f"    {__doc__.strip().splitlines()[-1].strip()}",
        "",
        f"{steps} steps of {TARGETS_PER_STEP} targets, AdamW, linear warm-up over a tenth and linear decay, clipped at "
        f"1, dropout off; validation loss in nats (floor {floor:.4f}), the best of each row in bold. "
        f"{seconds / 60:.0f} minutes in all on {os.cpu_count()} cores {platform.machine()}, torch {torch.__version__}, "
        f"one thread, commit {commit}.",
        "",
        "| parametrisation | width | " + " | ".join(f"2^{e}" for e in EXPONENTS) + " | best rate |",
        "|---|---:|" + "---:|" * (len(EXPONENTS) + 1),
    ]
    best: dict[tuple[str, int], int] = {}
    for parametrisation, width in product(("standard", "mup"), WIDTHS):
        row = {e: losses[_same(Run(parametrisation, width, e))] for e in EXPONENTS}
        best[parametrisation, width] = chosen = min(row, key=lambda e: row[e])
        cells = [f"**{row[e]:.4f}**" if e == chosen else f"{row[e]:.4f}" for e in EXPONENTS]
        lines.append(f"| {parametrisation} | {width} | {' | '.join(cells)} | 2^{chosen} |")
    lines.append("")
    for parametrisation in ("standard", "mup"):
        narrow, wide = best[parametrisation, WIDTHS[0]], best[parametrisation, WIDTHS[-1]]
        at = losses[_same(Run(parametrisation, WIDTHS[-1], narrow))]
        own = losses[_same(Run(parametrisation, WIDTHS[-1], wide))]
        lines.append(
            f"- {parametrisation}: from width {WIDTHS[0]} to {WIDTHS[-1]} the best rate moves by a factor of "
            f"2^{wide - narrow}; the widest net at the narrowest one's best rate loses {at - own:.4f} nats against its "
            f"own best ({own:.4f})."
        )
    return "\n".join(lines) + "\n"


def _same(run: Run) -> Run:
    """At the base width both parametrisations are one net."""
    return run._replace(parametrisation="standard") if run.width == BASE_WIDTH else run


def main() -> None:
    """Train what the results file lacks; write the page once all is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("mup.jsonl"), help="a line per finished run")
    parser.add_argument("--page", type=Path, help="Markdown page to write once all runs are there")
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--slice_s", type=float, default=math.inf, help="start no further run after so many seconds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    data = SyntheticDataModule(n_users=options.users, targets_per_step=TARGETS_PER_STEP, data_dir=options.data_dir)
    data.prepare_data()
    data.setup()
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    done = {Run(*row["run"]): row for row in map(json.loads, lines)}
    for run in RUNS:
        if run in done or time.monotonic() - started > options.slice_s:
            continue
        before = time.monotonic()
        loss = train(run, data, data.steps_per_epoch)
        done[run] = {"run": run, "loss": loss, "seconds": time.monotonic() - before}
        with options.results.open("a") as file:
            file.write(json.dumps(done[run]) + "\n")
        print(f"{len(done)}/{len(RUNS)} {run}: {loss:.4f}, {done[run]['seconds']:.0f} s", flush=True)
    if options.page and len(done) == len(RUNS):
        losses = {run: row["loss"] for run, row in done.items()}
        seconds = sum(row["seconds"] for row in done.values())
        write_text(options.page, page(losses, data.steps_per_epoch, data.floor["val"], seconds))


if __name__ == "__main__":
    main()
