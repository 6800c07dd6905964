"""One domain of a data set, cut at the same places as all domains together. What is held out for a model of all
domains is also held out for a model of one domain. So one model may start from the other and be compared with it.
Shape suffixes: U users, N interactions, I items of the store."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lrec.common.files import json_hash
from lrec.data.splits.rules import Split
from lrec.data.store.store import Store
from lrec.errors import UserError


@dataclass(frozen=True)
class DomainStore(Store):
    """A store's interactions with the items of one domain; users and items keep the store's indices."""

    domain: str

    @property
    def hash(self) -> str:
        return json_hash([super().hash, self.domain])

    @cached_property
    def kept_N(self) -> np.ndarray:
        """Which interactions of the whole store belong to the domain."""
        in_domain_I = (self.item_table["domain"] == self.domain).fill_null(False).to_numpy()
        return in_domain_I[super()._map("items.npy")]

    def _map(self, name: str) -> np.ndarray:
        values = super()._map(name)
        return self.before_N1[values] if name == "offsets.npy" else values[self.kept_N]

    @cached_property
    def before_N1(self) -> np.ndarray:
        """How many of the domain's interactions come before each interaction of the whole store."""
        return np.concatenate([[0], np.cumsum(self.kept_N)])


def of_domain(split: Split, domain: str) -> Split:
    """The parts of a split that are interactions with a domain's items. The catalogue is its training items."""
    whole = split.store
    domains = whole.item_table["domain"].drop_nulls().unique().sort().to_list()
    if domain not in domains:
        known = f"choose one of {', '.join(domains)}" if domains else "the data have no domains"
        raise UserError(f"only_domain {domain!r}: {known}")
    store = DomainStore(whole.path, whole.meta, domain)
    first_U, before_N1 = whole.offsets_U1[:-1], store.before_N1

    def within(positions_U: np.ndarray) -> np.ndarray:
        """How many of each user's first `positions_U` interactions belong to the domain."""
        return before_N1[first_U + positions_U] - before_N1[first_U]

    def part(position_U: np.ndarray, number_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First position and number of the domain's targets in a part of the split, by user."""
        begin_U = np.maximum(position_U, 0)
        mine_U = np.where(position_U < 0, 0, within(begin_U + number_U) - within(begin_U))
        return np.where(mine_U > 0, within(begin_U), -1), mine_U

    result = Split(
        store,
        within(split.train_U),
        *part(split.val_U, split.val_targets_U),
        *part(split.test_U, split.test_targets_U),
        trajectory_U=np.where(split.trajectory_U < 0, -1, within(np.maximum(split.trajectory_U, 0))),
        held_out_U=split.held_out_U,
        target_N=None if split.target_N is None else split.target_N[store.kept_N],
        sets_2=split.sets_2,
    )
    result.check()
    if len(result.catalogue_V) == 0:
        raise UserError(f"only_domain {domain!r}: the split leaves nothing of it to train on")
    return result
