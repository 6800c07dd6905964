"""Multi-domain transfer: targets by whether their domain is in the history; and how much pre-training on all domains
helps one of them.

Shape suffixes: C cases, V catalogue, W catalogue of one domain.
"""

from dataclasses import replace

import numpy as np

from lrec.data.splits.reduction import DomainStore
from lrec.evaluation.cases import cases_of_test
from lrec.tasks.intervals import UserResamples, estimate
from lrec.tasks.results import NoCasesError, Section, TaskResult, assess, compare_gains, measure
from lrec.tasks.trained_runs import BySize, Ladder

MIX, DIFF = "mix", "diff"
ALONE, ZERO_SHOT, FINE_TUNED = "alone", "zero-shot", "fine-tuned"
OVER = f"_over_{ALONE}"  # a metric's difference from training on the domain alone


def transfer(ladder: Ladder, seed: int) -> TaskResult:
    """Test targets by whether the history has an item of their domain; then each domain that has runs of its own."""
    result = TaskResult("transfer", "Multi-domain transfer")
    result.add(lambda: _mix_and_diff(ladder, seed, result.notes))
    if not ladder.domains:
        result.notes.append(
            "Pre-training: no run is of one domain alone. Train with --data.only_domain, from scratch and with "
            "--model.warm_start; configs/study/transfer.yaml does this"
        )
    for domain in ladder.domains:
        result.add(lambda domain=domain: _pretraining(domain, ladder, seed, result.notes))  # type: ignore[misc]
    return result


def _mix_and_diff(ladder: Ladder, seed: int, notes: list[str]) -> Section:
    domains = ladder.split.store.item_table["domain"].gather(ladder.split.catalogue_V)
    if domains.null_count() == len(domains):
        raise NoCasesError(
            "The data have no domains. lrec.InteractionsDataModule takes them from --data.domain_column, "
            "lrec.AmazonDataModule from the files"
        )
    domain_V = (domains.rank("dense").cast(int) - 1).fill_null(-1).to_numpy()
    cases = cases_of_test(ladder.split, ladder.max_len)
    has_domain_C = (cases.targets_C >= 0) & (domain_V[cases.targets_C] >= 0)
    if outside := int((~has_domain_C).sum()):
        notes.append(f"Left out: {outside:,} of {len(cases):,} targets, outside the catalogue or without a domain")
    cases = cases.where(has_domain_C)
    same_N = domain_V[cases.items_N] == domain_V[cases.targets_C][cases.case_N]
    mixed_C = np.bincount(cases.case_N, same_N, len(cases)) > 0
    groups = {MIX: cases.where(mixed_C), DIFF: cases.where(~mixed_C)}
    notes += [f"{name}: there is no such target" for name, mine in groups.items() if not len(mine)]
    return assess("Target's domain in the history (mix) or not (diff)", groups, ladder, seed, compared=(DIFF, MIX))


def _pretraining(domain: str, ladder: Ladder, seed: int, notes: list[str]) -> Section:
    """The domain's test targets, by what the networks were trained on; histories and candidates are of the domain."""
    runs = ladder.domains[domain]
    ways = {ALONE: runs.alone, ZERO_SHOT: ladder.runs, FINE_TUNED: runs.fine_tuned}
    if not runs.fine_tuned:
        notes.append(f"Domain {domain}: no run started from a trained network (--model.warm_start)")
        del ways[FINE_TUNED]
    names = {ladder.runs[n_body][0].name: n_body for n_body in _sizes(domain, ways, notes)}
    cases = cases_of_test(runs.split, ladder.max_len)
    if not len(cases):
        raise NoCasesError(f"Domain {domain}: no test target has an item of the domain before it")
    # Indices of the domain's items in the networks of all domains; both catalogues have the same order.
    index_W = ladder.split.catalogue_index_I[runs.split.catalogue_V]
    split, code = runs.split, ladder.split.features
    if code is not None:  # the events have the codes that the networks of all domains know
        assert isinstance(split.store, DomainStore)
        row_in_whole_N = np.flatnonzero(split.store.kept_N)
        split = replace(split, features=lambda rows_N: code(row_in_whole_N[rows_N]))
    among_all = cases_of_test(split, ladder.max_len)
    targets_C = np.where(among_all.targets_C >= 0, index_W[among_all.targets_C], -1)
    among_all = replace(among_all, items_N=index_W[among_all.items_N], targets_C=targets_C)
    resamples, groups = UserResamples(cases.users_C, seed), {}
    for way, by_size in ways.items():
        sizes = {name: by_size[n_body] for name, n_body in names.items()}
        if way == ZERO_SHOT:
            groups[way] = measure(resamples, among_all, sizes, ladder.counts_V, ladder.metrics, candidates_V=index_W)
        else:
            groups[way] = measure(resamples, cases, sizes, runs.split.counts_V, ladder.metrics)
    title = f"Domain {domain}: trained on it alone, on all domains (zero-shot), on all and then on it"
    section = Section(title, {name: float(n_body) for name, n_body in names.items()}, groups)
    section.shown = ("NDCG@10", f"NDCG@10{OVER}", "HR@10", f"HR@10{OVER}")
    for way in [*ways][1:]:
        _compare_with_alone(section, way)
    return section


def _sizes(domain: str, ways: dict[str, BySize], notes: list[str]) -> list[int]:
    """The values of N_body that were trained in every way."""
    sizes = [n_body for n_body in ways[ALONE] if all(n_body in way for way in ways.values())]
    if not sizes:
        raise NoCasesError(f"Domain {domain}: no size was trained both on all domains and on this one alone")
    if left_out := {n_body for way in ways.values() for n_body in way} - {*sizes}:
        numbers = ", ".join(f"{n_body:,}" for n_body in sorted(left_out))
        notes.append(f"Domain {domain}: N_body {numbers} left out, because they were not trained in every way")
    return sizes


def _compare_with_alone(section: Section, name: str) -> None:
    """Add to a group its difference from the networks of the domain alone, as a metric, and add the findings."""
    alone, group = section.groups[ALONE].draws, section.groups[name].draws
    for scorer, draws in group.items():
        for metric in ("NDCG@10", "HR@10"):
            draws[f"{metric}{OVER}"] = draws[metric] - alone[scorer][metric]
    words, parts = {"gains": "better than", "loses": "worse than"}, []
    for size in section.names:
        change = estimate(group[size][f"NDCG@10{OVER}"])
        parts.append(f"{size} {words.get(change.trend, 'not measurably different from')} alone ({change.signed()})")
    section.findings.append(f"NDCG@10, {name}: {'; '.join(parts)}.")
    section.findings.append(compare_gains(section, "NDCG@10", name, ALONE))
