"""What HSTU's block, a bias by position, the gaps between past events and the next event's time bring on MovieLens-1M.

    python benchmarks/block_and_time.py --data ml-1m_ratings.dat.xz [--seeds 1 2 3] [--jobs 2] [--repository]

The modern block and HSTU's block (both 98k, histories of 200) read, in addition to the items: nothing, a bias by
position, this bias and the gaps between past events, or this bias and the gaps up to the next event, whose time must
then be known. "deep" has HSTU's block four times (4x64), Muon for its matrices, and a dropout of 0.2 in the last block;
"deep_adamw" is the same without Muon. "scaled" is the modern block with rates by group and Muon, as `lrec fit` has by
default, at the rate in its name. All other runs have the rate 0.002 for all parameters. All runs use
configs/recipes/ml-1m-hstu.yaml: 24 epochs in steps of 1,024 targets. The split is leave-one-out; all items that the
user has not seen are ranked; the checkpoint has the best validation NDCG@10. With --repository, runs also follow the
HSTU repository: all items but a user's last one are for training, and only the seen items among the last 200 are not
ranked. Figures are means over the seeds; 95 % intervals are over users, paired. Outcomes of runs are kept in
benchmarks/block_and_time, and not measured again.
"""

import argparse
import json
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from replicate import Outcome, measured, metrics_of, outcomes_of, train

from lrec.common.files import write_text
from lrec.tasks.intervals import UserResamples, estimate
from lrec.tasks.trained_runs import Data

HERE = Path(__file__).parent
OUTCOMES = HERE / "block_and_time"
RECIPE = "configs/recipes/ml-1m-hstu.yaml"
RATES = {"scaled_0.001": 0.001, "scaled_0.002": 0.002, "scaled_0.004": 0.004}
MODERN = {"attention": "softmax", "mlp": "swiglu", "norm": "rms", "positions": "rotary", "qk_norm": "true"}
HSTU = {"attention": "hstu", "mlp": "none"}
BLOCKS = {"modern": MODERN, "hstu": HSTU, "deep": HSTU, "deep_adamw": HSTU} | dict.fromkeys(RATES, MODERN)
DEEP = {"model.size": "4x64"} | dict.fromkeys(("model.dropout.attention.last", "model.dropout.residual.last"), "0.2")
OPTIONS = {"deep": DEEP | {"model.optimizer.muon": "5"}, "deep_adamw": DEEP} | {
    block: {"model.parametrisation": "scaled", "model.optimizer.muon": "2", "model.optimizer.lr": str(rate)}
    for block, rate in RATES.items()
}
INPUTS = {
    "nothing": {"position_bias": "false", "time": "none"},
    "position": {"position_bias": "true", "time": "none"},
    "past": {"position_bias": "true", "time": "past"},
    "request": {"position_bias": "true", "time": "request"},
}
TITLES = {
    "nothing": "nothing",
    "position": "bias by position",
    "past": "position and past gaps",
    "request": "position and the next event's time",
}
PUBLISHED = {  # HR@10 and NDCG@10
    "leave-one-out": {
        "RecTools' SASRec": (0.2877, 0.1622),
        "RecTools' HSTU with the next event's time": (0.3227, 0.1879),
        "RecTools' HSTU, 8 blocks, with it": (0.3642, 0.2164),
    },
    "repository": {
        "SASRec": (0.2853, 0.1603),
        "HSTU with the next event's time": (0.3097, 0.1720),
        "HSTU, 8 blocks, with it": (0.3294, 0.1893),
    },
}
ELSE = """
With two blocks, Muon brings nothing: with the next event's time (`--model.optimizer.muon 5`, leave-one-out, seed 1),
the validation NDCG@10 is 0.2327 after 24 epochs, as without Muon (0.2326), and the test has an HR@10 of 0.3608 and an
NDCG@10 of 0.2218, lower than without Muon (0.3676, 0.2252). In short runs on a tenth of the users, Muon pays
([muon.md](muon.md)). With four blocks, Muon brings nothing either: "deep" is not certainly better than "deep_adamw".
"""
Outcomes = dict[tuple[str, str], list[Outcome]]  # by block and inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="The raw file.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="Runs trained side by side, each on one core.")
    parser.add_argument("--runs", type=Path, default=Path("runs/block_and_time"))
    parser.add_argument("--repository", action="store_true", help="Train by the HSTU repository's protocol too.")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"}
    protocols = ["leave-one-out", *(["repository"] if options.repository else [])]
    with ThreadPoolExecutor(options.jobs) as pool:
        for protocol in protocols:
            names = [f"{protocol}-{block}-{inputs}" for inputs in INPUTS for block in ("modern", "hstu")]
            if protocol == "leave-one-out":
                names += [f"{protocol}-{block}-past" for block in OPTIONS] + [f"{protocol}-deep-request"]
            runs = [(name, seed) for seed in options.seeds for name in names]
            list(pool.map(lambda run: keep(run[0], run[1], options.data, options.runs), runs))
    found = {protocol: kept(protocol) for protocol in PUBLISHED}
    write_text(HERE / "block_and_time.md", page({name: outcomes for name, outcomes in found.items() if outcomes}))


def keep(name: str, seed: int, data: Path, runs: Path) -> None:
    """Train and measure, unless that was done."""
    outcome = OUTCOMES / f"{name}-seed{seed}.json"
    if outcome.exists():
        return
    protocol, block, inputs = name.rsplit("-", 2)
    options = {"config": RECIPE, "data.path": str(data)}
    options |= {f"model.architecture.{option}": value for option, value in (BLOCKS[block] | INPUTS[inputs]).items()}
    options |= OPTIONS.get(block, {})
    if protocol == "repository":
        options |= {"data.split": "all_but_last.AllButLast"}
    folder = runs / f"{name}-seed{seed}"
    train(folder, options, seed)
    write_text(outcome, json.dumps(measured(folder, Data(trust=True), window=protocol == "repository")) + "\n")


def kept(protocol: str) -> Outcomes:
    """The kept outcomes of a protocol's runs."""
    found = {
        (block, inputs): outcomes_of(f"{protocol}-{block}-{inputs}", OUTCOMES) for block in BLOCKS for inputs in INPUTS
    }
    return {cell: outcomes for cell, outcomes in found.items() if outcomes}


def page(protocols: dict[str, Outcomes]) -> str:
    """The text of benchmarks/block_and_time.md."""
    lines = [
        "# What block, position and time bring on MovieLens-1M",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, one core a run, torch {torch.__version__}, "
        f"Python {platform.python_version()}.",
        "",
        "    python benchmarks/block_and_time.py --data ml-1m_ratings.dat.xz --repository",
        "",
        (__doc__ or "").split("\n\n", 2)[2].strip(),
        "",
    ]
    for protocol, outcomes in protocols.items():
        # A target in no training history is a miss.
        ranks = {
            cell: np.stack([np.where(np.isnan(run.ranks_U), np.inf, run.ranks_U) for run in runs])
            for cell, runs in outcomes.items()
        }
        lines += [f"## {protocol.capitalize()}", "", *figures(outcomes, ranks, PUBLISHED[protocol])]
        lines += ["", "What each input adds, and HSTU's block in place of the modern one:", "", *differences(ranks), ""]
    return "\n".join([*lines, ELSE])


def figures(outcomes: Outcomes, ranks: dict[tuple[str, str], np.ndarray], published: dict) -> list[str]:
    """A row per block and inputs."""
    lines = [
        "| block | reads | seeds | validation NDCG@10 | HR@10 | NDCG@10 | NDCG@10 of each seed | commit |",
        "|---|---|---|---:|---:|---:|---|---|",
    ]
    for (block, inputs), runs in outcomes.items():
        hits_SU, gains_SU = metrics_of(ranks[block, inputs])
        cells = [
            block,
            TITLES[inputs],
            ", ".join(str(run.seed) for run in runs),
            f"{np.mean([run.validation for run in runs]):.4f}",
            f"{hits_SU.mean():.4f}",
            f"{gains_SU.mean():.4f}",
            ", ".join(f"{value:.4f}" for value in gains_SU.mean(1)),
            ", ".join(sorted({run.commit for run in runs})),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for baseline, (hr, ndcg) in next(iter(outcomes.values()))[0].baselines.items():
        lines.append(f"| {baseline} | | | | {hr:.4f} | {ndcg:.4f} | | |")
    for label, (hr, ndcg) in published.items():
        lines.append(f"| published: {label} | | | | {hr:.4f} | {ndcg:.4f} | | |")
    return lines


def differences(ranks: dict[tuple[str, str], np.ndarray]) -> list[str]:
    """A table of what each input adds to the one before it, for each block; and HSTU's block minus the modern one."""
    pairs = [
        (f"{TITLES[inputs]}, {block}", (block, before), (block, inputs))
        for block in BLOCKS
        for before, inputs in (("nothing", "position"), ("position", "past"), ("past", "request"))
    ]
    pairs += [(f"hstu for modern, {TITLES[inputs]}", ("modern", inputs), ("hstu", inputs)) for inputs in INPUTS]
    pairs += [(f"deep for hstu, {TITLES[each]}", ("hstu", each), ("deep", each)) for each in ("past", "request")]
    others = (("deep_adamw", "deep"), ("modern", "scaled_0.002"))  # this rate has the best validation NDCG@10
    pairs += [(f"{new} for {old}, {TITLES['past']}", (old, "past"), (new, "past")) for old, new in others]
    lines = ["| | HR@10 | NDCG@10 |", "|---|---:|---:|"]
    users_U = np.arange(next(iter(ranks.values())).shape[1])
    resamples = UserResamples(users_U, seed=0)
    for title, before, after in pairs:
        if before in ranks and after in ranks:
            changes = [
                estimate(resamples.mean(new.mean(0) - old.mean(0), users_U)).signed()
                for new, old in zip(metrics_of(ranks[after]), metrics_of(ranks[before]), strict=True)
            ]
            lines.append(f"| {title} | {' | '.join(changes)} |")
    return lines


if __name__ == "__main__":
    main()
