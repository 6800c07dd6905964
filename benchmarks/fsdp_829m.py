"""The 829m size on two CPU processes: built on the meta device, sharded, trained, saved, reloaded and trained on.

    OMP_NUM_THREADS=1 python benchmarks/fsdp_829m.py [--size 829m] [--precision bf16-true] [--processes 2]

Two runs of the same three steps. The first saves after the second step and takes the third; the other starts from that
checkpoint, and its third step must have the same loss, to the last bit. A row is added to benchmarks/fsdp_829m.md.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from rows import commit

ITEMS, USERS, LENGTH, MAX_LEN = 26_427, 2_000, 60, 50
STEPS, SAVED_AFTER = 3, 2
TITLES = (
    "size, N_total", "processes", "precision", "targets a step", "build, s", "steps, s", "save, s", "load, s",
    "step after reload, s", "checkpoint, GiB", "peak of a process, GiB", "peak in total, GiB", "versions", "machine",
    "commit",
)  # fmt: skip
HEADER = f"""# 829 million parameters on two CPU processes

The largest size of the LSRM ladder, trained by lrec's own code: `lrec.model.parallelize.build` on the meta device,
FSDP2 over gloo, AdamW, activation checkpointing, gradient clipping, {ITEMS:,} items, windows of {MAX_LEN}. The run has
three steps, and is saved after the second. New processes load it and repeat the third step: its loss is the same to the
last bit, or the benchmark fails. The peak of a process is its largest resident size. The peak in total is the largest
sum of both processes' proportional sizes, sampled twice a second.

    OMP_NUM_THREADS=1 python benchmarks/fsdp_829m.py

| {" | ".join(TITLES)} |
|{"---|" * len(TITLES)}
"""


def train(arguments: argparse.Namespace) -> None:
    """One process of one run: leaves RANK.json with what it measured."""
    from lightning.pytorch import Callback, Trainer, seed_everything

    from lrec.data.sources.interactions import InteractionsDataModule
    from lrec.model import cost
    from lrec.training.module import SequentialRecommender
    from lrec.training.strategies import FSDP2

    clock = time.perf_counter
    measured: dict[str, Any] = {"steps": [], "losses": []}
    checkpoint = arguments.folder / "second.ckpt"

    class Stopwatch(Callback):
        def setup(self, *_: Any, **__: Any) -> None:
            self.start = clock()

        def on_fit_start(self, *_: Any) -> None:
            measured["build"] = clock() - self.start
            self.start = clock()

        def on_train_start(self, *_: Any) -> None:
            measured["load"] = clock() - self.start

        def on_train_batch_start(self, *_: Any) -> None:
            self.start = clock()

        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
            measured["steps"].append(clock() - self.start)
            measured["losses"].append(float(trainer.strategy.reduce(outputs["loss"].double(), reduce_op="mean")))
            if not arguments.resume and trainer.global_step == SAVED_AFTER:
                start = clock()
                trainer.save_checkpoint(checkpoint)
                measured["save"] = clock() - start

    seed_everything(0)
    data = InteractionsDataModule(
        path=arguments.folder / "log.csv",
        user_column="user",
        item_column="item",
        time_column=None,
        data_dir=arguments.folder,
        max_len=MAX_LEN,
        targets_per_step=arguments.targets,
    )
    module = SequentialRecommender(size=arguments.size, checkpoint_activations=True)
    trainer = Trainer(
        accelerator="cpu",
        devices=arguments.processes,
        strategy=FSDP2(),
        precision=arguments.precision,
        max_steps=STEPS,
        gradient_clip_val=1.0,
        callbacks=[Stopwatch()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data, ckpt_path=checkpoint if arguments.resume else None)
    status = Path("/proc/self/status").read_text()
    measured["peak"] = int(status.split("VmHWM:")[1].split()[0]) / 2**20
    measured["n_total"] = cost.n_total(module.config)
    (arguments.folder / f"{trainer.global_rank}.json").write_text(json.dumps(measured))


def run(arguments: argparse.Namespace, resume: bool) -> tuple[list[dict[str, Any]], float]:
    """Run all processes once: what each measured, and the peak of the sum of their sizes."""
    command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(arguments.folder)]
    process = subprocess.Popen([*command, "--resume"] if resume else [*command, "--train"])
    peak = [0.0]
    sampler = threading.Thread(target=sample, args=(process, peak))
    sampler.start()
    status = process.wait()
    sampler.join()
    if status:
        raise SystemExit(f"a run failed with {status}")
    return [json.loads((arguments.folder / f"{rank}.json").read_text()) for rank in range(arguments.processes)], peak[0]


def sample(process: "subprocess.Popen[bytes]", peak: list[float]) -> None:
    """Keep the largest sum of the proportional sizes of a process and its children."""
    while process.poll() is None:
        total = 0
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        except OSError:
            children = []
        for pid in [str(process.pid), *children]:
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += int(text.split("Pss:")[1].split()[0])
            except (OSError, IndexError):  # it has just ended
                continue
        peak[0] = max(peak[0], total / 2**20)
        time.sleep(0.5)


def report(arguments: argparse.Namespace) -> None:
    import numpy as np
    import torch

    random = np.random.default_rng(0)
    items = random.integers(0, arguments.items, (USERS, LENGTH))
    items.ravel()[: arguments.items] = np.arange(arguments.items)
    lines = (f"{user},{item}" for user, row in enumerate(items) for item in row)
    (arguments.folder / "log.csv").write_text("user,item\n" + "\n".join(lines) + "\n")
    load = os.getloadavg()[0]
    first, peak = run(arguments, resume=False)
    size = sum(file.stat().st_size for file in (arguments.folder / "second.ckpt").iterdir()) / 2**30
    again, peak_again = run(arguments, resume=True)
    assert again[0]["losses"] == first[0]["losses"][SAVED_AFTER:], (first[0]["losses"], again[0]["losses"])
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    cells = (
        f"{arguments.size}, {first[0]['n_total']:,}",
        arguments.processes,
        arguments.precision,
        arguments.targets,
        f"{first[0]['build']:.1f}",
        ", ".join(f"{step:.1f}" for step in first[0]["steps"]),
        f"{first[0]['save']:.1f}",
        f"{again[0]['load']:.1f}",
        f"{again[0]['steps'][0]:.1f}",
        f"{size:.2f}",
        f"{max(rank['peak'] for rank in first + again):.2f}",
        f"{max(peak, peak_again):.2f}",
        f"torch {torch.__version__}, Python {platform.python_version()}",
        f"{os.cpu_count()} cores {platform.machine()}, {memory:.0f} GiB, load {load:.1f}",
        commit(),
    )
    page = Path(__file__).with_suffix(".md")
    if not page.exists():
        page.write_text(HEADER)
    with page.open("a") as out:
        out.write(f"| {' | '.join(map(str, cells))} |\n")
    print(f"losses {first[0]['losses']}, after the reload {again[0]['losses']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="829m")
    parser.add_argument("--precision", default="bf16-true", choices=["bf16-true", "32-true"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--targets", type=int, default=100, help="targets of a step over all processes")
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train or arguments.resume:
        train(arguments)
        return
    arguments.folder = Path(tempfile.mkdtemp(prefix="lrec-fsdp-"))
    try:
        report(arguments)
    finally:
        shutil.rmtree(arguments.folder)


if __name__ == "__main__":
    main()
