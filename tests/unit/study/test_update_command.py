"""What an update says about numbers that are one, and which runs it refuses."""

import pytest

from lrec.common.pages import rendered
from lrec.errors import UserError
from lrec.run import RunConfig
from lrec.study.update import Recipe, trained_on


def test_an_optimizer_without_a_learning_rate_is_refused() -> None:
    own = {"class_path": "mine.Own", "init_args": {"rate": 0.1}}
    config = RunConfig({"model": {"optimizer": own}, "data": {"max_len": 10}, "trainer": {}})
    with pytest.raises(UserError, match=r"model\.optimizer has no lr"):
        trained_on(config, 0, Recipe())


def test_one_is_singular() -> None:
    model = {f"{figure}{part}": 0.5 for figure in ("loss", "HR@10") for part in ("", "_se")} | {"unknown": 1}
    record = {
        "run": "run",
        "figures": ["loss", "HR@10"],
        "window": {"targets": 1, "users": 1, "from": "Monday", "until": "Tuesday"},
        "models": {"old": model},
        "minutes": {},
        "kept": "old",
        "serve": "run",
        "recipe": {"lr": 0.1, "replay": 0.1},
        "drift": dict.fromkeys(("unknown_items", "distance", "distance_by_chance", "loss_in_window"), 0.1)
        | {"rows": 1, "loss_before": None},
        "late_rows": 1,
        "diverged": [],
    }
    page = rendered("study", "update.md.j2", record)
    assert "Judged on 1 target of 1 user, from Monday" in page
    assert "Drift of 1 new row: 10.0% are" in page
    assert "count as old rows: 1." in page
