"""`lrec scaling compare` of two ladders whose laws are known, from their points to figure, JSON and verdict."""

import json
from pathlib import Path

import numpy as np
import pytest

from lrec.errors import UserError
from lrec.laws.contrast import Contrast
from lrec.laws.fit import Fit
from lrec.study import comparison
from lrec.study.comparison import compare

LADDERS = {"plain": (2.0, 1e4, 0.2), "hstu": (2.0, 10**4.5, 0.4)}  # they cross at 1e5 parameters, 6e11 FLOPs


def study(folder: Path, data: str = "a") -> Path:
    """A study with a ladder of each architecture, at one amount of data."""
    runs = []
    for ladder, (floor, scale, exponent) in LADDERS.items():
        for number, n in enumerate(np.geomspace(3e3, 3e6, 7)):
            name = f"{ladder}-{number}"
            runs.append({"name": name, "ladder": ladder, "held_out": False})
            loss = (floor + (scale / n) ** exponent) * (1 + 1e-5 * (-1) ** number)
            point = {"schema": 1, "best": True, "status": "finished", "run": name, "N_body": n, "flops": 6e6 * n}
            (folder / "runs" / name).mkdir(parents=True)
            line = point | {"U": 1e6, "D": 1e6, "val_loss": loss, "test_loss": loss, "data_hash": data}
            (folder / "runs" / name / "points.jsonl").write_text(json.dumps(line) + "\n")
    (folder / "study.json").write_text(json.dumps({"grid": {"runs": runs}}))
    return folder


def test_exponents_and_the_crossing_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare([study(tmp_path / "study")], x="flops", out=tmp_path / "out")
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    (found,) = content["contrasts"]
    assert found["crossing"] == pytest.approx(6e11, rel=0.02)
    assert found["crossing_low"] <= found["crossing"] <= found["crossing_high"]
    assert found["exponent"] == pytest.approx(-0.2, abs=0.01)
    for name, (_, _, exponent) in LADDERS.items():
        ladder = next(value for key, value in content["ladders"].items() if key.endswith(name))
        low, high = ladder["intervals"]["a"]
        assert low <= ladder["parameters"]["a"] <= high
        assert ladder["parameters"]["a"] == pytest.approx(exponent, abs=0.01)
    said = capsys.readouterr().out
    assert "distinguishable from 0. The first is lower up to" in said
    assert "not distinguishable" not in said


def test_a_copy_is_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [file.read_text() for file in study(tmp_path / "study").glob("runs/plain-*/points.jsonl")]
    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for file in files:
        file.write_text("".join(lines))
    compare(files, out=tmp_path / "out")
    said = capsys.readouterr().out
    assert "not distinguishable from 0. The curves are equal. For the loss that the first has" in said
    assert "the second needs 1.00 times the N_body" in said


def test_ladders_on_other_data_are_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Fit) -> Contrast:
        raise UserError("no contrast")

    monkeypatch.setattr(comparison, "contrast", none)
    compare([study(tmp_path / "one", "a"), study(tmp_path / "other", "b")], out=tmp_path / "out")
    lines = [line for line in capsys.readouterr().out.splitlines() if " against " in line]
    differ = [line.endswith(". Their data differ (log, split or reduction)") for line in lines]
    assert differ == [False, True, True, True, True, False]


def test_a_ladder_with_too_few_sizes_is_named(tmp_path: Path) -> None:
    folder = study(tmp_path / "study")
    runs = json.loads((folder / "study.json").read_text())["grid"]["runs"]
    (folder / "study.json").write_text(json.dumps({"grid": {"runs": runs[:-4]}}))
    with pytest.raises(UserError, match=f"^{folder} hstu: the law lsrm needs at least 4 distinct sizes"):
        compare([folder], out=tmp_path / "out")


def test_a_loss_that_the_runs_do_not_have_is_refused(tmp_path: Path) -> None:
    folder = study(tmp_path / "study")
    record = json.loads((folder / "study.json").read_text())
    for run in record["grid"]["runs"]:
        run["held_out"] = run["name"].endswith("6")
    (folder / "study.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="trajectory_loss"):
        compare([folder], y="trajectory_loss", out=tmp_path / "out")


@pytest.mark.slow
def test_every_run_counts_and_points_may_come_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [file.read_text() for file in sorted(study(tmp_path / "study").glob("runs/plain-*/points.jsonl"))]
    worse = json.loads(lines[-1]) | {"seed": 2, "run": "plain-again", "test_loss": 3.0}  # higher than with fewer FLOPs
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text("".join([*lines, json.dumps(worse)]))
    compare([tmp_path / "one.jsonl", tmp_path / "two.jsonl"], x="flops", out=tmp_path / "out")
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [len(ladder["points"]) for ladder in content["ladders"].values()] == [8, 8]
    assert "one.jsonl against" in capsys.readouterr().out


def test_flops_are_those_of_lrecs_own_points(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text(
        "N_body,flops,test_loss\n" + "".join(f"{n},{6e6 * n},{2 + (1e4 / n) ** 0.2}\n" for n in (1e3, 1e4, 1e5))
    )
    with pytest.raises(UserError, match=r"^[^:]*table\.csv: --x flops is for points that lrec wrote"):
        compare([table], x="flops", out=tmp_path / "out")


@pytest.mark.parametrize("record", [[], {}, {"grid": {"runs": [{"name": "plain-0"}]}}, {"grid": {"runs": 3}}])
def test_a_damaged_record_is_refused(record: object, tmp_path: Path) -> None:
    (study(tmp_path / "study") / "study.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"study\.json is damaged"):
        compare([tmp_path / "study"], out=tmp_path / "out")


def test_held_out_runs_are_read_like_fitted_ones(tmp_path: Path) -> None:
    folder = study(tmp_path / "study")
    record = json.loads((folder / "study.json").read_text())
    for run in record["grid"]["runs"]:
        run["held_out"] = run["name"].endswith("6")
    (folder / "study.json").write_text(json.dumps(record))
    compare([folder], out=tmp_path / "out")
    ladders = json.loads((tmp_path / "out" / "compare.json").read_text())["ladders"].values()
    assert [[size for size, _ in ladder["held_out"]] for ladder in ladders] == [[pytest.approx(3e6)]] * 2
    points = folder / "runs" / "hstu-6" / "points.jsonl"
    points.write_text(json.dumps(json.loads(points.read_text()) | {"N_body": -5}))
    with pytest.raises(UserError, match=r"hstu-6/points\.jsonl, row 1: N_body is -5, not a positive number"):
        compare([folder], out=tmp_path / "out")
    with pytest.raises(UserError, match="--studies: name at least one"):
        compare([], out=tmp_path / "out")
