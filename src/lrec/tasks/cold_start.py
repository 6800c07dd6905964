"""Cold start: users who were not in training, given their last few items; and items that were rare in training."""

import numpy as np

from lrec.evaluation.cases import cases_before, cases_of_test
from lrec.tasks.results import NoCasesError, Section, TaskResult, assess
from lrec.tasks.trained_runs import Ladder

LENGTHS = (50, 40, 30, 20, 10, 5, 3, 1)
HARD_LENGTH = 5
# Groups of items, each with its least number of training interactions; the first group has the new items.
ITEM_GROUPS = {"1 to 4": 1, "5 to 9": 5, "10 to 19": 10, "20 or more": 20}


def cold_start(ladder: Ladder, seed: int) -> TaskResult:
    """HR, NDCG, MRR, coverage and mean popularity for new users, and for new items."""
    result = TaskResult("cold_start", "Cold start")
    result.add(lambda: _new_users(ladder, seed, result.notes))
    result.add(lambda: _new_items(ladder, seed, result.notes))
    return result


def _new_users(ladder: Ladder, seed: int, notes: list[str]) -> Section:
    """Predict the last item of every held-out user from at most the last n catalogue items before it."""
    split = ladder.split
    if not split.held_out_U.any():
        raise NoCasesError(
            "New users: none are held out. Train with --data.split.held_out_users 0.2, a share of the users with more "
            "than 50 interactions"
        )
    cases = cases_before(split, *split.held_out_targets, ladder.max_len)
    lengths = [n for n in LENGTHS if n <= ladder.max_len]
    if longer := [str(n) for n in LENGTHS if n > ladder.max_len]:
        notes.append(f"New users: no histories of {', '.join(longer)} items, as max_len is {ladder.max_len}")
    if outside := int((cases.targets_C < 0).sum()):
        notes.append(f"New users: misses: {outside:,} of {len(cases):,} targets, which are outside the catalogue")
    groups = {f"last {n}": cases.last(n) for n in lengths}
    compared = (f"last {HARD_LENGTH}", f"last {lengths[0]}") if lengths[0] > HARD_LENGTH else None
    return assess("Users never seen in training, by length of the history", groups, ladder, seed, True, compared)


def _new_items(ladder: Ladder, seed: int, notes: list[str]) -> Section:
    """Group test targets by how often the item occurs in the training part."""
    cases = cases_of_test(ladder.split, ladder.max_len)
    if outside := int((cases.targets_C < 0).sum()):
        notes.append(f"New items: left out: {outside:,} of {len(cases):,} targets, never in training, so never listed")
    counts_C = np.where(cases.targets_C >= 0, ladder.counts_V[cases.targets_C], 0)
    group_C = np.digitize(counts_C, [*ITEM_GROUPS.values()])
    groups = {name: cases.where(group_C == number) for number, name in enumerate(ITEM_GROUPS, start=1)}
    notes += [f"New items: no test target has {name} training interactions" for name, g in groups.items() if not len(g)]
    return assess("Test targets by their training interactions", groups, ladder, seed, True, ("1 to 4", "20 or more"))
