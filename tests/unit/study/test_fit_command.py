"""`lrec scaling fit` as a user meets it: files in, files and a table out."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lrec.errors import UserError
from lrec.laws.figures import fit_figure
from lrec.laws.fit import fit
from lrec.laws.fit_json import table
from lrec.laws.loss_laws import LAWS
from lrec.laws.predict import compare
from lrec.laws.table import source_hash
from lrec.study.fit_command import fit_command
from lrec.study.points import read_points


def write_points(folder: Path, n_sizes: int = 7, n_seeds: int = 2) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for size in np.geomspace(2e3, 8e5, n_sizes).round():
        for seed in range(n_seeds):
            loss = (4 + 6 * size**-0.25) * np.exp(0.002 * rng.standard_normal())
            row = {"schema": 1, "best": True, "status": "finished", "seed": seed, "N_body": size, "U": 10, "D": 20}
            lines.append(json.dumps(row | {"test_loss": loss}) + "\n")
    file = folder / "points.jsonl"
    file.write_text("".join(lines))
    return file


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_fit_json_figure_report_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_points(tmp_path / "runs/a")
    out = tmp_path / "new" / "fit"
    fit_command([tmp_path / "runs"], compare=False, out=out)
    fit_command([tmp_path / "runs"], floor=3.9, out=out)
    *events, fit_json, fit_png, report_md = sorted(path.name for path in out.iterdir())
    assert (fit_json, fit_png, report_md) == ("fit.json", "fit.png", "report.md")
    assert len(events) == 1
    shown = EventAccumulator(str(out))
    shown.Reload()
    assert shown.Tags()["images"] == ["scaling/fit"]
    alt = shown.SummaryMetadata("scaling/fit").summary_description
    assert re.fullmatch(r"The prediction missed by .* %, no gain by .* %\. test_loss against N_body: .*no gain", alt)
    content = strict((out / "fit.json").read_text())
    assert content["law"] == "lsrm"
    assert content["n_points"] == 10
    for name, truth in (("E", 4.0), ("x0", 6.0**4), ("a", 0.25)):
        p = content["parameters"][name]
        assert p["low"] <= p["value"] <= p["high"]
        assert p["low"] < truth < p["high"]
    assert {"starts", "share_agreeing", "bound_hits", "gradient_norm", "condition_number", "warnings"} <= set(
        content["diagnostics"]
    )
    held_out = content["holdout"]
    assert {"mape", "naive_mape", "extrapolation_factor"} <= set(held_out)
    assert len(held_out["points"]) == 2
    assert {"x", "predicted", "low", "high", "actual", "error_pct", "inside"} <= set(held_out["points"][0])
    assert held_out["mape"] < held_out["naive_mape"] / 3
    assert content["source_hash"] == source_hash(read_points([tmp_path / "runs"]))
    assert (out / "fit.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    report = (out / "report.md").read_text()
    for text in (printed, report):
        assert f"{held_out['points'][1]['predicted']:.4f}" in text
        assert "no-gain error" in text
    assert f"![{alt}](fit.png)" in report
    assert "|" not in printed
    for sentence in content["verdict"]:
        assert sentence in report
    assert [rival["law"] for rival in content["comparison"]].count("lsrm") == 1


def test_residuals_in_level_are_in_nats(tmp_path: Path) -> None:
    file = write_points(tmp_path / "runs")
    contents = {}
    for residuals in ("log", "level"):
        fit_command([file], "lsrm", objective="lsq", residuals=residuals, compare=False, out=tmp_path / residuals)
        contents[residuals] = strict((tmp_path / residuals / "fit.json").read_text())
    assert contents["level"]["residuals"] == "level"
    log, level = (contents[residuals]["noise"]["sigma"] for residuals in ("log", "level"))
    assert level == pytest.approx(log * np.mean([p["y"] for p in contents["log"]["points"]]), rel=0.1)


def test_columns_by_name_and_an_exponent_nobody_can_know(tmp_path: Path) -> None:
    x = np.geomspace(1e15, 1e19, 4)
    y = 3.0 + 0.01 * np.array([3.0, 2.9, -0.5, 0.1])
    pl.DataFrame({"budget": x, "loss": y}).write_csv(tmp_path / "t.csv")
    fit_command([tmp_path / "t.csv"], "lsrm", holdout=0, x="budget", y="loss", objective="lsq", out=tmp_path / "out")
    content = strict((tmp_path / "out/fit.json").read_text())
    assert content["holdout"] is None
    assert any(w.startswith("not identified") for w in content["diagnostics"]["warnings"])


def test_a_parameter_beyond_anything_real_is_not_identified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.geomspace(1e3, 1e6, 8)
    pl.DataFrame({"N": x, "loss": 6 - 0.05 * np.log(x)}).write_csv(tmp_path / "t.csv")
    fit_command([tmp_path / "t.csv"], "lsrm", 0, "N", y="loss", compare=False, out=tmp_path / "out")
    content = strict((tmp_path / "out/fit.json").read_text())
    assert content["parameters"]["x0"]["value"] > 1e30
    printed, report = capsys.readouterr().out, (tmp_path / "out/report.md").read_text()
    assert re.search(r"^x0 +not identified ", printed, re.MULTILINE)
    assert "| x0 | not identified |" in report
    assert re.search(r"^E +0 +0 ", printed, re.MULTILINE), "a floor of 0 is a value"
    assert not re.search(r"e[+-]\d{3}", printed + report.split("Search:")[0])


def test_the_table_of_metrics_has_every_held_out_size_with_its_most_data() -> None:
    shared = {"predicted": 0.1, "low": 0.09, "high": 0.11, "actual": 0.1, "error_pct": 0, "naive_error_pct": 0}
    places = [(1e5, 96e3, 5e4), (1e5, 38e4, 2e5), (1e6, 95e3, 5e4), (1e6, 37e4, 2e5)]  # a larger size may stop earlier
    judged = [shared | {"inside": True, "actual": d, **dict(zip("xdu", (x, d, u), strict=True))} for x, d, u in places]
    holdout = {"points": [], "mape": 0.0, "naive_mape": 0.0, "extrapolation_factor": 1.0}
    content = {"method": "lsrm", "x": "N_body", "parameters": {}, "holdout": holdout, "metrics": {"HR@10": judged}}
    shown = table(content | {"comparison": [], "verdict": [], "diagnostics": {"warnings": []}})
    assert re.findall(r"HR@10 \| (\S+) .* (\d+)\.0000 ", shown) == [("1e+05", "380000"), ("1e+06", "370000")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"law": "none"}, "--law: 'none' is none of lsrm"),
        ({"objective": "ols"}, "--objective: 'ols'"),
        ({"residuals": "relative"}, "--residuals: 'relative' is none of log, level"),
        ({"holdout": 4}, "the forecast needs at least 4 distinct sizes, but there are 3"),
        ({"holdout": 4, "law": "lsrm"}, "needs at least 4 distinct sizes, but there are 3"),
        ({"holdout": -1}, "--holdout"),
        ({"x": "N"}, "no column 'N'"),
        ({"floor": float("nan")}, "--floor must be at least 0"),
        ({"floor": 6.0}, r"--floor must be at least 0 and at most 4\.\d+, got 6"),
    ],
)
def test_bad_requests_leave_nothing_behind(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    file = write_points(tmp_path / "runs")
    with pytest.raises(UserError, match=said):
        fit_command([file], out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_figure_shows_what_there_is(tmp_path: Path) -> None:
    points = read_points([write_points(tmp_path)])
    fitted = fit(LAWS["lsrm"], points["x"].to_numpy(), points["y"].to_numpy())
    came = compare(fitted, fitted.predict([4e6]), pl.DataFrame({"x": [4e6], "y": [4.1]}))
    figure = fit_figure(fitted, fitted, came, 3.9, "N_body", "test_loss")
    (axes,) = figure.axes
    shown = {text.get_text().strip() for text in axes.texts}
    assert shown == {"fitted", "predicted, then trained", "no gain", f"{fitted.name}, 90 %", "floor 3.9"}
    (missed,), (none,) = zip(*((p.error_pct, p.naive_error_pct) for p in came.points), strict=True)
    assert figure.get_suptitle() == f"The prediction missed by {abs(missed):.1f} %,\nno gain by {abs(none):.1f} %"
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_xlabel() == "parameters without embeddings, N_body"
    alone = fit_figure(fitted, fitted, None, None, "N_body", "test_loss")
    assert alone.get_suptitle() == "A fit that no held-out size has tested"
    assert "predicted, then trained" not in {text.get_text().strip() for text in alone.axes[0].texts}


LIMITED = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_DATA, (2 * 2**30, 2 * 2**30))
from lrec.study.fit_command import fit_command
fit_command([Path(sys.argv[1])], x="N", y="loss", compare=False, out=Path(sys.argv[2]))
# Not ru_maxrss, which begins with the memory of whoever started this process.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_ten_thousand_points_in_little_memory(tmp_path: Path) -> None:
    size = np.resize(np.geomspace(1e3, 1e8, 30), 10_000)
    loss = (3 + (1e3 / size) ** 0.2) * np.exp(0.003 * np.random.default_rng(0).standard_normal(len(size)))
    pl.DataFrame({"N": size, "loss": loss}).write_csv(tmp_path / "t.csv")
    threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "t.csv"), str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | threads)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert float(ran.stdout.split()[-1]) < 0.6, "GiB of memory at its peak"
    held_out = strict((tmp_path / "out" / "fit.json").read_text())["holdout"]
    assert held_out["mape"] < 0.2


def test_fitting_imports_no_deep_learning() -> None:
    code = "import sys, lrec.study.fit_command; print({'torch', 'lightning', 'matplotlib'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_a_law_of_size_and_data_from_the_named_columns(tmp_path: Path) -> None:
    truth = {"E": 2.0, "A": 50.0, "B": 80.0, "a": 0.3, "b": 0.25}
    grid = np.array([[n, d] for n in np.geomspace(1e4, 1e6, 5) for d in np.geomspace(1e5, 1e7, 4)])
    table = pl.DataFrame({"n": grid[:, 0], "tokens": grid[:, 1], "loss": LAWS["chinchilla"].loss(truth, grid)})
    table.write_csv(tmp_path / "t.csv")
    out = tmp_path / "out"
    fit_command([tmp_path / "t.csv"], law="chinchilla", holdout=1, x="n", d="tokens", y="loss", compare=False, out=out)
    content = strict((out / "fit.json").read_text())
    assert {name: p["value"] for name, p in content["parameters"].items()} == pytest.approx(truth, rel=1e-4)
    assert (content["x"], content["d"]) == ("n", "tokens")
    assert len(content["holdout"]["points"]) == 4
    assert content["comparison"] == []
    assert content["holdout"]["mape"] < 1e-3
    assert (out / "fit.png").read_bytes().startswith(b"\x89PNG")


def test_points_of_one_pass_leave_the_laws_of_repeats_undetermined(tmp_path: Path) -> None:
    """If D = U everywhere, the points do not determine R_D and R_N."""
    rows = [(n, u, u, 5 + 30 / n**0.4 + 40 / u**0.35) for n in np.geomspace(1e3, 3e5, 4) for u in (1e4, 1e5, 1e6)]
    table = tmp_path / "table.csv"
    pl.DataFrame(rows, schema=["N", "D", "U", "loss"], orient="row").write_csv(table)
    fit_command([table], "repeated_data", 0, "N", y="loss", compare=False, out=tmp_path / "out")
    assert strict((tmp_path / "out" / "fit.json").read_text())["diagnostics"]["condition_number"] is None
    assert "condition number infinite" in (tmp_path / "out" / "report.md").read_text()
