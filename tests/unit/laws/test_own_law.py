"""A law from the user's own file: fitted, written, read again and used for plans, or refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from lrec.errors import UserError
from lrec.laws.fit import fit
from lrec.laws.loss_laws import LAWS, law_named, name_of
from lrec.study.fit_command import fit_command
from lrec.study.options import Study

EXAMPLE = Path(__file__).parents[3] / "examples" / "my_law.py"
TRUTH = {"E": 4.0, "A": 60.0, "a": 0.45, "s": 3000.0}
X = np.geomspace(500, 2e6, 9)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(EXAMPLE, tmp_path)
    (tmp_path / "wrong_law.py").write_text(
        "from lrec.laws.law import Law\n"
        "class Nothing: ...\n"
        "class Empty(Law): ...\n"
        "class Silent(Law):\n"
        "    def log_basis(self, shape_GH, z_NV): ...\n"
        "    def named(self, coefficients_K, shape_H, unit_V): ...\n"
        "    def internal(self, p, unit_V): ...\n"
        "class Root(Silent):\n"
        "    name, formula, variables, parameters = 'root', 'L(x) = E + A/x^0.5', ('x',), ('E', 'A')\n"
        "    shape_bounds = shape_starts = ()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    write_table(tmp_path)
    return tmp_path


def write_table(folder: Path) -> None:
    loss = TRUTH["E"] + TRUTH["A"] / (X + TRUTH["s"]) ** TRUTH["a"]
    pl.DataFrame({"N": X, "loss": loss}).write_csv(folder / "table.csv")


def test_it_finds_the_truth(folder: Path) -> None:
    law = law_named("my_law.OffsetPower")
    loss = TRUTH["E"] + TRUTH["A"] / (X + TRUTH["s"]) ** TRUTH["a"]
    assert law.loss(TRUTH, X) == pytest.approx(loss, rel=1e-12)
    fitted = fit(law, X, loss, "lsq")
    assert fitted.parameters == pytest.approx(TRUTH, rel=1e-3)
    assert name_of(law) == "my_law.OffsetPower"
    assert [name_of(own) for own in LAWS.values()] == list(LAWS)


def test_it_is_fitted_written_read_and_planned_with(
    folder: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    command = ["scaling", "fit", "--points", "table.csv", "--x", "N", "--y", "loss", "--law", "my_law.OffsetPower"]
    assert "L(x) = E + A/(x + s)^a" in lrec(*command, "--objective", "lsq", "--out", "fit")
    content = json.loads(Path("fit/fit.json").read_text())
    assert content["law"] == "my_law.OffsetPower"
    assert {rival["law"] for rival in content["comparison"]} >= {"offset-power", "lsrm"}
    assert all(abs(point["error_pct"]) < 0.01 for point in content["holdout"]["points"])
    plan = ["scaling", "plan", "--fit", "fit/fit.json", "--size", "4000000"]
    assert "names the class my_law.OffsetPower, which is not lrec's own: --trust" in refused(*plan)
    lrec(*plan, "--trust")
    planned = json.loads(Path("fit/plan.json").read_text())["loss"]["predicted"]
    assert planned == pytest.approx(4 + 60 / (4e6 + 3000) ** 0.45, rel=1e-4)


@pytest.fixture(scope="module")
def fit_json(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `scaling fit` writes."""
    folder = tmp_path_factory.mktemp("fitted")
    write_table(folder)
    fit_command([folder / "table.csv"], x="N", y="loss", compare=False, out=folder)
    return (folder / "fit.json").read_text()


@pytest.mark.parametrize(("field", "value"), [("law", "unknown"), ("law", 7), ("objective", "unknown"), ("points", 7)])
def test_a_fit_that_was_edited_is_named(
    fit_json: str, tmp_path: Path, refused: Callable[..., str], field: str, value: object
) -> None:
    path = tmp_path / "fit.json"
    path.write_text(json.dumps(json.loads(fit_json) | {field: value}))
    assert "fit.json: not a fit.json with its points" in refused("scaling", "plan", "--fit", path, "--size", "4e6")


def test_a_study_takes_it(folder: Path) -> None:
    options = {"name": "own", "configs": ["data/synthetic.yaml"], "law": "my_law.OffsetPower"}
    sizes = ["0.8k", "1.7k", "3k", "4.8k", "6.9k", "9.4k", "12k"]
    assert Study(**options, sizes=sizes).fitted == sizes[:-2]
    with pytest.raises(UserError, match=r"needs at least 5 fitted sizes"):
        Study(**options, sizes=sizes[:-1])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unknown", "'unknown' is none of lsrm, .*; give your own law as FILE.CLASS"),
        ("nowhere.Law", r"--law nowhere.Law: No module named 'nowhere': is nowhere.py in the current folder\?"),
        ("wrong_law.Absent", "--law wrong_law.Absent: module 'wrong_law' has no attribute 'Absent'"),
        ("wrong_law.Nothing", r"--law wrong_law.Nothing is no subclass of lrec\.laws\.law\.Law"),
        ("wrong_law.Empty", "--law wrong_law.Empty does not define internal, log_basis, named"),
        ("wrong_law.Silent", "--law wrong_law.Silent does not define name, formula, variables"),
        ("wrong_law.Root", "a fixed exponent is a shape parameter with equal bounds"),
    ],
)
def test_what_is_no_law_is_named(folder: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        law_named(name)
