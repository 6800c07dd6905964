"""What does a learning rate that was found on a small network lose on a large one, and which constants lose least?

Networks are trained for one pass over a share of a data set's users, at learning rates a factor of two apart. `scaled`
has the rates by group of lrec's parametrisation, without weight decay. `standard` has one rate for all parameters and a
weight decay of 0.01. Both have a linear fall. Other rules change one thing of `scaled`, or add Muon to it. Each
finished run adds a line to the results file, and a repeated call does not train it again. Without --rates, the script
tries rates down and up from a first one, until the loss rises on both sides.

    python benchmarks/transfer.py --set go --share 0.015625 --widths 32 128 --rules standard scaled
    python benchmarks/transfer.py --page benchmarks/transfer.md
"""

import argparse
import json
import math
import platform
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lrec.common.files import write_text
from lrec.common.hardware import auto_precision, seconds
from lrec.data.datamodule import SequenceDataModule
from lrec.data.datasets import datamodule_of
from lrec.model.config import (
    BASE_LAYERS,
    BASE_WIDTH,
    MUON_POWER,
    TABLE_RATE,
    TABLE_RATE_BESIDE_MUON,
    Parametrisation,
    TransformerConfig,
)
from lrec.model.losses import full_softmax
from lrec.model.transformer import Transformer
from lrec.options.config_files import with_shipped_configs
from lrec.training.lightning_cli import compose
from lrec.training.optim import AdamWThenSGD, Decay, Optimizer, build

HEAD_WIDTH, VALIDATION_USERS, WARM_UP, LEAST_WARM_UP, STEP = 32, 3000, 0.05, 50, 512
FILES = {
    "go": "go_games.txt.zst",
    "decks": "mtg_decks.parquet",
    "globo": "globo_clicks.parquet",
    "ml-1m": "ratings.dat",
}
FIRST = 2.0**-7
DEFAULT = f"Muon 2 r^{MUON_POWER:g}, table {TABLE_RATE_BESIDE_MUON:g} r"
PARAMETRISATIONS: tuple[Parametrisation, Parametrisation] = ("standard", "scaled")
READ = """
"Muon 2 r^0.25, table 4 r" is lrec's default: at width 32, Muon moves the matrices at twice the rate in the table. This
rate falls with the fourth root of the width, and the tables' rate as 1 / width. With "Muon 2.0, table 4 r", Muon's rate
is the same at all widths. Then wide networks have a lower best rate than narrow ones: on Go at 2^-7, width 352 has
4.194 instead of the default's 4.095, and width 128 has 4.235 instead of 4.232. On decks, the best multiples of the rate
are about 2.1, 1.5 and 1.15 at the widths 32, 128 and 352, and on Go 2.6, 1.9 and 0.95. A power of 1/4 from 2 at
width 32 is within 0.004 nats of the best multiple tried at each of these widths, and at width 16 on Go. (The table
above lacks the runs with other multiples, because we did not keep their rows.)

"Muon 2.5" has the tables' rate of AdamW alone, 8 sqrt(r), as lrec had at first. On Go, width 32 is as good with it, but
width 128 loses 0.018 and width 352 loses 0.049. On decks, width 128 loses 0.011 at its best rate, which is half of
2^-7. But width 32 gains 0.035 there, since the narrow table of 17,192 items learns better at the higher rate. With 6 r
and 8 r, width 128 gains 0.004 and 0.012 on decks, with all items in the loss.

With items drawn for the loss (`SampledSoftmax`), high rates of tables cost more. In the trials of a study of decks with
`--hours 1` (one block), networks with 8 sqrt(r) became unstable in the first hundred steps. At the best rate of each
rule, width 136 has a validation loss of 5.068 with 8 sqrt(r), 4.993 with 8 r, 4.980 with 6 r and 4.975 with 4 r. Width
280 has 5.023, 4.930 (8 r) and 4.919 (4 r). In the same hour, the network of a million parameters reaches a test loss
of 4.254 instead of 4.457 ([hours.md](hours.md)). A warm-up of a fifth of the steps, with 8 sqrt(r), brought only 0.04
of the 0.2 nats at width 280.

The rest of this page is about AdamW alone. The item table decides. On decks, with 17,192 items, one rate for all leaves
it far behind: width 32 has 6.37 instead of 5.61 with scaled rates, and width 128 has 5.91 (at the highest rate tried)
instead of 5.42. On games of Go, with 361 items, scaled rates gain 0.024 nats at width 32. At width 128, a standard rate
that is tuned for that width is 0.008 better. There the table would learn better at 2 than at 4 times the base's rate of
matrices (4.470 instead of 4.480). On decks that costs 0.09, so its rate falls with the root of the width.

On Go, the best rate is the same for widths 32 and 128, and for 1, 2 and 4 blocks; one rate for all must be 8 times
lower at width 128. The rate of matrices must fall as 1 / width: with the root, width 128 loses 0.1. Branches of 2 / L
gain 0.012 at 4 blocks. A linear fall is better than a cosine at both widths, by 0.006 and 0.013, and is the default.
Epsilon makes no difference. Weight decay costs 0.001 and 0.005 in one pass; it stays, for many passes. With twice the
step and half the steps, the best rate is twice as high. There is one seed: differences below 0.005 may be its noise.
AdamW alone was not tried on MovieLens and clicks. [hours.md](hours.md) has 210,000 items, with touched rows.
"""
REGRET = """
A regret is a validation loss at a rate that was not tuned for the network, minus (a) the best loss of the network's own
sweep, or (b) the best loss of the standard parametrisation, with AdamW alone, with the same shape and data. The rate is
the best one for the two narrowest networks of a data set together, in the smallest share, with two blocks, in steps of
512 targets. For a step of n targets, it is multiplied by sqrt(n / 512). Values with ≥ are lower bounds, because the
best rate tried is at the end of its range; they count as they stand in the means. Empty cells were not measured.
"""
AFTER_REGRET = """
Wanted: (a) a mean of at most 0.005 and a worst of at most 0.02; (b) a mean of at most -0.05 and a worst of at most
0.005.

Both are reached in these networks. The worst of (a) is decks at width 64: there and at width 32, twice the rate is
better, but width 16 loses more at this rate than width 32 gains. The worst of (b) is Go at width 16.

- A part of (b) is Muon's. AdamW alone in the scaled parametrisation, with the rate that width 32 likes best, has (a) a
  mean of 0.003 and a worst of 0.014, and (b) +0.008 for Go at width 128.
- There is one seed, and the shares of the data are small, so that a network takes minutes.

Not measured: clicks and MovieLens-1M; four times the data; steps of 256 and 1,024; width 352, other depths and other
steps on decks; the standard parametrisation where cells are empty. The recipe of MovieLens-1M is in
[block_and_time.md](block_and_time.md): no certain difference, with Muon and the rate 0.002. Beauty's recipe is in
[beauty_parts.md](beauty_parts.md): over three seeds, its HR@10 is 0.0018 higher with the default rates and Muon, and
0.0023 higher with half of the rate. The sweeps in [hours.md](hours.md) say what the rate and the step that a study
chose lose: 0.003 to 0.047 nats on clicks, Go and MovieLens-1M, with one rate of Muon for all widths.
"""


@dataclass(frozen=True)
class Rule:
    """Rates of tables and vectors relative to those of matrices at the base, and what else depends on the shape."""

    table: float = TABLE_RATE
    vectors: float = 1.0
    matrix_power: float = 1.0
    table_power: float = 0.5
    branch: bool = True
    epsilon: float = 1e-12
    weight_decay: float = 0.0  # of a step, as a share of the rate that is tuned
    fall: Decay = "linear"
    muon: float | None = None  # rate of the matrices that Muon moves at the base, relative to the rate that is tuned
    muon_power: float = 0.0

    def share(self, name: str, parameter: nn.Parameter, width: int) -> float:
        """The rate of a parameter, relative to the rate that is tuned."""
        narrower = BASE_WIDTH / width
        if parameter.ndim < 2:
            return self.vectors * narrower**self.matrix_power
        if not name.startswith("blocks."):
            return self.table * narrower**self.table_power
        return narrower**self.matrix_power if self.muon is None else self.muon * narrower**self.muon_power


SCALED = Rule()
RULES = (
    {
        "standard": Rule(table=1.0, matrix_power=0.0, table_power=0.0, branch=False, epsilon=1e-8, weight_decay=0.01),
        "scaled": SCALED,
        "table 4": replace(SCALED, table=4.0),
        "table 16": replace(SCALED, table=16.0),
        "table r^0": replace(SCALED, table_power=0.0),
        "table r": replace(SCALED, table_power=1.0),
        "matrices r^0.5": replace(SCALED, matrix_power=0.5),
        "matrices r^1.3": replace(SCALED, matrix_power=1.3),
        "vectors 4": replace(SCALED, vectors=4.0),
        "branches 1": replace(SCALED, branch=False),
        "epsilon 1e-8": replace(SCALED, epsilon=1e-8),
        "decay 0.01": replace(SCALED, weight_decay=0.01),
        "cosine": replace(SCALED, fall="cosine"),
        "wsd": replace(SCALED, fall="wsd"),
    }
    | {
        f"Muon 2.0, table {table:g} r": replace(SCALED, muon=2.0, table=table, table_power=1.0)
        for table in (TABLE_RATE_BESIDE_MUON, 6.0, 8.0)
    }
    | {
        f"Muon {rate}, table {table:g} r": replace(SCALED, muon=rate, table=table, table_power=1.0)
        for rate, table in [(2.0, 2.0), (1.0, 8.0), *((rate, 4.0) for rate in (0.35, 0.5, 0.7, 1.0, 1.4, 2.8, 4.0))]
    }
    | {f"Muon {rate}": replace(SCALED, muon=rate) for rate in (0.6, 1.2, 2.5, 5.0)}
    | {DEFAULT: replace(SCALED, muon=2.0, muon_power=MUON_POWER, table=TABLE_RATE_BESIDE_MUON, table_power=1.0)}
)


class Run(NamedTuple):
    """A training."""

    set: str
    share: float
    rule: str
    layers: int
    width: int
    step: int
    epochs: int
    seed: int
    lr: float
    precision: str = "32-true"


def opened(run: Run, raw: Path, data_dir: Path) -> SequenceDataModule:
    """A share of the users of a data set, ready to train on."""
    options = {
        "path": raw / FILES[run.set],
        "data_dir": data_dir,
        "reduction.users": run.share,
        "targets_per_step": run.step,
        "validation_users": VALIDATION_USERS,
    }
    arguments = [f"--config=data/{run.set}.yaml", "--model.size=3k"]
    arguments += [f"--data.{option}={value}" for option, value in options.items()]
    data = datamodule_of(compose(with_shipped_configs(arguments)))
    data.prepare_data()
    data.setup()
    return data


def made(run: Run, rule: Rule, n_items: int, max_len: int) -> Transformer:
    """The network at its start."""
    heads, branches = max(run.width // HEAD_WIDTH, 1), PARAMETRISATIONS[rule.branch]
    shape = TransformerConfig(n_items, max_len, run.layers, run.width, heads, parametrisation=branches)
    return Transformer(shape, run.seed)


def optimizer_of(net: Transformer, run: Run, rule: Rule) -> torch.optim.AdamW:
    if rule.muon is not None:
        products = torch.bfloat16 if run.precision == "bf16-mixed" else torch.float32
        optimizer = build(Optimizer(lr=run.lr, weight_decay=rule.weight_decay, muon=rule.muon), net, 1, products)[0]
        assert isinstance(optimizer, AdamWThenSGD)
        names = {parameter: name for name, parameter in net.named_parameters()}
        for group in optimizer.param_groups:
            first = group["params"][0]
            group["lr"] = group["initial_lr"] = run.lr * rule.share(names[first], first, run.width)
        return optimizer
    groups: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in net.named_parameters():
        groups[rule.share(name, parameter, run.width), parameter.ndim >= 2].append(parameter)
    decay = rule.weight_decay
    return torch.optim.AdamW(
        [
            {"params": mine, "lr": run.lr * share, "weight_decay": decay / share if decays else 0.0}
            for (share, decays), mine in groups.items()
        ],
        betas=(0.9, 0.98),
        eps=rule.epsilon,
        fused=True,
    )


def factor(rule: Rule, step: int, steps: int) -> float:
    """The share of the rate that is left at a step."""
    warm_up = max(round(WARM_UP * steps), min(LEAST_WARM_UP, steps // 4))
    if step < warm_up:
        return (step + 1) / warm_up
    return Optimizer(warmup=0, decay=rule.fall).lr_factor(step - warm_up, steps - warm_up)


def sum_of_losses(net: Transformer, items_BL: Tensor, where_M: Tensor, targets_M: Tensor) -> Tensor:
    """The sum over the targets that follow the flat positions, in nats."""
    loss: Tensor = net(items_BL, lambda h_BLD, t_VD: full_softmax(h_BLD.flatten(0, 1)[where_M], t_VD, targets_M))
    return loss


def train(run: Run, data: SequenceDataModule) -> float:
    """Validation loss at the end, in nats; infinite if training diverged."""
    rule = RULES[run.rule]
    net = made(run, rule, data.n_items, data.max_len).train()
    optimizer, steps = optimizer_of(net, run, rule), run.epochs * data.steps_per_epoch
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bf16-mixed")
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(rule, step, steps))
    for _ in range(run.epochs):
        for batch in data.train_dataloader():
            optimizer.zero_grad()
            with mixed:
                loss = sum_of_losses(net, batch.items_BL, batch.positions_M, batch.targets_M)
            (loss / batch.step_targets).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    net.eval()
    total, targets = 0.0, 0
    with torch.inference_mode(), mixed:
        for case in data.val_dataloader():
            known_M = case.targets_M >= 0
            total += float(sum_of_losses(net, case.items_BL, case.positions_M[known_M], case.targets_M[known_M]))
            targets += int(known_M.sum())
    return total / targets if math.isfinite(total) else math.inf


def swept(loss_at: Callable[[float], float], first: float) -> None:
    """Try rates until both neighbours of the best are known."""
    found: dict[float, float] = {}
    wanted = [first]
    while wanted:
        found |= {lr: loss_at(lr) for lr in wanted}
        best = min(found, key=lambda lr: found[lr])
        wanted = [lr for lr in (best / 2, best * 2) if lr not in found]


class Sweep(NamedTuple):
    """Losses by rate of one network on one set, and the best of them."""

    losses: dict[float, float]

    @property
    def best(self) -> float:
        return min(self.losses, key=self.losses.__getitem__)

    @property
    def ends(self) -> bool:
        """Whether the best rate is at the end of the range: the loss of a better rate may be lower."""
        return self.best in (min(self.losses), max(self.losses))


def tuned_small(sweeps: dict[Run, Sweep], of: Run) -> float:
    """The rate that is best for the two narrowest networks of a data set and rule together, in the smallest share, with
    two blocks, in steps of 512 targets; the root of the step carries it to other steps."""
    of = of._replace(step=STEP, layers=BASE_LAYERS, share=min(run.share for run in sweeps if run.set == of.set))
    narrow = sorted(run for run in sweeps if run == of._replace(width=run.width))[:2]
    common = set.intersection(*(set(sweeps[run].losses) for run in narrow))
    return min(common, key=lambda lr: sum(sweeps[run].losses[lr] for run in narrow))


def regrets(sweeps: dict[Run, Sweep]) -> list[str]:
    """Per network of lrec's default: the loss at the transferred rate, minus the best of the network's own sweep, and
    minus the best of the standard rule."""
    lines = [
        "| data, share, passes | shape | step | rate | loss | own best rate | (a) | standard | (b) |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    found: tuple[list[float], list[float]] = ([], [])
    for at in sorted(run for run in sweeps if run.rule == DEFAULT and run.precision == "bf16-mixed"):
        mine, standard = sweeps[at], sweeps.get(at._replace(rule="standard"))
        rate = tuned_small(sweeps, at) * math.sqrt(at.step / STEP)
        loss = next(loss for lr, loss in mine.losses.items() if math.isclose(lr, rate))
        cells = [f"{at.set}, {at.share:.3g}, {at.epochs}", f"{at.layers}x{at.width}", f"{at.step:,}", power(rate)]
        cells += [f"{loss:.4f}", power(mine.best)]
        for beside, values, sign in ((mine, found[0], ""), (standard, found[1], "+")):
            if beside is None:
                cells += ["", ""]
                continue
            values.append(loss - beside.losses[beside.best])
            more = "≥ " if beside.ends else ""
            cells += [f"{beside.losses[beside.best]:.4f}"] if beside is standard else []
            cells += [f"{more}{values[-1]:{sign}.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    for title, of in (("mean", mean), ("worst", max)):
        a, b = (of(values) for values in found)
        lines.append(f"| **{title}** of {len(found[0])}, {len(found[1])} | | | | | | {a:.3f} | | {b:+.3f} |")
    return [*lines, ""]


def power(rate: float) -> str:
    """A rate as a power of two."""
    return f"2^{math.log2(rate):.3g}"


def page(rows: list[dict]) -> str:
    """All results as Markdown."""
    text = __doc__.split("\n\n")
    by_run = {Run(**row["run"]): float(row["loss"]) for row in rows}
    sweeps: dict[Run, Sweep] = {}
    for run, loss in by_run.items():
        sweeps.setdefault(run._replace(lr=0.0), Sweep({})).losses[run.lr] = loss
    lines = [
        "# Learning rate over width and depth: one rate for all parameters, and rates by group",
        "",
        text[1].replace("\n", " "),
        "",
        *text[2].rstrip().splitlines(),
        "",
        f"Losses are of the validation targets of {VALIDATION_USERS:,} users. r = {BASE_WIDTH} / width. "
        f"{sum(row['seconds'] for row in rows) / 60:.0f} minutes of a core "
        f"({platform.machine()}, torch {torch.__version__}).",
        "",
        "## Regret",
        "",
        REGRET.strip(),
        "",
        *regrets(sweeps),
        AFTER_REGRET.strip(),
        "",
        "## All losses",
        "",
        "| data, share | rule | shape | step | passes | seed | precision | loss by rate |",
        "|---|---|---|---:|---:|---:|---|---|",
    ]
    for at, sweep in sorted(sweeps.items()):
        shown = ", ".join(
            f"{'**' * (lr == sweep.best)}{power(lr)} {loss:.4f}{'**' * (lr == sweep.best)}"
            for lr, loss in sorted(sweep.losses.items())
        )
        of_run = (at.rule, f"{at.layers}x{at.width}", at.step, at.epochs, at.seed, at.precision, shown)
        lines.append(f"| {at.set}, {at.share:.3g} | {' | '.join(map(str, of_run))} |")
    return "\n".join(lines) + f"\n\n{READ.strip()}\n"


def main() -> None:
    """Train what the results file lacks, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=FILES)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=["standard", "scaled"])
    parser.add_argument("--layers", type=int, nargs="+", default=[2])
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--step", type=int, default=STEP, help="targets of a step")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default=auto_precision("cpu"))
    parser.add_argument("--rates", type=float, nargs="+", help="as exponents of two, in place of a search")
    parser.add_argument("--raw", type=Path, default=Path("../shared/data/interactions"), help="folder of the raw files")
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    parser.add_argument(
        "--results", type=Path, default=Path("benchmarks/transfer.jsonl"), help="a line per finished run"
    )
    parser.add_argument("--page", type=Path, help="Markdown page to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    known = {Run(**row["run"]): row["loss"] for row in rows}
    data: SequenceDataModule | None = None

    def loss_of(run: Run) -> float:
        nonlocal data
        if run not in known:
            data = opened(run, options.raw, options.data_dir) if data is None else data
            began = seconds("cpu")
            known[run] = train(run, data)
            rows.append({"run": run._asdict(), "loss": known[run], "seconds": round(seconds("cpu") - began)})
            with options.results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(f"{run}: {known[run]:.4f}, {rows[-1]['seconds']} s", flush=True)
        return known[run]

    for rule in options.rules if options.set else []:
        for layers in options.layers:
            for width in options.widths:
                for seed in options.seeds:
                    of_data = (options.step, options.epochs, seed, 0.0, options.precision)
                    at = Run(options.set, options.share, rule, layers, width, *of_data)
                    if options.rates:
                        for exponent in options.rates:
                            loss_of(at._replace(lr=2.0**exponent))
                    else:
                        swept(lambda lr, at=at: loss_of(at._replace(lr=lr)), FIRST)  # type: ignore[misc]
    if options.page:
        write_text(options.page, page(rows))


if __name__ == "__main__":
    main()
