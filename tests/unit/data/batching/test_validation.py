"""Which users validate during training: a fixed sample, in proportion to the training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

import lrec
from lrec.data.batching import eval_batches as validation
from lrec.data.datamodule import SequenceDataModule
from lrec.data.splits.rules import hash_numbers
from lrec.errors import UserError

N_USERS, LENGTH, MAX_LEN = 500, 12, 6


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("log")
    lines = [f"u{u} {' '.join(str((u * 7 + i * i) % 40) for i in range(LENGTH))}\n" for u in range(N_USERS)]
    (folder / "log.txt").write_text("".join(lines))
    return folder / "log.txt"


def data_of(log: Path, trainer: Any = None, **options: Any) -> SequenceDataModule:
    data: SequenceDataModule = lrec.InteractionsDataModule(
        log, time_column=None, data_dir=log.parent / "data", max_len=MAX_LEN, targets_per_step=100, **options
    )
    data.prepare_data()
    data.setup()
    data.trainer = trainer
    return data


def trainer_of(**options: Any) -> SimpleNamespace:
    """What a DataModule reads from Lightning's Trainer during fit."""
    usual = {
        "state": SimpleNamespace(fn="fit"), "world_size": 1, "global_rank": 0, "accumulate_grad_batches": 1,
        "limit_train_batches": 1.0, "val_check_interval": 1.0, "check_val_every_n_epoch": 1,
        "strategy": SimpleNamespace(root_device=torch.device("cpu")),
    }  # fmt: skip
    return SimpleNamespace(**(usual | options))


def users_of(data: SequenceDataModule) -> np.ndarray:
    """The users that validate; checks that each comes once."""
    users = np.concatenate([batch.users_M[batch.weights_M > 0].numpy() for batch in data.val_dataloader()])
    assert len(np.unique(users)) == len(users)
    return np.sort(users)


def test_a_sample_is_fixed_and_smaller_ones_nest(log: Path) -> None:
    samples = [users_of(data_of(log, validation_users=n)) for n in (40, 200, "all")]
    assert [len(users) for users in samples] == [40, 200, N_USERS]
    assert set(samples[0]) < set(samples[1]) < set(samples[2])
    for options in ({"num_workers": 1}, {"seed": 3}):
        assert users_of(data_of(log, validation_users=40, **options)).tolist() == samples[0].tolist()
    ranks = [data_of(log, trainer_of(world_size=2, global_rank=rank), validation_users=40) for rank in (0, 1)]
    assert np.sort(np.concatenate([users_of(data) for data in ranks])).tolist() == samples[0].tolist()
    # The users are in order of their ids, and the sample is not a range of them.
    assert samples[0].max() - samples[0].min() > N_USERS / 2


def test_the_test_and_validate_are_on_all_users(log: Path) -> None:
    data = data_of(log, validation_users=40)
    assert sum(int(batch.weights_M.sum()) for batch in data.test_dataloader()) == N_USERS
    validate = trainer_of(state=SimpleNamespace(fn="validate"))
    assert len(users_of(data_of(log, validate))) == N_USERS


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ({}, 1.0),
        ({"val_check_interval": 0.5}, 0.5),
        ({"check_val_every_n_epoch": 2}, 2.0),
        ({"val_check_interval": 9}, 9 / 45),
        ({"val_check_interval": 9, "check_val_every_n_epoch": None}, 9 / 45),
        ({"val_check_interval": 18, "accumulate_grad_batches": 2}, 9 / 45),
        ({"world_size": 2}, 1.0),
        ({"limit_train_batches": 15}, 1 / 3),
        ({"limit_train_batches": 0.2, "check_val_every_n_epoch": 2}, 0.4),
    ],
)
def test_by_default_an_evaluation_costs_a_tenth_of_the_training_since_the_last(
    log: Path, options: dict[str, Any], epochs: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "LEAST_USERS", 3)
    data = data_of(log, trainer_of(**options))
    assert (data.U, data.steps_per_epoch) == (N_USERS * (LENGTH - 3), 45)
    # For each user, six positions cost a third of a target each, and the ranking costs one target.
    assert len(users_of(data)) == int(0.1 * epochs * data.U / 3 + 1e-9)


def test_between_evaluations_by_time_lies_an_epoch(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "LEAST_USERS", 3)
    trainer = Trainer(accelerator="cpu", logger=False, val_check_interval="00:00:00:05")
    trainer.state.fn = TrainerFn.FITTING
    data = data_of(log, trainer)
    assert len(users_of(data)) == int(0.1 * data.U / 3 + 1e-9)


def test_a_history_that_several_targets_share_costs_once(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "LEAST_USERS", 3)
    data = data_of(log, trainer_of(), split=lrec.UserSplit(validation=0.3, test=0.1))
    # Of 11 targets, those after 1 to 6 items share six positions; the others read six each. All 11 are ranked.
    of_user = (6 + 5 * 6) / 3 + 11
    batches = list(data.val_dataloader())
    users = len(np.unique(np.concatenate([batch.users_M.numpy() for batch in batches])))
    assert users == int(0.1 * data.U / of_user + 1e-9)
    assert sum(len(batch.users_M) for batch in batches) == 11 * users


def test_there_are_enough_users_for_a_figure(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(users_of(data_of(log, trainer_of()))) == N_USERS
    monkeypatch.setattr(validation, "LEAST_USERS", 200)
    assert len(users_of(data_of(log, trainer_of()))) == 200


def test_a_test_of_very_many_scores_is_on_a_sample(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(validation, "LEAST_USERS", 3)
    data = data_of(log)
    assert data.evaluated("test")[1] is None
    monkeypatch.setattr(validation, "MOST_SCORES", 40 * data.n_items)
    assert data.evaluated("test")[1] == data.evaluated("val")[1] == (40, N_USERS)
    tested = np.concatenate([batch.users_M[batch.weights_M > 0].numpy() for batch in data.test_dataloader()])
    assert len(np.unique(tested)) == len(tested) == 40
    assert f"test: 40 of {N_USERS} users (--data.test_users auto)" in capsys.readouterr().out
    assert set(tested) < set(np.unique(data_of(log, test_users=50).evaluated("test")[0].users_T))
    assert data_of(log, test_users="all").evaluated("test")[1] is None


def test_a_sample_is_of_users_who_have_a_target(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the users have a target: those whose last two items are of the type buy."""
    kinds = {u: "buy" if u % 10 == 0 else "view" for u in range(N_USERS)}
    rows = [(f"u{u}", (u * 7 + i) % 40, i, kinds[u]) for u in range(N_USERS) for i in range(LENGTH)]
    pl.DataFrame(rows, ["user", "item", "time", "kind"], orient="row").write_csv(tmp_path / "log.csv")
    options: dict[str, Any] = {
        "event_column": "kind", "time_column": "time", "data_dir": tmp_path, "max_len": MAX_LEN,
        "targets_per_step": 100, "validation_users": 40,
    }  # fmt: skip
    bought, every = (
        lrec.InteractionsDataModule(tmp_path / "log.csv", target_events=types, **options) for types in (["buy"], None)
    )
    for data in (bought, every):
        data.prepare_data()
        data.setup()
    targets, sample = bought.evaluated("val")
    assert sample == (40, N_USERS // 10)
    assert len(np.unique(targets.users_T)) == 40
    monkeypatch.setattr(validation, "LEAST_USERS", 3)
    monkeypatch.setattr(validation, "MOST_SCORES", 30 * bought.n_items)
    assert bought.evaluated("test")[1] == (30, N_USERS // 10)
    users = np.arange(N_USERS)
    smallest = np.sort(users[np.argsort(hash_numbers(users), kind="stable")[:40]])
    assert every.evaluated("val")[0].users_T.tolist() == smallest.tolist()


def test_refused(log: Path, tmp_path: Path) -> None:
    for option in ("validation_users", "test_users"):
        with pytest.raises(UserError, match=f"{option} must be at least 1"):
            data_of(log, **{option: 0})
