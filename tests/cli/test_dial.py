"""A study that is given its hours alone: what it plans, what it leaves to its user, and what it refuses."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lrec.model.network_sizes import find_size
from lrec.study.grid import PlannedRun
from lrec.study.options import Study, ladder_n_body

pytestmark = pytest.mark.usefixtures("warm_processes")

LOG = ["--data", json.dumps({"path": "log.csv", "max_len": 10}), "--dry_run", "true"]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 interactions of 1,000 users with 100 items, in the columns of data/csv.yaml."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{user},{(user * 7 + step * (1 + user % 3)) % 100},{step}" for user in range(1000) for step in range(20)]
    Path("log.csv").write_text("\n".join(["user,item,time", *rows]))


@pytest.fixture
def planned(log: None, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Study, str]]:
    """The study that a dry run plans, where a core takes 1e-7 seconds for a target and a parameter; what it prints."""
    monkeypatch.setattr(
        "lrec.study.dial.seconds_of_target", lambda size, *_: 1e-7 * (find_size(size).width ** 2 + 5000)
    )
    studies: list[Study] = []

    def runs_of(study: Study) -> list[PlannedRun]:
        studies.append(study)
        return actual(study)

    from lrec.study.study import planned_runs as actual

    monkeypatch.setattr("lrec.study.study.planned_runs", runs_of)

    def plan(*arguments: str) -> tuple[Study, str]:
        printed = lrec("scaling", "study", *LOG, *arguments)
        return studies[-1], printed

    return plan


def test_more_hours_train_larger_sizes_on_more(planned: Callable[..., tuple[Study, str]]) -> None:
    (few, printed), (many, _) = planned("--hours", "0.5"), planned("--hours", "2")
    assert "held out" in printed
    assert "lr" in few.tune
    assert few.options["trainer.max_epochs"] < many.options["trainer.max_epochs"] <= 30
    assert ladder_n_body(few.ladder[-1]) < ladder_n_body(many.ladder[-1])
    for study in (few, many):
        n_body = [ladder_n_body(size) for size in study.ladder]
        assert study.holdout == 2
        assert 3 < n_body[-2] / n_body[-3] < 5.5
        assert 12 < n_body[-1] / n_body[-3] < 21
    assert not few.folder.exists()


def test_what_is_given_stays_and_is_not_tuned(planned: Callable[..., tuple[Study, str]]) -> None:
    few_passes = json.dumps({"trainer.max_epochs": 3, "data.targets_per_step": 64})
    study, _ = planned("--hours", "0.5", "--options", few_passes)
    assert study.options["trainer.max_epochs"] == 3
    assert study.options["data.targets_per_step"] == 64
    assert study.tune == ["lr"]
    study, _ = planned("--hours", "0.5", "--data.targets_per_step", "64")
    assert study.options["data.targets_per_step"] == 64
    assert study.tune == ["lr", "dropout"]
    study, _ = planned("--hours", "0.5", "--options", json.dumps({"model.optimizer": {"lr": 0.02}}))
    assert study.tune == []
    study, _ = planned("--hours", "0.5", "--fractions", "[0.5]", "--tune", '["lr"]')
    assert study.fractions == (0.5,)
    assert study.tune == ("lr",)


def test_a_plan_trains_on_as_much_whatever_is_given(planned: Callable[..., tuple[Study, str]]) -> None:
    """Passes that are given leave a share of the users to be chosen, and a share the passes."""
    for given in ([], ["--fractions", "[0.5]"], ["--options.trainer.max_epochs", "8"]):
        study, printed = planned("--hours", "0.1", *given)
        assert study.fractions is not None
        targets = int(re.search(r"trains on ([\d,]+) targets", printed)[1].replace(",", ""))  # type: ignore[index]
        passes = study.options["trainer.max_epochs"] * max(study.fractions)
        assert targets == pytest.approx(passes * 17_000, rel=0.2)


def test_too_few_hours_are_refused(planned: Callable[..., tuple[Study, str]], refused: Callable[..., str]) -> None:
    assert "the smallest study takes" in refused("scaling", "study", *LOG, "--hours", "0.001")
    assert "--sizes: name the sizes" in refused("scaling", "study", *LOG)
    assert "must be above 0" in refused("scaling", "study", *LOG, "--hours", "0")


def test_a_study_that_is_refused_keeps_no_plan(
    planned: Callable[..., tuple[Study, str]], refused: Callable[..., str]
) -> None:
    begun = ["scaling", "study", *LOG[:2], "--hours", "0.5"]
    assert "none of the study's runs" in refused(*begun, "--skip", '["one"]')
    assert not Path("studies").exists()
