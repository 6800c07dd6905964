"""Throughput: how fast a run trains, how much of that is not padding, and what share of the machine's peak it uses."""

import resource
import sys
import time
from functools import cache
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from lrec.common.files import write_json
from lrec.training.callbacks import Announcer
from lrec.training.checkpoint_callbacks import run_of
from lrec.training.module import recommender
from lrec.training.strategies import products_of
from lrec.training.tally import logs_now

# Side of the square matrices whose product measures the peak: large enough for the best rate, small enough to be quick.
PEAK_SIDE = {"cpu": 1024, "cuda": 8192}
PEAK_SECONDS = 0.2
# 10^12 FLOPs per second that vendors state for dense bfloat16 products, by a part of the GPU's name. Lightning's own
# table has the figures for sparse products, which are twice as high. NVL is a slower form of H100 and H200.
NOMINAL = {"NVL": 835, "H100 PCIe": 756, "B200": 2250, "H200": 989, "H100": 989, "A100": 312, "L40S": 362}


class Throughput(Announcer):
    """Log perf/ every `log_every_n_steps`, and write RUN/throughput.json and a line at the end of fit. Both are of
    the steps since the run began or was resumed.

    lrec reads the clock only when Lightning logs, so that a GPU does not wait at every step.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device, dtype = pl_module.device, products_of(trainer)
        rounded = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
        self._products = "TF32" if rounded and device.type == "cuda" else str(dtype).removeprefix("torch.")
        self._peak_flops_per_s = measure_peak(device, dtype, torch.get_num_threads())
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._positions = self._real = 0
        self._spent_s, self._since = 0.0, _now(device)
        self._first_step = trainer.global_step
        self._at_start = self._logged = self._counts(pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._spent_s = self._counts(pl_module)[-1]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._since = _now(pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._positions += batch.items_BL.numel()
        self._real += batch.n_positions
        if logs_now(trainer, batch_idx):
            counts = self._counts(pl_module)
            rate = self._rate(self._logged, counts, trainer)
            shown = (name for name, value in rate.items() if isinstance(value, float) and name != "seconds")
            pl_module.log_dict({f"perf/{name}": rate[name] for name in shown})
            self._logged = counts

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rate = self._rate(self._at_start, self._counts(pl_module), trainer)
        if trainer.is_global_zero:
            share = rate["mfu_nominal"]
            nominal = "" if share is None else f" and {share:.0%} of the GPU's nominal rate"
            since = f", since step {self._first_step:,}" if self._first_step else ""
            self.message = (
                f"{rate['targets_per_s']:,.0f} targets/s, {rate['real_share']:.1%} of the positions real, "
                f"{rate['flops_per_s'] / 1e9:,.1f} GFLOP/s = {rate['mfu']:.0%} of the {self._products} products' "
                f"{self._peak_flops_per_s / 1e9:,.0f} on each rank{nominal}, {rate['memory_gib']:.2f} GiB{since}"
            )
            write_json(run_of(trainer).folder / "throughput.json", rate | {"since_step": self._first_step})

    def _counts(self, pl_module: LightningModule) -> tuple[float, ...]:
        """Targets and FLOPs of all ranks, positions of this rank, how many of them are real, and seconds, so far."""
        model, seconds = recommender(pl_module), self._spent_s + _now(pl_module.device) - self._since
        return model.D, model.flops, self._positions, self._real, seconds

    def _rate(self, before: tuple[float, ...], after: tuple[float, ...], trainer: Trainer) -> dict[str, Any]:
        """The speed of a part of training. Its time includes waiting for data and for saves, but not evaluation."""
        targets, flops, positions, real, seconds = (now - then for now, then in zip(after, before, strict=True))
        device, flops_per_s = trainer.strategy.root_device, flops / seconds
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident
        nominal = nominal_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        return {
            "targets_per_s": targets / seconds,  # without padding, over all ranks
            "real_share": real / max(positions, 1),  # share of this rank's positions that are not padding
            "flops_per_s": flops_per_s,  # of forward and backward, over all ranks: blocks, attention, head
            # Model FLOPs utilisation: the share of the ranks' measured rate of matrix products, and the share of the
            # vendor's rate for bfloat16, as in publications.
            "mfu": flops_per_s / (self._peak_flops_per_s * trainer.world_size),
            "mfu_nominal": flops_per_s / (nominal * trainer.world_size) if nominal else None,
            "peak_flops_per_s": self._peak_flops_per_s,  # the measured rate of one rank
            "products": self._products,  # their type: bfloat16, float16, float32, or TF32 if a GPU may round to it
            "memory_gib": memory / 2**30,  # this rank's peak so far: allocated on a GPU, or the process on a CPU
            "seconds": seconds,
        }


def nominal_of(gpu: str) -> float | None:
    """The vendor's FLOPs per second of a GPU, by its name; None if it is not known."""
    return next((rate * 1e12 for name, rate in NOMINAL.items() if name in gpu), None)


@cache
def measure_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """FLOPs per second of a large square matrix product, the best of all products within a fifth of a second; `threads`
    is the number that torch uses. The result is cached, so that a second fit in a notebook does not wait again."""
    side = PEAK_SIDE.get(device.type, 1024)
    # Random numbers: a GPU needs less power for ones, and would be faster than it ever is in training.
    generator = torch.Generator(device).manual_seed(0)
    matrix = torch.randn(side, side, device=device, generator=generator).to(dtype)
    product = matrix @ matrix
    best, spent = float("inf"), 0.0
    while spent < PEAK_SECONDS:
        start = _now(device)
        torch.mm(matrix, matrix, out=product)
        seconds = _now(device) - start
        best, spent = min(best, seconds), spent + seconds
    return 2 * side**3 / best


def _now(device: torch.device) -> float:
    """The clock in seconds, after a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
