"""No step of training and no batch of evaluation would wait for a GPU, as far as a CPU can tell."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lrec.common import cpu_threads

WATCH = """
from lightning.pytorch import Callback
from host_waits import HostWaits

STEPS, EVALUATION = HostWaits(), HostWaits()


class Watch(Callback):
    def on_train_batch_start(self, *_):
        STEPS.__enter__()

    def on_train_batch_end(self, *_):
        STEPS.__exit__(None, None, None)

    # The first batch brings the order of the items by popularity to the device.
    def on_validation_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx > 0:
            EVALUATION.__enter__()

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if batch_idx > 0:
            EVALUATION.__exit__(None, None, None)
"""
OPTIONS = [
    *("fit", "--config=data/synthetic.yaml", "--config=trainer/laptop.yaml", "--model.size=1.7k"),
    *("--data.n_users=1100", "--data.n_items=20", "--data.length=8", "--data.max_len=4", "--data.targets_per_step=64"),
    *("--model.dropout.embedding=0.1", "--model.dropout.attention={first: 0.1, last: 0.2}"),
    *("--trainer.max_steps=4", "--trainer.val_check_interval=2", "--trainer.log_every_n_steps=1000"),
    *("--trainer.accumulate_grad_batches=2", "--trainer.enable_progress_bar=false"),
    "--model.optimizer.switch={at: 2}",
]


@pytest.mark.parametrize("loss", ["FullSoftmax", "NextItems", "SampledSoftmax", "GBCE"])
def test_nothing_asks_the_device(
    loss: str, tmp_path: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_threads, "is_cpu", lambda device: False)  # on a CPU, evaluation takes another path
    module = f"watch_{loss.lower()}"
    (tmp_path / f"{module}.py").write_text(WATCH)
    monkeypatch.chdir(tmp_path)
    lrec(*OPTIONS, f"--model.loss={loss}", f"--trainer.callbacks+={module}.Watch", "--trainer.default_root_dir=run")
    watched = __import__(module)
    for waits in (watched.STEPS, watched.EVALUATION):
        assert waits.operators > 100
        assert not waits.seen
