"""What an outlook says: the rule on given evidence, and evidence from data whose truth is known."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.splits.rules import LastItems, SplitRule
from lrec.data.splits.temporal import GlobalTemporal
from lrec.errors import UserError
from lrec.study import outlook as outlook_module
from lrec.study.outlook import Counted, Evidence, Tiny, gain_by_amount, judge, measure, train_briefly
from lrec.training.optim import Optimizer


def counted(bigram: float) -> Counted:
    return Counted(1, {"popularity": 7.0, "bigram": bigram, "trigram": bigram + 0.1})


RICH = Evidence(
    targets=3_000_000,
    items=5000,
    cases=5000,
    noise=0.02,
    counted=[counted(6.2), counted(6.0)],
    tiny=[Tiny("3k", 3072, 2_000_000, 5.6, 5.6), Tiny("25k", 24576, 2_000_000, 5.5, 5.5)],
)


def tiny(loss: float, fresh: float) -> list[Tiny]:
    return [replace(run, loss=loss, fresh_loss=fresh) for run in RICH.tiny]


def test_a_rich_set_gains_by_its_amount_of_data() -> None:
    outlook = judge(RICH)
    # 3m targets feed 250k parameters: log10(250,000 / 24,576) decades, a third of a nat each.
    assert outlook.gain == pytest.approx(np.log10(250_000 / 24_576) / 3)
    assert outlook.low < outlook.gain < outlook.high
    assert outlook.useful == 250_000
    assert outlook.doubling == pytest.approx(0.2)
    assert outlook.more_gain == pytest.approx(np.log10(2) / 3)


def test_more_data_never_gain_less_and_end_at_the_largest_size() -> None:
    gains = [gain_by_amount(targets) for targets in (1e3, 2e5, 3e5, 1e6, 1e7, 1e9)]
    assert gains == sorted(gains)
    assert gains[:2] == [0, 0]
    assert gains[-1] == gains[-2] == pytest.approx(np.log10(786_432 / 24_576) / 3)


@pytest.mark.parametrize(
    ("change", "gain", "why"),
    [
        ({"targets": 100_000}, 0.0, "100,000 training targets are enough for only 8,333 parameters"),
        ({"tiny": tiny(7.0, 7.0), "counted": [counted(7.1), counted(6.97)]}, 0.0, "in the order"),
        ({"tiny": tiny(5.5, 4.9)}, None, "validation is 0.60 nats harder"),
        ({"tiny": tiny(5.95, 5.95)}, None, "n-grams know about as much"),
        ({"tiny": tiny(6.3, 6.3)}, None, "n-grams know about as much"),
        ({"tiny": []}, None, "diverged"),
    ],
    ids=["few", "no order", "drift", "n-grams as good", "n-grams better", "diverged"],
)
def test_no_gain_or_unknown_for_a_reason(change: dict[str, object], gain: float | None, why: str) -> None:
    outlook = judge(replace(RICH, **change))
    assert outlook.gain == gain
    assert why in outlook.why
    assert (outlook.low is None) == (outlook.high is None) == (gain is None)


def data_of(
    items: np.ndarray, folder: Path, split: SplitRule | None = None, max_len: int = 20
) -> InteractionsDataModule:
    users, places = np.indices(items.shape)
    table = pl.DataFrame({"user": users.ravel(), "item": items.ravel(), "time": places.ravel()})
    table.write_parquet(folder / "log.parquet")
    path = str(folder / "log.parquet")
    data_dir, split = folder / "data", split or LastItems()
    data = InteractionsDataModule(path=path, time_column="time", data_dir=data_dir, split=split, max_len=max_len)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def random_items(tmp_path_factory: pytest.TempPathFactory) -> InteractionsDataModule:
    """Items drawn one by one, popular ones more often."""
    share = 1 / np.arange(1, 31)
    items = np.random.default_rng(0).choice(30, size=(300, 20), p=share / share.sum())
    return data_of(items, tmp_path_factory.mktemp("random"))


@pytest.fixture(scope="module")
def of_random_items(random_items: InteractionsDataModule) -> Evidence:
    return measure(random_items, seed=0)


def test_items_without_order_gain_nothing_however_many_there_are(of_random_items: Evidence) -> None:
    outlook = judge(replace(of_random_items, targets=100_000_000))
    assert outlook.gain == 0
    assert "in the order" in outlook.why
    assert outlook.useful == 0
    assert outlook.more_gain is None


def test_if_a_bigram_knows_everything_the_gain_is_unknown(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    items = np.empty((300, 20), dtype=np.int64)
    items[:, 0] = random.integers(30, size=300)
    for place in range(1, 20):
        moved = np.where(random.random(300) < 0.7, items[:, place - 1] + 1, random.integers(30, size=300))
        items[:, place] = moved % 30
    evidence = measure(data_of(items, tmp_path), seed=0)
    # 70 % of the steps are certain, the others uniform over 30 items.
    exact = -0.7233 * np.log(0.71) - 29 * 0.01 * np.log(0.01)
    assert evidence.counted[-1].losses["bigram"] == pytest.approx(exact, abs=0.25)
    assert "n-grams" in judge(replace(evidence, targets=100_000_000)).why


def test_one_user_is_not_enough(tmp_path: Path) -> None:
    one = data_of(np.random.default_rng(0).integers(20, size=(1, 3000)), tmp_path, GlobalTemporal(0.8, 0.9, "all"))
    with pytest.raises(UserError, match="needs training targets of two users"):
        measure(one, seed=0)


def test_histories_that_become_harder_do_not_drift(tmp_path: Path) -> None:
    """An item follows from the one before or is drawn at random. Later items are drawn more often."""
    random = np.random.default_rng(2)
    items = random.integers(30, size=(1000, 20))
    for place in range(1, 20):
        follows = random.random(1000) > place / 20
        items[follows, place] = (items[follows, place - 1] + 1) % 30
    for run in measure(data_of(items, tmp_path, max_len=10), seed=0).tiny:
        assert run.loss == pytest.approx(run.fresh_loss, abs=0.5)


def test_the_same_seed_measures_the_same(random_items: InteractionsDataModule, of_random_items: Evidence) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert measure(random_items, seed=0) == of_random_items
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert measure(random_items, seed=1) != of_random_items


def test_short_runs_that_diverge_are_left_out(
    random_items: InteractionsDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlook_module, "OPTIMIZER", Optimizer(lr=1e38, muon=None))
    evidence = measure(random_items, seed=0)
    assert evidence.tiny == []
    assert np.isfinite(evidence.noise)


def test_drawn_negatives_leave_the_random_numbers_alone(
    random_items: InteractionsDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlook_module, "LARGE_CATALOGUE", 1)
    state = torch.get_rng_state()
    one, same = (train_briefly(random_items, random_items.batch_plan.part, "0.8k", 5000, seed=0) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert torch.equal(torch.get_rng_state(), state)
