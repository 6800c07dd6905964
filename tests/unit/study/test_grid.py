"""The grid of a study: which runs there are, and what each is trained with."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from lrec.errors import UserError
from lrec.study.grid import PlannedRun, planned_runs, ruled_options
from lrec.study.options import Study


def study(**changes: Any) -> Study:
    arguments: dict[str, Any] = {
        "name": "grid",
        "configs": ["data/synthetic.yaml", "trainer/laptop.yaml"],
        "sizes": ["12k", "3k", "0.8k", "1.7k", "6.9k"],
        "reduce": "recent",
        "holdout": 1,
        "fractions": (1.0,),
    }
    return Study(**(arguments | changes))


def planned(**changes: Any) -> list[PlannedRun]:
    return planned_runs(study(**changes))


def samples(**changes: Any) -> list[float]:
    """The data samples that a study has by default."""
    return sorted({run.fraction for run in planned(fractions=None, **changes)})


def runs_of(sizes: tuple[str, ...] = ("3k", "12k"), **changes: Any) -> list[PlannedRun]:
    """The runs of some sizes in a study with these changes."""
    return [run for run in planned_runs(study(**changes)) if run.size in sizes]


def test_targets_per_step_by_rule_are_whole_and_not_extrapolated() -> None:
    ruled = study(sizes=["3k", "12k"], holdout=0, law=None, rules={"data.targets_per_step": [10_000, -0.25]})
    steps = [ruled_options(ruled, size, 1.0) for size in ("3k", "12k", "98k")]
    (longest,) = ruled_options(study(rules={"data.targets_per_step": [12_344, 0]}), "3k", 1.0).values()
    assert longest == 12_344, "less would be too few for histories of 6,172 items"
    assert steps == [{"data.targets_per_step": step} for step in (1343, 950, 950)]
    assert all(run.config.value("data.targets_per_step") in (1343, 950) for run in planned_runs(ruled))


def test_options_follow_the_size_by_rule() -> None:
    few: dict[str, Any] = {"sizes": ["3k", "12k"], "law": None, "holdout": 0}
    runs = planned(
        **few,
        options={"model.optimizer.lr": 1.0},
        rules={"model": {"optimizer.lr": [0.2, -0.5], "dropout.residual.first": [0.01, 0.25]}},
        size_options={"12k": {"model.optimizer.lr": 0.5}},
    )
    small, large = (run.options["model"] for run in runs)
    assert small["optimizer"]["lr"] == pytest.approx(0.2 / 3072**0.5, rel=1e-3)
    assert large["optimizer"]["lr"] == 0.5
    assert large["dropout"]["residual"]["first"] == pytest.approx(0.01 * 12288**0.25, rel=1e-3)
    rules = {"model.dropout.embedding": [0.1, 0.0, -0.5]}
    of_data = {
        run.fraction: run.options["model"]["dropout"]["embedding"]
        for run in planned(**few | {"sizes": ["3k"]}, rules=rules, fractions=(1.0, 0.5, 0.25))
    }
    assert of_data == pytest.approx({1.0: 0.1, 0.5: 0.1414, 0.25: 0.2})


def test_a_run_is_composed_as_if_it_were_the_only_one() -> None:
    """Also if it differs from others only in its size and seed."""
    several: dict[str, Any] = {"sizes": ["3k", "12k"], "seeds": (1, 2), "holdout": 0, "law": None}
    for run in planned(**several):
        (alone,) = planned(**several | {"sizes": [run.size], "seeds": (run.seed,)})
        assert run == alone
        assert run.options["model"]["size"] == run.size
        assert run.options["seed_everything"] == run.options["data"]["init_args"]["seed"] == run.seed
    with pytest.raises(UserError, match="--seeds must be at least 0"):
        planned(**several | {"seeds": (1, -1)})


def test_an_even_ladder_is_named_by_its_ends() -> None:
    planned = study(sizes={"from": "3k", "to": "100k", "per_decade": 4})
    assert (planned.fitted, planned.held_out) == (["1x16", "1x20", "1x28", "1x36", "1x48", "1x64"], ["1x88"])
    for sizes in ({"from": "3k", "to": "3m"}, {"from": "3k", "to": "1k", "per_decade": 3}, {"from": 1, "to": "x"}):
        with pytest.raises(UserError, match="--sizes"):
            study(sizes=sizes)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"data": {"seed": 3}, "seeds": (1, 2)}, "--seeds: all runs with the option data.seed 3"),
        ({"options": {"data.seed": 3}, "size_seeds": {"3k": (1, 2)}}, "--seeds: all runs with the option data.seed 3"),
        ({"options": {"model": {"size": "3k"}}}, "--sizes: all runs with the option model.size 3k"),
        ({"grid": {"model.size": ["3k", "12k"]}}, "--sizes: all runs with the option model.size 12k"),
        ({"size_options": {"3k": {"model": {"size": "12k"}}}}, "--sizes: all runs with the option model.size 12k"),
        ({"variants": {"a": {"data.seed": 3}}, "seeds": (1, 2)}, "--seeds: all runs with the option data.seed 3"),
        ({"tune": ("lr", "lr")}, "--tune .*each once"),
    ],
)
def test_runs_that_differ_in_seed_or_size_cannot_be_given_one(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        study(**given)
    assert study(data={"seed": 3}).given == {"data.seed": 3}, "one seed may be another"


def test_a_law_of_n_body_has_one_shape_of_each() -> None:
    sizes = ["0.8k", "1.7k", "3k", "6.9k", "1x64", "4x32"]
    with pytest.raises(UserError, match=r"--sizes \[.*'1x64', '4x32'\]: two have the same N_body"):
        study(sizes=sizes)
    assert study(sizes=sizes, x="N_total").ladder == study(sizes=sizes, holdout=0, law=None).ladder == sizes


@pytest.mark.parametrize("place", ["options", "configs"])
def test_data_samples_are_shares_of_data_that_are_reduced_already(place: str, tmp_path: Path) -> None:
    (tmp_path / "half.yaml").write_text("data: {reduction: {recent: 0.5}}")
    configs = ["data/synthetic.yaml", "trainer/laptop.yaml", str(tmp_path / "half.yaml")]
    given: dict[str, Any] = {"configs": configs} if place == "configs" else {"options": {"data.reduction.recent": 0.5}}
    runs = planned(**given, sizes=["3k"], holdout=0, law=None, fractions=(1.0, 0.25))
    assert [run.config.value("data.reduction.recent") for run in runs] == [0.5, 0.125]
    with pytest.raises(UserError, match="--fractions must be above 0 and at most 1, got 2"):
        study(fractions=(1.0, 2.0))


COMPOSED: dict[str, Any] = {"model": {}, "data": {"reduction": {"recent": 1.0}}}


@pytest.fixture
def without_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan runs without their options, which take most of the time."""
    monkeypatch.setattr("lrec.training.lightning_cli.compose", lambda arguments: deepcopy(COMPOSED))


@pytest.mark.usefixtures("without_options")
def test_a_size_may_have_seeds_of_its_own() -> None:
    runs = runs_of(size_seeds={"3k": (1, 2)}, fractions=(1.0, 0.5))
    assert [(run.name, run.held_out) for run in runs] == [
        ("3k-seed1", False),
        ("3k-seed2", False),
        ("12k-seed1", True),
        ("3k-recent-0.5-seed1", False),
        ("3k-recent-0.5-seed2", False),
    ]


@pytest.mark.usefixtures("without_options")
def test_a_forecast_has_halves_and_quarters_of_the_fitted_sizes_by_default() -> None:
    runs = planned_runs(study(seeds=(1, 2), fractions=None))
    assert sorted({(run.fraction, run.held_out) for run in runs}) == [
        (0.25, False),
        (0.5, False),
        (1, False),
        (1, True),
    ]
    assert [run.name for run in runs if run.size == "3k"] == [
        "3k-seed1", "3k-seed2", "3k-recent-0.5-seed1", "3k-recent-0.25-seed1"
    ]  # fmt: skip
    for fewer in ({"law": "lsrm"}, {"holdout": 0}, {"horizons": (0.5, 1.0)}):
        assert study(fractions=None, **fewer).samples(epochs=100) == (1.0,)


def test_samples_are_the_default_only_where_a_run_makes_more_than_four_passes(tmp_path: Path) -> None:
    """Wherever its passes are named; trainer/laptop.yaml has 100."""
    (tmp_path / "few.yaml").write_text("trainer: {max_epochs: 4}")
    configs = ["data/synthetic.yaml", "trainer/laptop.yaml"]
    few: dict[str, Any] = {"trainer": {"max_epochs": 4}}
    for fewer in (
        {"options": few},
        {"configs": [*configs, str(tmp_path / "few.yaml")]},
        {"grid": {"trainer.max_epochs": [1, 4]}},
        {"variants": {"short": few, "shorter": {"trainer.max_epochs": 1}}},
        {"options": {"trainer.limit_train_batches": 0.04}},
    ):
        assert samples(**fewer) == [1.0]
    for more in (
        {},
        {"grid": {"trainer.max_epochs": [4, 5]}},
        {"options": few, "size_options": {"3k": {"trainer.max_epochs": 5}}},
    ):
        assert samples(**more) == [0.25, 0.5, 1.0]


@pytest.mark.parametrize("rule", [[0.2], [0.2, 1, "a"], 3])
def test_a_rule_is_two_numbers(rule: Any) -> None:
    with pytest.raises(UserError, match=r"--rules.model.optimizer.lr: .* is not \[factor, exponent\]"):
        runs_of(rules={"model.optimizer.lr": rule})


def test_a_grid_names_each_combination_and_leaves_variants_their_names() -> None:
    values = {"model": {"optimizer.betas": [[0.9, 0.98], [0.9, 0.999]]}, "trainer.max_epochs": [1]}
    named = study(variants={"both": {"model.loss": "GBCE"}}, grid=values).every_variant
    assert list(named) == ["both-betas-_0.9_0.98_-max_epochs-1", "both-betas-_0.9_0.999_-max_epochs-1"]
    assert named["both-betas-_0.9_0.98_-max_epochs-1"] == {
        "model.loss": "GBCE",
        "model.optimizer.betas": [0.9, 0.98],
        "trainer.max_epochs": 1,
    }
    with pytest.raises(UserError, match="--grid: two combinations would be named lr-1"):
        study(grid={"model.optimizer.lr": [1, "1"]})
    with pytest.raises(UserError, match="the name 'a/b' must be made of"):
        study(variants={"a/b": {}})
