"""Plans against closed forms and brute force, and the questions a law cannot answer."""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from lrec.errors import UserError
from lrec.laws.analysis import Analysis
from lrec.laws.choosers import DataChooser
from lrec.laws.fit import Fit, fit_points
from lrec.laws.fit_json import write_fit
from lrec.laws.forecast import Forecast
from lrec.laws.law import Array
from lrec.laws.loss_laws import LAWS
from lrec.laws.plan import plan_command
from lrec.laws.predict import Predictor, holdout_report
from lrec.laws.table import flops_per_interaction

TRUTH = {"E": 2.0, "A": 50.0, "B": 80.0, "a": 0.3, "b": 0.25}
REPEATED = TRUTH | {"P": 0.03, "d": 1.2, "k": 0.6}


def grid(passes: tuple[float, ...] = (1.0,)) -> Array:
    """Sizes x unique data x passes: N, D, U."""
    return np.array(
        [[n, u * p, u] for n in np.geomspace(1e4, 1e6, 5) for u in np.geomspace(1e5, 1e7, 4) for p in passes]
    )


def points_of(x: Array, law: str = "chinchilla", parameters: dict[str, float] = TRUTH) -> pl.DataFrame:
    y = LAWS[law].loss(parameters, x[:, : len(LAWS[law].variables)])
    return pl.DataFrame({"x": x[:, 0], "d": x[:, 1], "u": x[:, 2], "y": y})


@cache
def chinchilla() -> Fit:
    return fit_points(LAWS["chinchilla"], points_of(grid()))


@cache
def overfitting() -> Fit:
    x = grid(passes=(1.0, 4.0, 16.0))
    return fit_points(LAWS["overfitting"], points_of(x, "overfitting", REPEATED))


def test_the_best_size_for_a_budget_is_the_closed_form() -> None:
    """N = G (C/6)^(b/(a+b)), D = (C/6)^(a/(a+b)) / G, G = (aA/bB)^(1/(a+b)) (arXiv 2203.15556, equation 4)."""
    a, b = TRUTH["a"], TRUTH["b"]
    g = (a * TRUTH["A"] / (b * TRUTH["B"])) ** (1 / (a + b))
    for flops in (1e12, 1e15):
        choice = DataChooser(chinchilla()).for_flops(flops)
        assert choice.size == pytest.approx(g * (flops / 6) ** (b / (a + b)), rel=1e-4)
        assert choice.data == pytest.approx((flops / 6) ** (a / (a + b)) / g, rel=1e-4)
        assert choice.epochs == 1
        assert choice.flops == pytest.approx(flops)


@pytest.mark.parametrize("unit", [1.0, 1e9])
def test_budget_loss_and_size_lead_to_one_plan(unit: float) -> None:
    """In a table of another source, sizes and data may be in billions."""
    points = points_of(grid()).with_columns(pl.col("x", "d") / unit)
    chooser, flops = DataChooser(fit_points(LAWS["chinchilla"], points)), 1e14 / unit**2
    size = DataChooser(chinchilla()).for_flops(1e14).size / unit
    by_flops = chooser.for_flops(flops)
    by_loss = chooser.for_loss(float(chooser.loss(by_flops.size, by_flops.data)))
    for each in (by_flops, by_loss, chooser.for_size(by_flops.size)):
        assert each.size == pytest.approx(size, rel=1e-4)
        assert each.flops == pytest.approx(flops, rel=1e-3)


def test_limited_data_is_repeated_as_long_as_that_helps_and_never_beyond_what_was_fitted() -> None:
    chooser = DataChooser(overfitting(), unique=1e6)
    for size in (1e5, 1e7):
        choice = chooser.for_size(size)
        passes = np.linspace(1, 16, 3001)
        losses = LAWS["overfitting"].loss(
            REPEATED, np.stack([np.full(3001, size), passes * 1e6, np.full(3001, 1e6)], 1)
        )
        assert choice.epochs == pytest.approx(passes[losses.argmin()], abs=0.1)
    assert chooser.for_size(1e7).epochs < chooser.for_size(1e5).epochs
    for flops in np.geomspace(1e10, 1e18, 9):
        assert chooser.for_flops(flops).epochs <= 16 * (1 + 1e-6)


@pytest.mark.slow
def test_a_larger_budget_never_plans_a_higher_loss_where_passes_do_harm() -> None:
    chooser = DataChooser(overfitting(), unique=1e6)
    budgets = np.geomspace(1e11, 1e17, 7)
    choices = [chooser.for_flops(flops) for flops in budgets]
    losses = np.array([float(chooser.loss(c.size, c.data)) for c in choices])
    assert (np.diff(losses) <= 1e-6).all()
    assert all(choice.flops <= flops * (1 + 1e-6) for choice, flops in zip(choices, budgets, strict=True))
    # Brute force over all N and D within the budget.
    n, passes = (g.ravel() for g in np.meshgrid(np.geomspace(1e3, 1e11, 800), np.geomspace(1, 16, 300)))
    n, passes = n[6 * n * passes * 1e6 <= 1e15], passes[6 * n * passes * 1e6 <= 1e15]
    least = LAWS["overfitting"].loss(REPEATED, np.stack([n, passes * 1e6, np.full(len(n), 1e6)], 1)).min()
    assert float(np.interp(1e15, budgets, losses)) == pytest.approx(least, rel=1e-3)
    reached = chooser.for_loss(float(losses[3]))
    assert reached.flops <= budgets[3] * 1.01


def test_used_up_data_is_said_whenever_it_bounds_the_plan() -> None:
    chooser = DataChooser(chinchilla(), unique=1e7)
    bounded = [chooser.used_up(chooser.for_flops(flops)) for flops in np.geomspace(1e10, 1e22, 25)]
    assert bounded == sorted(bounded)
    assert bounded[0] is False
    assert sum(bounded) > 10
    with pytest.raises(UserError, match="too few for 1 x"):
        DataChooser(chinchilla(), unique=1e7, epochs=1).for_flops(1e6)


def test_a_law_from_runs_with_many_passes_plans_as_many_passes() -> None:
    x = np.array([[n, 30 * u, u] for n in np.geomspace(1e4, 1e6, 5) for u in np.geomspace(1e5, 1e7, 4)])
    chooser = DataChooser(fit_points(LAWS["chinchilla"], points_of(x)))
    choice = chooser.for_flops(1e14)
    assert choice.epochs == pytest.approx(30)
    assert set(chooser.doubled(choice)) == {"parameters", "data"}
    with pytest.raises(UserError, match="30 to 30 passes"):
        DataChooser(chooser.fit, unique=1e6, epochs=1)


def test_flops_of_an_interaction_come_from_the_points() -> None:
    x = grid()
    per_interaction = 6 * x[:, 0] + 900 * x[:, 0] ** 0.5
    points = points_of(x).with_columns(flops=pl.Series(per_interaction * x[:, 1]))
    assert flops_per_interaction(points)(1e8) == pytest.approx(6e8 + 900 * 1e4, rel=1e-9)
    assert flops_per_interaction(points.drop("flops"))(1e8) == 6e8
    too_few = points.with_columns(flops=5 * pl.col("x") * pl.col("d"))
    assert flops_per_interaction(too_few)(1e8) == 6e8


def written(folder: Path, fit: Fit, x: str = "N_body") -> Path:
    names = {"x": x, "d": "D", "u": "U", "y": "test_loss"}
    write_fit(folder, Analysis(fit, None, fit.points, names, with_others=False))
    return folder / "fit.json"


@cache
def size_alone() -> Fit:
    size = np.geomspace(1e4, 1e6, 8)
    loss = 4 + 6 * size**-0.25
    points = pl.DataFrame({"x": size, "y": loss, "d": [5e6] * 8, "u": [1e6] * 8, "NDCG@10": 0.3 * (1 - loss / 7)})
    return fit_points(LAWS["lsrm"], points)


def of_size(folder: Path) -> Path:
    """A law of size alone, from runs of five passes over a million interactions, with a metric."""
    return written(folder, size_alone())


def test_the_command_says_what_to_train_and_what_to_expect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = of_size(tmp_path)
    plan_command(fit, size=1e7, mfu=0.5, peak_flops=1e12)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert (plan["N"], plan["D"], plan["U"], plan["epochs"]) == (1e7, 5e6, 1e6, 5)
    assert plan["flops"] == pytest.approx(6e7 * 5e6)
    assert plan["hours"] == pytest.approx(6e7 * 5e6 / 0.5e12 / 3600)
    loss = 4 + 6 * 1e7**-0.25
    assert plan["loss"]["predicted"] == pytest.approx(loss, rel=1e-6)
    metric = plan["metrics"]["NDCG@10"]
    assert metric["low"] <= 0.3 * (1 - loss / 7) <= metric["high"]
    assert metric["predicted"] == pytest.approx(0.3 * (1 - loss / 7), rel=0.03)
    printed = capsys.readouterr().out
    for text in ("N_body", "hours of a GPU at 50% of 1 TFLOP/s", f"{loss:.4f}", "NDCG@10"):
        assert text in printed
    plan_command(fit, loss=loss, out=tmp_path / "other.json")
    assert json.loads((tmp_path / "other.json").read_text())["N"] == pytest.approx(1e7, rel=1e-3)
    plan_command(fit, flops=6e7 * 5e6, out=tmp_path / "other.json")
    assert json.loads((tmp_path / "other.json").read_text())["N"] == pytest.approx(1e7, rel=1e-3)


def test_a_run_of_exactly_this_size_is_preferred_to_the_law(tmp_path: Path) -> None:
    size = np.geomspace(1e4, 1e6, 8)
    points = pl.DataFrame({"x": size, "y": 4 + 6 * size**-0.25 + 0.01 * (-1.0) ** np.arange(8)})
    fit = written(tmp_path, fit_points(LAWS["lsrm"], points))
    plan_command(fit, size=size[3])
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["measured_runs"] == 1
    assert plan["loss"]["predicted"] == points["y"][3]
    assert plan["loss"]["low"] < plan["loss"]["mean_low"] < points["y"][3]


def test_if_the_law_does_not_hold_only_trained_sizes_are_planned(tmp_path: Path) -> None:
    size = np.geomspace(1e4, 1e6, 8)
    loss = 4 + 6 * size**-0.25
    loss[6:] = loss[5] * np.array([1.001, 1.002])
    points = pl.DataFrame({"x": size, "y": loss})
    analysis = Analysis(*holdout_report(LAWS["lsrm"], points, 2), points, {"x": "N_body", "y": "test_loss"})
    write_fit(tmp_path, analysis)
    with pytest.raises(UserError, match=r"The law does not hold.*only sizes that were trained"):
        plan_command(tmp_path / "fit.json", size=1e7)
    plan_command(tmp_path / "fit.json", size=1e6)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["notes"][0].startswith("The law does not hold")
    assert plan["loss"]["predicted"] == loss[7]


def of_a_study(folder: Path) -> tuple[Path, pl.DataFrame]:
    """A forecast with two held-out sizes, which did as well as expected, and with metrics of all sizes."""
    size = np.geomspace(1e4, 1e6, 8)
    loss = 4 + 6 * size**-0.25
    hits = 1 / (1 + np.exp(loss - 4))
    points = pl.DataFrame({"x": size, "y": loss, "d": [5e6] * 8, "u": [1e6] * 8, "may_stop": False, "HR@10": hits})
    analysis = Analysis(*holdout_report(None, points, 2), points, {"x": "N_body", "y": "test_loss"}, with_others=False)
    write_fit(folder, analysis)
    return folder / "fit.json", points


def test_held_out_runs_count_and_trained_sizes_have_what_they_measured(tmp_path: Path) -> None:
    fit, points = of_a_study(tmp_path)
    plan_command(fit, size=1e6)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["measured_runs"] == 1
    assert plan["metrics"]["HR@10"] == {"predicted": points["HR@10"][-1], "low": None, "high": None}
    for size in (5.5e5, 1.05e6, 1e7):  # between trained sizes, and beyond them
        plan_command(fit, size=size)
        plan = json.loads((tmp_path / "plan.json").read_text())
        smaller = points.filter(pl.col("x") <= size)
        assert plan["loss"]["predicted"] <= smaller["y"].min()
        assert plan["metrics"]["HR@10"]["predicted"] >= smaller["HR@10"].max()


def test_the_least_size_for_a_hit_rate(tmp_path: Path) -> None:
    fit, points = of_a_study(tmp_path)
    plan_command(fit, hr10=points["HR@10"][4] - 1e-6)
    assert json.loads((tmp_path / "plan.json").read_text())["N"] == points["x"][4]
    wanted = float(1 / (1 + np.exp(6 * 1e7**-0.25)))
    plan_command(fit, hr10=wanted)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["metrics"]["HR@10"]["predicted"] >= wanted
    assert 3e6 < plan["N"] < 5e7
    with pytest.raises(UserError, match=r"--hr10_unseen needs .* from points with HR@10_unseen"):
        plan_command(fit, hr10_unseen=wanted)
    unseen = points.with_columns(pl.col("HR@10").alias("HR@10_unseen"), pl.col("HR@10") / 2)
    analysis = Analysis(*holdout_report(None, unseen, 2), unseen, {"x": "N_body", "y": "test_loss"}, with_others=False)
    write_fit(tmp_path / "unseen", analysis)
    plan_command(tmp_path / "unseen" / "fit.json", hr10_unseen=wanted)
    assert json.loads((tmp_path / "unseen" / "plan.json").read_text())["N"] == plan["N"]
    with pytest.raises(UserError, match=r"--hr10 0\.9: only 0\.\d+ is expected at 100 times"):
        plan_command(fit, hr10=0.9)
    with pytest.raises(UserError, match="not reached at 100 times the largest N_body"):
        plan_command(fit, loss=4.02)
    law = fit_points(LAWS["lsrm"], points.select("x", "y"))
    write_fit(tmp_path / "flops", Analysis(law, None, law.points, {"x": "flops", "y": "loss"}, with_others=False))
    with pytest.raises(UserError, match="not reached at 100 times the largest flops"):
        plan_command(tmp_path / "flops" / "fit.json", loss=4.02)
    with pytest.raises(UserError, match="--hr10 needs a forecast by size, or a law"):
        plan_command(written(tmp_path, chinchilla()), hr10=0.3)


def test_a_hit_rate_that_few_sizes_have_cannot_be_planned(tmp_path: Path) -> None:
    _, points = of_a_study(tmp_path)
    points = points.with_columns(pl.when(pl.col("x") > 3e5).then("HR@10").otherwise(0.0))
    analysis = Analysis(*holdout_report(None, points, 2), points, {"x": "N_body", "y": "test_loss"}, with_others=False)
    write_fit(tmp_path, analysis)
    with pytest.raises(UserError, match=r"--hr10 0\.9: .* too few sizes have an HR@10 above 0"):
        plan_command(tmp_path / "fit.json", hr10=0.9)


def of_losses(folder: Path, losses: list[float], lengths: tuple[float, ...] = (1.0,)) -> tuple[Path, pl.DataFrame]:
    """A forecast from sizes of these losses; runs of half of the length have a loss that is 0.1 higher."""
    sizes = (1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6)
    rows = [(n, y + 0.2 * (1 - h), h * 1e7, h) for n, y in zip(sizes, losses, strict=True) for h in lengths]
    points = pl.DataFrame(rows, schema=["x", "y", "d", "horizon"], orient="row").with_columns(u=1e7, may_stop=True)
    names = {"x": "N_body", "d": "D", "y": "test_loss"}
    write_fit(folder, Analysis(*holdout_report(None, points, 0), points, names, with_others=False))
    return folder / "fit.json", points


TURNED = [5.0, 4.6, 4.3, 4.2, 4.25, 4.35, 4.45]


@pytest.mark.parametrize("losses", [[5.0, 4.6, 4.3, 4.2, 4.15, 4.13, 4.14], TURNED])
def test_a_loss_that_was_reached_is_planned_with_the_smallest_trained_size(tmp_path: Path, losses: list[float]) -> None:
    fit, points = of_losses(tmp_path, losses)
    for loss, size in ((4.6, 3e3), (6.0, 1e3), (min(losses), points["x"][int(np.argmin(losses))])):
        plan_command(fit, loss=loss)
        plan = json.loads((tmp_path / "plan.json").read_text())
        assert (plan["N"], plan["measured_runs"]) == (size, 1)
        assert plan["loss"]["predicted"] <= loss


@pytest.mark.parametrize("losses", [[5.0] * 7, TURNED])
def test_a_budget_is_not_spent_on_a_size_that_gains_nothing(tmp_path: Path, losses: list[float]) -> None:
    fit, points = of_losses(tmp_path, losses)
    plan_command(fit, hours=1e6)
    plan = json.loads((tmp_path / "plan.json").read_text())
    best = losses.index(min(losses))
    assert (plan["N"], plan["measured_runs"], plan["loss"]["cautious"]) == (points["x"][best], 1, None)
    assert plan["loss"]["predicted"] == pytest.approx(losses[best])
    assert any("of the budget is left" in note for note in plan["notes"])


def test_a_size_so_small_that_its_loss_overflows_has_no_plan(tmp_path: Path) -> None:
    fit, _ = of_losses(tmp_path, [5.0, 4.8, 4.65, 4.52, 4.4, 4.3, 4.2])
    with pytest.raises(UserError, match="--size 1e-29: no finite loss is expected"), np.errstate(over="ignore"):
        plan_command(fit, size=1e-29)
    assert not (tmp_path / "plan.json").exists()


def test_a_loss_that_turned_is_planned_as_the_fit_expects_it(tmp_path: Path) -> None:
    fit, _ = of_losses(tmp_path, TURNED, (0.5, 1.0))
    plan_command(fit, size=1e7)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["loss"]["predicted"] == json.loads(fit.read_text())["outlook"]["predicted"] == pytest.approx(4.45)
    plan_command(fit, size=2e5)  # the best smaller size of the longest runs bounds it
    assert json.loads((tmp_path / "plan.json").read_text())["loss"]["predicted"] <= 4.2
    with pytest.raises(UserError, match=r"--loss 4\.1: not reached; the expected loss is 4\.45"):
        plan_command(fit, loss=4.1)


def test_runs_on_a_sample_of_the_data_do_not_bound_the_loss_of_others(tmp_path: Path) -> None:
    """Here the smallest size, trained on half of the data alone, did better than any size on all data."""
    _, points = of_losses(tmp_path, [5.0, 4.8, 4.65, 4.52, 4.4, 4.3, 4.2], (0.5, 1.0))
    lucky = pl.when((pl.col("x") == 1e3) & (pl.col("horizon") < 1)).then(4.1).otherwise("y")
    points = points.with_columns(y=lucky, u=pl.col("horizon") * 1e7)[[0, *range(2, 14)]].drop("horizon")
    names = {"x": "N_body", "u": "U", "y": "test_loss"}
    write_fit(tmp_path, Analysis(*holdout_report(None, points, 0), points, names, with_others=False))
    plan_command(tmp_path / "fit.json", size=2e5)
    assert json.loads((tmp_path / "plan.json").read_text())["loss"]["predicted"] > 4.1


def test_a_larger_size_is_planned_with_all_data_even_if_the_largest_had_a_sample(tmp_path: Path) -> None:
    _, points = of_losses(tmp_path, [5.0, 4.8, 4.65, 4.52, 4.4, 4.3, 4.2], (0.5, 1.0))
    points = (
        points.with_columns(u=pl.col("horizon") * 1e7).drop("horizon").filter((pl.col("x") < 1e6) | (pl.col("u") < 1e7))
    )
    predictor, _ = holdout_report(None, points, 0)
    names = {"x": "N_body", "u": "U", "y": "test_loss"}
    write_fit(tmp_path, Analysis(predictor, None, points, names, with_others=False))
    plan_command(tmp_path / "fit.json", size=1e7)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["U"] == plan["loss"]["u"] == 1e7
    assert plan["loss"]["predicted"] == pytest.approx(predictor.predict(np.array([[1e7, 1e7]]))[0].predicted)


def test_passes_that_a_small_budget_does_not_pay_for_do_not_stop_a_plan_for_a_loss() -> None:
    points = points_of(grid()).with_columns(flops=(6 * pl.col("x") + 4e5) * pl.col("d"))
    chooser = DataChooser(fit_points(LAWS["chinchilla"], points), unique=1e7, epochs=1)
    choice = chooser.for_loss(5.0)
    assert choice.data == pytest.approx(1e7)
    assert float(chooser.loss(choice.size, choice.data)) == pytest.approx(5.0, rel=1e-4)


def test_the_item_table_counts_in_the_budgets_that_are_searched() -> None:
    """Here the item table takes nearly all FLOPs, as with a large catalogue."""
    points = points_of(grid()).with_columns(flops=(6 * pl.col("x") + 4e10 * pl.col("x") ** 0.1) * pl.col("d"))
    chooser = DataChooser(fit_points(LAWS["chinchilla"], points))
    most = 1e6 * float(points["flops"].to_numpy().max())
    assert chooser.for_size(100.0).size == 100
    with pytest.raises(UserError, match=re.escape(f"not reached with {most:.2g} FLOPs, a million times the largest")):
        chooser.for_loss(1.9)


def test_a_law_of_unique_data_counts_every_pass(tmp_path: Path) -> None:
    """Here d is the unique data, which every run processed 30 times."""
    n, u = (g.ravel() for g in np.meshgrid(np.geomspace(1e4, 1e6, 5), np.geomspace(1e5, 1e7, 4)))
    points = points_of(np.stack([n, u, u], 1)).with_columns(
        processed=30 * pl.col("d"), flops=180 * pl.col("x") * pl.col("d")
    )
    plan_command(written(tmp_path, fit_points(LAWS["chinchilla"], points)), size=1e5, unique=1e6)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert (plan["D"], plan["U"], plan["epochs"]) == pytest.approx((3e7, 1e6, 30))
    assert plan["flops"] == pytest.approx(6e5 * 3e7)
    expected = LAWS["chinchilla"].loss(TRUTH, np.array([[1e5, 1e6]])).item()
    assert plan["loss"]["predicted"] == pytest.approx(expected, rel=1e-4)
    plan_command(tmp_path / "fit.json", flops=plan["flops"], unique=1e7)
    other = json.loads((tmp_path / "plan.json").read_text())
    assert other["epochs"] == pytest.approx(30)
    assert other["flops"] == pytest.approx(plan["flops"], rel=1e-3)


def test_a_much_cheaper_plan_that_is_nearly_as_good_stands_beside_the_best(tmp_path: Path) -> None:
    fit = written(tmp_path, chinchilla())
    plan_command(fit, flops=1e22, unique=1e7)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["cheapest"]["flops"] < plan["flops"] / 10
    cheap = chinchilla().curve(np.array([[plan["cheapest"]["N"], plan["cheapest"]["D"]]]))[0]
    assert cheap == pytest.approx(1.001 * plan["loss"]["predicted"], rel=1e-5)


def test_a_trained_setting_that_did_better_than_the_law_is_planned_for_its_budget(tmp_path: Path) -> None:
    lucky = (pl.col("x") == 1e5) & (pl.col("u") == 1e7)
    points = points_of(grid((2.0,))).with_columns(y=pl.when(lucky).then(0.97 * pl.col("y")).otherwise("y"))
    fit = written(tmp_path, fit_points(LAWS["chinchilla"], points))
    plan_command(fit, flops=6 * 1e5 * 2e7, unique=1e7, epochs=2)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["loss"]["predicted"] == points.filter(lucky)["y"].item()
    assert (plan["measured_runs"], plan["cheapest"]) == (1, None)


def test_the_interval_of_a_noisy_measured_size_has_no_negative_loss(tmp_path: Path) -> None:
    """A law with two degrees of freedom, whose runs scatter by half of their loss."""
    points = pl.DataFrame({"x": np.geomspace(1e3, 1e7, 5), "y": [4.0, 2.0, 3.5, 1.2, 2.4]})
    fit = fit_points(LAWS["lsrm"], points, "lsq")
    write_fit(tmp_path, Analysis(fit, None, points, {"x": "N_body", "y": "test_loss"}, with_others=False))
    plan_command(tmp_path / "fit.json", size=1e6)
    loss = json.loads((tmp_path / "plan.json").read_text())["loss"]
    assert (loss["predicted"], loss["low"], loss["mean_low"]) == (1.2, 0.0, 0.0)


def test_hours_follow_from_the_measured_throughput(tmp_path: Path) -> None:
    points = points_of(grid()).with_columns(flops=6 * pl.col("x") * pl.col("d"))
    points = points.with_columns(wall_s=pl.col("flops") / pl.when(pl.col("x") > 5e5).then(2e9).otherwise(1e9))
    fit = written(tmp_path, fit_points(LAWS["chinchilla"], points))
    plan_command(fit, flops=3.6e14)
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["hours"] == pytest.approx(3.6e14 / 2e9 / 3600, rel=1e-3)
    assert "of the largest trained runs" in plan["speed"]
    plan_command(fit, hours=plan["hours"], price_per_hour=2.5)
    same = json.loads((tmp_path / "plan.json").read_text())
    assert same["flops"] == pytest.approx(3.6e14, rel=1e-3)
    assert same["price"] == pytest.approx(2.5 * plan["hours"])


def test_a_plan_has_the_interval_of_the_fit(tmp_path: Path) -> None:
    points = points_of(grid())
    noisy = points.with_columns(y=points["y"] * np.exp(0.003 * np.random.default_rng(0).standard_normal(len(points))))
    fitted = fit_points(LAWS["chinchilla"], noisy)
    plan_command(written(tmp_path, fitted), flops=1e14)
    plan = json.loads((tmp_path / "plan.json").read_text())
    (expected,) = fitted.predict(np.array([[plan["N"], plan["D"]]]))
    assert (plan["loss"]["low"], plan["loss"]["high"]) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert plan["doubled"]["data"] < plan["loss"]["predicted"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "name one of --flops, --loss, --size, --hours, --hr10 and --hr10_unseen"),
        ({"size": 1e6, "flops": 1e12}, "name one of --flops, --loss, --size, --hours, --hr10 and --hr10_unseen"),
        ({"size": -1.0}, "--size must be above 0"),
        ({"size": 1e160}, "--size must be above 0 and below 1e\\+30"),
        ({"loss": 1.5}, "--loss 1.5: not reached"),
        ({"loss": 3.0, "unique": 1e22, "epochs": 1.0}, "--loss 3: not reached .*; they are too few for 1 x 1e"),
        ({"size": 1e6, "unique": 1e6, "epochs": 40.0}, "runs of 1 to 16 passes"),
        ({"size": 1e6, "epochs": 4.0}, "with --unique"),
    ],
)
def test_what_a_law_of_data_cannot_answer(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    fit = written(tmp_path, overfitting())
    with pytest.raises(UserError, match=said):
        plan_command(fit, **options)
    assert not (tmp_path / "plan.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 1e6, "unique": 2e6}, "holds for the data it was fitted on"),
        ({"size": 1e6, "epochs": 4.0}, "holds for the passes"),
        ({"loss": 3.9}, "never less than the floor"),
        ({"flops": 1e7}, "--flops 1e\\+07: too few for any size on 5e\\+06 interactions"),
        ({"hours": 1e-12}, "--hours 1e-12: too few for any size"),
    ],
)
def test_what_a_law_of_size_cannot_answer(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan_command(of_size(tmp_path), **options)


def test_no_plan_expects_a_loss_below_the_floor_of_the_fit(tmp_path: Path) -> None:
    x, fitted = np.geomspace(1e4, 1e7, 7), chinchilla()
    points = pl.DataFrame({"x": x, "y": 2 + (1e5 / x) ** 0.3})
    names = {"x": "N", "d": "D", "u": "U", "y": "loss"}
    floors: dict[str, tuple[Predictor, float]] = {"size": (Forecast(points), 2.2), "data": (replace(fitted), 2.5)}
    for name, (predictor, floor) in floors.items():
        write_fit(tmp_path / name, Analysis(predictor, None, predictor.points, names, with_others=False, floor=floor))
        plan_command(tmp_path / name / "fit.json", size=1e12)
        loss = json.loads((tmp_path / name / "plan.json").read_text())["loss"]
        assert min(loss["predicted"], loss["low"], loss["mean_low"]) == floor
        with pytest.raises(UserError, match=f"--loss .*: not reached.*{floor}"):
            plan_command(tmp_path / name / "fit.json", loss=floor - 0.01)


def test_files_that_are_no_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        plan_command(tmp_path / "fit.json", size=1e6)
    (tmp_path / "fit.json").write_text('{"law": "lsrm"}')
    with pytest.raises(UserError, match=r"not a fit\.json"):
        plan_command(tmp_path / "fit.json", size=1e6)
    with pytest.raises(UserError, match=r"not a fit\.json"):
        plan_command(tmp_path, size=1e6)
    with pytest.raises(UserError, match=r"--out .* is not a folder"):
        plan_command(of_size(tmp_path), size=1e6, out=tmp_path / "fit.json" / "plan.json")
    with pytest.raises(UserError, match="--mfu must be above 0 and at most 1"):
        plan_command(of_size(tmp_path), size=1e6, mfu=40)
    with pytest.raises(UserError, match="replace its own fit; name another file"):
        plan_command(of_size(tmp_path), size=1e6, out=tmp_path / "fit.json")


def test_what_lies_far_from_what_was_fitted_is_said(tmp_path: Path) -> None:
    for size, said in ((1e9, "N_body is 1000 times the largest"), (10.0, "N_body is a 1000th of the smallest")):
        plan_command(of_size(tmp_path), size=size)
        assert any(said in note for note in json.loads((tmp_path / "plan.json").read_text())["notes"])


def test_a_plan_warns_of_the_points_that_it_uses(tmp_path: Path) -> None:
    points = size_alone().points[:6]
    analysis = Analysis(*holdout_report(LAWS["lsrm"], points, 2), points, {"x": "N", "y": "loss"}, with_others=False)
    write_fit(tmp_path, analysis)
    assert any(each.startswith("only 4 sizes") for each in analysis.warnings)
    plan_command(tmp_path / "fit.json", size=1e7)
    assert not any("only 4 sizes" in note for note in json.loads((tmp_path / "plan.json").read_text())["notes"])


def test_too_little_data_for_any_plan_is_said_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--unique 1e-29: too few to plan for$"):
        plan_command(written(tmp_path, chinchilla()), flops=1e14, unique=1e-29)
