"""How fast the training loader is alone, compared with what a model consumes; and the memory of its workers.

    python benchmarks/loader.py [--rows 20000263] [--steps 20]

Generates a file of MovieLens-20M's shape, prepares it, goes over an epoch of batches with 0, 1 and 2 worker processes,
trains the network of size 98k for some steps on the same batches, and writes benchmarks/loader.md.
"""

import argparse
import multiprocessing
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import polars
import prepare
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from rows import commit

from lrec.common.files import write_text
from lrec.data.sources.movielens import MovieLensDataModule
from lrec.training.module import SequentialRecommender

SIZE, MAX_LEN, TARGETS_PER_STEP, WARM_UP = "98k", 50, 4096, 5
# Shares of an epoch after which the workers' memory is read.
MOMENTS = (0.1, 0.5, 0.9)
PAGE = """# The training loader alone

The loader makes an epoch of training batches, and nothing uses them. The data are generated in MovieLens-20M's shape
({rows:,} rows, {users:,} users, {items:,} items; {targets:,} targets in {steps:,} steps of {per_step:,},
windows of at most {length} items). For comparison, the network of size {size} (2 blocks, width 64, full softmax, CPU,
{threads} threads) trains on the same batches. Only positions with a target count. Memory is what a worker process has
for itself (private pages), after {moments} of the epoch. All processes share the memory-mapped store.

    python benchmarks/loader.py

{machine}.

| workers | positions/s | times the model's | MiB of each worker |
|---|---|---|---|
{rows_of_table}

The model consumes {model:,.0f} positions/s. The loader should have at least 10 times as many, at constant memory:
{verdict}.
"""


def private_mib(pid: int) -> float:
    """Memory that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def drain(data: MovieLensDataModule, workers: int) -> tuple[float, list[list[float]]]:
    """Positions per second over an epoch, and each worker's memory at the MOMENTS."""
    data.num_workers = workers
    loader = data.train_dataloader()
    moments = {int(share * len(loader)) for share in MOMENTS}
    positions, pauses, memory = 0, 0.0, []
    start = time.monotonic()
    for number, batch in enumerate(loader):
        positions += len(batch.targets_M)
        if workers and number in moments:
            begin = time.monotonic()
            memory.append([private_mib(child.pid) for child in multiprocessing.active_children() if child.pid])
            pauses += time.monotonic() - begin
    return positions / (time.monotonic() - start - pauses), memory


class Clock(Callback):
    """Times training steps after the first few."""

    def __init__(self) -> None:
        self.begin = 0.0
        self.positions = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == WARM_UP:
            self.begin = time.monotonic()
        elif batch_idx >= WARM_UP:
            self.positions += len(batch.targets_M)


def consume(data: MovieLensDataModule, steps: int) -> float:
    """Positions per second of training."""
    seed_everything(0)
    data.num_workers = 0
    clock = Clock()
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=WARM_UP + steps, limit_val_batches=0, logger=False, callbacks=[clock],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(SequentialRecommender(SIZE), data)
    return clock.positions / (time.monotonic() - clock.begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=prepare.ROWS)
    parser.add_argument("--steps", type=int, default=20, help="training steps of the model that are timed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lrec-loader-") as folder:
        file = Path(folder) / "ratings.csv"
        prepare.generate(file, arguments.rows, repeated=0)
        data = MovieLensDataModule(path=file, data_dir=Path(folder), max_len=MAX_LEN, targets_per_step=TARGETS_PER_STEP)
        data.prepare_data()
        data.setup()
        model = consume(data, arguments.steps)
        table, reached = [], True
        for workers in (0, 1, 2):
            speed, memory = drain(data, workers)
            each = "; ".join(" -> ".join(f"{mib:.0f}" for mib in worker) for worker in zip(*memory, strict=True))
            table.append(f"| {workers} | {speed:,.0f} | {speed / model:,.0f} | {each or '-'} |")
            print(table[-1], flush=True)
            reached &= speed >= 10 * model
            reached &= all(max(worker) <= 1.05 * min(worker) + 1 for worker in zip(*memory, strict=True))
        machine = (
            f"{os.cpu_count()} cores {platform.machine()}, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, "
            f"polars {polars.__version__}, Python {platform.python_version()}, commit {commit()}"
        )
        page = PAGE.format(
            targets=data.U, steps=data.steps_per_epoch, per_step=TARGETS_PER_STEP, length=MAX_LEN, size=SIZE,
            users=data.store.n_users, items=data.n_items, rows=arguments.rows, threads=torch.get_num_threads(),
            moments=", ".join(f"{share:.0%}" for share in MOMENTS), machine=machine, rows_of_table="\n".join(table),
            model=model, verdict="reached" if reached else "**not reached**",
        )  # fmt: skip
    write_text(Path(__file__).with_suffix(".md"), page)


if __name__ == "__main__":
    main()
