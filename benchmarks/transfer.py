"""What does a learning rate that was found on a small network lose on a large one? Standard against scaled rates.

Networks of two blocks and several widths are trained for one pass over a share of a data set's users, at learning rates
a factor of two apart: from a first one on, down and up, until the validation loss rises on both sides. Regret is the
loss of a width at the narrowest one's best rate minus the least of its own, and minus the least of the standard one at
that width. A line per finished run goes to the results file; a repeated call goes on.

    python benchmarks/transfer.py --set go --share 0.015625 --widths 16 32 128 --page benchmarks/transfer.md
"""

import argparse
import json
import math
import platform
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from lrec.common.files import write_text
from lrec.common.hardware import seconds
from lrec.data.datamodule import SequenceDataModule
from lrec.data.datasets import datamodule_of
from lrec.model.config import Parametrisation, TransformerConfig
from lrec.model.losses import full_softmax
from lrec.model.transformer import Transformer
from lrec.options.config_files import with_shipped_configs
from lrec.training.lightning_cli import compose
from lrec.training.optim import Optimizer

LAYERS, HEAD_WIDTH, TARGETS_PER_STEP, VALIDATION_USERS = 2, 32, 512, 3000
FILES = {"go": "go_games.txt.zst", "decks": "mtg_decks.parquet", "globo": "globo_clicks.parquet"}
PARAMETRISATIONS: tuple[Parametrisation, ...] = ("standard", "scaled")
FIRST = 2.0**-7


class Run(NamedTuple):
    """A training."""

    name: str
    share: float
    parametrisation: Parametrisation
    width: int
    lr: float


def opened(name: str, share: float, raw: Path, data_dir: Path) -> SequenceDataModule:
    """A share of the users of a data set, ready to train on."""
    options = {
        "path": raw / FILES[name],
        "data_dir": data_dir,
        "reduction.users": share,
        "targets_per_step": TARGETS_PER_STEP,
        "validation_users": VALIDATION_USERS,
    }
    arguments = [f"--config=data/{name}.yaml", "--model.size=3k", *(f"--data.{o}={v}" for o, v in options.items())]
    data = datamodule_of(compose(with_shipped_configs(arguments)))
    data.prepare_data()
    data.setup()
    return data


def sum_of_losses(net: Transformer, items_BL: Tensor, where_M: Tensor, targets_M: Tensor) -> Tensor:
    """Of the targets that follow the flat positions, in nats."""
    loss: Tensor = net(items_BL, lambda h_BLD, t_VD: full_softmax(h_BLD.flatten(0, 1)[where_M], t_VD, targets_M))
    return loss


def train(run: Run, data: SequenceDataModule) -> float:
    """Validation loss after one pass, in nats; infinite where training left the finite numbers."""
    heads, rates = max(run.width // HEAD_WIDTH, 1), run.parametrisation
    net = Transformer(
        TransformerConfig(data.n_items, data.max_len, LAYERS, run.width, heads, parametrisation=rates), seed=0
    )
    optimizer, scheduler = Optimizer(lr=run.lr).build(net, data.steps_per_epoch)
    for batch in data.train_dataloader():
        optimizer.zero_grad()
        loss = sum_of_losses(net, batch.items_BL, batch.positions_M, batch.targets_M)
        (loss / batch.step_targets).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    net.eval()
    total, targets = 0.0, 0
    with torch.inference_mode():
        for case in data.val_dataloader():
            known_M = case.targets_M >= 0
            total += float(sum_of_losses(net, case.items_BL, case.positions_M[known_M], case.targets_M[known_M]))
            targets += int(known_M.sum())
    return total / targets if math.isfinite(total) else math.inf


def swept(loss_at: Callable[[float], float]) -> dict[float, float]:
    """Loss by learning rate, until both neighbours of the best are known."""
    found: dict[float, float] = {}
    wanted = [FIRST]
    while wanted:
        found |= {lr: loss_at(lr) for lr in wanted}
        best = min(found, key=lambda lr: found[lr])
        wanted = [lr for lr in (best / 2, best * 2) if lr not in found]
    return found


def page(rows: list[dict[str, float | str]]) -> str:
    """All results as Markdown."""
    by_run = {Run(*row["run"]): float(row["loss"]) for row in rows}  # type: ignore[misc]
    lines = [
        "# Learning rate over width: one rate for all parameters, and rates by group",
        "",
        __doc__.split("\n\n")[1].replace("\n", " "),
        "",
        f"    {__doc__.strip().splitlines()[-1].strip()}",
        "",
        f"Steps of {TARGETS_PER_STEP} targets, AdamW, cosine, one seed; validation targets of {VALIDATION_USERS:,} "
        f"users. {sum(float(row['seconds']) for row in rows) / 60:.0f} minutes of a core ({platform.machine()}, torch "
        f"{torch.__version__}).",
        "",
        "| data, share | parametrisation | width | loss by rate | best rate | at the narrowest's best rate | regret "
        "| against standard's best |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]
    for name, share in dict.fromkeys((run.name, run.share) for run in by_run):
        best: dict[tuple[str, int], float] = {}
        for parametrisation in PARAMETRISATIONS:
            mine = [run for run in by_run if run[:3] == (name, share, parametrisation)]
            first = None
            for width in sorted({run.width for run in mine}):
                losses = {run.lr: by_run[run] for run in mine if run.width == width}
                lr = min(losses, key=lambda each: losses[each])
                best[parametrisation, width] = losses[lr]
                first = lr if first is None else first
                at = losses.get(first, math.inf)
                shown = ", ".join(f"2^{math.log2(each):.0f} {losses[each]:.3f}" for each in sorted(losses))
                against = at - best["standard", width]
                lines.append(
                    f"| {name}, {share:.3g} | {parametrisation} | {width} | {shown} | 2^{math.log2(lr):.0f} "
                    f"| {at:.4f} | {at - losses[lr]:.4f} | {against:+.4f} |"
                )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train what the results file lacks, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=FILES)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 128])
    parser.add_argument("--raw", type=Path, default=Path("../shared/data/interactions"), help="folder of the raw files")
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument("--results", type=Path, default=Path("transfer.jsonl"), help="a line per finished run")
    parser.add_argument("--page", type=Path, help="Markdown page to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    known = {Run(*row["run"]): row["loss"] for row in rows}
    if options.set is not None:
        data = opened(options.set, options.share, options.raw, options.data_dir)
        narrowest: dict[str, float] = {}
        for width in sorted(options.widths):
            for parametrisation in PARAMETRISATIONS:

                def loss_at(lr: float, width: int = width, parametrisation: Parametrisation = parametrisation) -> float:
                    run = Run(options.set, options.share, parametrisation, width, lr)
                    if run not in known:
                        began = seconds("cpu")
                        known[run] = train(run, data)
                        rows.append({"run": run, "loss": known[run], "seconds": seconds("cpu") - began})
                        with options.results.open("a") as file:
                            file.write(json.dumps(rows[-1]) + "\n")
                        print(f"{run}: {known[run]:.4f}, {rows[-1]['seconds']:.0f} s", flush=True)
                    return known[run]

                losses = swept(loss_at)
                narrowest.setdefault(parametrisation, min(losses, key=lambda lr: losses[lr]))
                loss_at(narrowest[parametrisation])
    if options.page:
        write_text(options.page, page(rows))


if __name__ == "__main__":
    main()
