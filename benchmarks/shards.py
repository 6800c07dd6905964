"""The item table in shards: equal steps, and the memory of a step, with more and more processes.

Each row is one process or several (gloo), with one thread each. Networks have one block, or two for "Twenty steps". The
memory of a step is the largest resident size of any process, minus its size before the network was built. The estimate
is what `lrec sizes` prints. Freed memory goes back to the system (MALLOC_MMAP_THRESHOLD_=65536).

A repeated call measures only the rows that the results file lacks.

    python benchmarks/shards.py --results shards.jsonl --page benchmarks/shards.md
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rows import HANDED_BACK, forget_largest, here, in_new_processes, measured, resident, tell
from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh

from lrec.common.files import write_text
from lrec.data.batching.eval_batches import EvalBatch
from lrec.evaluation.evaluator import Evaluation
from lrec.evaluation.metrics import KS
from lrec.model import losses, memory
from lrec.model.config import TransformerConfig
from lrec.model.parallelize import Sharding, build
from lrec.model.transformer import Transformer
from lrec.ranking.scoring import Scores, score
from lrec.training.optim import Optimizer, Switch
from lrec.training.touched_rows import clip_by_norm

LOSSES = {
    "full softmax": losses.FullSoftmax(),
    "sampled softmax": losses.SampledSoftmax(256),
    "gBCE": losses.GBCE(256),
}


class Case(NamedTuple):
    """A row: how many processes take steps of how many targets, and how."""

    kind: str  # memory: three steps, their peak; losses: twenty steps, their losses; evaluation: batches of 256 rows
    items: int
    width: int
    processes: int
    loss: str
    targets: int
    accumulation: int = 1
    clip: float = 0.0
    switch: bool = False
    touched_rows: bool = False


CASES = [
    *(Case("memory", 2_000_000, 128, n, "full softmax", 64) for n in (1, 2, 4)),
    Case("memory", 10_000_000, 64, 2, "full softmax", 64),
    Case("memory", 10_000_000, 64, 1, "sampled softmax", 4000, touched_rows=True),
    Case("memory", 10_000_000, 64, 2, "sampled softmax", 4000, touched_rows=True),
    *(Case("evaluation", n, 64, 1, "", 0) for n in (1_000_000, 10_000_000)),
    *(
        Case("losses", 1003, 32, n, loss, 240, *options)
        for loss in LOSSES
        for options in ((), (2, 0.5, True))
        for n in (1, 2, 3)
    ),
]
LENGTH = 20


def config_of(case: Case) -> TransformerConfig:
    """A network of one block, two for losses."""
    return TransformerConfig(case.items, LENGTH, 2 if case.kind == "losses" else 1, case.width, 2)


def measure(case: Case) -> dict[str, Any]:
    """What one of `case.processes` processes measures: losses and peaks are over all processes."""
    sharding = None
    if case.processes > 1:
        distributed.init_process_group("gloo")
        sharding = Sharding(init_device_mesh("cpu", (case.processes,)))
    before = resident("VmRSS")
    steps = 3 if case.kind == "memory" else 20
    net = build(config_of(case), 0, sharding)
    switch = Switch(at=10, lr=0.05) if case.switch else None
    if case.kind == "evaluation":
        return {"peaks": evaluate(net, case)}
    optimizer, scheduler = Optimizer(lr=0.01, switch=switch, touched_rows=case.touched_rows).build(net, steps)
    rank = 0 if sharding is None else sharding.mesh.get_rank()
    n_parts = case.processes * case.accumulation
    found, seconds = [], []
    for step in range(steps):
        started = time.perf_counter()
        if switch is not None and step == switch.at:
            optimizer.begin_sgd(step)
        random = torch.Generator().manual_seed(step)
        rows = case.targets // LENGTH + 1
        items_BL = torch.randint(case.items, (rows, LENGTH), generator=random)
        targets_BL = torch.randint(case.items, (rows, LENGTH), generator=random)
        total = torch.zeros(())
        optimizer.zero_grad()
        for micro in range(case.accumulation):
            part = micro * case.processes + rank
            mine = slice(rows * part // n_parts, rows * (part + 1) // n_parts)
            torch.manual_seed(step * case.accumulation + micro)  # for negatives
            loss = one_loss(net, case, items_BL[mine], targets_BL[mine])
            (loss * case.processes / targets_BL.numel()).backward()
            total += loss.detach()
        if case.clip:
            clip_by_norm(list(net.parameters()), case.clip)
        optimizer.step()
        scheduler.step()
        if sharding is not None:
            distributed.all_reduce(total)
        found.append(float(total) / targets_BL.numel())
        seconds.append(time.perf_counter() - started)
    peak = torch.tensor(resident("VmHWM") - before)
    whole = torch.tensor(resident("VmHWM"))
    if sharding is not None:
        for each in (peak, whole):
            distributed.all_reduce(each, distributed.ReduceOp.MAX)
        distributed.barrier()
        distributed.destroy_process_group()
    return {"losses": found, "seconds": seconds, "peak": int(peak), "process": int(whole)}


@torch.no_grad()
def evaluate(net: Transformer, case: Case) -> list[int]:
    """The most bytes beyond what the process had before, after each of four batches."""
    counts_V = torch.ones(case.items, dtype=torch.int64)
    rows_S, ends_B = torch.arange(256).repeat_interleave(LENGTH), torch.arange(256) * LENGTH + LENGTH - 1
    before = resident("VmRSS")
    forget_largest()
    evaluation, peaks = Evaluation(counts_V), []
    for _ in range(4):
        items_BL, targets_B = torch.randint(case.items, (256, LENGTH)), torch.randint(case.items, (256,))
        seen_S = items_BL.flatten()
        scores: Scores = net(
            items_BL, lambda h, t, y=targets_B, s=seen_S, r=rows_S: score(h, t, y, r, s, max(KS)), positions_M=ends_B
        )
        evaluation.update(scores, EvalBatch(items_BL, ends_B, targets_B, torch.ones(256), targets_B, rows_S, seen_S))
        evaluation.compute()
        peaks.append(resident("VmHWM") - before)
    return peaks


def one_loss(net: torch.nn.Module, case: Case, items_BL: Tensor, targets_BL: Tensor) -> Tensor:
    """The sum over targets."""
    counts_V = torch.ones(case.items)
    loss: Tensor = net(
        items_BL, lambda h_BLD, table: LOSSES[case.loss](h_BLD.flatten(0, 1), table, targets_BL.flatten(), counts_V)
    )
    return loss


def page(rows: dict[Case, dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "# The item table in shards",
        "",
        *__doc__.split("\n\n", 1)[1].strip().splitlines(),
        "",
        f"{here()}. Times are from a machine with other work.",
        "",
        "## Memory of a step",
        "",
        "| items | width | loss | processes | peak, GiB | estimate, GiB | error | whole process, GiB | s a step |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for case, row in rows.items():
        if case.kind != "memory":
            continue
        full = not case.touched_rows
        positions = -(-(case.targets // LENGTH + 1) // case.processes) * LENGTH
        estimate = memory.of_step(config_of(case), positions, shards=case.processes).total
        name = case.loss if full else f"{case.loss}, touched rows"
        cells = [f"{case.items:,}", str(case.width), name, str(case.processes), f"{row['peak'] / 2**30:.2f}"]
        cells += [f"{estimate / 2**30:.2f}", f"{100 * (estimate / row['peak'] - 1):+.1f} %"] if full else ["", ""]
        cells += [f"{row['process'] / 2**30:.2f}", f"{sorted(row['seconds'])[1]:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "## Memory of an evaluation",
        "",
        "Losses, ranks, lists of 50 with and without seen items, and all metrics, for batches of 256 users: the most",
        "memory beyond the network and the items' counts, up to the first and up to the fourth batch.",
        "",
        "| items | first, MiB | fourth, MiB |",
        "|---:|---:|---:|",
    ]
    for case, row in rows.items():
        if case.kind == "evaluation":
            first, *_, last = row["peaks"]
            lines.append(f"| {case.items:,} | {first / 2**20:.0f} | {last / 2**20:.0f} |")
    lines += [
        "",
        "## Twenty steps",
        "",
        "1,003 items, 260 targets a step: the largest relative difference of any step's loss from that of one process.",
        "",
        "| loss | with | two processes | three processes |",
        "|---|---|---:|---:|",
    ]
    for case, row in rows.items():
        if case.kind != "losses" or case.processes != 1:
            continue
        options = "accumulation 2, clipping at 0.5, SGD from step 10" if case.switch else "neither of these"
        apart = [
            max(abs(a / b - 1) for a, b in zip(rows[case._replace(processes=n)]["losses"], row["losses"], strict=True))
            for n in (2, 3)
        ]
        lines.append(f"| {case.loss} | {options} | {' | '.join(f'{each:.1e}' for each in apart)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what the results file lacks; write the page once all is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("shards.jsonl"), help="a line per measured row")
    parser.add_argument("--page", type=Path, help="Markdown page to write once all rows are there")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        torch.set_num_threads(1)
        tell(measure(Case(*options.case)))
        return
    rows = measured(
        CASES, options.results, lambda case: in_new_processes(__file__, [], case, case.processes, HANDED_BACK)
    )
    if options.page:
        write_text(options.page, page({case: rows[case] for case in CASES}))


if __name__ == "__main__":
    main()
