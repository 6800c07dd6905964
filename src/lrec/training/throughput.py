"""Throughput: how fast a run trains, how much of it is real work, and how close it is to what the machine can do."""

import resource
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from lrec.common.files import write_json
from lrec.data.batching.train_batches import TrainBatch
from lrec.training.module import SequentialRecommender, recommender
from lrec.training.strategies import precision_of
from lrec.training.train_loss import logs_now

GIB = 2**30
# Side of the square matrices whose product is the measure: large enough for the best rate, small enough to be quick.
PEAK_SIDE = {"cpu": 1024, "cuda": 8192}
PEAK_SECONDS = 0.2
# FLOPs per second that vendors state for dense bfloat16 products, by a part of the GPU's name.
NOMINAL = {"B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12}


@dataclass(frozen=True)
class Rate:
    """The speed of a part of training; evaluation and saving do not count, waiting for data does.

    Attributes:
        targets_per_s: Real targets per second, over all ranks.
        real_share: Share of the positions of this rank's batches that are real, not padding.
        flops_per_s: FLOPs of forward and backward per second, over all ranks: blocks, attention, head.
        mfu: Model FLOPs utilisation: the share of the ranks' measured matrix-product rate.
        mfu_nominal: The share of the rate that the vendor states for bfloat16, as publications give it; None where that
            is not known.
        peak_flops_per_s: Measured rate of one rank.
        products: What products are computed in: bfloat16, float16, float32, or TF32 where a GPU may round to it.
        memory_gib: Peak memory of this rank so far: allocated on a GPU, the process on a CPU.
        seconds: Duration of this part.
    """

    targets_per_s: float
    real_share: float
    flops_per_s: float
    mfu: float
    mfu_nominal: float | None
    peak_flops_per_s: float
    products: str
    memory_gib: float
    seconds: float

    def line(self) -> str:
        """As one line of text."""
        nominal = "" if self.mfu_nominal is None else f" and {self.mfu_nominal:.0%} of the GPU's nominal rate"
        return (
            f"{self.targets_per_s:,.0f} targets/s, {self.real_share:.1%} of the positions real, "
            f"{self.flops_per_s / 1e9:,.1f} GFLOP/s = {self.mfu:.0%} of the {self.products} products' "
            f"{self.peak_flops_per_s / 1e9:,.0f} on each rank{nominal}, {self.memory_gib:.2f} GiB"
        )


class Throughput(Callback):
    """Log perf/ every `log_every_n_steps`, and write RUN/throughput.json and a line at the end of fit.

    Clocks are read when Lightning logs, so that a GPU does not have to wait at every step.
    """

    def __init__(self) -> None:
        """No options."""
        self.summary: str | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the peak, start the clock."""
        model = recommender(pl_module)
        dtype = _matmul_dtype(trainer)
        self.peak_flops_per_s, self.products = measure_peak(model.device, dtype), products(model.device, dtype)
        _hint_at_float32(trainer, model.device, dtype, self.peak_flops_per_s)
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(model.device)
        self.total = _Stretch(model)
        self.recent = _Stretch(model)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: evaluation is not training."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._each("pause", recommender(pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start it again."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._each("resume", recommender(pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: TrainBatch, batch_idx: int
    ) -> None:
        """Count the batch; log where Lightning does."""
        for stretch in (self.total, self.recent):
            stretch.positions += batch.items_BL.numel()
            stretch.real += len(batch.targets_M)
        if logs_now(trainer, batch_idx):
            rate = self.recent.rate(trainer, recommender(pl_module), self.peak_flops_per_s, self.products)
            numbers = {name: value for name, value in asdict(rate).items() if isinstance(value, float)}
            shown = {f"perf/{name}": value for name, value in numbers.items() if name != "seconds"}
            pl_module.log_dict(shown)
            self.recent = _Stretch(recommender(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report the whole fit."""
        rate = self.total.rate(trainer, recommender(pl_module), self.peak_flops_per_s, self.products)
        if rate.seconds > 0:
            self._report(trainer, rate)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the line once the progress bar is closed."""
        if self.summary is not None:
            print(self.summary)
        self.summary = None

    @rank_zero_only
    def _report(self, trainer: Trainer, rate: Rate) -> None:
        self.summary = rate.line()
        write_json(Path(trainer.default_root_dir) / "throughput.json", asdict(rate))

    def _each(self, action: str, model: SequentialRecommender) -> None:
        _synchronize(model.device)
        for stretch in (self.total, self.recent):
            getattr(stretch, action)()


class _Stretch:
    """Counts between two readings of a clock that can be stopped."""

    def __init__(self, model: SequentialRecommender) -> None:
        self.D, self.flops = model.D, model.flops
        self.positions = self.real = 0
        self.spent_s = 0.0
        self.started: float | None = time.perf_counter()

    def pause(self) -> None:
        if self.started is not None:
            self.spent_s += time.perf_counter() - self.started
        self.started = None

    def resume(self) -> None:
        self.started = time.perf_counter()

    def rate(self, trainer: Trainer, model: SequentialRecommender, peak_flops_per_s: float, products: str) -> Rate:
        _synchronize(model.device)
        running_s = 0.0 if self.started is None else time.perf_counter() - self.started
        seconds = self.spent_s + running_s
        per_second = 1 / seconds if seconds > 0 else 0.0
        flops_per_s = (model.flops - self.flops) * per_second
        nominal = nominal_peak(model.device)
        return Rate(
            targets_per_s=(model.D - self.D) * per_second,
            real_share=self.real / max(self.positions, 1),
            flops_per_s=flops_per_s,
            mfu=flops_per_s / (peak_flops_per_s * trainer.world_size),
            mfu_nominal=flops_per_s / (nominal * trainer.world_size) if nominal else None,
            peak_flops_per_s=peak_flops_per_s,
            products=products,
            memory_gib=peak_memory_gib(model.device),
            seconds=seconds,
        )


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOPs per second of a large square matrix product, the best of as many as run in a fifth of a second.

    A process measures each once: a second fit in a notebook does not wait again.
    """
    return _measured_peak(device, dtype, torch.get_num_threads())


@cache
def _measured_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    side = PEAK_SIDE.get(device.type, 1024)
    # Random numbers: a GPU multiplies ones with less power, and so faster, than it ever trains.
    generator = torch.Generator(device).manual_seed(0)
    matrix = torch.randn(side, side, device=device, generator=generator).to(dtype)
    product = matrix @ matrix
    best, spent = float("inf"), 0.0
    while spent < PEAK_SECONDS:
        _synchronize(device)
        start = time.perf_counter()
        torch.mm(matrix, matrix, out=product)
        _synchronize(device)
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds), spent + seconds
    return 2 * side**3 / best


def nominal_peak(device: torch.device) -> float | None:
    """FLOPs per second of a GPU's dense bfloat16 products as its vendor states them; None where that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in NOMINAL.items() if part in name), None)


def products(device: torch.device, dtype: torch.dtype) -> str:
    """What matrix products are computed in."""
    if dtype == torch.float32 and device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        return "TF32"
    return str(dtype).removeprefix("torch.")


@rank_zero_only
def _hint_at_float32(trainer: Trainer, device: torch.device, dtype: torch.dtype, peak_flops_per_s: float) -> None:
    """Print a hint if the processor has no instructions for the type, which slows training down many times."""
    if device.type != "cpu" or dtype == torch.float32:
        return
    float32 = measure_peak(device, torch.float32)
    if float32 > 2 * peak_flops_per_s:
        by_strategy = precision_of(trainer) != str(trainer.precision)
        way_out = "no param_dtype of the strategy" if by_strategy else "--trainer.precision 32-true"
        print(
            f"this processor multiplies at {peak_flops_per_s / 1e9:,.0f} GFLOP/s in {dtype}, "
            f"at {float32 / 1e9:,.0f} in float32: {way_out} is faster here"
        )


def peak_memory_gib(device: torch.device) -> float:
    """Largest memory so far: allocated on a GPU, resident of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def _matmul_dtype(trainer: Trainer) -> torch.dtype:
    precision = precision_of(trainer)
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else torch.float32


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
