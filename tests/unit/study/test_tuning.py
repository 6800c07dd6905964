"""A walk by factors of two: where it ends and what it has tried. Also what trials say about a run's rate."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrec.errors import UserError
from lrec.laws.rate_law import RateLaw
from lrec.run import Point, Run
from lrec.study.grid import PlannedRun
from lrec.study.options import STEP, Study, ladder_n_body
from lrec.study.record import Record
from lrec.study.report import write_report
from lrec.study.tuning import LR, Place, Setting, Trial, Tuned, Tuner, law_of, rules_of, walk
from lrec.study.work import Work

places = st.builds(Place, st.integers(-6, 6), st.integers(-3, 3), st.integers(0, 5))


@given(best=places, cliff=st.integers(1, 3))
def test_a_walk_ends_between_worse_neighbours_wherever_the_best_is(best: Place, cliff: int) -> None:
    tried: list[Place] = []

    def losses_of(wanted: list[Place]) -> Sequence[float]:
        tried.extend(wanted)
        away = [[at - to for at, to in zip(place, best, strict=True)] for place in wanted]
        return [float("inf") if lr > cliff + 8 else 5 + lr**2 + step**2 + dropout**2 for lr, step, dropout in away]

    found = walk(losses_of, Place._fields, lambda place: 0 <= place.dropout <= 5)
    assert len(tried) == len(set(tried)) == len(found)
    assert min(found, key=found.__getitem__) == best
    for axis, by in product(Place._fields, (-1, 1)):
        neighbour = best._replace(**{axis: getattr(best, axis) + by})
        assert neighbour in found or not 0 <= neighbour.dropout <= 5


@given(best=st.integers(-6, 6), most=st.integers(4, 8))
def test_a_walk_with_a_limit_on_trials_keeps_the_best_of_them(best: int, most: int) -> None:
    found = walk(lambda wanted: [abs(place.lr - best) for place in wanted], ("lr",), lambda place: True, most)
    reached = min(abs(best), most - 2)
    assert min(abs(place.lr - best) for place in found) == abs(best) - reached
    assert len(found) <= most


def test_another_step_is_tried_at_the_rate_that_suits_it() -> None:
    assert Place(1, -2).of(Setting(0.01, 512, 0.0)) == Setting(0.01, 128, 0.0)
    assert Place(0, 1, 2).of(Setting(0.01, 512, 0.1)) == Setting(0.01414, 1024, 0.3)


@pytest.mark.parametrize(
    ("options", "tried"),
    [({"data.targets_per_step": 1_048_576}, True), ({"trainer.max_steps": 10}, False)],
    ids=["a million targets in a step", "a limit of steps"],
)
def test_trials_are_a_share_of_a_run_of_any_step(
    options: dict[str, int], tried: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options |= {"data.n_users": 200, "data.n_items": 20, "trainer.max_epochs": 1}
    configs = ["data/synthetic.yaml", "trainer/laptop.yaml"]
    study = Study(sizes=["3k"], configs=configs, holdout=0, law=None, tune=("lr",), options=options)
    if tried:
        assert all("-targets_per_step-1048576-" in run.name for run in Tuner(study).first_runs)
    else:
        with pytest.raises(UserError, match="trials are a share of a run"):
            Tuner(study)


RATE, LOSS = 0.01, 5.0


def trials_about(rate: float, n_bodies: dict[str, int]) -> list[Trial]:
    """Trials at half, once and double the best rate on two amounts of data. Half costs 0.02 nats, double 0.06."""
    found = []
    for size, n_body in n_bodies.items():
        for targets, shift in product((100_000, 400_000), (0.5, 1.0, 2.0)):
            loss = LOSS - n_body / 1e6 + {0.5: 0.02, 1.0: 0.0, 2.0: 0.06}[shift]
            found.append(Trial(size, n_body, targets, Setting(shift * rate, 512, 0.0), loss))
    return found


def test_rules_give_both_ends_of_the_ladder_the_law_s_choices() -> None:
    setting, trials = Setting(RATE, 512, 0.0), trials_about(RATE, {"3k": 3072})
    for step, lr in ((256, RATE / 2**0.5), (1024, RATE * 2**0.5)):
        trials.append(Trial("3k", 3072, 400_000, replace(setting, targets_per_step=step, lr=lr), LOSS + 0.05))
    law, sizes, targets = law_of(trials, scaled=True), (3072, 786_432), 1_600_000
    rules = rules_of(law, sizes, targets, 100, 2000)
    assert rules[STEP][1] < 0, "large networks get smaller steps"
    for size in sizes:
        choice = law.choose(size, targets)
        assert rules[STEP][0] * size ** rules[STEP][1] == pytest.approx(choice.batch, rel=1e-3)
        assert rules[LR][0] * size ** rules[LR][1] == pytest.approx(choice.rate, rel=1e-3)
    half = law.choose(sizes[0], targets / 2, law.choose(sizes[0], targets).batch)
    assert rules[LR][0] * sizes[0] ** rules[LR][1] * 0.5 ** rules[LR][2] == pytest.approx(half.rate, rel=1e-3)
    limited = rules_of(law, sizes, targets, 350, 400)[STEP]
    assert [limited[0] * size ** limited[1] for size in sizes] == pytest.approx([400, 350], rel=1e-3)


def test_the_best_trial_of_a_large_size_on_the_most_data_moves_the_law_towards_itself() -> None:
    trials, best, n_body, targets = trials_about(RATE, {"3k": 3072}), RATE / 4, 98_304, 800_000
    for shift, above in ((0.5, 0.02), (1.0, 0.0), (2.0, 0.01)):
        trials.append(Trial("98k", n_body, targets, Setting(shift * best, 512, 0.0), LOSS - 0.5 + above))
    names = {"x": "n_body", "d": "targets", "rate": "lr", "batch": "targets_per_step", "y": "loss"}
    rows = pl.DataFrame([asdict(trial) | asdict(trial.setting) for trial in trials]).select(**names)
    own, moved = (law.choose(n_body, targets, 512).rate for law in (RateLaw(rows, scaled=True), law_of(trials, True)))
    assert best < moved < own
    assert moved == pytest.approx((own * best) ** 0.5, rel=0.05)


def test_a_log_whose_next_items_are_certain_has_no_law_of_the_rate() -> None:
    trials = [*trials_about(RATE, {"3k": 3072}), Trial("12k", 12_288, 400_000, Setting(RATE, 512, 0.0), -1e-9)]
    with pytest.raises(UserError, match="a trial of 12,288 parameters has a validation loss of 0: each next item is"):
        law_of(trials, scaled=True)


def test_a_rate_is_tuned_at_any_dropout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"data.n_users": 200, "data.n_items": 20, "trainer.max_epochs": 1, "model.dropout.embedding": 0.6}
    ladder: dict[str, Any] = {"sizes": ["3k", "12k"], "configs": ["data/synthetic.yaml", "trainer/laptop.yaml"]}
    study = Study(**ladder, holdout=0, law=None, tune=("lr",), options=options)
    assert {run.size for run in Tuner(study).first_runs} == {"3k", "12k"}


@pytest.mark.slow
def test_the_step_is_tuned_for_the_small_size_and_on_half_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes, configs = ["1x8", "1x12", "1x20", "1x32", "1x64"], ["data/synthetic.yaml", "trainer/laptop.yaml"]
    options = {"data.n_users": 10_000, "data.n_items": 20, "data.max_len": 20, "trainer.max_epochs": 1, STEP: 100}
    study = Study(configs=configs, sizes=sizes, holdout=1, tune=("lr", "targets_per_step"), options=options)
    steps: dict[tuple[str, float], set[int]] = {}
    for run in Tuner(study).first_runs:
        steps.setdefault((run.size, run.fraction), set()).add(run.config.value(STEP))
    assert {place for place, tried in steps.items() if len(tried) > 1} == {("1x20", 0.25), ("1x64", 0.5)}
    assert steps["1x64", 0.5] == {50, 100, 200}
    assert steps["1x32", 0.25] == {100}


def planned(size: str, lr: float, step: int = 512) -> PlannedRun:
    options = {"model": {"optimizer": {"lr": lr}}, "data": {"targets_per_step": step}}
    return PlannedRun(f"{size}-{lr}", size, 1, 1.0, "", "", False, options)


@pytest.mark.parametrize("step", [512, 16])
def test_a_run_at_another_rate_than_the_trials_call_for_is_expected_to_lose(step: int, tmp_path: Path) -> None:
    sizes = {size: ladder_n_body(size) for size in ("3k", "12k", "49k")}
    tuned = Tuned({LR: [RATE, 0.0, 0.0]}, {}, 1_600_000, True, trials_about(RATE, sizes))
    for size in sizes:
        assert tuned.cost(planned(size, RATE)) < 0.04 < tuned.cost(planned(size, 4 * RATE))
        assert not tuned.is_off(planned(size, RATE))
        assert RATE / 2 < tuned.law.choose(sizes[size], 400_000, 512).rate < RATE
    runs = [planned("3k", RATE), planned("12k", 4 * RATE, step)]
    for run in runs:
        point = {"size": run.size, "best": True, "status": "finished", "val_loss": 5.0, "test_loss": 5.0}
        point |= {"metrics": {"test/markov/loss": 4.0}}
        (tmp_path / "runs" / run.name).mkdir(parents=True)
        Run(tmp_path / "runs" / run.name).write_points([Point(**point, N_body=sizes[run.size], flops=1, D=1, U=1)])
    report = write_report(Study(out=tmp_path, sizes=[*sizes], holdout=0, law=None), runs, [], {}, tuned)
    assert "More targets may help." in report, "rate and steps are tuned already"
    assert report.splitlines()[4].startswith("**Mistuned: 12k-0.04 (by")
    assert "3k-0.01 (by" not in report
    extrapolated = "This cost is extrapolated: trials had 512 to 512 targets per step, not 16."
    assert (extrapolated in report) == (step == 16)


@pytest.mark.parametrize(("left_out", "end"), [(RATE / 2, "lowest"), (2 * RATE, "highest"), (None, None)])
def test_the_report_says_whether_a_size_s_best_rate_is_at_an_end_of_those_tried(
    left_out: float | None, end: str | None, tmp_path: Path
) -> None:
    sizes = {size: ladder_n_body(size) for size in ("3k", "12k", "49k")}
    # On less data, the best rate of 49k is at an end too, but the trials on the most data decide.
    trials = [
        trial
        for trial in trials_about(RATE, sizes)
        if trial.size != "12k" or trial.setting.lr != left_out
        if trial.size != "49k" or trial.targets == 400_000 or trial.setting.lr != 2 * RATE
    ]
    tuned = Tuned({LR: [RATE, 0.0, 0.0]}, {}, 1_600_000, True, trials)
    assert tuned.at_an_end == ({"12k": end} if end else {})
    run = planned("3k", RATE)
    (tmp_path / "runs" / run.name).mkdir(parents=True)
    point = {"size": "3k", "best": True, "status": "finished", "val_loss": 5.0, "test_loss": 5.0}
    Run(tmp_path / "runs" / run.name).write_points([Point(**point, N_body=3072, flops=1, D=1, U=1)])
    report = write_report(Study(out=tmp_path, sizes=[*sizes], holdout=0, law=None), [run], [], {}, tuned)
    assert ("The best rate tried for" in report) == (end is not None)
    assert end is None or f"The best rate tried for 12k is the {end} one, so a rate beyond it may be better." in report


def test_trials_of_large_sizes_are_left_out_if_the_hours_leave_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"data.n_users": 2000, "data.n_items": 20, "trainer.max_epochs": 1}
    options |= {"data.max_len": 16, "data.targets_per_step": 32}  # half of it would be too short for max_len
    ladder: dict[str, Any] = {"sizes": ["3k", "4.8k", "6.9k", "12k", "49k", "221k"], "holdout": 2}
    ladder |= {"configs": ["data/synthetic.yaml", "trainer/laptop.yaml"], "options": options}
    walked = list[str]()

    def walk_of(tuner: Tuner, _: Work, size: str, share: float, start: Setting) -> Setting:
        walked.append(size)
        tuner._trials += trials_about(RATE, {size: ladder_n_body(size)})
        return start

    monkeypatch.setattr(Tuner, "_walk", walk_of)

    def expected(_: Work, __: Study, runs: list[PlannedRun]) -> dict[str, float]:
        assert all(run.open_data().U for run in runs), "a run that is refused here would end the study"
        return {run.name: 60.0 for run in runs}

    monkeypatch.setattr(Work, "_expected", expected)
    study = Study(**ladder, tune=("lr", "targets_per_step"), hours=1, jobs=1, out=tmp_path / "study")
    assert Tuner(study).tuned(Work(study)).left_out == []
    assert {*walked} == {"3k", "6.9k", "12k", "49k", "221k"}
    walked.clear()
    # Not enough for six runs and three trials of a minute each.
    late = replace(study, hours=0.1, out=tmp_path / "late")
    tuned = Tuner(late).tuned(Work(late))
    assert tuned.left_out == ["12k", "6.9k", "49k", "221k"]
    assert {*walked} == {"3k"}
    assert Tuner(late).kept == tuned, "read from its file"


def test_a_trial_that_is_trained_again_ends_the_earlier_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the study is stopped before the tuning ends."""
    monkeypatch.chdir(tmp_path)
    options = {"data.n_users": 200, "data.n_items": 20, "trainer.max_epochs": 1}
    ladder: dict[str, Any] = {"sizes": ["3k", "12k"], "configs": ["data/synthetic.yaml", "trainer/laptop.yaml"]}
    study = Study(**ladder, holdout=0, law=None, tune=("lr",), options=options, out=tmp_path / "study")
    tuner = Tuner(study)
    trial = tuner.first_runs[0]
    Record(tuner.study_of_trials, [trial]).enter((), ())
    with monkeypatch.context() as patch:
        patch.setattr(Tuner, "_tune", lambda *_: Tuned({}, {}, 1, True, trials_about(RATE, {"3k": 3072})))
        tuner.tuned(Work(study))
    assert tuner.kept is not None

    def stop(*_: object) -> None:
        raise UserError("told to stop")

    monkeypatch.setattr(Work, "train", stop)
    with pytest.raises(UserError, match="told to stop"):
        Tuner(replace(study, restart=(trial.name,))).tuned(Work(study))
    assert tuner.kept is None
