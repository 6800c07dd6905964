"""Robustness: test histories are corrupted at random, the same for every size, and compared with clean ones. Shape
suffixes: C cases, N items of all histories laid end to end, M these items after insertion, R draws."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np

from lrec.evaluation.cases import Cases, cases_of_test
from lrec.tasks.intervals import estimate
from lrec.tasks.results import Section, TaskResult, assess
from lrec.tasks.trained_runs import Ladder

RATES = (0.1, 0.2, 0.3, 0.4, 0.5)
MIX_RATE = 0.3
REACH = 3  # a shuffled item moves by at most this many places, and further only because other items move
CLEAN = "clean"
RELATIVE = ("NDCG@10", "HR@10")
DRAWN = ("mix", "replaced", "deleted", "shuffled")  # in the figure; blanked and inserted are between these

Corruption = Callable[[Cases, float, int, np.random.Generator], Cases]


def mix_items(
    cases: Cases, rate: float, n_items: int, random: np.random.Generator, replaced: float = 0.5, blanked: float = 0.5
) -> Cases:
    """Replace each item by one drawn evenly from the catalogue, or blank it in place, with these shares of the rate; by
    default the mix of arXiv 2311.11351."""
    fate_N = random.random(len(cases.items_N))
    drawn_N = random.integers(0, n_items, len(fate_N))
    replaced_N = fate_N < rate * replaced
    blank_N = ~replaced_N & (fate_N < rate * (replaced + blanked))
    items_N = np.where(replaced_N, drawn_N, cases.items_N)
    return replace(cases, items_N=items_N, blank_N=blank_N & ~_spared(cases, blank_N) if blanked else None)


def delete_items(cases: Cases, rate: float, n_items: int, random: np.random.Generator) -> Cases:
    """Each item is deleted with probability `rate`; if none would be left, the last one stays."""
    chosen_N = random.random(len(cases.items_N)) < rate
    return cases.keeping(~chosen_N | _spared(cases, chosen_N))


def insert_items(cases: Cases, rate: float, n_items: int, random: np.random.Generator) -> Cases:
    """After each item, with probability `rate`, an item drawn evenly from the catalogue is inserted."""
    chosen_N = random.random(len(cases.items_N)) < rate
    drawn_N = random.integers(0, n_items, len(chosen_N))
    places_M = np.repeat(np.arange(len(chosen_N)), 1 + chosen_N)
    items_M = cases.items_N[places_M]
    items_M[1:][places_M[1:] == places_M[:-1]] = drawn_N[chosen_N]
    lengths_C = cases.lengths_C + np.bincount(cases.case_N[chosen_N], minlength=len(cases))
    return cases.inserting(items_M, lengths_C, places_M)


def shuffle_items(cases: Cases, rate: float, n_items: int, random: np.random.Generator) -> Cases:
    """With probability `rate`, an item's place changes by a number drawn evenly from -3 to 3; then items are sorted.
    Their events move with them, but the times stay, because the times of a log ascend."""
    chosen_N = random.random(len(cases.items_N)) < rate
    place_N = np.arange(len(chosen_N)) + chosen_N * random.uniform(-REACH, REACH, len(chosen_N))
    order_N = np.lexsort((place_N, cases.case_N))
    shuffled = cases.inserting(cases.items_N[order_N], cases.lengths_C, order_N)
    return replace(shuffled, times_N=cases.times_N)


CORRUPTIONS: dict[str, Corruption] = {
    "replaced": partial(mix_items, replaced=1, blanked=0),
    "blanked": partial(mix_items, replaced=0, blanked=1),
    "deleted": delete_items,
    "inserted": insert_items,
    "shuffled": shuffle_items,
}


def _spared(cases: Cases, chosen_N: np.ndarray) -> np.ndarray:
    """Whether an item is the last one of a history whose items are all chosen."""
    all_C = np.bincount(cases.case_N, chosen_N, len(cases)) == cases.lengths_C
    spared_N = np.zeros(len(chosen_N), dtype=bool)
    spared_N[(cases.starts_C + cases.lengths_C - 1)[all_C]] = True
    return spared_N


def corrupted(cases: Cases, n_items: int, max_len: int, seed: int) -> dict[str, Cases]:
    """The cases by group: clean, with the paper's mix, and with each corruption at each rate. All rates of a corruption
    use the same random numbers, so a higher rate also corrupts what a lower rate does."""
    groups = {CLEAN: cases, f"mix {MIX_RATE}": mix_items(cases, MIX_RATE, n_items, np.random.default_rng([seed, 0]))}
    for number, (name, corrupt) in enumerate(CORRUPTIONS.items(), start=1):
        for rate in RATES:
            groups[f"{name} {rate}"] = corrupt(cases, rate, n_items, np.random.default_rng([seed, number]))
    return {name: group.last(max_len) for name, group in groups.items()}


def robustness(ladder: Ladder, seed: int) -> TaskResult:
    """Every metric on clean and corrupted test histories, and the share of NDCG@10 and HR@10 that is lost."""
    result = TaskResult("robustness", "Robustness")
    cases = cases_of_test(ladder.split, ladder.max_len)
    groups = corrupted(cases, len(ladder.counts_V), ladder.max_len, seed)
    result.add(lambda: _with_losses(assess("Corruption of the history, and its rate", groups, ladder, seed)))
    return result


def _with_losses(section: Section) -> Section:
    """Add findings, and to all groups but the clean one the lost share, 1 - corrupted / clean; nan if clean is 0."""
    clean, *others = section.groups.values()
    for group in others:
        for (scorer, draws), metric in product(group.draws.items(), RELATIVE):
            clean_R = clean.draws[scorer][metric]
            draws[f"{metric}_lost"] = 1 - draws[metric] / np.where(clean_R > 0, clean_R, np.nan)
    lost = "NDCG@10_lost"
    section.shown = (lost, "HR@10_lost", "NDCG@10")
    section.drawn = [f"{name} {MIX_RATE}" for name in DRAWN]
    if len(section.names) < 2:
        section.findings = ["There is only one size, so there is no gain with size."]
        return section
    words = {"gains": "grows with size", "loses": "falls with size: larger models are more robust"}
    at_one_rate = [f"{name} {MIX_RATE}" for name in ("mix", *CORRUPTIONS)]
    for name in at_one_rate:
        change = estimate(section.slope(name, lost))
        if not np.isfinite(change.value):
            section.findings.append(f"{name}: the lost share is undefined, because a size scores 0 on clean histories.")
            continue
        says = words.get(change.trend, "does not change measurably with size")
        scorers = section.groups[name].draws
        smallest, largest = (100 * scorers[size][lost][0] for size in (section.names[0], section.names[-1]))
        section.findings.append(
            f"{name}: the share of NDCG@10 that is lost {says} (smallest {smallest:.1f} %, largest {largest:.1f} %; "
            f"{change.shown(lambda share: f'{100 * share:+.2f}')} points per decade)."
        )
    before, after = (estimate(section.slope(name, "NDCG@10")).trend for name in (CLEAN, at_one_rate[0]))
    if before == "loses" and after != "gains":
        section.findings.append(
            "NDCG@10 on clean histories falls with size: a smaller lost share then means less to lose, not robustness."
        )
    return section
