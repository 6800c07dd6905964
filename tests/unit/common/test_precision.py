"""--trainer.precision auto: what it chooses, and that a run and a study keep that choice."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lrec.common.hardware import auto_precision
from lrec.errors import UserError
from lrec.run import RunConfig
from lrec.study.grid import planned_runs
from lrec.study.options import Study
from lrec.study.placement import placement
from lrec.study.record import Record

DECIDED = "LREC_PRECISION"


@pytest.mark.parametrize(("instructions", "precision"), [("avx512_bf16", "bf16-mixed"), ("avx512_fp16", "32-true")])
def test_bfloat16_if_the_processor_has_instructions_for_it(
    instructions: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DECIDED)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": False, instructions: True})
    assert auto_precision("cpu") == precision


OPTIONS = [
    *("fit", "--config=data/synthetic.yaml", "--config=trainer/laptop.yaml", "--model.size=0.8k"),
    *("--data.n_users=50", "--data.n_items=12", "--data.length=8", "--data.max_len=4", "--data.targets_per_step=64"),
    *("--trainer.max_epochs=2", "--trainer.enable_progress_bar=false"),
]


def test_a_run_names_its_precision_and_goes_on_in_it(
    tmp_path: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    folders = [f"--data.data_dir={tmp_path / 'data'}", f"--trainer.default_root_dir={run}"]
    monkeypatch.setenv(DECIDED, "bf16-mixed")
    lrec(*OPTIONS, *folders, "--trainer.max_epochs=1")
    monkeypatch.setenv(DECIDED, "32-true")
    lrec(*OPTIONS, *folders, "--ckpt_path=last")
    points = [json.loads(line) for line in (run / "points.jsonl").read_text().splitlines()]
    assert len({point["step"] for point in points}) > 1
    assert {point["precision"] for point in points} == {"bf16-mixed"}
    assert "precision: bf16-mixed" in (run / "config.yaml").read_text()


def study_of(folder: Path, **options: Any) -> Study:
    laptop: dict[str, Any] = {"configs": ["data/synthetic.yaml", "trainer/laptop.yaml"], "sizes": ["0.8k", "1.7k"]}
    return Study(**laptop | {"name": "precise", "out": folder / "study", "holdout": 0, "law": None} | options)


def test_all_runs_of_a_study_have_the_same_precision_and_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tmp_path, sizes=["0.8k"], variants={"auto": {}, "other": {"trainer.precision": "16-mixed"}})
    monkeypatch.setenv(DECIDED, "bf16-mixed")
    Record(study, planned_runs(study)).enter([], [])
    monkeypatch.setenv(DECIDED, "32-true")
    larger = replace(study, sizes=["0.8k", "1.7k"])
    runs = Record(larger, planned_runs(larger)).runs
    assert [(run.variant, run.options["trainer"]["precision"]) for run in runs] == [
        *[("auto", "bf16-mixed")] * 2,
        *[("other", "16-mixed")] * 2,
    ]


def test_a_plan_measures_in_the_precision_that_its_runs_will_have(monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunConfig({"trainer": {"accelerator": "cpu", "precision": "auto"}, "model": {}, "data": {}})
    for precision in ("bf16-mixed", "32-true"):
        monkeypatch.setenv(DECIDED, precision)
        assert placement(run).precision == precision


def test_a_cluster_s_processes_do_not_each_choose(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DECIDED)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "0")
    error = refused(*OPTIONS, f"--trainer.default_root_dir={tmp_path / 'run'}")
    assert "choose --trainer.precision" in error
    assert not (tmp_path / "run").exists()


ON_A_GPU: dict[str, object] = {"trainer.accelerator": "gpu", "trainer.devices": 1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU to decide")
def test_a_cpu_does_not_decide_the_precision_on_gpus(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DECIDED)
    study = study_of(tmp_path, options=ON_A_GPU)
    with pytest.raises(UserError, match=r"trainer\.precision auto: .* none is here: choose 32-true"):
        Record(study, planned_runs(study))
    error = refused(*OPTIONS, f"--trainer.default_root_dir={tmp_path / 'run'}", "--trainer.accelerator=gpu")
    assert "choose 32-true or bf16-mixed, or trainer.accelerator cpu" in error
    assert not list(tmp_path.iterdir())


def test_a_precision_for_cpus_and_gpus_is_chosen_by_the_user(tmp_path: Path) -> None:
    study = study_of(tmp_path, size_options={"1.7k": ON_A_GPU})
    with pytest.raises(UserError, match=r"some runs train on CPUs, others on GPUs.*choose 32-true or bf16-mixed"):
        Record(study, planned_runs(study))
