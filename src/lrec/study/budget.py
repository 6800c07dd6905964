"""Estimate the hours, memory and disk of each run before a study starts, and check them against a budget."""

from dataclasses import dataclass, replace
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, Any

from lrec.common import hardware
from lrec.common.files import json_hash, read_json
from lrec.common.pages import rendered
from lrec.errors import UserError
from lrec.model import cost, memory
from lrec.model.config import TransformerConfig
from lrec.run import RunConfig, run_of_study
from lrec.study.grid import PlannedRun, limits
from lrec.study.options import DECAY, MUON, STEP, Study
from lrec.study.placement import Placement, here, placement

if TYPE_CHECKING:
    from torch import Tensor

    from lrec.data.datamodule import SequenceDataModule
    from lrec.model.losses import Loss

# Assumed FLOPs per second of a GPU if this machine has none to measure: with bfloat16 products, and in float32.
ASSUMED = {"bf16-mixed": 100e12, "bf16-true": 100e12, "32-true": 15e12}
# Time of evaluations, AdamW and the trainer between steps, as a share of the forward and backward passes.
BESIDE_STEPS = 0.25
STARTING_S = 10
PROCESS_GIB = 1.0

# Limits of the network and of the steps that measure the speed, so that this takes only a fraction of a second.
BLOCKS, MOST_ITEMS, MOST_PARAMETERS, MOST_WIDTH, SECONDS = 2, 20_000, 2**24, 256, 0.3
MOST_FLOPS = {"cpu": 5e9, "cuda": 1e13}


@dataclass(frozen=True)
class Cost:
    run: PlannedRun
    n_body: int
    n_total: int
    hours: float  # of one GPU if it trains on GPUs, else of one core
    memory_gib: float  # of all its processes on one machine
    gpu_gib: float  # of each GPU; 0 if it trains on CPUs
    disk_gib: float  # of its checkpoints
    gpus: int  # on all its machines together


def plan(study: Study, runs: list[PlannedRun]) -> list[Cost]:
    """Estimate each run's cost. Prepares the data, because the cost depends on the catalogue's size. The hours of a
    finished run are measured. For other runs, they come from the measured speed (`training_rate`) for all epochs, plus
    ten seconds to start each process; early stopping makes them fewer."""
    from lrec.training.lightning_options import epochs_in_all

    opened: dict[str, SequenceDataModule] = {}
    spent = hours_by_run(study, [run for run in runs if run_of_study(study.folder, run.name).result is not None])
    costs = []
    for run in runs:
        if (key := json_hash(run.config.nested["data"] | {"seed": 0})) not in opened:
            opened[key] = run.open_data()
        data, place = opened[key], study.placement(run.config)
        config = run.network(data.n_items)
        if (hours := spent.get(run.name)) is None:
            epochs = run.own * epochs_in_all(*limits(run.config), data.steps_per_epoch)
            rate = training_rate(config, run.model.loss, _positions(run.config, place), place.precision, place.kind)
            pass_s = (1 + BESIDE_STEPS) * data.U * flops_of_target(run, config, data) / rate
            pass_s += data.steps_per_epoch * step_seconds(run, config, _positions(run.config, place), place)
            hours = (STARTING_S * place.ranks + epochs * pass_s) / 3600
        takes = (hours, *gib_of(config, run.config, place), place.gpus * place.nodes)
        costs.append(Cost(run, cost.n_body(config), cost.n_total(config), *takes))
    return costs


def gib_of(config: TransformerConfig, options: RunConfig, place: Placement) -> tuple[float, float, float]:
    """GiB to train a network: memory of each machine, memory of each GPU, and disk for the checkpoints. Each process
    needs one GiB and the memory of a step. On GPUs, the GPU holds the step, and the machine holds a copy of parameters
    and moments during a save."""
    lies = (place.precision, place.shards, place.checkpointing, place.kind, place.ranks)
    step = memory.of_step(config, _positions(options, place), *lies)
    of_process = step.parameters + step.optimizer if place.gpus else step.total
    of_gpu = step.total / 2**30 if place.gpus else 0.0
    checkpoints = 3 if options.value(DECAY) == "wsd" else 2  # best, last, and the one before the rate falls
    disk_gib = 12 * checkpoints * cost.n_total(config) / 2**30
    return place.devices * (PROCESS_GIB + of_process / 2**30), of_gpu, disk_gib


def _positions(options: RunConfig, place: Placement) -> int:
    """Number of positions in a micro-batch of one rank."""
    return -(-int(options.value(STEP)) // (place.ranks * place.accumulation))


def flops_of_target(run: PlannedRun, config: TransformerConfig, data: "SequenceDataModule") -> float:
    """FLOPs of a run with this network on one target, if all windows are full."""
    part = data.batch_plan.part
    pairs = part.n_positions * (config.max_len + 1) // 2
    head_flops = run.model.loss.flops_per_target(config.n_items, config.width)
    flops = cost.training_flops(config, part.n_targets, pairs, head_flops, part.n_positions)
    if placement(run.config).checkpointing:
        flops += part.n_positions * cost.flops_per_interaction(config, checkpointing=True).recomputed
    return flops / part.n_targets


def step_seconds(run: PlannedRun, config: TransformerConfig, positions: int, place: Placement) -> float:
    """Seconds of one core or GPU for the optimizer in each step on this many positions, however few its targets."""
    spent = update_seconds(parameters_updated(run, config, positions), place.kind)
    if run.config.value(MUON) is None:
        return spent
    measured = min(config.width, MOST_WIDTH)
    block = replace(config, layers=1, width=measured, heads=1, n_items=1)
    return spent + config.layers * (config.width / measured) ** 3 * _muon_seconds(block, place.precision, place.kind)


@cache
def training_rate(
    config: TransformerConfig, loss: "Loss", positions: int, precision: memory.Precision, kind: hardware.Kind = "cpu"
) -> float:
    """Measure FLOPs per second of forward and backward passes on one core or GPU; assume them if there is no GPU. The
    measured network has the same width and parts, but at most two blocks and 20,000 items, and steps of `positions`
    positions, or fewer if they would take too long. Shapes: B rows, L positions, M targets, D width, V catalogue."""
    if kind == "cuda" and not here():
        return ASSUMED[precision]
    import torch

    from lrec.common.cpu_threads import one_core
    from lrec.model.transformer import Transformer

    small = replace(config, layers=min(config.layers, BLOCKS), n_items=min(config.n_items, MOST_ITEMS))
    length = small.max_len
    head_flops = loss.flops_per_target(small.n_items, small.width)
    of_row = cost.training_flops(small, length, length * (length + 1) // 2, head_flops)
    rows = max(min(positions // length, int(MOST_FLOPS[kind] / of_row)), 1)
    device = torch.device(kind)
    with one_core(), torch.random.fork_rng(devices=[]):
        net = Transformer(small).to(device, torch.bfloat16 if precision == "bf16-true" else None)
        items_BL = torch.randint(0, small.n_items, (rows, length), device=device)
        ahead = (loss.ahead,) if loss.ahead > 1 else ()
        targets_M = torch.randint(0, small.n_items, (rows * length, *ahead), device=device)
        times_BT = torch.zeros(rows, length + 1, dtype=torch.int64, device=device) if net.reads_times else None
        counts_V = torch.ones(small.n_items, dtype=torch.int64, device=device)

        def head(hidden_BLD: "Tensor", table_VD: "Tensor") -> "Tensor":
            return loss(hidden_BLD.flatten(0, 1), table_VD, targets_M, counts_V)

        seconds = list[float]()
        while sum(seconds[1:]) < SECONDS:  # the first step also does work that is done only once
            began = hardware.seconds(kind)
            with torch.autocast(kind, torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss_sum: Tensor = net(items_BL, head, times_BT=times_BT)
            loss_sum.backward()
            net.zero_grad()
            seconds.append(hardware.seconds(kind) - began)
        return rows * of_row / median(seconds[1:])


def parameters_updated(run: PlannedRun, config: TransformerConfig, positions: int) -> int:
    """Parameters that a step on this many positions updates; with optimizer.touched_rows, of the item table only the
    rows of inputs, targets and negatives, as if each were another item."""
    n_items = config.n_items
    if run.config.value("model.optimizer.touched_rows", False):
        n_items = min(2 * positions + getattr(run.model.loss, "negatives", n_items), n_items)
    return cost.n_total(replace(config, n_items=n_items))


def update_seconds(n: int, kind: hardware.Kind = "cpu") -> float:
    """Seconds of one core for the gradients of n parameters and AdamW, in each step, however few its targets. With a
    large catalogue and a sampled loss on all rows, this is most of a step. 0 on a GPU, where it takes little."""
    if kind == "cuda":
        return 0.0
    measured = min(2 ** (n - 1).bit_length(), MOST_PARAMETERS)
    return _update_seconds(measured) * n / measured


@cache
def _update_seconds(n: int) -> float:
    import torch
    from torch.nn.utils import clip_grad_norm_

    from lrec.common.cpu_threads import one_core

    hardware.keep_freed_memory()  # as in training
    with one_core():
        parameter = torch.nn.Parameter(torch.zeros(n))
        optimizer, seconds = torch.optim.AdamW([parameter], fused=True), list[float]()
        for _ in range(4):  # the first step also makes the moments
            began = hardware.seconds("cpu")
            parameter.grad = torch.zeros(n)
            clip_grad_norm_([parameter], 1.0)
            optimizer.step()
            seconds.append(hardware.seconds("cpu") - began)
    return median(seconds[1:])


@cache
def _muon_seconds(block: TransformerConfig, precision: memory.Precision, kind: hardware.Kind) -> float:
    """Seconds of one core or GPU to make a step of Muon on the matrices of a block; 0 for a GPU that is not here."""
    if kind == "cuda" and not here():
        return 0.0
    import torch

    from lrec.common.cpu_threads import one_core
    from lrec.model.transformer import Transformer, is_for_muon
    from lrec.training.muon import orthogonal

    products = torch.float32 if kind == "cpu" and precision == "32-true" else torch.bfloat16
    with one_core(), torch.random.fork_rng(devices=[]):
        named = Transformer(block).named_parameters()
        matrices = [torch.randn(each.shape, device=kind) for name, each in named if is_for_muon(name, each)]
        seconds = list[float]()
        for _ in range(4):  # the first time takes longer
            began = hardware.seconds(kind)
            for matrix in matrices:
                orthogonal(matrix, products)
            seconds.append(hardware.seconds(kind) - began)
    return median(seconds[1:])


def plan_table(costs: list[Cost], study: Study) -> str:
    """A table of the runs with their expected hours, memory and disk, and the totals."""
    at_once = sum(sorted((c.memory_gib for c in costs), reverse=True)[: study.n_jobs])
    most = max(c.run.fraction for c in costs)
    shown: dict[str, Any] = {"costs": costs, "cores": study.n_cores, "here": here(), "assumed": ASSUMED}
    shown |= {"on_gpus": [c for c in costs if c.gpus], "on_cores": [c for c in costs if not c.gpus]}
    shown |= {"smaller": [c for c in costs if c.run.fraction < most], "held_out": [c for c in costs if c.run.held_out]}
    return rendered("study", "costs.txt.j2", shown | {"memory_gib": min(at_once, study.memory_gib or at_once)}).rstrip()


def check(study: Study, *planned: tuple[Study, list[PlannedRun]]) -> None:
    """UserError if the runs may take more than the study's budget. A dry run also prints the costs."""
    if not study.dry_run and (study.memory_gib, study.budget_hours, study.budget_disk_gib) == (None, None, None):
        return
    costs = [cost for each, runs in planned for cost in plan(each, runs)]
    if study.dry_run:
        print(plan_table(costs, study))
    largest, memory_gib = max(costs, key=lambda c: c.memory_gib), study.memory_gib
    if memory_gib is not None and largest.memory_gib > memory_gib:
        raise UserError(f"--memory_gib {memory_gib:g}: run {largest.run.name} alone needs {largest.memory_gib:.1f} GiB")
    needs = {"budget_hours": sum(c.hours for c in costs), "budget_disk_gib": sum(c.disk_gib for c in costs)}
    for option, needed in needs.items():
        if (allowed := getattr(study, option)) is not None and needed > allowed:
            less = "train fewer or smaller sizes, fewer seeds or fewer epochs"
            raise UserError(f"--{option} {allowed:g}: the study may take {needed:.2f}: raise this limit, or {less}")


def hours_by_run(study: Study, runs: list[PlannedRun]) -> dict[str, float]:
    """By run, the hours of a core, or of a GPU for runs on GPUs, that it has taken up to its last evaluation."""
    hours, threads = dict[str, float](), read_json(study.folder / "study.json", {}).get("threads", {})
    for run in runs:
        place = study.placement(run.config)
        wall_s = sum(point.wall_s for point in run_of_study(study.folder, run.name).points[-1:])
        cores = place.ranks if place.gpus else threads.get(run.name, study.threads)
        hours[run.name] = run.own * wall_s * cores / 3600
    return hours
