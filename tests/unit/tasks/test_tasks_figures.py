"""What a task's picture shows: few lines, which its alternative text describes."""

import numpy as np
from matplotlib.text import Annotation

from lrec.common.pictures import alt_text
from lrec.tasks.report import Report, task_figure
from lrec.tasks.results import POPULARITY, Group, Section, TaskResult
from lrec.tasks.robustness import CLEAN, CORRUPTIONS, MIX_RATE, RELATIVE, _with_losses, robustness
from lrec.tasks.trained_runs import Ladder


def labels(result: TaskResult) -> list[str]:
    (axes,) = task_figure(result).axes
    return [text.get_text().partition(" (")[0] for text in axes.texts if isinstance(text, Annotation)]


def test_of_many_groups_four_are_drawn_from_the_first_to_the_last() -> None:
    draws = {name: {"NDCG@10": np.array([0.1, 0.09, 0.11])} for name in ("3k", "25k", POPULARITY)}
    groups = {f"last {n}": Group(10, 10, draws) for n in (50, 40, 30, 20, 10, 5, 3, 1)}
    section = Section("Users by length of the history", {"3k": 3072.0, "25k": 24576.0}, groups)
    result = TaskResult("cold_start", "Cold start", [section])
    assert sorted(labels(result)) == sorted(["last 50", "last 30", "last 5", "last 1"])
    said = "Cold start against N_body, a line for each group: NDCG@10 by users by length of the history"
    assert alt_text(task_figure(result)) == said


def test_of_the_corruptions_the_worst_and_the_mildest_are_drawn(ladder: Ladder) -> None:
    result = robustness(ladder, seed=0)
    assert set(labels(result)) == {"mix 0.3", "replaced 0.3", "deleted 0.3", "shuffled 0.3"}
    assert len([finding for finding in result.sections[0].findings if "share of NDCG@10 that is lost" in finding]) == 6


def test_of_nothing_no_share_is_lost(ladder: Ladder) -> None:
    def group(values: tuple[float, ...]) -> Group:
        scorers = zip(("3k", "25k", POPULARITY), values, strict=True)
        return Group(5, 5, {name: {metric: np.full(3, value) for metric in RELATIVE} for name, value in scorers})

    names = [f"{name} {MIX_RATE}" for name in ("mix", *CORRUPTIONS)]
    groups = {CLEAN: group((0.0, 0.2, 0.0))} | {name: group((0.1, 0.1, 0.0)) for name in names}
    section = _with_losses(Section("Corruption", {"3k": 3072.0, "25k": 24576.0}, groups))
    result = TaskResult("robustness", "Robustness", [section])
    with np.errstate(all="raise"):
        task_figure(result)
    (row,) = [
        line.split() for line in Report(ladder, [], 0, [result]).summary().splitlines() if "deleted 0.3  " in line
    ]
    assert row[2:] == ["5", "undefined", "0.5000", "undefined"]
    assert section.findings[0] == "mix 0.3: the lost share is undefined, because a size scores 0 on clean histories."


def test_a_change_of_the_lost_share_without_an_interval_says_so() -> None:
    """In many resamples nobody scores on clean histories."""
    clean_R, corrupted_R = np.array([0.2, 0.0, 0.2, 0.0]), np.array([0.1, 0.0, 0.1, 0.0])
    draws = {CLEAN: clean_R} | dict.fromkeys([f"{name} {MIX_RATE}" for name in ("mix", *CORRUPTIONS)], corrupted_R)
    groups = {
        name: Group(5, 5, {size: dict.fromkeys(RELATIVE, draws_R) for size in ("3k", "25k")})
        for name, draws_R in draws.items()
    }
    section = _with_losses(Section("Corruption", {"3k": 3072.0, "25k": 24576.0}, groups))
    lost = "mix 0.3: the share of NDCG@10 that is lost does not change measurably with size"
    assert section.findings[0] == f"{lost} (smallest 50.0 %, largest 50.0 %; +0.00 [undefined] points per decade)."
