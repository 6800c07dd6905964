"""perf/ in TensorBoard, throughput.json and the line at the end of fit; training on the sampled losses."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lrec.model import cost
from lrec.model.config import TransformerConfig
from lrec.training import lightning_options
from lrec.training.throughput import measure_peak, nominal_of

QUICK = (
    "--data=lrec.SyntheticDataModule",
    "--data.n_users=200",
    "--data.n_items=50",
    "--data.targets_per_step=512",
    "--config=trainer/laptop.yaml",
    "--model.size=3k",
    "--trainer.enable_progress_bar=false",
)


@pytest.fixture
def fit(lrec: Callable[..., str], tmp_path: Path) -> Callable[..., tuple[str, Path]]:
    def run(*options: str) -> tuple[str, Path]:
        folder = tmp_path / "run"
        printed = lrec("fit", *QUICK, f"--data.data_dir={tmp_path}", f"--trainer.default_root_dir={folder}", *options)
        return printed, folder

    return run


def test_a_run_says_how_fast_it_was(fit: Callable[..., tuple[str, Path]]) -> None:
    started = time.monotonic()
    printed, run = fit("--trainer.max_epochs=2", "--trainer.enable_progress_bar=true")
    took = time.monotonic() - started
    figures = json.loads((run / "throughput.json").read_text())
    points = [json.loads(line) for line in (run / "points.jsonl").read_text().splitlines()]
    assert figures["targets_per_s"] * figures["seconds"] == pytest.approx(points[-1]["D"])
    assert figures["flops_per_s"] * figures["seconds"] == pytest.approx(points[-1]["flops"])
    assert figures["mfu"] == pytest.approx(figures["flops_per_s"] / figures["peak_flops_per_s"])
    assert figures["seconds"] < took
    assert figures["mfu_nominal"] is None, "no vendor states it for a CPU"
    assert figures["products"] == "float32"
    assert "of the float32 products'" in printed
    assert 0.9 < figures["real_share"] <= 1
    assert f"{figures['targets_per_s']:,.0f} targets/s" in printed
    assert re.search(r"it/s, train/loss=\d\.\d+, val/loss=\d\.\d+", printed), "the progress bar, within 80 columns"
    events = EventAccumulator(str(run))
    events.Reload()
    shown = {f"various/perf/{name}" for name in ("targets_per_s", "mfu", "real_share", "memory_gib")}
    assert shown <= set(events.Tags()["scalars"])


@pytest.mark.parametrize(
    ("gpu", "dense"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA H100 NVL", 835e12), ("Tesla T4", None)],
)
def test_the_nominal_rate_is_of_dense_products(gpu: str, dense: float | None) -> None:
    assert nominal_of(gpu) == dense


@pytest.mark.parametrize("loss", ["FullSoftmax", "SampledSoftmax"])
def test_a_large_catalogue_with_full_softmax_is_said_to_be_slow(
    loss: str, fit: Callable[..., tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lightning_options, "MANY_ITEMS", 20)
    printed, _ = fit(f"--model.loss={loss}", "--trainer.fast_dev_run=true")
    assert ("--model.loss SampledSoftmax compares it with a few" in printed) == (loss == "FullSoftmax")


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_a_precision_that_the_processor_lacks_is_said_at_once(
    has_bfloat16: bool, fit: Callable[..., tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LREC_PRECISION")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bfloat16})
    printed, _ = fit("--trainer.precision=bf16-mixed", "--trainer.fast_dev_run=true")
    assert ("32-true is faster here" in printed) != has_bfloat16


def test_flops_are_those_of_the_windows_as_they_are(fit: Callable[..., tuple[str, Path]]) -> None:
    """The synthetic users have the same length and fit into one window, so the sum over windows has a formula."""
    _, run = fit("--trainer.max_epochs=1", "--data.length=20", "--data.max_len=50")
    point = json.loads((run / "points.jsonl").read_text().splitlines()[-1])
    targets, users = 17, point["U"] // 17
    assert point["U"] == users * targets
    pairs = users * targets * (targets + 1) // 2
    config = TransformerConfig(50, 50, 1, 16, 1)
    assert point["flops"] == cost.training_flops(config, point["D"], pairs, 6 * 50 * 16)


def test_full_windows_cost_what_the_upper_bound_says() -> None:
    config = TransformerConfig(1000, 50, 2, 64, 2)
    full = cost.training_flops(config, 50, 50 * 51 // 2, 6 * cost.n_head(config))
    assert full == 50 * sum(cost.flops_per_interaction(config))


def test_the_peak_is_that_of_a_plain_product() -> None:
    matrix = torch.ones(1024, 1024)
    import time

    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    measured = measure_peak.__wrapped__(torch.device("cpu"), torch.float32, torch.get_num_threads())
    assert measured > 0.3 * 2 * 1024**3 / best


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["lrec.SampledSoftmax", "lrec.GBCE"])
def test_sampled_losses_train_and_are_evaluated_on_the_whole_catalogue(
    loss: str, fit: Callable[..., tuple[str, Path]]
) -> None:
    _, run = fit(
        "--trainer.max_epochs=5",
        "--data.n_users=1000",
        f"--model.loss={loss}",
        "--model.loss.negatives=20",
        "--model.optimizer.lr=0.01",
        f"--model.optimizer.touched_rows={str(loss == 'lrec.GBCE').lower()}",
        "--trainer.gradient_clip_val=1.0",
        "--checkpoint.monitor=val/NDCG@10",  # gBCE's scores are no log-probabilities: their cross-entropy says little
        "--early_stopping.monitor=val/NDCG@10",
    )
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["model"]["NDCG@10"] > 1.3 * metrics["popularity"]["NDCG@10"]
    if loss == "lrec.SampledSoftmax":
        assert metrics["floor"] < metrics["model"]["loss"] < metrics["popularity"]["loss"]


def test_an_impossible_loss_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    options = (*QUICK, f"--data.data_dir={tmp_path}", f"--trainer.default_root_dir={tmp_path / 'run'}")
    message = refused("fit", *options, "--model.loss=lrec.SampledSoftmax", "--model.loss.negatives=0")
    assert "negatives must be at least 1" in message


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--model.optimizer.switch=null", "use a sampled loss"),
        ("--trainer.gradient_clip_algorithm=value", "clip by norm"),
        ("--trainer.strategy=ddp", "use fsdp2"),
    ],
)
def test_touched_rows_where_every_row_has_a_gradient_is_refused(
    option: str, says: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    options = [*QUICK, f"--data.data_dir={tmp_path}", f"--trainer.default_root_dir={tmp_path / 'run'}", option]
    if says != "use a sampled loss":
        options += ["--model.loss=lrec.SampledSoftmax", "--trainer.gradient_clip_val=0.5"]
    assert says in refused("fit", *options, "--model.optimizer.touched_rows=true")
    assert not (tmp_path / "run").exists()
