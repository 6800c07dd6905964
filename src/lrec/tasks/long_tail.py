"""Long tail: test targets by the popularity of the item, in four groups of equal interaction mass. Shape suffixes: C
cases, V catalogue."""

import numpy as np

from lrec.evaluation.cases import cases_of_test
from lrec.tasks.results import TaskResult, assess
from lrec.tasks.trained_runs import Ladder

GROUPS = ("G1", "G2", "G3", "G4")


def quarters(counts_V: np.ndarray) -> np.ndarray:
    """Group of each item, 0 (most popular) to 3.

    Items are put in a row, the most popular first (ties by catalogue index), each as wide as its training count. The
    row is cut into four parts of equal width, and an item belongs to the part that contains its middle.
    """
    order = np.argsort(-counts_V, kind="stable")
    widths = counts_V[order]
    twice_middle = 2 * np.cumsum(widths) - widths
    groups_V = np.empty(len(counts_V), dtype=np.int64)
    groups_V[order] = np.minimum(len(GROUPS) * twice_middle // (2 * widths.sum()), len(GROUPS) - 1)
    return groups_V


def long_tail(ladder: Ladder, seed: int) -> TaskResult:
    """HR, NDCG and MRR of the test targets of each popularity group."""
    result = TaskResult("long_tail", "Long tail")
    cases = cases_of_test(ladder.split, ladder.max_len)
    if outside := int((cases.targets_C < 0).sum()):
        result.notes.append(f"Left out: {outside:,} of {len(cases):,} targets, which are outside the catalogue")
    group_C = np.where(cases.targets_C < 0, -1, quarters(ladder.counts_V)[cases.targets_C])
    groups = {name: cases.where(group_C == index) for index, name in enumerate(GROUPS)}
    result.notes += [f"{name}: no test target is an item of this group" for name, g in groups.items() if not len(g)]
    title = "Popularity of the target, G1 the most popular"
    result.add(lambda: assess(title, groups, ladder, seed, compared=("G4", "G1")))
    return result
