"""A task of your own: does size help if users return to an item, or if they choose a new one?

    lrec tasks --runs studies/mine/runs --tasks long_tail,my_task.repeat_consumption --out tasks

See docs/extending.md. Shape suffixes: C cases, N items of all histories, one history after the other.
"""

import numpy as np

from lrec.evaluation.cases import cases_of_test
from lrec.tasks.results import TaskResult, assess
from lrec.tasks.trained_runs import Ladder


def repeat_consumption(ladder: Ladder, seed: int) -> TaskResult:
    """Compare test targets that are in the history with test targets that are not."""
    result = TaskResult("repeat_consumption", "Repeat consumption")
    cases = cases_of_test(ladder.split, ladder.max_len)
    cases = cases.where(cases.targets_C >= 0)
    times_C = np.bincount(cases.case_N, cases.items_N == cases.targets_C[cases.case_N], len(cases))
    groups = {"again": cases.where(times_C > 0), "new": cases.where(times_C == 0)}
    result.notes += [f"{name}: there is no such target" for name, mine in groups.items() if not len(mine)]
    title = "Whether the history holds the target"
    result.add(lambda: assess(title, groups, ladder, seed, compared=("new", "again")))
    return result
