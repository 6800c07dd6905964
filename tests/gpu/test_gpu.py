"""What only a GPU can show: `pytest -m gpu`, skipped where there is none.

LREC_GPU_TESTS=cpu runs them on the CPU, to see that they run at all."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lrec.model import memory
from lrec.model.config import TransformerConfig
from lrec.model.network_sizes import find_size

DEVICE = os.environ.get("LREC_GPU_TESTS", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no GPU"),
]

STEPS = 8
OPTIONS = [
    "--config=data/synthetic.yaml",
    *("--data.n_users=2000", "--data.n_items=500", "--data.length=40", "--data.max_len=32"),
    *("--data.targets_per_step=2048", "--model.size=98k", "--model.optimizer.lr=0.003"),
    *(f"--trainer.max_steps={STEPS}", "--trainer.val_check_interval=2", "--trainer.enable_progress_bar=false"),
    *("--trainer.num_sanity_val_steps=0", "--trainer.enable_model_summary=false"),
]
ON = {"cuda": "--trainer.accelerator=gpu", "cpu": "--trainer.accelerator=cpu"}

# From the third step on, a step that waits for the GPU is an error. So is a batch of an evaluation from the second
# batch on: the first brings the order of the items by popularity to the GPU. What is logged may wait.
STRICT = """
import torch
from lightning.pytorch import Callback

class Strict(Callback):
    def _set(self, mode):
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode(mode)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self._set("error" if trainer.global_step >= 2 else "default")

    def on_train_batch_end(self, *_):
        self._set("default")

    def on_validation_batch_start(self, trainer, module, batch, batch_idx):
        self._set("error" if batch_idx >= 1 else "default")

    def on_validation_batch_end(self, *_):
        self._set("default")

"""
GRAPHS = """
import json
import torch
from lightning.pytorch import Callback

class Graphs(Callback):
    def __init__(self, path: str):
        self.path, self.seen = path, []

    def on_train_epoch_end(self, trainer, module):
        self.seen.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        with open(self.path, "w") as out:
            json.dump(self.seen, out)
"""


@pytest.fixture
def fit(tmp_path: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train a run of that name in a folder of the current folder."""
    monkeypatch.chdir(tmp_path)

    def train(name: str, device: str, *options: str) -> Path:
        where = [ON[device], f"--data.data_dir={tmp_path / 'data'}", f"--trainer.default_root_dir={tmp_path / name}"]
        devices = [] if any("trainer.devices" in option for option in options) else ["--trainer.devices=1"]
        lrec("fit", *OPTIONS, *where, *devices, *options)
        return tmp_path / name

    return train


def losses(run: Path) -> list[float]:
    points: list[dict[str, Any]] = [json.loads(line) for line in (run / "points.jsonl").read_text().splitlines()]
    return [point[name] for point in points for name in ("train_loss", "val_loss")]


def test_neither_a_step_nor_an_evaluation_waits_for_the_gpu(fit: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "strict.py").write_text(STRICT)
    fit("strict", DEVICE, "--trainer.callbacks+=strict.Strict", "--trainer.log_every_n_steps=1000")


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-4), ("bf16-mixed", 5e-3)])
def test_losses_are_those_of_the_cpu(precision: str, tolerance: float, fit: Callable[..., Path]) -> None:
    """In float32, only the order of sums differs; bfloat16 has only 8 significant bits."""
    chosen = f"--trainer.precision={precision}"
    here, there = fit("here", "cpu", "--trainer.precision=32-true"), fit("there", DEVICE, chosen)
    assert losses(there) == pytest.approx(losses(here), rel=tolerance)


def test_nothing_is_compiled_again_after_the_first_epoch(fit: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "graphs.py").write_text(GRAPHS)
    seen = tmp_path / "graphs.json"
    watch = json.dumps({"class_path": "graphs.Graphs", "init_args": {"path": str(seen)}})
    epochs = ["--trainer.max_steps=-1", "--trainer.max_epochs=3", "--trainer.val_check_interval=1.0"]
    fit("compiled", DEVICE, "--model.compile_blocks=true", f"--trainer.callbacks+={watch}", *epochs)
    first, *later = json.loads(seen.read_text())
    assert first > 0
    assert set(later) == {first}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
def test_all_gpus_together_take_the_steps_of_one(fit: Callable[..., Path]) -> None:
    devices = f"--trainer.devices={torch.cuda.device_count()}"
    one, all_of_them = fit("one", DEVICE), fit("all", DEVICE, devices, "--trainer.strategy=fsdp2")
    assert losses(all_of_them) == pytest.approx(losses(one), rel=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_memory_is_at_most_what_lrec_sizes_says(precision: memory.Precision, fit: Callable[..., Path]) -> None:
    large = ["--model.size=9.4m", f"--trainer.precision={precision}", "--trainer.limit_val_batches=1"]
    run = fit("memory", DEVICE, *large)
    estimate = memory.of_step(TransformerConfig(500, 32, *find_size("9.4m")), 2048, precision, device="cuda")
    peak_gib = json.loads((run / "throughput.json").read_text())["memory_gib"]
    # On a CPU the peak is that of the whole process.
    assert DEVICE == "cpu" or 0.5 * estimate.total < peak_gib * 2**30 < 1.1 * estimate.total
