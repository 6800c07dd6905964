"""What the pictures of a study show, from made-up points."""

import numpy as np

from lrec.run import Point
from lrec.study.figures import compute_figure, envelope, iso_flop_figure, iso_flops, repetition_figure


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


def test_the_envelope_lies_under_every_run() -> None:
    runs = [run(size) for size in (1000, 2000, 4000, 8000)]
    flops_G, loss_G = envelope(runs)
    assert (np.diff(loss_G) <= 0).all()
    for points in runs:
        for point in points:
            assert np.interp(point.flops, flops_G, loss_G) <= point.val_loss + 2e-3


def test_equal_compute_is_not_extrapolated() -> None:
    runs = [run(size) for size in (1000, 2000, 4000, 8000)]
    for flops, (n_S, loss_S) in iso_flops(runs).items():
        for n, loss in zip(n_S, loss_S, strict=True):
            assert 6 * n * 1000 <= flops <= 6 * n * 6000
            assert abs(loss - (3 + 10 / n**0.3 + 20 / (flops / (6 * n)) ** 0.3)) < 0.03
    assert iso_flop_figure([run(1000), run(100_000)]) is None


def test_repetition_has_a_panel_for_each_amount_of_data() -> None:
    runs = [run(size, unique=unique) for size in (1000, 2000) for unique in (500, 1000)]
    figure = repetition_figure(runs)
    assert [axes.get_title() for axes in figure.axes] == ["1,000 unique targets", "500 unique targets"]
    lowest, highest = figure.axes[0].get_ylim()
    assert all(lowest < point.val_loss < highest for points in runs for point in points)
    assert len(compute_figure(runs).axes[0].get_legend().get_texts()) == 3
