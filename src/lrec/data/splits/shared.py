"""A split and its training part. If the store has many rows, they are made only once per machine."""

from collections.abc import Callable
from typing import Any

from lrec.data.splits.reduction import Reduction, TrainingPart, training_part
from lrec.data.splits.rules import Split, SplitRule
from lrec.data.store.made_once import made_beside
from lrec.data.store.store import Store

SHARED_ROWS = 10**7  # a split of fewer rows takes hardly any time or memory


def shared_split(store: Store, rule: SplitRule, options: Any, cut: Callable[[], Split]) -> Split:
    """The split that `cut` returns; the rule and the options determine it."""
    if not _is_shared(store, rule):
        return cut()
    return Split.of_arrays(store, made_beside(store, "split", [repr(rule), options], lambda: cut().arrays()))


def shared_part(split: Split, rule: SplitRule, options: Any, reduction: Reduction) -> TrainingPart:
    """The training part of a split that `shared_split` made with this rule and these options."""
    if not _is_shared(split.store, rule):
        return training_part(split, reduction)
    key = [repr(rule), options, repr(reduction)]
    made = made_beside(split.store, "part", key, lambda: training_part(split, reduction).arrays())
    return TrainingPart(split, **made)


def _is_shared(store: Store, rule: SplitRule) -> bool:
    """Whether to share. A user's own rule is not shared: its code may change while its repr stays the same."""
    return type(store) is Store and type(rule).__module__.startswith("lrec.") and len(store.items_N) >= SHARED_ROWS
