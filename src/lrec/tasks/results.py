"""The result of a task: every number with its interval, the gain with size, and findings in words.

It has sections, a section has groups of cases (by popularity, length of history, kind of corruption ...), and a group
has the same metrics for every scorer: each size, and the baselines.

Shape suffixes: C cases, R draws, S sizes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lrec.evaluation import cases as ranking
from lrec.evaluation.cases import LIST_LENGTH, Cases
from lrec.evaluation.metrics import Metric
from lrec.tasks.intervals import Estimate, UserResamples, estimate, ratio, slope
from lrec.tasks.trained_runs import Ladder, TrainedRun

POPULARITY, REPEAT_LAST = "popularity", "repeat-last"
Draws = dict[str, np.ndarray]  # of each metric
DRAWN = 4  # groups that a figure shows at most: more lines hide one another


@dataclass
class Group:
    """Cases, their users, and draws of every metric by scorer: the sizes in ascending order, then the baselines."""

    cases: int
    users: int
    draws: dict[str, Draws]


@dataclass
class Section:
    """A part of a task: groups of cases by name, with conclusions in `findings`."""

    title: str
    names: list[str]  # of the sizes, which are scorers, ascending
    n_body_S: np.ndarray
    groups: dict[str, Group]
    shown: Sequence[str] = ("NDCG@10", "HR@10")  # metrics of the tables; the first is drawn
    drawn: Sequence[str] = ()  # groups in the figure and on the terminal; by default `DRAWN` spread evenly over all
    findings: list[str] = field(default_factory=list)

    @property
    def drawn_groups(self) -> list[str]:
        """The names of the groups to show, those that have cases."""
        names = [name for name in self.drawn or self.groups if name in self.groups]
        places = np.linspace(0, len(names) - 1, min(DRAWN, len(names))).round().astype(int)
        return [names[place] for place in places]

    def estimates(self, group: str) -> dict[str, dict[str, Estimate]]:
        """Estimate of every metric in a group, by scorer."""
        draws = self.groups[group].draws
        return {scorer: {metric: estimate(d) for metric, d in mine.items()} for scorer, mine in draws.items()}

    def gains(self, group: str) -> dict[str, dict[str, Estimate]]:
        """Gain with size of every metric in a group; none with a single size."""
        metrics = self.groups[group].draws[self.names[0]] if len(self.names) > 1 else []
        kinds = {"slope": self.slope, "ratio": self.ratio}
        return {metric: {name: estimate(of(group, metric)) for name, of in kinds.items()} for metric in metrics}

    def slope(self, group: str, metric: str) -> np.ndarray:
        """Draws of a metric's slope against log10 N_body."""
        draws = self.groups[group].draws
        return slope(np.stack([draws[name][metric] for name in self.names]), self.n_body_S)

    def ratio(self, group: str, metric: str) -> np.ndarray:
        """Draws of the largest size's metric over the smallest's."""
        draws = self.groups[group].draws
        return ratio(draws[self.names[-1]][metric], draws[self.names[0]][metric])


@dataclass
class TaskResult:
    """The sections of a task, and notes: a line for each thing that it could not do or left out."""

    name: str
    title: str
    sections: list[Section] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, make: Callable[[], Section]) -> None:
        """Add a section, or a line that says why there is none."""
        try:
            self.sections.append(make())
        except NoCasesError as reason:
            self.notes.append(str(reason))


class NoCasesError(Exception):
    """A task, or a part of it, has no cases; the message says why, and how to get some."""


def assess(
    title: str,
    groups: dict[str, Cases],
    ladder: Ladder,
    seed: int,
    with_lists: bool = False,
    compared: tuple[str, str] | None = None,
) -> Section:
    """Every metric of every scorer in every group, all from the same resamples of the users.

    Args:
        title: What the groups are.
        groups: Their cases; a group without any is left out, and NoCasesError raised where that leaves none.
        ladder: The sizes.
        seed: Of the resamples.
        with_lists: Also compute coverage, and show it with the mean popularity of what is listed.
        compared: A hard group and an easy one; findings say which of them gains more with size.
    """
    present = {name: cases for name, cases in groups.items() if len(cases)}
    if not present:
        raise NoCasesError(f"{title}: there is no case")
    resamples = UserResamples(np.concatenate([cases.users_C for cases in present.values()]), seed)
    known = [*ladder.runs.values()], ladder.counts_V, ladder.metrics, with_lists
    measured = {name: measure(resamples, cases, *known) for name, cases in present.items()}
    section = Section(title, ladder.names, ladder.n_body_S, measured)
    if compared is not None:
        section.findings = [compare_gains(section, metric, *compared) for metric in section.shown]
    if with_lists:
        section.shown = (*section.shown, f"coverage@{LIST_LENGTH}", f"popularity@{LIST_LENGTH}")
    return section


def measure(
    resamples: UserResamples,
    cases: Cases,
    sizes: list[list[TrainedRun]],
    counts_V: np.ndarray,
    metrics: Sequence[Metric],
    with_lists: bool = False,
    candidates_V: np.ndarray | None = None,
) -> Group:
    """Every metric of every scorer on the same cases, in catalogue indices of the networks; means over a size's runs.

    `candidates_V` are the items that are ranked, ascending; all by default.
    """

    def draws_of(rankings: list[ranking.Ranked]) -> Draws:
        values = [ranking.values_of(ranked, cases.targets_C, counts_V, metrics) for ranked in rankings]
        draws = resamples.means_of_runs(values, cases.users_C)
        if with_lists:
            coverages = [resamples.coverage(r.top_CK, cases.users_C, len(counts_V)) for r in rankings]
            draws[f"coverage@{LIST_LENGTH}"] = np.mean(coverages, 0)
        return draws

    draws = {}
    for runs in sizes:
        draws[runs[0].name] = draws_of([ranking.rank_by_net(run.net, cases, candidates_V) for run in runs])
    draws[POPULARITY] = draws_of([ranking.rank_by_popularity(counts_V, cases, candidates_V)])
    draws[REPEAT_LAST] = draws_of([ranking.rank_by_repeating(counts_V, cases, candidates_V)])
    return Group(len(cases), len(np.unique(cases.users_C)), draws)


def compare_gains(section: Section, metric: str, hard: str, easy: str) -> str:
    """Which of two groups gains more with size, and whether because one got better or because the other got worse."""
    if missing := [name for name in (hard, easy) if name not in section.groups]:
        return f"{metric}: no case in {' and '.join(missing)}, nothing to compare."
    if len(section.names) < 2:
        return f"{metric}: one size only, no gain with size."
    parts, trends = [], {}
    for group in (hard, easy):
        change, times = estimate(section.slope(group, metric)), estimate(section.ratio(group, metric))
        trends[group] = trend(change)
        shown = f"{times.value:.2f} [{times.low:.2f}, {times.high:.2f}]"
        if not np.isfinite(times.value):
            shown = "undefined: the smallest scores 0"
        parts.append(f"{group} {trends[group]} ({change.signed()} per decade, largest / smallest {shown})")
    with np.errstate(invalid="ignore"):  # of two unbounded ratios
        difference, by = section.ratio(hard, metric) - section.ratio(easy, metric), "ratios"
    if not np.isfinite(difference[0]):  # the smallest size scores 0
        difference, by = section.slope(hard, metric) - section.slope(easy, metric), "slopes"
    worse = f"; {easy} got worse with size" if trends[easy] == "loses" else ""
    match trend(estimate(difference)), trends[hard], trends[easy]:
        case "gains", "gains", _:
            conclusion = f"{hard} gains more than {easy}{worse}"
        case "gains", _, "loses":
            conclusion = f"{hard} looks better beside {easy} only because {easy} got worse with size"
        case "gains", _, _:
            conclusion = f"{hard} fares better than {easy}, but does not change measurably by itself"
        case "loses", _, "gains":
            conclusion = f"{easy} gains more than {hard}"
        case "loses", _, _:
            conclusion = f"{hard} fares worse than {easy}{worse}"
        case _:
            conclusion = f"there is no measurable difference between their gains{worse}"
    return f"{metric}: {'; '.join(parts)}. By the {by}, {conclusion}."


def trend(change: Estimate) -> str:
    """What the interval of a change says: gains, loses, or does not change measurably."""
    if change.low > 0:
        return "gains"
    return "loses" if change.high < 0 else "does not change measurably"
