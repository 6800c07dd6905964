"""A study that is given only its hours: what it plans, what it leaves to its user, and what it refuses."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lrec.common.files import write_json
from lrec.errors import UserError
from lrec.model.losses import FullSoftmax, SampledSoftmax
from lrec.model.network_sizes import find_size
from lrec.study.dial import TOUCHED_ROWS, as_text, plan_of, with_plan
from lrec.study.grid import PlannedRun, planned_runs
from lrec.study.options import EPOCHS, PLAN, STEP, Study, ladder_n_body
from lrec.study.tuning import LR, shares_of_trials

pytestmark = pytest.mark.usefixtures("warm_processes")

LOG = {"path": "log.csv", "max_len": 10}
COMMAND = ["scaling", "study", "--data", json.dumps(LOG), "--dry_run", "true"]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 interactions of 1,000 users with 100 items, in the columns of data/csv.yaml."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{user},{(user * 7 + step * (1 + user % 3)) % 100},{step}" for user in range(1000) for step in range(20)]
    Path("log.csv").write_text("\n".join(["user,item,time", *rows]))


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other program works."""
    monkeypatch.setattr("lrec.study.dial.free_share", lambda n: 1.0)


@pytest.fixture
def planned(log: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Study, str]]:
    """The planned study and the text about it; a core takes 1e-7 * (width ** 2 + 5000) s for a target."""
    monkeypatch.setattr(
        "lrec.study.dial.seconds_of", lambda size, *_: (1e-7 * (find_size(size).width ** 2 + 5000), 0.004)
    )

    def plan(hours: float, **given: Any) -> tuple[Study, str]:
        study = Study(**{"hours": hours, "data": LOG} | given)
        chosen = plan_of(study)
        return with_plan(study, chosen), as_text(chosen)

    return plan


@pytest.mark.slow
def test_more_hours_train_larger_sizes_on_more(
    planned: Callable[..., tuple[Study, str]], lrec: Callable[..., str]
) -> None:
    (few, said), (many, _) = planned(0.5), planned(2)
    assert said in lrec(*COMMAND, "--hours", "0.5")
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
    study, _ = planned(0.5, options={"trainer.max_epochs": 3, "data.targets_per_step": 64})
    assert study.options["trainer.max_epochs"] == 3
    assert study.options["data.targets_per_step"] == 64
    assert study.tune == ["lr", "dropout"]
    study, _ = planned(0.5, data=LOG | {"targets_per_step": 64})
    assert study.options["data.targets_per_step"] == 64
    assert study.tune == ["lr", "dropout"]
    study, _ = planned(0.5, options={"model.optimizer": {"lr": 0.02}})
    assert study.tune == []
    study, _ = planned(0.5, fractions=(0.5,), tune=("lr",))
    assert study.fractions == (0.5,)
    assert study.tune == ("lr",)


def test_a_plan_trains_on_as_much_whatever_is_given(planned: Callable[..., tuple[Study, str]]) -> None:
    """If the passes are given, the plan chooses the share of users, and the other way round."""
    given: list[dict[str, Any]] = [{}, {"fractions": (0.5,)}, {"options": {"trainer.max_epochs": 8}}]
    for each in given:
        study, said = planned(0.16, **each)
        assert study.fractions is not None
        targets = int(re.search(r"trains on ([\d,]+) targets", said)[1].replace(",", ""))  # type: ignore[index]
        passes = study.options["trainer.max_epochs"] * max(study.fractions)
        assert targets == pytest.approx(passes * 17_000, rel=0.2)


def test_a_trial_is_never_longer_than_a_quarter_of_a_run() -> None:
    for targets in (10_000, 300_000, 2_000_000, 10**9):
        shares = shares_of_trials(targets, 512)
        assert shares[-1] == 0.25
        assert shares[0] >= min(1000 * 512 / targets, 0.25) * 0.95


@pytest.mark.parametrize("hours", [0.1, 0.2, 0.5, 1, 2])
def test_a_plan_with_horizons_has_a_whole_number_of_passes_for_each(
    hours: float, planned: Callable[..., tuple[Study, str]]
) -> None:
    study, _ = planned(hours, horizons=(0.25, 0.5, 1.0))
    runs = planned_runs(study)  # a horizon of 7.5 passes would be refused
    assert len({run.horizon for run in runs}) == 3
    assert len({run.fraction for run in runs}) == 1


def test_a_horizon_beyond_the_training_needs_passes_of_which_it_is_a_whole_number(
    planned: Callable[..., tuple[Study, str]],
) -> None:
    study, _ = planned(2, horizons=(0.5, 1.5))
    assert study.options["trainer.max_epochs"] % 2 == 0
    with pytest.raises(UserError, match=r"--horizons 1\.5 of trainer\.max_epochs 1 is 1\.5"):
        planned_runs(planned(0.05, horizons=(0.5, 1.5))[0])


def test_more_seeds_variants_and_samples_leave_less_time_for_each_run(
    planned: Callable[..., tuple[Study, str]],
) -> None:
    def trained(**given: Any) -> int:
        return int(re.findall(r"trains on ([\d,]+) targets", planned(0.5, cores=2, **given)[1])[0].replace(",", ""))

    alone = trained()
    assert 2 * trained(seeds=(1, 2, 3), holdout_seeds=(1, 2, 3), variants={"a": {}, "b": {}}) < alone
    assert trained(fractions=(1.0,)) > trained(fractions=(0.5, 1.0)) > alone  # by default also a quarter
    with pytest.raises(UserError, match="runs with --fractions 1 take longer: name 0"):
        trained(fractions=(0.5, 1.0), options={"trainer.max_epochs": 100})


def test_a_study_on_gpus_plans_a_run_for_each_gpu(planned: Callable[..., tuple[Study, str]]) -> None:
    gpus = {"trainer.accelerator": "gpu", "trainer.devices": 1}
    assert planned(0.5, cores=16)[0].jobs == 16
    assert planned(0.5, cores=16, jobs=1)[0].jobs == 1
    assert planned(0.5, cores=16, gpus=(0, 1), options=gpus)[0].jobs == 2


def test_a_busy_machine_trains_on_less(
    planned: Callable[..., tuple[Study, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    half, alone = planned(0.25)[0], planned(0.5)
    assert "Other programs" not in alone[1]
    monkeypatch.setattr("lrec.study.dial.free_share", lambda n: 0.5)
    busy = planned(0.5)
    assert (busy[0].ladder, busy[0].options) == (half.ladder, half.options)
    assert "lrec gets 50% of the cores" in busy[1]
    with pytest.raises(UserError, match=r"the smallest study takes [\d.]+ on a machine this busy"):
        planned(0.001)
    on_gpus = {"gpus": (0, 1), "options": {"trainer.accelerator": "gpu", "trainer.devices": 1}}
    assert "Other programs" not in planned(0.5, **on_gpus)[1]


def test_more_cores_than_a_walk_has_trials_do_not_shorten_it(planned: Callable[..., tuple[Study, str]]) -> None:
    def hours_of_trials(cores: int) -> float:
        return float(re.findall(r"trials \| ([\d.]+)", planned(0.5, cores=cores, fractions=(1.0,))[1])[0])

    assert hours_of_trials(64) == hours_of_trials(16)


def test_runs_at_once_fit_into_the_free_memory(
    planned: Callable[..., tuple[Study, str]], refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrec.study.dial.available_gib", lambda: 0.5)
    assert planned(0.5)[0].memory_gib == 0.5
    assert planned(0.5, memory_gib=3)[0].memory_gib == 3
    assert re.search(r"--memory_gib 0\.5: run .* alone needs 1\.\d GiB", refused(*COMMAND[:4], "--hours", "0.5"))


def test_a_plan_reads_long_histories(planned: Callable[..., tuple[Study, str]]) -> None:
    """Longer than half of the configured step."""
    assert planned(2, data=LOG | {"max_len": 3000})[0].options[STEP] == 6000


def test_passes_may_be_a_matter_of_variants(planned: Callable[..., tuple[Study, str]]) -> None:
    alone, by_grid = planned(0.2, options={EPOCHS: 8}), planned(0.2, grid={EPOCHS: [2, 8]})
    assert "8 passes over" in by_grid[1]
    assert max(by_grid[0].fractions or ()) < max(alone[0].fractions or ())
    assert "30 passes over" in planned(20, variants={"short": {EPOCHS: 8}, "free": {}})[1]


def test_a_plan_says_what_limits_it(planned: Callable[..., tuple[Study, str]]) -> None:
    text = planned(0.2)[1]
    assert ": what the hours allow." in text
    assert "users test" not in text, "all 1,000 do"
    assert " 30 passes over all users. " in planned(20)[1]
    given = planned(2, fractions=(0.5,), holdout=1, data=LOG | {"test_users": "all"})[1]
    assert "over 0.5 of the users" in given
    assert re.search(r"5 sizes from [\d,]+ to [\d,]+ parameters are fitted, and [\d,]+ held out", given)
    assert "users test" not in given
    assert "targets a parameter" not in planned(0.05)[1], "the sizes are the smallest"


def test_many_users_are_tested_by_a_sample(planned: Callable[..., tuple[Study, str]]) -> None:
    rows = [f"{user},{(user + step) % 100},{step}" for user in range(2001) for step in range(5)]
    Path("log.csv").write_text("\n".join(["user,item,time", *rows]))
    assert "At most 2,000 users test." in planned(0.2)[1]


def test_a_log_of_one_item_has_no_plan(planned: Callable[..., tuple[Study, str]]) -> None:
    rows = [f"{user},0,{step}" for user in range(100) for step in range(20)]
    Path("log.csv").write_text("\n".join(["user,item,time", *rows]))
    with pytest.raises(UserError, match="the training part has one item"):
        planned(0.2)


def test_a_plan_is_of_one_log(planned: Callable[..., tuple[Study, str]]) -> None:
    study = Study(hours=0.5, data=LOG)
    write_json(study.folder / PLAN, plan_of(study))
    plan_of(study)
    log = Path("log.csv").read_text()
    Path("log.csv").write_text(log + "\n1,1,99")
    with pytest.raises(UserError, match=r"plan\.json is a plan for other data: choose another --out"):
        plan_of(study)
    plan_of(replace(study, status=True))
    Path("log.csv").unlink()
    plan_of(study)


def test_too_few_hours_are_refused(planned: Callable[..., tuple[Study, str]], refused: Callable[..., str]) -> None:
    assert "the smallest study takes" in refused(*COMMAND, "--hours", "0.001")
    assert "--sizes: name the sizes" in refused(*COMMAND)
    assert "must be above 0" in refused(*COMMAND, "--hours", "0")


def test_a_plan_has_passes_where_none_are_given(planned: Callable[..., tuple[Study, str]]) -> None:
    assert "passes over" in planned(0.5, options={"trainer.max_epochs": None})[1]


def test_a_study_that_is_refused_keeps_no_plan(
    planned: Callable[..., tuple[Study, str]], refused: Callable[..., str]
) -> None:
    assert "none of the study's runs" in refused(*COMMAND[:4], "--hours", "0.5", "--skip", '["one"]')
    assert not Path("studies").exists()


@pytest.mark.parametrize(
    ("faster", "given", "draws"),
    [
        (10, {}, True),
        (1.2, {}, False),
        (10, {"options": {"model.loss": "lrec.FullSoftmax"}}, False),
        (10, {"configs": ["data/csv.yaml", "trainer/laptop.yaml", "loss.yaml"]}, False),
        (10, {"grid": {"model.loss": ["lrec.FullSoftmax", "lrec.NextItems"]}}, False),
    ],
)
def test_items_are_drawn_where_a_pass_takes_too_long_with_all_of_them(
    faster: float, given: dict[str, Any], draws: bool, log: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(size: str, example: PlannedRun, _: Any) -> tuple[float, float]:
        times = faster if example.model.loss != FullSoftmax() else 1
        return 4e-8 * (find_size(size).width ** 2 + 5e5) / times, 0.004

    monkeypatch.setattr("lrec.study.dial.seconds_of", seconds)
    Path("loss.yaml").write_text("model: {loss: lrec.NextItems}")
    study = Study(hours=0.2, jobs=2, data=LOG, **given)
    plan = plan_of(study)
    chosen = with_plan(study, plan)
    assert ("SampledSoftmax" in as_text(plan)) == draws
    (run, *_) = planned_runs(chosen)
    assert isinstance(run.model.loss, SampledSoftmax) == draws
    assert not run.config.value(TOUCHED_ROWS)
    if draws:
        assert run.model.loss == SampledSoftmax(negatives=1024, power=1)
        trained, with_all = (int(each.replace(",", "")) for each in re.findall(r"([\d,]+) targets[,.]", as_text(plan)))
        assert trained > 2 * with_all


@pytest.mark.parametrize(
    ("full_s", "update_s", "touched"), [(0.02, 1.0, True), (0.02, 0.004, False), (2.0, 0.004, False)]
)  # with 2 s, the hours allow no study with all items
def test_only_touched_rows_are_updated_where_the_table_takes_most_of_a_step(
    full_s: float, update_s: float, touched: bool, log: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(_: str, example: PlannedRun, __: Any) -> tuple[float, float]:
        of_target = full_s if example.model.loss == FullSoftmax() else 0.001
        return of_target, 0.004 if example.config.value(TOUCHED_ROWS) else update_s

    monkeypatch.setattr("lrec.study.dial.seconds_of", seconds)
    plan = plan_of(Study(hours=0.25, jobs=2, data=LOG))
    assert plan["options"]["model.loss.class_path"] == "lrec.SampledSoftmax"
    assert plan["options"].get(TOUCHED_ROWS, False) == touched == ("optimizer.touched_rows" in as_text(plan))
    assert ("the hours would allow no study" in as_text(plan)) == (full_s == 2.0)


@pytest.mark.parametrize(
    "options",
    [
        {TOUCHED_ROWS: False},
        {"trainer.precision": "16-mixed", "trainer.accelerator": "cpu"},
        {"trainer.devices": 2, "trainer.accelerator": "cpu"},
        {"trainer.strategy": "ddp", "trainer.devices": 1, "trainer.accelerator": "cpu"},
        {"trainer.gradient_clip_algorithm": "value"},
        {"model.optimizer": "torch.optim.AdamW"},
    ],
)
def test_all_rows_are_updated_if_the_run_needs_it(
    options: dict[str, Any], log: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(_: str, example: PlannedRun, __: Any) -> tuple[float, float]:
        return (0.02 if example.model.loss == FullSoftmax() else 0.001), 0.004

    monkeypatch.setattr("lrec.study.dial.seconds_of", seconds)
    monkeypatch.setattr("lrec.study.dial.MORE_TARGETS", 0.5)  # nothing but these options speaks against it
    plan = plan_of(Study(hours=0.2, jobs=2, data=LOG, options=options))
    assert plan["options"]["model.loss.class_path"] == "lrec.SampledSoftmax"
    assert TOUCHED_ROWS not in plan["options"]
    assert "touched_rows" not in as_text(plan)


def test_a_plan_counts_the_update_of_a_large_table(log: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> int:
        text = as_text(plan_of(Study(hours=0.2, jobs=2, data=LOG)))
        return int(re.findall(r"trains on ([\d,]+) targets", text)[0].replace(",", ""))

    without = trained()
    monkeypatch.setattr("lrec.study.budget.update_seconds", lambda n, kind: 0.1)
    assert trained() < without / 2


def test_few_users_with_long_histories_have_samples_of_their_latest_events(
    planned: Callable[..., tuple[Study, str]],
) -> None:
    """A share of two users would be no user."""
    rows = [f"{user},{(user * 7 + step * (1 + user % 3)) % 100},{step}" for user in range(2) for step in range(10_000)]
    Path("log.csv").write_text("\n".join(["user,item,time", *rows]))
    study, said = planned(0.5)
    assert study.reduce == "recent"
    assert "the latest part of each history" in said
    for run in planned_runs(replace(study, sizes=["3k"], holdout=0, law=None)):
        trained_on = run.open_data().U
        assert trained_on == pytest.approx(run.fraction * 20_000, rel=0.02)


@pytest.mark.slow
def test_hours_are_those_of_what_is_given(planned: Callable[..., tuple[Study, str]]) -> None:
    """Also of small steps, of many passes with their samples, of a given rate without trials, and of a law."""

    def plan(hours: float = 0.5, **given: Any) -> tuple[Study, int, dict[str, float]]:
        study, said = planned(hours, cores=2, **given)
        targets = int(re.findall(r"trains on ([\d,]+) targets", said)[0].replace(",", ""))
        times = re.findall(r"\| ([a-z -]+) \| ([\d.]+) (s|min|h) \|", said)
        return study, targets, {part: float(time) * {"s": 1, "min": 60, "h": 3600}[unit] for part, time, unit in times}

    alone, targets, parts = plan()
    assert parts["trials"] > 0
    assert len(alone.fractions or ()) == 3
    small, large = (plan(options={STEP: step, LR: 0.01})[1] for step in (20, 640))
    assert small < 0.95 * large
    assert plan(0.05, options={EPOCHS: 30})[1] < 0.95 * plan(0.05)[1]
    lrs: list[dict[str, Any]] = [{"options": {LR: 0.01}}, {"rules": {LR: [0.1, -0.2]}}, {"grid": {LR: [0.01, 0.02]}}]
    for given in lrs:
        study, _, parts = plan(**given)
        assert study.tune == []
        assert parts["trials"] == 0
    assert plan(**lrs[0])[1] > targets
    for given in ({"law": "lsrm"}, {"holdout": 0}):
        assert len(plan(**given)[0].fractions or ()) == 1


@pytest.mark.parametrize("hours", [0.05, 0.08, 0.1])
def test_hours_are_those_of_the_targets_that_are_trained(
    hours: float, planned: Callable[..., tuple[Study, str]]
) -> None:
    """Also if the passes are rounded down, so that the hours would allow more."""
    study, said = planned(hours, cores=1, options={STEP: 128})
    targets = int(re.findall(r"trains on ([\d,]+) targets", said)[0].replace(",", ""))
    sizes = study.ladder[-2:]
    of_target = [1.1 * 1e-7 * (find_size(size).width ** 2 + 5000) + 0.004 / 128 for size in sizes]
    planned_hours = plan_of(Study(hours=hours, data=LOG, cores=1, options={STEP: 128}))["parts"]["held-out sizes"]
    assert 3600 * planned_hours == pytest.approx(targets * sum(of_target) + 3.0 * len(sizes), rel=0.01)


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ({"cores": 0}, "--cores must be at least 1"),
        ({"horizons": ()}, "--horizons .*name at least one"),
        ({"fractions": ()}, "--fractions .*name at least one"),
        ({"holdout_seeds": (2, 2)}, "--holdout_seeds .*each once"),
        ({"size_seeds": {"3k": ()}}, "--size_seeds.3k .*name at least one"),
        ({"options": {"trainer.max_steps": 500}}, "--hours: say by --options.trainer.max_epochs, and nothing else"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    given: dict[str, Any], refusal: str, planned: Callable[..., tuple[Study, str]]
) -> None:
    with pytest.raises(UserError, match=refusal):
        planned(0.5, **given)
