"""Multi-domain transfer: targets whose domain is in the history or is not; and how much pre-training on all domains
helps one of them.

Shape suffixes: C cases, S sizes, R draws, V catalogue, W catalogue of one domain.
"""

from dataclasses import replace

import numpy as np

from lrec.evaluation.cases import Cases, cases_of_test
from lrec.tasks.intervals import UserResamples, estimate
from lrec.tasks.results import NoCasesError, Section, TaskResult, assess, compare_gains, measure, trend
from lrec.tasks.trained_runs import BySize, DomainRuns, Ladder, TrainedRun

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
            "--model.warm_start; configs/study/transfer.yaml does"
        )
    for domain, runs in ladder.domains.items():
        result.add(lambda domain=domain, runs=runs: _pretraining(domain, runs, ladder, seed, result.notes))  # type: ignore[misc]
    return result


def domains_of(ladder: Ladder) -> np.ndarray:
    """Domain of each catalogue item as a number, ascending by name, or -1; NoCasesError if the data have no domains."""
    domains = ladder.split.store.item_table["domain"].gather(ladder.split.catalogue_V)
    if domains.null_count() == len(domains):
        raise NoCasesError(
            "The data have no domains. lrec.InteractionsDataModule takes them from --data.domain_column, "
            "lrec.AmazonDataModule from the files"
        )
    return (domains.rank("dense").cast(int) - 1).fill_null(-1).to_numpy()


def target_domain_in_history(cases: Cases, domain_V: np.ndarray) -> np.ndarray:
    """Whether each history has an item of the target's domain."""
    same_N = domain_V[cases.items_N] == domain_V[cases.targets_C][cases.case_N]
    return np.bincount(cases.case_N, same_N, len(cases)) > 0


def _mix_and_diff(ladder: Ladder, seed: int, notes: list[str]) -> Section:
    domain_V = domains_of(ladder)
    cases = cases_of_test(ladder.split, ladder.max_len)
    has_domain_C = (cases.targets_C >= 0) & (domain_V[cases.targets_C] >= 0)
    if outside := int((~has_domain_C).sum()):
        notes.append(f"Left out: {outside} of {len(cases):,} targets, outside the catalogue or without a domain")
    cases = cases.where(has_domain_C)
    mixed_C = target_domain_in_history(cases, domain_V)
    groups = {MIX: cases.where(mixed_C), DIFF: cases.where(~mixed_C)}
    notes += [f"{name}: there is no such target" for name, mine in groups.items() if not len(mine)]
    title = "Target's domain in the history (mix) or not (diff)"
    return assess(title, groups, ladder, seed, compared=(DIFF, MIX))


def _pretraining(domain: str, runs: DomainRuns, ladder: Ladder, seed: int, notes: list[str]) -> Section:
    """The domain's test targets, with histories and candidates of the domain, by what the networks were trained on."""
    sizes = [n_body for n_body in runs.alone if n_body in ladder.runs]
    if runs.fine_tuned:
        sizes = [n_body for n_body in sizes if n_body in runs.fine_tuned]
    else:
        notes.append(f"Domain {domain}: no run started from a trained network (--model.warm_start)")
    if not sizes:
        raise NoCasesError(f"Domain {domain}: no size was trained both on all domains and on this one alone")
    if left_out := [n for n in {**ladder.runs, **runs.alone, **runs.fine_tuned} if n not in sizes]:
        numbers = ", ".join(f"{n_body:,}" for n_body in sorted(left_out))
        notes.append(f"Domain {domain}: N_body {numbers} left out, as not trained in each way")
    cases = cases_of_test(runs.split, ladder.max_len)
    if not len(cases):
        raise NoCasesError(f"Domain {domain}: no test target has an item of the domain before it")
    # Indices of the domain's items in the networks of all domains; both catalogues have the same order.
    index_W = ladder.split.catalogue_index_I[runs.split.catalogue_V]
    among_all = replace(
        cases,
        items_N=index_W[cases.items_N],
        targets_C=np.where(cases.targets_C >= 0, index_W[cases.targets_C], -1),
    )
    resamples = UserResamples(cases.users_C, seed)

    def of(by_size: BySize) -> list[list[TrainedRun]]:
        return [by_size[n_body] for n_body in sizes]

    groups = {
        ALONE: measure(resamples, cases, of(runs.alone), runs.split.counts_V, metrics=ladder.metrics),
        ZERO_SHOT: measure(
            resamples, among_all, of(ladder.runs), ladder.counts_V, candidates_V=index_W, metrics=ladder.metrics
        ),
    }
    if runs.fine_tuned:
        groups[FINE_TUNED] = measure(resamples, cases, of(runs.fine_tuned), runs.split.counts_V, metrics=ladder.metrics)
    names = [ladder.runs[n_body][0].name for n_body in sizes]
    title = f"Domain {domain}: trained on it alone, on all domains (zero-shot), on all and then on it"
    section = Section(title, names, np.array(sizes, dtype=np.float64), groups)
    section.shown = ("NDCG@10", f"NDCG@10{OVER}", "HR@10", f"HR@10{OVER}")
    for name in groups:
        if name != ALONE:
            _compare_with_alone(section, name)
    return section


def _compare_with_alone(section: Section, name: str) -> None:
    """A group's difference from the networks of the domain alone, as a metric of it, and the findings."""
    alone, group = section.groups[ALONE].draws, section.groups[name].draws
    for scorer, draws in group.items():
        for metric in ("NDCG@10", "HR@10"):
            draws[f"{metric}{OVER}"] = draws[metric] - alone[scorer][metric]
    words, parts = {"gains": "better than", "loses": "worse than"}, []
    for size in section.names:
        change = estimate(group[size][f"NDCG@10{OVER}"])
        parts.append(f"{size} {words.get(trend(change), 'not measurably different from')} alone ({change.signed()})")
    section.findings.append(f"NDCG@10, {name}: {'; '.join(parts)}.")
    section.findings.append(compare_gains(section, "NDCG@10", name, ALONE))
