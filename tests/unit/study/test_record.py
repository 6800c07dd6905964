"""Which runs may enter a study's folder, from runs on disk."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lrec.errors import UserError
from lrec.run import Point, Run, RunConfig
from lrec.study.grid import PlannedRun, changed, planned_runs
from lrec.study.options import Study
from lrec.study.record import Record
from lrec.study.work import Work


def study_in(out: Path, **more: Any) -> Study:
    variants: dict[str, dict[str, object]] = {"a": {}, "b": {"model.optimizer.lr": 0.001}}
    configs = ["data/synthetic.yaml", "trainer/laptop.yaml"]
    return Study(**{"sizes": ["3k"], "variants": variants} | more, configs=configs, out=out, holdout=0, law=None)


def entered(study: Study, restart: tuple[str, ...] = ()) -> list[PlannedRun]:
    """The runs, each of which has begun."""
    record = Record(study, planned_runs(study))
    runs = record.enter(restart, ())
    for run in runs:
        record.trained(run).folder.mkdir(parents=True, exist_ok=True)
    return runs


def test_a_run_that_began_alone_cannot_start_from_another_afterwards(tmp_path: Path) -> None:
    entered(study_in(tmp_path))
    later = study_in(tmp_path, starts_from={"b": "a"})
    with pytest.raises(UserError, match=r"3k-b-seed1 with .* \(starts from no other run, now from 3k-a-seed1\)"):
        entered(later)
    assert len(entered(later, restart=("3k-b-seed1",))) == 2


def test_a_run_that_leaves_the_grid_unfinished_returns_with_the_same_options(tmp_path: Path) -> None:
    entered(study_in(tmp_path, sizes=["3k", "12k"]))
    entered(study_in(tmp_path))
    with pytest.raises(UserError, match=r"12k-a-seed1 with other options \(model\.optimizer\.lr 0\.008, now 0\.5\)"):
        entered(study_in(tmp_path, sizes=["3k", "12k"], size_options={"12k": {"model.optimizer.lr": 0.5}}))


def test_a_source_is_restarted_with_the_runs_that_start_from_it(tmp_path: Path) -> None:
    study = study_in(tmp_path, starts_from={"b": "a"})
    entered(study)
    with pytest.raises(UserError, match="--restart 3k-a-seed1: 3k-b-seed1 started from it: restart both"):
        entered(study, restart=("3k-a-seed1",))
    assert len(entered(study, restart=("3k-a-seed1", "3k-b-seed1"))) == 2


def test_a_finished_study_of_another_log_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = Record(study := study_in(tmp_path / "study"), planned_runs(study))
    monkeypatch.setattr(PlannedRun, "open_data", lambda _: SimpleNamespace(data_hash="now"))
    for data_hash in ("now", "before"):
        for run in record.runs:
            record.trained(run).write_points([Point(run=run.name, data_hash=data_hash, best=True)])
        if data_hash == "now":
            record.check_data(record.runs)
    with pytest.raises(UserError, match="the data of run 3k-a-seed1 have data_hash before, the current data now"):
        record.check_data(record.runs)

    def without_data(_: PlannedRun) -> None:
        raise UserError("no such file")

    monkeypatch.setattr(PlannedRun, "open_data", without_data)
    record.check_data(record.runs)


def test_a_run_is_not_trained_on_another_log_than_finished_ladders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Record(study := study_in(tmp_path / "study"), planned_runs(study))
    monkeypatch.setattr(PlannedRun, "open_data", lambda _: SimpleNamespace(data_hash="now"))
    first, later = record.runs
    assert first.ladder != later.ladder
    for run in (first, later):
        record.trained(run).write_points([Point(run=run.name, data_hash="before", best=True)])
    for restart in ([], [later.name]):
        with pytest.raises(UserError, match="the data of run 3k-a-seed1 have data_hash before, the current data now"):
            record.enter(restart, ())
    assert record.trained(later).result is not None, "a refused restart deletes nothing"
    record.enter([first.name, later.name], ())
    assert record.trained(first).result is None


def test_a_run_is_left_out_with_the_run_that_it_starts_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Work, "_expected", lambda _, __, runs: {run.name: 3600.0 for run in runs})
    study = study_in(tmp_path, starts_from={"b": "a"}, hours=0.5)
    record = Record(study, planned_runs(study))
    assert Work(study).too_long(record, record.runs) == ["3k-a-seed1", "3k-b-seed1"]
    assert Work(replace(study, hours=1e-12)).too_long(record, []) == []


def test_a_run_without_a_record_has_the_options_of_its_own_folder(tmp_path: Path) -> None:
    """As in a folder whose study.json was lost: results of other options would be shown as those of the new ones."""
    study = study_in(tmp_path, starts_from={"b": "a"})
    for run in entered(study):
        start = {"trainer.default_root_dir": "elsewhere", "points.study": "old", "points.run": run.name}
        start |= {"model.warm_start": "elsewhere"} if run.starts_from else {}
        Run(tmp_path / "runs" / run.name).write_config(RunConfig(changed(run.options, start)))
        Run(tmp_path / "runs" / run.name).write_points([Point(run=run.name)])
    (tmp_path / "study.json").unlink()
    with pytest.raises(UserError, match=r"3k-a-seed1 with other options \(model\.optimizer\.lr 0\.008, now 0\.5\)"):
        entered(replace(study, variants=study.variants | {"a": {"model.optimizer.lr": 0.5}}))
    assert not (tmp_path / "study.json").exists()
    assert len(entered(study)) == 2


BEGUN = '{"earlier_runs": [{"name": "3k-a-seed1", "variant": "a", "options": %s}], "grid": {"runs": []}, "state": {}}'


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"grid": null, "earlier_runs": [], "state": {}}', BEGUN % "null", BEGUN % '{"trainer": null}'],
)
def test_a_record_of_another_shape_is_damaged(content: str, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(content)
    with pytest.raises(UserError, match=r"study\.json is damaged .*: restore or remove it"):
        entered(study_in(tmp_path))


@pytest.mark.parametrize("own", ["full-1", "again"])
def test_the_folder_of_another_command_is_refused_and_stays_as_it_is(own: str, tmp_path: Path) -> None:
    """Every backtest has the variant full-1, and every exchange the variant again."""
    theirs = study_in(tmp_path, variants={own: {}, "b": {}})
    entered(theirs)
    point = Point(run="3k-b-seed1", best=True)
    (tmp_path / "all_points.jsonl").write_text(json.dumps(point.to_dict()) + "\n")
    shutil.rmtree(tmp_path / "runs" / "3k-b-seed1")
    before = sorted(tmp_path.rglob("*"))
    for variants in ({"": {}}, {"a": {}, "b": {}}):
        with pytest.raises(UserError, match="holds the runs of another command: choose another --out"):
            Record(study := study_in(tmp_path, variants=variants), planned_runs(study))
    assert sorted(tmp_path.rglob("*")) == before
    assert Record(theirs, planned_runs(theirs)).state["3k-b-seed1"] == "waiting"
    assert (tmp_path / "runs" / "3k-b-seed1").exists()
