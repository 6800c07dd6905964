"""A split and its training part, made once on a machine where the store has many rows."""

from collections.abc import Callable
from typing import Any

from lrec.data.splits.reduction import Reduction, TrainingPart, training_part
from lrec.data.splits.rules import Split, SplitRule
from lrec.data.store.made_once import made_beside
from lrec.data.store.store import Store

SHARED_ROWS = 10**7  # fewer take no time, and no memory that matters


def shared_split(store: Store, rule: SplitRule, options: Any, cut: Callable[[], Split]) -> Split:
    """What `cut` gives, which the rule and the options decide."""
    if not _is_shared(store, rule):
        return cut()
    return Split.of_arrays(store, made_beside(store, "split", [repr(rule), options], lambda: cut().arrays()))


def shared_part(split: Split, rule: SplitRule, options: Any, reduction: Reduction) -> TrainingPart:
    """The training part of such a split."""
    if not _is_shared(split.store, rule):
        return training_part(split, reduction)
    key = [repr(rule), options, repr(reduction)]
    made = made_beside(split.store, "part", key, lambda: training_part(split, reduction).arrays())
    return TrainingPart(split, **made)


def _is_shared(store: Store, rule: SplitRule) -> bool:
    """A rule of one's own may cut otherwise tomorrow and be called the same."""
    return type(store) is Store and type(rule).__module__.startswith("lrec.") and len(store.items_N) >= SHARED_ROWS
