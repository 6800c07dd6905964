"""`lrec scaling outlook` as a user runs it."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from lrec.common.text_tables import on_terminal

SMALL = ["--config", "configs/data/synthetic.yaml", "--data.n_users=300", "--data.n_items=50", "--data.length=20"]


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["scaling", "outlook", *SMALL]


def test_says_what_size_and_data_bring_and_writes_it(arguments: list[str], lrec: Callable[..., str]) -> None:
    printed = lrec(*arguments, "--out", "outlook")
    assert sorted(path.name for path in Path().iterdir()) == ["data", "outlook"]
    assert "short run  trained on" in printed
    assert "From 25k to 786k parameters expect 0.00 nats (0.00 to 0.05)" in printed
    assert "the last doubling lowered the loss of n-grams" in printed
    assert on_terminal(Path("outlook/report.md").read_text()) == printed.strip()
    written = json.loads(Path("outlook/outlook.json").read_text())
    assert written["outlook"]["gain"] == 0
    targets = [row["targets"] for row in written["evidence"]["counted"]]
    assert targets == sorted(targets)
    assert targets[-1] == written["evidence"]["targets"] == 300 * (20 - 2 - 1)
    assert [run["size"] for run in written["evidence"]["tiny"]] == ["3k", "25k"]
    assert 0 < written["evidence"]["counted"][-1]["losses"]["popularity"] < math.log(50) + 0.1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.n_users=60"], "an outlook needs 1,000 and 100"),
        (["--seed=-1"], "--seed must be at least 0"),
        (["--seed=99999999999999999999"], "--seed must be at least 0 and at most 4294967295"),
        (["--out=file"], "--out file"),
        (["--data.reduction.users=0.01"], "training target"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    arguments: list[str], refused: Callable[..., str], options: list[str], said: str
) -> None:
    Path("file").write_text("")
    assert said in refused(*arguments, "--out=outlook", *options)
    assert not Path("outlook").exists()
    assert Path("file").read_text() == ""
