"""What a backtest says about size, age and updates, from targets with chosen ranks."""

import json
import math
import re
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from lrec.backtest import windows
from lrec.backtest.findings import Findings, Gain, figures_of, mean_of, share_of_gain
from lrec.backtest.options import Backtest, Update, network_of, open_store, planned, windows_of
from lrec.backtest.report import verdict_of, write_report
from lrec.errors import UserError
from lrec.evaluation.standard_errors import paired
from lrec.run import Point, Run

SIZES = ["3k", "98k"]


def targets(window: int, ranks: list[float]) -> pl.DataFrame:
    """One target per rank, each of another user; the loss is the rank."""
    n = len(ranks)
    ranks = [float(rank) for rank in ranks]
    columns = {"window": [window] * n, "user": list(range(n)), "step": [window] * n}
    return pl.DataFrame({**columns, "loss": ranks, "rank": ranks, "rank_unseen": ranks})


Served = dict[tuple[str, str, int], tuple[Point, pl.DataFrame]]


def served(network: str, size: str, ranks: dict[int, list[float]], wall_s: float = 1.0) -> Served:
    """`ranks` holds the ranks of the targets in each window."""
    tables = [targets(window, mine) for window, mine in ranks.items()]
    return {(network, size, 1): (Point(wall_s=wall_s), figures_of(pl.concat(tables)))}


def test_figures_follow_from_the_ranks() -> None:
    found = figures_of(targets(1, [1, 3, 10, 11, math.inf]))
    assert found["HR@10"].to_list() == [1, 1, 1, 0, 0]
    assert found["NDCG@10"].to_list() == pytest.approx([1, 0.5, 1 / math.log2(11), 0, 0])


def test_ages_count_windows_after_an_origin() -> None:
    backtest = Backtest(sizes=SIZES, folds=3, update=("full",))
    ranks = {
        1: {1: [3.0, 3.0], 2: [7.0, 7.0], 3: [math.inf, 11.0]},
        2: {2: [3.0, 3.0], 3: [7.0, 7.0]},
        3: {3: [3.0, 1.0]},
    }
    every: Served = {}
    for k, mine in ranks.items():
        every |= served(f"full-{k}", "3k", mine) | served(f"full-{k}", "98k", {w: [1.0, 1.0] for w in range(k, 4)})
    found = Findings(backtest, every)
    assert {age: len(tables["3k"][0]) for age, tables in found.by_age.items()} == {0: 6, 1: 4, 2: 2}
    assert found.of_size[0].base == pytest.approx((5 * 0.5 + 1) / 6)
    assert found.of_size[0].value == pytest.approx(1 - (5 * 0.5 + 1) / 6)
    assert found.of_size[1].value == pytest.approx(1 - 1 / 3)
    assert found.of_size[2].value == pytest.approx(1.0)
    value, _ = paired(found.by_age[0]["3k"], found.by_age[0]["98k"], "NDCG@10")
    assert value == found.of_size[0].value


def test_an_update_keeps_a_share_of_the_gain_at_a_share_of_the_cost() -> None:
    backtest = Backtest(sizes=["3k"], folds=2, update=("none", "warm", "full"))
    every = served("full-1", "3k", {1: [1.0, 1.0, 1.0], 2: [11.0, 11.0, 11.0]}, 100)
    every |= served("warm-2", "3k", {2: [1.0, 11.0, 11.0]}, 10) | served("full-2", "3k", {2: [1.0, 1.0, 11.0]}, 100)
    rows = {row["update"]: row for row in Findings(backtest, every).updates}
    assert rows["none"]["NDCG@10"] == 0
    assert (rows["none"]["seconds"], rows["warm"]["cost"]) == (0, 0.1)
    assert rows["warm"]["gain_kept"] == pytest.approx(0.5)
    assert rows["full"]["gain_kept"] == pytest.approx(1)
    assert rows["full"]["gain_kept_se"] == pytest.approx(0)
    assert rows["warm"]["gain_kept_se"] > 0


def test_updates_are_compared_on_the_targets_that_all_of_them_have() -> None:
    """The network without an update has no input for the second user, whom the newer networks rank badly."""
    backtest = Backtest(sizes=["3k"], folds=2, update=("none", "full"))
    every = served("full-1", "3k", {1: [1.0], 2: [1.0]}) | served("full-2", "3k", {2: [1.0, 11.0]})
    none, full = Findings(backtest, every).updates
    assert (none["targets"], full["targets"]) == (1, 1)
    assert none["NDCG@10"] == full["NDCG@10"] == 1


@pytest.mark.filterwarnings("error")
def test_an_age_whose_targets_are_all_outside_the_catalogue_has_no_point(tmp_path: Path) -> None:
    backtest = Backtest(sizes=SIZES, folds=2, update=("none", "full"), out=tmp_path)
    later = targets(2, [math.inf] * 3).with_columns(loss=math.nan)
    newest = targets(2, [2.0] * 3)
    every = {
        (f"full-{k}", size, seed): (Point(wall_s=1.0), figures_of(table))
        for size in SIZES
        for seed in backtest.seeds
        for k, table in ((1, pl.concat([targets(1, [3.0, 1.0, 2.0]), later])), (2, newest))
    }
    store = SimpleNamespace(time_unit="order")
    beside = {k: figures_of(targets(k, [4.0] * 3)).with_columns(scorer=pl.lit("popularity")) for k in (1, 2)}
    (tmp_path / "ages" / "7").mkdir(parents=True)  # of an earlier backtest with more folds
    write_report(store, {1: (0, 5), 2: (5, 9)}, Findings(backtest, every), beside)  # type: ignore[arg-type]
    assert "nan" in (backtest.folder / "report.md").read_text()
    written = json.loads((backtest.folder / "backtest.json").read_text(), parse_constant=pytest.fail)
    assert written["by_age"]["1"]["3k"]["loss"] is None
    assert [path.name for path in (backtest.folder / "ages").iterdir()] == ["0"]


def test_no_picture_of_earlier_sizes_stays(tmp_path: Path) -> None:
    every = served("full-1", "3k", {1: [2.0], 2: [2.0]}) | served("full-1", "98k", {1: [1.0], 2: [1.0]})
    beside = {1: figures_of(targets(1, [4.0])).with_columns(scorer=pl.lit("popularity"))}
    store: Any = SimpleNamespace(time_unit="order")
    for sizes, pictures in ((SIZES, 2), (["3k"], 0)):  # the picture, and TensorBoard's event file with it
        backtest = Backtest(sizes=sizes, folds=2, update=("none",), out=tmp_path)
        write_report(store, {1: (0, 5), 2: (5, 9)}, Findings(backtest, every), beside)
        assert len([*tmp_path.glob("*by_age*")]) == pictures


def test_windows_show_the_newest_networks_in_whatever_order_updates_are_named(tmp_path: Path) -> None:
    backtest = Backtest(sizes=["3k"], folds=2, update=("warm", "none"), out=tmp_path, train_from=2)
    every = served("full-1", "3k", {1: [1.0], 2: [11.0]}) | served("warm-2", "3k", {2: [1.0]})
    beside = {k: figures_of(targets(k, [4.0])).with_columns(scorer=pl.lit("popularity")) for k in (1, 2)}
    store: Any = SimpleNamespace(time_unit="order")
    report = write_report(store, {1: (0, 5), 2: (5, 9)}, Findings(backtest, every), beside)
    assert "| 2 | 5 | 1 | 0.0 % | 1.0000 | 0.4307 |" in report
    assert "learns from all before its origin (--train_from 2), except" in report
    assert "Diverged" not in report
    every["warm-2", "3k", 1] = Point(run="3k-warm-2-seed1", status="diverged"), every["warm-2", "3k", 1][1]
    report = write_report(store, {1: (0, 5), 2: (5, 9)}, Findings(backtest, every), beside)
    assert "Diverged, and tested as after their best evaluation: 3k-warm-2-seed1." in report


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("sizes", "said"), [(SIZES, "Nothing says whether"), (["3k"], "One size was trained")])
def test_windows_without_a_known_history_are_reported(sizes: list[str], said: str, tmp_path: Path) -> None:
    """All users and items of both windows are new: no network has an input, and no baseline has anything to count."""
    backtest = Backtest(sizes=sizes, folds=2, update=("none", "full"), out=tmp_path)
    nothing = figures_of(targets(1, [1.0])).clear()
    every = {(f"full-{k}", size, 1): (Point(wall_s=1.0), nothing) for size in sizes for k in (1, 2)}
    beside = {k: nothing.with_columns(scorer=pl.lit("popularity")) for k in (1, 2)}
    store: Any = SimpleNamespace(time_unit="order")
    report = write_report(store, {1: (0, 5), 2: (5, 9)}, Findings(backtest, every), beside)
    assert said in report
    assert "no target has a known item before it" in report
    assert re.search(r"\| 2 \| 5 \| 0 \|( +\|)+\n", report)  # neither a share of cold targets nor a figure


@pytest.mark.filterwarnings("error")
def test_nothing_has_no_gain_and_no_error() -> None:
    nothing = figures_of(targets(1, [1.0])).clear()
    assert all(math.isnan(each) for each in (*paired([nothing], [nothing]), *share_of_gain(*[[nothing]] * 3)))
    assert math.isnan(mean_of([nothing], "loss"))
    assert Gain(math.nan, math.nan, math.nan).sign == 0


def test_the_error_of_a_share_agrees_with_resampled_users() -> None:
    generator = np.random.default_rng(0)
    ranks = generator.integers(1, 30, (3, 400)).astype(float)
    none, own, full = (figures_of(targets(1, list(mine))) for mine in (ranks[0], ranks[1] / 2, ranks[2] / 3))
    share, error = share_of_gain([none], [own], [full])
    drawn = []
    for _ in range(300):
        rows = generator.integers(0, 400, 400)
        mean = [float(table["NDCG@10"].to_numpy()[rows].mean()) for table in (none, own, full)]
        drawn.append((mean[1] - mean[0]) / (mean[2] - mean[0]))
    assert share == pytest.approx(sum(drawn) / 300, abs=0.02)
    assert error == pytest.approx(pl.Series(drawn).std(), rel=0.15)


@pytest.mark.parametrize("full", [[11.0, 11.0, 11.0, 11.0, 11.0], [1.0, 11.0, 11.0, 11.0, 3.0]])
def test_a_gain_that_is_not_certain_has_no_shares(full: list[float]) -> None:
    none, own, full_table = (figures_of(targets(1, mine)) for mine in ([11.0] * 4 + [2.0], [1.0] * 5, full))
    assert all(math.isnan(each) for each in share_of_gain([none], [own], [full_table]))


@pytest.mark.parametrize(
    ("first", "later", "said"),
    [
        ((0.1, 0.01), (0.05, 0.01), "A larger network pays, and it still does"),
        ((0.1, 0.01), (0.01, 0.01), "pays at first, but not certainly"),
        ((0.1, 0.01), (-0.1, 0.01), "is worse as it ages"),
        ((-0.1, 0.01), (0.1, 0.01), "pays as it ages, but not at first"),
        ((-0.1, 0.01), (-0.1, 0.01), "does not pay here"),
        ((0.1, 0.01), (math.nan, math.nan), "A larger network pays at first: "),
    ],
)
def test_the_verdict_follows_the_intervals(first: tuple[float, float], later: tuple[float, float], said: str) -> None:
    gains = {0: Gain(*first, 0.2), 1: Gain(*later, 0.2)}
    assert said in verdict_of(Backtest(sizes=SIZES, folds=2), gains)


def test_a_gain_is_shown_as_a_share_with_its_interval() -> None:
    assert str(Gain(0.02, 0.01, 0.2)) == "+10.0 % (+1.8 to +18.2)"


def test_a_gain_over_nothing_is_shown_as_it_is() -> None:
    assert str(Gain(0.02, 0.01, 0.0)) == "+0.0200 (+0.0036 to +0.0364)"


@pytest.mark.parametrize(
    ("update", "origin", "network"),
    [("none", 3, "full-1"), ("warm", 1, "full-1"), ("warm", 3, "warm-3"), ("full", 3, "full-3")],
)
def test_which_network_serves(update: Update, origin: int, network: str) -> None:
    assert network_of(update, origin) == network


def test_sizes_grow_however_they_are_given() -> None:
    assert Backtest(sizes=["98k", "3k", "1x8"]).sizes == ["1x8", "3k", "98k"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"folds": 1}, "--folds"),
        ({"update": ()}, "--update"),
        ({"sizes": ["5q"]}, "5q"),
        ({"until": 1.5}, "--until must be a share below 1"),
        ({"train_from": -0.5}, "--train_from must be a share below 1"),
        ({"train_from": "7d"}, "--train_from=7d is no ISO date"),  # which would be a time in January 1970
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Backtest(**options)  # type: ignore[arg-type]


def test_times_that_are_no_dates_are_refused(tmp_path: Path) -> None:
    """--every cannot be a number of steps."""
    synthetic = {"data.data_dir": str(tmp_path), "data.n_users": 9, "data.n_items": 4}
    with pytest.raises(UserError, match="a backtest needs times that are dates"):
        open_store(Backtest(configs=["data/synthetic.yaml", "trainer/laptop.yaml"], options=synthetic))


@pytest.mark.parametrize(
    ("times", "types", "said"),
    [
        ([10, 200, 201], None, ""),
        ([10, 200], None, "^window 2 .* has no interaction of"),
        ([10, 200, 201], ["buy", "view"], ""),
        ([10, 200, 201], ["buy"], "^window 2 .* has no buy of"),
    ],
)
def test_a_window_without_a_target_is_refused_before_any_training(
    times: list[int], types: list[str] | None, said: str
) -> None:
    """The second user has one interaction, in the second window: it is no target, as nothing comes before it."""
    offsets, events_N = np.array([0, len(times), len(times) + 1]), np.array(["buy", "buy", "view", "buy"])
    store: Any = SimpleNamespace(times_N=np.array([*times, 250]), offsets_U1=offsets, time_unit="s")
    store.of_types = partial(np.isin, events_N)
    backtest = Backtest(folds=2, every="100s", until=301)
    with pytest.raises(UserError, match=said) if said else nullcontext():
        assert windows_of(backtest, store, types) == {1: (101, 201), 2: (201, 301)}


def test_an_origin_with_one_known_user_is_refused_before_any_training() -> None:
    """The user would be for validation, and nothing would be left to train on."""
    store: Any = SimpleNamespace(times_N=np.array([10, 20, 250, 260]), offsets_U1=np.array([0, 2, 4]), n_users=2)
    store.time_unit = "s"
    with pytest.raises(UserError, match="fewer than two users have two interactions before 1970-01-01 00:01"):
        planned(Backtest(folds=2, every="100s"), store, {1: (101, 201), 2: (201, 301)})


def test_a_damaged_table_of_targets_is_made_again(tmp_path: Path) -> None:
    """Here it cannot be, because the run has no checkpoint."""
    (tmp_path / "windows.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="has no checkpoint to test"):
        windows.tested(Run(tmp_path), {1: (0, 5)}, windows.of_network)
