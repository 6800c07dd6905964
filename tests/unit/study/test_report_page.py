"""The first screen of a report, from the committed points of studies: what it says to the person who decides."""

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import polars as pl
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lrec.laws.analysis import Analysis
from lrec.laws.forecast import Forecast
from lrec.laws.metric_forecasts import expected_metrics
from lrec.laws.predict import hold_out, holdout_report
from lrec.run import read_points_file, run_of_study
from lrec.study.answer import Answer, answer_of, two_digits
from lrec.study.figures import answer_figure
from lrec.study.grid import PlannedRun, planned_runs
from lrec.study.options import Study
from lrec.study.points import read_points
from lrec.study.prediction import LadderFit
from lrec.study.report import write_report

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def runs_of(out: Path, study: str, **changed: float) -> tuple[list[PlannedRun], pl.DataFrame, pl.DataFrame]:
    """The runs of a committed study with all data, as `lrec fit` writes them; the points of its small sizes; and the
    points of its two largest sizes, which are held out."""
    best = [point for point in read_points_file(BENCHMARKS / study / "all_points.jsonl") if point.best]
    most = max(point.U for point in best)
    points = sorted((point for point in best if most == point.U), key=lambda point: point.N_body)
    held_out = {point.N_body for point in points if point.N_body >= sorted({p.N_body for p in points})[-2]}
    runs = []
    for point in points:
        run_of_study(out, point.run).folder.mkdir(parents=True)
        run_of_study(out, point.run).write_points([replace(point, metrics=point.metrics | changed)])
        runs.append(PlannedRun(point.run, point.size, point.seed, 1.0, "", "", point.N_body in held_out, {}))
    return runs, *hold_out(read_points([run_of_study(out, run.name).points_file for run in runs]), 2)


def analysis_of(out: Path, runs: list[PlannedRun], x: str = "N_body") -> Analysis:
    every = read_points([run_of_study(out, run.name).points_file for run in runs], x)
    predictor, held_out = holdout_report(None, every, 2)
    return Analysis(predictor, held_out, every, {"x": x, "y": "test_loss"}, with_others=False)


def answer_to(
    out: Path,
    study: str,
    x: Literal["N_body", "N_total"] = "N_body",
    starts_from: str = "",
    only_points: bool = False,
    rules: dict[str, list[float]] | None = None,
    variant: dict[str, dict[str, float]] | None = None,
    **changed: float,
) -> Answer:
    runs, *_ = runs_of(out, study, **changed)
    for trained in (run_of_study(out, run.name) for run in runs if not only_points):
        trained.checkpoints.mkdir()
        trained.config_file.touch()
        trained.best.touch()
    points = {run.name: run_of_study(out, run.name).points[-1] for run in runs}
    sizes = list(dict.fromkeys(run.size for run in runs))
    asked = Study(sizes=sizes, configs=["data/synthetic.yaml", "trainer/laptop.yaml"], holdout=0, law=None, x=x)
    asked = replace(asked, rules=rules or {}, variants={"": variant or {}})
    options = {planned.size: planned.options for planned in planned_runs(asked)}
    with_options = [replace(run, options=options[run.size], starts_from=starts_from) for run in runs]
    found = answer_of(replace(asked, out=out), analysis_of(out, runs, x), with_options, points, [])
    assert found is not None
    return found


def headline(page: str) -> str:
    found = re.search(r"<h1>(.*?)</h1>", page)
    assert found
    return found[1].replace("\u00a0", " ")


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A study's folder and its page. The name of the study would break a page that does not escape it."""
    out = tmp_path_factory.mktemp("go")
    runs, small, large = runs_of(out, "go")
    forecast = Forecast(small)
    predictions = tuple(forecast.predict(large["x"].unique().sort().to_list()))
    metrics = expected_metrics(small, predictions)
    ladder = LadderFit("", forecast, predictions, metrics)
    study = Study(name="<script>alert(1)</script>", out=out, sizes=["3k"], holdout=0, law=None)
    write_report(study, runs, [ladder], {})
    return out, (out / "report.html").read_text()


def test_the_answer_is_of_the_ladder_with_the_most_data(tmp_path: Path) -> None:
    """Also if smaller networks have better lists after less data."""
    runs, small, large = runs_of(tmp_path, "go")
    whole = [replace(run, ladder="whole") for run in runs]
    half = [replace(run, name=f"{run.name}-half", fraction=0.5, ladder="half") for run in runs if not run.held_out]
    for run, before in zip(half, runs, strict=False):
        (point,) = run_of_study(tmp_path, before.name).points
        better = {f"test/{name}": 1.3 * point.metrics[f"test/{name}"] for name in ("HR@10", "HR@10_unseen")}  # type: ignore[operator]
        run_of_study(tmp_path, run.name).folder.mkdir()
        run_of_study(tmp_path, run.name).write_points([replace(point, metrics=point.metrics | better)])
    of_half = Forecast(read_points([run_of_study(tmp_path, run.name).points_file for run in half]))
    predictions = tuple(Forecast(small).predict(large["x"].unique().sort().to_list()))
    ladders = [LadderFit("half", of_half, ()), LadderFit("whole", Forecast(small), predictions)]
    study = Study(out=tmp_path, sizes=["3k"], holdout=0, law=None)
    report = write_report(study, [*whole, *half], ladders, {})
    assert "2 of 2 large networks lie within their forecast 90 % intervals." in report


def test_the_first_screen_answers_the_questions(go: tuple[Path, str]) -> None:
    out, page = go
    assert re.match(
        r"Size pays: .* HR@10_unseen 0\.\d{3} \(90\s% interval: 0\.\d+ to .*\) instead of 0\.627", headline(page)
    )
    first = page.partition("<details>")[0]
    for said in ("10 times", "30 times", "2 of 2 large networks", "How sure", "Risks", "What else could you do"):
        assert said in first
    assert '<span class="option">--help</span>' in first, "no line ends after its hyphens"
    assert "item-graph 0.554, markov 0.525, repeat-last 0.084, popularity 0.084" in first
    short = (out / "report.md").read_text()
    assert short.index(headline(page)) < short.index("## Runs")
    (in_tensorboard,) = EventAccumulator(str(out / "figures")).Reload().Tensors("scaling/answer")
    assert in_tensorboard.tensor_proto.string_val[0].decode() in short
    held_out = json.loads((out / "fit" / "fit.json").read_text())["metrics"]["HR@10_unseen"]
    assert [each["inside"] for each in held_out] == [True, True]


def test_the_page_is_whole_by_itself_and_valid(go: tuple[Path, str]) -> None:
    _, page = go
    assert len(page.encode()) < 500_000
    assert not re.search(r"""(?:src|href)=["'](?!data:)|url\(|@import|<script""", page)
    html5lib = pytest.importorskip("html5lib")
    html5lib.HTMLParser(strict=True).parse(page)


def test_the_picture_has_the_zones_and_no_gain_as_text(go: tuple[Path, str]) -> None:
    _, page = go
    (encoded,) = re.findall(r"data:image/svg\+xml;base64,([\w+/=]+)", page)
    picture = base64.b64decode(encoded).decode()
    for label in ("fitted", "tested", "forecast", "no gain", "HR@10_unseen"):
        assert f">{label}<" in picture


def test_names_cannot_break_the_page(go: tuple[Path, str]) -> None:
    _, page = go
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_baseline_that_is_better_stands_in_the_verdict(tmp_path: Path) -> None:
    found = answer_to(tmp_path, "go", **{"test/markov/HR@10_unseen": 0.9})
    assert found.verdict.startswith(
        "Do not build a network yet: counting which item follows which has HR@10_unseen 0.900"
    )
    assert found.risks[0] == "Counting which item follows which is as good as any network here (0.900 and 0.627)."
    assert found.command == f"lrec scaling exchange --study {tmp_path}"


def test_a_baseline_that_is_nearly_as_good_is_the_first_risk(tmp_path: Path) -> None:
    best = max(column.value for column in answer_to(tmp_path / "plain", "go").columns[:1])
    found = answer_to(tmp_path / "near", "go", **{"test/markov/HR@10_unseen": 0.995 * best})
    counting = f"Counting which item follows which is nearly as good as the best network ({0.995 * best:.3f}"
    assert found.risks[0].startswith(counting)
    assert "Do not build" not in found.verdict
    far = answer_to(tmp_path / "far", "go", **{"test/markov/HR@10_unseen": 0.98 * best})
    assert not any("as good as" in risk for risk in far.risks)


def test_the_metric_is_that_of_the_lists_with_more_hits_in_validation(tmp_path: Path) -> None:
    """In games of Go, a stone is never set on a stone; in the synthetic histories, most next items are known ones."""
    assert answer_to(tmp_path / "go", "go").metric == "HR@10_unseen"
    assert answer_to(tmp_path / "quickstart", "quickstart").metric == "HR@10"
    assert answer_to(tmp_path / "test", "go", **{"test/HR@10": 0.9}).metric == "HR@10_unseen"
    found = answer_to(tmp_path / "validation", "go", **{"val/HR@10": 0.9})
    assert found.metric == "HR@10"
    assert found.rows[2][:2] == ["HR@10", "0.609"]


@pytest.mark.parametrize("x", ["N_body", "N_total"])
def test_larger_sizes_are_never_worse_than_measured_ones(x: Literal["N_body", "N_total"], tmp_path: Path) -> None:
    """On MovieLens-1M size has stopped paying."""
    found = answer_to(tmp_path, "ml-1m-lsrm", x)
    assert "almost nothing" in found.verdict
    today, *ahead = found.columns
    assert [column.value for column in ahead] == [today.value] * 2
    assert all(column.low < today.value < column.high for column in ahead)  # type: ignore[operator]
    assert any("stopped falling" in risk for risk in found.risks)
    assert found.next_step == "Use the smallest network that is as good."
    assert found.command.startswith("lrec export --ckpt_path")


def test_a_gain_is_over_the_best_network_also_if_that_is_a_smaller_one(tmp_path: Path) -> None:
    runs, *_ = runs_of(tmp_path, "go")
    run = run_of_study(tmp_path, runs[0].name)
    run.write_points([replace(point, metrics=point.metrics | {"test/HR@10_unseen": 0.63}) for point in run.points])
    points = {run.name: run_of_study(tmp_path, run.name).points[-1] for run in runs}
    study = Study(out=tmp_path, sizes=["3k"], holdout=0, law=None)
    found = answer_of(study, analysis_of(tmp_path, runs), runs, points, [])
    assert found is not None
    today, ten, _ = found.columns
    assert today.value == pytest.approx(0.627, abs=0.001)
    assert ten.gain == pytest.approx(ten.value / 0.63 - 1)
    assert found.verdict.endswith(" instead of 0.630, which a smaller trained network has.")


def test_ten_times_the_size_are_ten_times_the_parameters_that_the_study_counts(tmp_path: Path) -> None:
    """Blocks of ten times the size would be too small, because the item table grows less."""
    ten = answer_to(tmp_path, "go", "N_total").columns[1]
    layers, width = map(int, ten.network.split("x"))
    (last,) = run_of_study(tmp_path, "2x352-users-0.25-seed1").points
    assert 12 * layers * width**2 + (last.N_total - last.N_body) / 352 * width == pytest.approx(ten.size, rel=0.02)


def test_the_picture_names_the_parameters_that_the_study_counts(tmp_path: Path) -> None:
    runs, *_ = runs_of(tmp_path, "go")
    for x, label in (("N_body", "parameters of the network (without items)"), ("N_total", "all parameters, N_total")):
        (axes,) = answer_figure(analysis_of(tmp_path, runs, x), "HR@10", "").axes
        assert axes.get_xlabel() == label


def test_every_metric_of_the_largest_network_is_a_mean_over_its_seeds(tmp_path: Path) -> None:
    runs, *_ = runs_of(tmp_path, "go")
    (point,) = run_of_study(tmp_path, runs[-1].name).points
    again = replace(runs[-1], name="again", seed=2)
    halved = {name: value and value / 2 for name, value in point.metrics.items()}
    Path(run_of_study(tmp_path, "again").folder).mkdir()
    run_of_study(tmp_path, "again").write_points([replace(point, run="again", seed=2, metrics=halved)])
    runs = [*runs, again]
    points = {run.name: run_of_study(tmp_path, run.name).points[-1] for run in runs}
    found = answer_of(
        Study(out=tmp_path, sizes=["3k"], holdout=0, law=None), analysis_of(tmp_path, runs), runs, points, []
    )
    assert found is not None
    today = found.columns[0]
    measured = [point.metric(f"test/{name}") for name in ("HR@10_unseen", "HR@10", "NDCG@10_unseen")]
    assert (today.value, *today.beside.values()) == pytest.approx([0.75 * value for value in measured])


@pytest.mark.parametrize(("place", "metric", "answers"), [(-1, 0.0, False), (-1, None, False), (0, None, True)])
def test_only_the_largest_network_must_have_a_hit(
    place: int, metric: float | None, answers: bool, tmp_path: Path
) -> None:
    runs, *_ = runs_of(tmp_path, "go")
    run = run_of_study(tmp_path, runs[place].name)
    run.write_points([replace(point, metrics=point.metrics | {"test/HR@10_unseen": metric}) for point in run.points])
    points = {run.name: run_of_study(tmp_path, run.name).points[-1] for run in runs}
    study = Study(out=tmp_path, sizes=["3k"], holdout=0, law=None)
    assert (answer_of(study, analysis_of(tmp_path, runs), runs, points, []) is not None) == answers


@pytest.mark.parametrize(
    ("field", "epochs", "what"), [("fraction", 3, "data"), ("horizon", 1, "data"), ("horizon", 3, "passes")]
)
def test_what_more_data_bring_comes_from_every_finished_run(field: str, epochs: int, what: str, tmp_path: Path) -> None:
    """Also with a law of the size, which reads only the runs with the most data."""
    runs, *_ = runs_of(tmp_path, "go")
    few = [replace(run, name=f"{run.name}-few", **{field: 0.5}) for run in runs if not run.held_out]  # type: ignore[arg-type]
    for run, whole in zip(few, runs, strict=False):
        (point,) = run_of_study(tmp_path, whole.name).points
        run_of_study(tmp_path, run.name).folder.mkdir()
        u = point.U // 2 if field == "fraction" else point.U
        metrics = point.metrics | {"test/HR@10_unseen": 0.8 * point.metric("test/HR@10_unseen")}
        run_of_study(tmp_path, run.name).write_points([replace(point, U=u, metrics=metrics)])
    of_runs = {run.name: run_of_study(tmp_path, run.name).points[-1] for run in (*runs, *few)}
    points = {name: replace(point, epochs=epochs) for name, point in of_runs.items()}
    analysis = analysis_of(tmp_path, runs)
    study = Study(out=tmp_path, sizes=["3k"], holdout=0, law=None)
    found = answer_of(study, analysis, [*runs, *few], points, [])
    assert found is not None
    assert f"More {what}: with 2.0 times the {what}, HR@10_unseen changed by +25.0 %" in found.instead[-1]
    alone = answer_of(study, analysis, runs, points, [])
    assert alone is not None
    assert "this study did not measure it" in alone.instead[-1]


def test_a_larger_network_does_not_start_from_a_smaller_one_s_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--model.warm_start null" in answer_to(tmp_path / "warm", "go", starts_from="source").command
    (tmp_path / "cold").mkdir()
    monkeypatch.chdir(tmp_path / "cold")
    command = answer_to(Path(), "go").command  # of a study in the current folder
    assert "warm_start" not in command
    assert command.endswith(f"--trainer.default_root_dir {tmp_path / 'cold-next'}")


def test_a_command_that_needs_more_than_the_points_that_were_kept_is_not_printed(tmp_path: Path) -> None:
    found = answer_to(tmp_path, "go", only_points=True)
    needed = run_of_study(tmp_path, "2x352-users-0.25-seed1").config_file
    assert found.next_step == f"Train ten times the size. This needs {needed}, which is not on this machine."
    assert found.command == "lrec fit --help"


def test_the_options_of_a_variant_count_more_than_rules_also_at_ten_times_the_size(tmp_path: Path) -> None:
    rules = {"model.optimizer.lr": [0.1, 0.0], "model.dropout.embedding": [0.2, 0.0]}
    command = answer_to(tmp_path, "go", rules=rules, variant={"model": {"optimizer.lr": 0.5}}).command
    assert "--model.dropout.embedding 0.2" in command
    assert "model.optimizer.lr" not in command, "the configuration of the variant has it"


def test_prices_are_numbers_that_a_manager_reads(tmp_path: Path) -> None:
    assert [two_digits(number) for number in (0.0161, 12_345.6, 283.4, 1.9e3)] == ["0.016", "12,000", "280", "1,900"]
    today, *ahead = answer_to(tmp_path, "go").columns
    titles = ["training, core-hours", "memory to train, GiB", "disk, GiB"]
    titles.append("computing one request, ms on a core")
    assert [[*column.prices] for column in (today, *ahead)] == [titles] * 3
