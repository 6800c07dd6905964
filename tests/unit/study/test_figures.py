"""What the pictures of a study show, from made-up points."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color
from matplotlib.text import Annotation, Text

from lrec.common.pictures import ORANGE, label_ends, new_figure
from lrec.laws.analysis import Analysis
from lrec.laws.predict import holdout_report
from lrec.run import Point
from lrec.study.answer import answer_of
from lrec.study.figures import answer_figure, compute_figure, envelope, iso_flop_figure, iso_flops, repetition_figure
from lrec.study.grid import PlannedRun
from lrec.study.options import Study


def run(size: int, epochs: int = 6, unique: int = 1000) -> list[Point]:
    """A run with loss = 3 + 10 / size^0.3 + 20 / D^0.3 at every evaluation."""
    return [
        Point(
            size=f"{size}",
            N_body=size,
            U=unique,
            epochs=float(epoch),
            flops=6 * size * epoch * unique,
            val_loss=3 + 10 / size**0.3 + 20 / (epoch * unique) ** 0.3,
        )
        for epoch in range(1, epochs + 1)
    ]


def test_an_answer_tests_the_forecast_of_the_longest_runs_alone(tmp_path: Path) -> None:
    """The two held-out sizes do as expected in the longest runs, and far worse in the short ones."""
    sizes = np.geomspace(1e4, 1e6, 8)
    rows = [(n, h * 1e6, h, 4 + 6 * n**-0.25 + (1 - h) * (0.1 + (n > 4e5))) for n in sizes for h in (0.25, 0.5, 1.0)]
    points = pl.DataFrame(rows, schema=["x", "d", "horizon", "y"], orient="row")
    points = points.with_columns(may_stop=False, **{"HR@10": 0.9 - 0.1 * pl.col("y")})
    names = {"x": "N_body", "d": "D", "y": "test_loss"}
    analysis = Analysis(*holdout_report(None, points, 2), points, names, with_others=False)
    longest = PlannedRun("large", "3k", 1, 1.0, "", "", True, {})
    study = Study(out=tmp_path, sizes=["3k"], holdout=0, law=None)
    found = answer_of(study, analysis, [longest], {"large": Point(run="large", N_body=1_000_000)}, [])
    assert found is not None
    assert "2 of 2 large networks lie within their forecast 90 % intervals." in found.sure
    small = points.filter(pl.col("x") < 9e5)
    with_one = Analysis(*holdout_report(None, small, 1), small, names, with_others=False)
    of_one = answer_of(study, with_one, [longest], {"large": Point(run="large", N_body=1_000_000)}, [])
    assert of_one is not None
    assert "1 of 1 large network lies within its forecast 90 % interval." in of_one.sure
    assert "failed its test" not in found.finding
    (axes,) = answer_figure(analysis, "HR@10", found.finding).axes
    drawn = [line for line in axes.lines if line.get_linewidth() == 5 and same_color(line.get_color(), ORANGE)]
    assert [line.get_xdata()[0] for line in drawn] == sizes[6:].tolist()  # type: ignore[index]


def test_the_picture_of_a_flat_ladder_ends_at_the_answer_s_number(tmp_path: Path) -> None:
    """Ten times the size is expected to be no better here, and so no larger size either."""
    losses = [3.011, 3.0, 3.011, 3.019, 3.001, 2.998, 3.001]
    points = pl.DataFrame({"x": [1e4 * 2**i for i in range(7)], "y": losses}).with_columns(may_stop=False)
    points = points.with_columns((0.9 - 0.1 * pl.col("y")).alias("HR@10"))
    analysis = Analysis(*holdout_report(None, points, 0), points, {"x": "N_body", "y": "test_loss"}, with_others=False)
    study = Study(out=tmp_path, sizes=["3k"], holdout=0, law=None)
    largest = PlannedRun("a", "3k", 1, 1.0, "", "", False, {})
    found = answer_of(study, analysis, [largest], {"a": Point(run="a", N_body=640_000)}, [])
    assert found is not None
    (drawn,) = (line for line in answer_figure(analysis, "HR@10", "").axes[0].lines if line.get_linewidth() == 2)
    assert drawn.get_ydata()[-1] == found.columns[-1].value  # type: ignore[index]


def test_the_envelope_lies_under_every_run() -> None:
    runs = [run(size) for size in (1000, 2000, 4000, 8000)]
    flops_G, loss_G = envelope(runs)
    assert (np.diff(loss_G) <= 0).all()
    for points in runs:
        for point in points:
            assert np.interp(point.flops, flops_G, loss_G) <= point.val_loss + 2e-3


def test_equal_compute_is_not_extrapolated() -> None:
    curves = iso_flops([run(size, epochs=30) for size in (1000, 2000, 4000, 8000)])
    assert curves
    for flops, (n_S, loss_S) in curves.items():
        assert len(n_S) == 4
        for n, loss in zip(n_S, loss_S, strict=True):
            assert 6 * n * 1000 <= flops <= 6 * n * 30_000
            assert abs(loss - (3 + 10 / n**0.3 + 20 / (flops / (6 * n)) ** 0.3)) < 0.03
    assert iso_flop_figure([run(1000), run(100_000)]) is None


def test_repetition_has_a_panel_for_each_amount_of_data() -> None:
    runs = [run(size, unique=unique) for size in (1000, 2000) for unique in (500, 1000)]
    figure = repetition_figure([*runs, run(4000, epochs=3)])
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["1,000 unique targets", "500 unique targets"]
    lowest, highest = figure.axes[0].get_ylim()
    assert all(lowest < point.val_loss < highest for points in runs for point in points)
    assert [text.get_text() for text in figure.axes[0].texts] == ["1000", "2000"], "three points are no line"
    assert figure.get_suptitle() == "In 4 of 4 runs, the last evaluation has the lowest loss"
    assert repetition_figure([run(4000, epochs=3)]) is None


def test_every_size_is_named_at_the_end_of_its_best_run() -> None:
    worse = [replace(point, val_loss=point.val_loss + 1, flops=2 * point.flops) for point in run(1000)]
    figure = compute_figure([run(1000), worse, run(2000)])
    assert figure is not None
    (axes,) = figure.axes
    names = {text.get_text(): text.xy for text in axes.texts if isinstance(text, Annotation)}
    assert names == {name: (run(int(name))[-1].flops, run(int(name))[-1].val_loss) for name in ("1000", "2000")}
    assert axes.get_title(loc="left").strip() == "2000 has the lowest loss, and is the largest size"
    assert compute_figure([run(1000, epochs=1)]) is None


def test_names_of_lines_do_not_overlap() -> None:
    figure = new_figure(5.2, 3.8, "")
    axes = figure.add_subplot()
    ends = [(f"{n}", 1.0, 1.0 + n / 1e4, "black") for n in range(8)]
    axes.plot([0.0, 1.0], [0.0, 2.0])
    label_ends(axes, ends)
    FigureCanvasAgg(figure).draw()
    boxes = sorted((Text.get_window_extent(text) for text in axes.texts), key=lambda box: box.y0)
    assert all(below.y0 + 0.9 * below.height < above.y0 for below, above in pairwise(boxes))
