"""Where a run's optimizer steps end, and how often it logs."""

from types import SimpleNamespace
from typing import Any

import pytest

from lrec.errors import UserError
from lrec.training.tally import end_with_a_step


def trainer(**options: object) -> Any:
    usual = {"accumulate_grad_batches": 3, "limit_train_batches": 1.0, "log_every_n_steps": 50}
    return SimpleNamespace(**usual | {"val_check_interval": 1.0} | options)


@pytest.mark.parametrize(("limit", "steps"), [(1.0, 10), (9, 3), (8, 3), (0.1, 1)], ids=str)
def test_a_short_epoch_logs_once(limit: float, steps: int) -> None:
    limited = trainer(limit_train_batches=limit)
    end_with_a_step(limited, n_steps=10)
    assert limited.log_every_n_steps == steps


def test_a_share_of_an_epoch_that_has_no_batch_is_refused() -> None:
    with pytest.raises(UserError, match="takes none of the 30 batches"):
        end_with_a_step(trainer(limit_train_batches=0.01), n_steps=10)
