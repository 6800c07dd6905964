"""Multi-domain transfer: targets whose domain stands in the history or does not; and what pre-training on all domains
is worth to one.

Shape suffixes: C cases, V catalogue.
"""

import numpy as np

from lrec.tasks.assessment import NoCasesError, Section, TaskResult, assess, compare_gains
from lrec.tasks.cases import Cases, cases_before
from lrec.tasks.ladder import Ladder

MIX, DIFF = "mix", "diff"


def transfer(ladder: Ladder, seed: int) -> TaskResult:
    """HR, NDCG and MRR of test targets by whether the history holds an item of the target's domain."""
    result = TaskResult("transfer", "Multi-domain transfer")
    result.add(lambda: _mix_and_diff(ladder, seed, result.notes))
    return result


def domains_of(ladder: Ladder) -> np.ndarray:
    """Domain of each catalogue item as a number, ascending by name, -1 where it has none; NoCasesError where all have
    none."""
    domains = ladder.split.store.item_table["domain"].gather(ladder.split.catalogue_V)
    if domains.null_count() == len(domains):
        raise NoCasesError(
            "The data have no domains. lrec.InteractionsDataModule takes them from --data.domain_column, "
            "lrec.AmazonDataModule from the files"
        )
    return (domains.rank("dense").cast(int) - 1).fill_null(-1).to_numpy()


def target_domain_in_history(cases: Cases, domain_V: np.ndarray) -> np.ndarray:
    """Whether each history holds an item of the target's domain."""
    same_N = domain_V[cases.items_N] == domain_V[cases.targets_C][cases.case_N]
    return np.bincount(cases.case_N, same_N, len(cases)) > 0


def _mix_and_diff(ladder: Ladder, seed: int, notes: list[str]) -> Section:
    domain_V = domains_of(ladder)
    targets = ladder.split.test_targets
    cases = cases_before(ladder.split, targets.users_T, targets.positions_T, ladder.max_len)
    has_domain_C = (cases.targets_C >= 0) & (domain_V[cases.targets_C] >= 0)
    if (~has_domain_C).any():
        notes.append(f"{(~has_domain_C).sum()} targets outside the catalogue or without a domain are left out")
    cases = cases.where(has_domain_C)
    mixed_C = target_domain_in_history(cases, domain_V)
    groups = {MIX: cases.where(mixed_C), DIFF: cases.where(~mixed_C)}
    notes += [f"{name}: there is no such target" for name, mine in groups.items() if not len(mine)]
    section = assess("Target's domain in the history (mix) or not (diff)", groups, ladder, seed)
    section.findings = [compare_gains(section, metric, DIFF, MIX) for metric in section.shown]
    return section
