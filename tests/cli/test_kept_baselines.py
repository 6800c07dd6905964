"""What the baselines reach on the test targets is found once for the same data, and then kept with the store."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fit_arguments import fit_arguments

from lrec.evaluation.baselines import BASELINES, Baselines


@pytest.fixture
def log(log_csv: Path, tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text(log_csv.read_text())
    return path


def arguments(run: Path, log: Path, **options: object) -> list[str]:
    columns = {"data__user_column": "who", "data__item_column": "what", "data__time_column": "when"}
    return fit_arguments(run, log, **columns, model__size="0.8k", trainer__max_epochs=1, **options)


def figures(run: Path) -> dict[str, Any]:
    return json.loads((run / "metrics.json").read_text())


def kept(log: Path) -> list[Path]:
    return list(log.parent.glob("stores/*/baselines/*.json"))


def test_baselines_are_found_once(
    log: Path, tmp_path: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lrec(*arguments(tmp_path / "first", log))
    (file,) = kept(log)
    lrec(*arguments(tmp_path / "anew", log, data__data_dir=tmp_path / "other"))
    scored = []
    score = Baselines.score
    monkeypatch.setattr(Baselines, "score", lambda self, name, batch: scored.append(name) or score(self, name, batch))
    lrec(*arguments(tmp_path / "second", log, seed_everything=5))
    assert set(scored) == {"popularity"}, "beside validation, in fit"
    first, second, anew = (figures(tmp_path / run) for run in ("first", "second", "anew"))
    assert second["model"] != first["model"]
    for name in BASELINES:
        assert json.dumps(second[name]) == json.dumps(first[name]) == json.dumps(anew[name])
    assert kept(log) == [file]


SHORT = {"data__split__trajectory_min_length": 5}


def test_other_targets_have_figures_of_their_own(
    log: Path, tmp_path: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lrec(*arguments(tmp_path / "first", log))
    before = {file: file.read_text() for file in kept(log)}
    lrec(*arguments(tmp_path / "split", log, data__split__trajectory=1, **SHORT))
    lrec(*arguments(tmp_path / "length", log, data__max_len=3))
    monkeypatch.setattr("lrec.data.batching.eval_batches.MAX_TARGETS", 50)
    lrec(*arguments(tmp_path / "part", log, data__split__trajectory=2, **SHORT, trainer__limit_test_batches=0.5))
    assert len(kept(log)) == 3, "a part of the targets leaves none"
    assert len({file.read_text() for file in kept(log)}) == 3
    assert {file: file.read_text() for file in before} == before


def test_what_other_code_found_or_somebody_edited_is_found_anew(
    log: Path, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    lrec(*arguments(tmp_path / "first", log))
    (file,) = kept(log)
    found = json.loads(file.read_text())
    edited = {name: figures | {"loss": 0.0} for name, figures in found["figures"].items()}
    for changed in ({"hash": "0" * 64}, {"figures": edited}):
        file.write_text(json.dumps(found | changed))
        lrec(*arguments(tmp_path / next(iter(changed)), log))
        assert json.loads(file.read_text()) == found
    assert figures(tmp_path / "figures")["markov"]["loss"] == found["figures"]["markov"]["loss"] > 0
    assert kept(log) == [file]


def test_counts_without_room_are_left_out_and_made_later(
    log: Path, tmp_path: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("lrec.evaluation.baselines.available_gib", lambda: 1e-5)
        printed = lrec(*arguments(tmp_path / "small", log))
    assert (
        printed.count("left out: recent-popularity, markov, item-graph, whose counts take up to 0.0 GiB; 0.0 are free")
        == 1
    )
    lrec(*arguments(tmp_path / "large", log))
    small, large = (figures(tmp_path / run) for run in ("small", "large"))
    assert {"recent-popularity", "markov", "item-graph"}.isdisjoint(small)
    assert large.keys() >= set(BASELINES)
    assert large["repeat-last"] == small["repeat-last"]
    assert json.loads(kept(log)[0].read_text())["figures"].keys() == set(BASELINES)
