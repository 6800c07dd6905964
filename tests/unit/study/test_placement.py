"""On what devices a study's runs train, which GPUs they see, and what that costs; tested without a GPU."""

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lrec.errors import UserError
from lrec.model import memory
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.losses import FullSoftmax
from lrec.run import RunConfig
from lrec.study import budget, launch
from lrec.study.grid import PlannedRun, planned_runs
from lrec.study.launch import train
from lrec.study.options import Study
from lrec.study.placement import Placement, here, placement

DATA = {"data.n_users": 100, "data.n_items": 30, "data.length": 10, "trainer.max_epochs": 1}


def config(**trainer: Any) -> RunConfig:
    return RunConfig({"trainer": trainer, "model": {}, "data": {}})


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"accelerator": "cpu"}, Placement("cpu", 1, 1, 1, 1, "32-true", False)),
        ({"accelerator": "cpu", "devices": 2, "strategy": "fsdp2"}, Placement("cpu", 1, 2, 2, 1, "32-true", False)),
        (
            {"accelerator": "gpu", "devices": "auto", "precision": "bf16-mixed"},
            Placement("cuda", 1, 4, 1, 1, "bf16-mixed", False),
        ),
        (
            {
                "accelerator": "gpu",
                "devices": 8,
                "num_nodes": 2,
                "accumulate_grad_batches": 3,
                "strategy": {"class_path": "lrec.FSDP2", "init_args": {"shard_group": 8, "param_dtype": "bfloat16"}},
            },
            Placement("cuda", 2, 8, 8, 3, "bf16-mixed", False),
        ),
    ],
)
def test_options_say_what_a_run_trains_on(trainer: dict[str, Any], expected: Placement) -> None:
    assert placement(config(**trainer), gpus_per_run=4) == expected


def test_a_study_chooses_the_gpus() -> None:
    with pytest.raises(UserError, match=r"--trainer\.devices \[1\]: a study chooses the GPUs itself"):
        placement(config(accelerator="gpu", devices=[1]))


def test_gpus_are_those_that_the_environment_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert here() == ("3", "5")
    for none in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert here() == ()


def on_gpus(tmp_path: Path, devices: dict[str, int], **limits: Any) -> tuple[Study, list[PlannedRun]]:
    study = Study(
        name="gpus",
        configs=["data/synthetic.yaml", "trainer/gpu.yaml"],
        sizes=list(devices),
        out=tmp_path,
        holdout=0,
        law=None,
        options=DATA | {"data.data_dir": str(tmp_path / "data")},
        size_options={size: {"trainer.devices": n} for size, n in devices.items()},
        **limits,
    )
    return study, planned_runs(study)


def test_runs_side_by_side_see_different_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, taken, seen = threading.Lock(), set[str](), list[list[str]]()

    class Processes(launch.Processes):
        def run(
            self,
            arguments: list[str],
            log: Path,
            threads: int,
            lock_number: int,
            variables: Mapping[str, str] | None = None,
        ) -> int:
            assert variables is not None
            mine = variables["CUDA_VISIBLE_DEVICES"].split(",")
            with lock:
                assert taken.isdisjoint(mine), "two runs share a GPU"
                taken.update(mine)
                seen.append(mine)
            time.sleep(0.05)
            with lock:
                taken.difference_update(mine)
            log.parent.mkdir(exist_ok=True, parents=True)
            log.write_text("lrec: error: as it happens\n")
            return 2

    monkeypatch.setattr(launch, "Processes", Processes)
    monkeypatch.setattr(launch, "POLL_S", 0.02)
    devices = {"0.8k": 1, "1.7k": 1, "3k": 2, "12k": 1}
    study, runs = on_gpus(tmp_path, devices, jobs=3, cores=3, gpus=(4, 5, 7))
    outcomes = list(train(study, runs))
    assert {outcome.status for _, outcome in outcomes} == {"failed"}
    assert sorted(map(len, seen)) == [1, 1, 1, 2]
    assert {name for mine in seen for name in mine} <= {"4", "5", "7"}
    with pytest.raises(UserError, match=r"run 3k-seed1 takes 2 GPUs: --gpus has 1"):
        list(train(replace(study, gpus=(0,)), runs))
    with pytest.raises(UserError, match=r"run 0\.8k-seed1 takes 1 GPU: --gpus has 0"):
        list(train(replace(study, gpus=()), runs))


def test_several_nodes_need_a_cluster(tmp_path: Path) -> None:
    study, (run,) = on_gpus(tmp_path, {"0.8k": 1}, gpus=(0,))
    options = run.options | {"trainer": run.options["trainer"] | {"num_nodes": 2}}
    with pytest.raises(UserError, match=r"run 0\.8k-seed1 trains on 2 nodes: --cluster"):
        list(train(study, [replace(run, options=options)]))


def test_a_plan_counts_gpu_hours_and_the_gpu_s_own_memory(tmp_path: Path) -> None:
    study = Study(
        name="large",
        configs=["data/synthetic.yaml", "trainer/fsdp.yaml"],
        sizes=["829m"],
        out=tmp_path,
        holdout=0,
        law=None,
        options=DATA | {"data.data_dir": str(tmp_path / "data"), "trainer.devices": 8},
        gpus=tuple(range(8)),
    )
    (run,) = planned_runs(study)
    (planned,) = budget.plan(study, [run])
    positions = run.config.value("data.targets_per_step") // 8
    step = memory.of_step(run.network(30), positions, "bf16-mixed", shards=8, device="cuda")
    assert planned.gpus == 8
    assert planned.gpu_gib == pytest.approx(step.total / 2**30)
    assert planned.gpu_gib < 8
    table = budget.plan_table([planned], study)
    assert "GPU-hours" in table
    assert "hours of one core" not in table
    if not here():
        assert "this machine has no GPU to measure" in table


def test_a_measured_step_is_no_faster_than_its_matrix_products() -> None:
    wide, narrow = (TransformerConfig(500, 20, 2, width, 2) for width in (256, 16))
    rates = [budget.training_rate(each, FullSoftmax(), 640, "32-true") for each in (narrow, wide)]
    assert rates[0] < rates[1] < 1e12


def test_a_step_updates_every_parameter() -> None:
    """A large table takes time in every step, although few of its rows are targets."""
    few, many, most = (budget.update_seconds(n) for n in (100_000, 5_000_000, 2**26))
    assert 0 < 5 * few < many < most
    assert most == pytest.approx(4 * budget.update_seconds(2**24))
    assert budget.update_seconds(2**26, "cuda") == 0


def test_a_plan_counts_the_products_of_muon() -> None:
    """They take most of a short step of a wide network: with 12 times the width, 12^3 times as many of them."""

    def seconds(width: int, muon: float | None, layers: int = 1) -> float:
        options = DATA | {"model.optimizer.muon": muon}
        study = Study(configs=["data/synthetic.yaml"], sizes=["3k"], holdout=0, law=None, options=options)
        (run,) = planned_runs(study)
        return budget.step_seconds(run, TransformerConfig(10, 10, layers, width, 1), 100, placement(run.config))

    def of_muon(width: int, layers: int = 1) -> float:
        return seconds(width, 2.0, layers) - seconds(width, None, layers)

    assert of_muon(96, layers=3) > 2.5 * of_muon(96) > 0
    assert of_muon(8 * 256) > 100 * of_muon(96)
    assert of_muon(8 * 256) > 0.5 * 8**3 * of_muon(256)


def test_touched_rows_are_all_that_a_step_updates_of_the_item_table() -> None:
    config = TransformerConfig(10_000, 20, 1, 16, 1)

    def updated(touched_rows: bool, positions: int = 100) -> int:
        study = Study(
            configs=["data/synthetic.yaml"],
            sizes=["3k"],
            holdout=0,
            law=None,
            options=DATA | {"model.loss": "SampledSoftmax", "model.optimizer.touched_rows": touched_rows},
        )
        return budget.parameters_updated(planned_runs(study)[0], config, positions)

    assert updated(False) - updated(True) == (10_000 - 100 - 100 - 256) * 16  # inputs, targets, negatives
    assert updated(True, positions=10_000) == updated(False)


@pytest.mark.parametrize(
    "change",
    [{"architecture": Architecture(time="past")}, {"vector_width": 5, "own_rows": False}],
    ids=["time", "vectors"],
)
def test_networks_that_read_more_than_items_have_a_rate(change: dict[str, Any]) -> None:
    assert budget.training_rate(TransformerConfig(100, 10, 1, 16, 1, **change), FullSoftmax(), 640, "32-true") > 0
