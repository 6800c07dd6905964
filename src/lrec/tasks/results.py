"""The result of a task: every number with its interval, the gain with size, and findings in words.

A result has sections. A section has groups of cases (by popularity, length of history, kind of corruption ...). A group
has the same metrics for every scorer: each size, and the baselines.

Shape suffixes: C cases, R draws, S sizes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lrec.evaluation import cases as ranking
from lrec.evaluation.cases import LIST_LENGTH, Cases
from lrec.evaluation.metrics import Metric
from lrec.tasks.intervals import Estimate, UserResamples, estimate
from lrec.tasks.trained_runs import Ladder, TrainedRun

POPULARITY, REPEAT_LAST = "popularity", "repeat-last"
Draws = dict[str, np.ndarray]  # draws by metric
DRAWN = 4  # largest number of groups in a figure: more lines hide each other


@dataclass
class Group:
    """Numbers of cases and users, and draws of every metric by scorer: sizes in ascending order, then baselines."""

    cases: int
    users: int
    draws: dict[str, Draws]


@dataclass
class Section:
    """A part of a task: groups of cases by name, with conclusions in `findings`."""

    title: str
    sizes: dict[str, float]  # N_body by the name of the size, ascending; each size is a scorer
    groups: dict[str, Group]
    shown: Sequence[str] = ("NDCG@10", "HR@10")  # metrics of the tables; the first is drawn
    drawn: Sequence[str] = ()  # groups for the figure and the terminal, by default all; of more, `DRAWN` are shown
    findings: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return list(self.sizes)

    @property
    def drawn_groups(self) -> list[str]:
        """The names of the groups to show, spread evenly; groups without cases are left out."""
        names = [name for name in self.drawn or self.groups if name in self.groups]
        places = np.linspace(0, len(names) - 1, min(DRAWN, len(names))).round().astype(int)
        return [names[place] for place in places]

    def estimates(self, group: str) -> dict[str, dict[str, Estimate]]:
        """Estimate of every metric in a group, by scorer."""
        draws = self.groups[group].draws
        return {scorer: {metric: estimate(d) for metric, d in mine.items()} for scorer, mine in draws.items()}

    def gains(self, group: str) -> dict[str, dict[str, Estimate]]:
        """Gain with size of every metric in a group; empty if there is one size."""
        metrics = self.groups[group].draws[self.names[0]] if len(self.names) > 1 else []
        kinds = {"slope": self.slope, "ratio": self.ratio}
        return {metric: {name: estimate(of(group, metric)) for name, of in kinds.items()} for metric in metrics}

    def slope(self, group: str, metric: str) -> np.ndarray:
        """Draws of the least-squares slope of a metric against log10 N_body: its gain per decade of size."""
        draws_SR = np.stack([self.groups[group].draws[name][metric] for name in self.sizes])
        x_S = np.log10(list(self.sizes.values()))
        x_S -= x_S.mean()
        with np.errstate(invalid="ignore"):  # a lost share may be undefined
            # Relative to the first size, because the slope of equal values would not be exactly 0.
            return x_S @ (draws_SR - draws_SR[0]) / (x_S @ x_S)

    def ratio(self, group: str, metric: str) -> np.ndarray:
        """Draws of the largest size's metric over the smallest's; inf if only the smallest's is 0, nan if both are."""
        draws = self.groups[group].draws
        with np.errstate(divide="ignore", invalid="ignore"):
            return draws[self.names[-1]][metric] / draws[self.names[0]][metric]


@dataclass
class TaskResult:
    """The sections of a task, and notes: a line for each thing that the task could not do or left out."""

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
    """A task, or a part of it, has no cases; the message says why, and how to get cases."""


def assess(
    title: str,
    groups: dict[str, Cases],
    ladder: Ladder,
    seed: int,
    with_lists: bool = False,
    compared: tuple[str, str] | None = None,
) -> Section:
    """Every metric of every scorer in every group, all from the same resamples of the users.

    A group without cases is left out; if no group is left, NoCasesError is raised. `with_lists` adds coverage, and
    shows it with the mean popularity of the listed items. `compared` names a hard group and an easy group; findings say
    which of them gains more with size.
    """
    present = {name: cases for name, cases in groups.items() if len(cases)}
    if not present:
        raise NoCasesError(f"{title}: there is no case")
    resamples = UserResamples(np.concatenate([cases.users_C for cases in present.values()]), seed)
    sizes = {runs[0].name: runs for runs in ladder.runs.values()}
    known = sizes, ladder.counts_V, ladder.metrics, with_lists
    measured = {name: measure(resamples, cases, *known) for name, cases in present.items()}
    section = Section(title, ladder.sizes, measured)
    if compared is not None:
        section.findings = [compare_gains(section, metric, *compared) for metric in section.shown]
    if with_lists:
        section.shown = (*section.shown, f"coverage@{LIST_LENGTH}", f"popularity@{LIST_LENGTH}")
    return section


def measure(
    resamples: UserResamples,
    cases: Cases,
    sizes: Mapping[str, list[TrainedRun]],
    counts_V: np.ndarray,
    metrics: Sequence[Metric],
    with_lists: bool = False,
    candidates_V: np.ndarray | None = None,
) -> Group:
    """Every metric of every scorer on the same cases, averaged over the runs of a size. Items are catalogue indices of
    the networks. `candidates_V` are the ranked items, ascending; all by default."""

    def draws_of(rankings: list[ranking.Ranked]) -> Draws:
        values = [ranking.values_of(ranked, cases.targets_C, counts_V, metrics) for ranked in rankings]
        draws = resamples.means(values, cases.users_C)
        if with_lists:
            coverages = [resamples.coverage(r.top_CK, cases.users_C, len(counts_V)) for r in rankings]
            draws[f"coverage@{LIST_LENGTH}"] = np.mean(coverages, 0)
        return draws

    draws = {}
    for name, runs in sizes.items():
        draws[name] = draws_of([ranking.rank_by_net(run.net, cases, candidates_V) for run in runs])
    draws[POPULARITY] = draws_of([ranking.rank_by_popularity(counts_V, cases, candidates_V)])
    draws[REPEAT_LAST] = draws_of([ranking.rank_by_repeating(counts_V, cases, candidates_V)])
    return Group(len(cases), len(np.unique(cases.users_C)), draws)


def compare_gains(section: Section, metric: str, hard: str, easy: str) -> str:
    """Which of two groups gains more with size, and whether this is because one improves or the other gets worse."""
    if missing := [name for name in (hard, easy) if name not in section.groups]:
        return f"{metric}: there is no case in {' and '.join(missing)}, so there is nothing to compare."
    if len(section.names) < 2:
        return f"{metric}: there is only one size, so there is no gain with size."
    parts, trends = [], {}
    for group in (hard, easy):
        change, times = estimate(section.slope(group, metric)), estimate(section.ratio(group, metric))
        trends[group] = change.trend
        shown = times.shown("{:.2f}".format) if np.isfinite(times.value) else "undefined: the smallest size scores 0"
        parts.append(f"{group} {trends[group]} ({change.signed()} per decade, largest / smallest {shown})")
    with np.errstate(invalid="ignore"):  # both ratios may be infinite
        difference, by = section.ratio(hard, metric) - section.ratio(easy, metric), "ratios"
    if not np.isfinite(difference[0]):  # the smallest size scores 0
        difference, by = section.slope(hard, metric) - section.slope(easy, metric), "slopes"
    worse = f"; {easy} got worse with size" if trends[easy] == "loses" else ""
    match estimate(difference).trend, trends[hard], trends[easy]:
        case "gains", "gains", _:
            conclusion = f"{hard} gains more than {easy}{worse}"
        case "gains", _, "loses":
            conclusion = f"{hard} seems to gain more than {easy} only because {easy} got worse with size"
        case "gains", _, _:
            conclusion = f"{hard} fares better than {easy}, but does not change measurably by itself"
        case "loses", _, "gains":
            conclusion = f"{easy} gains more than {hard}"
        case "loses", _, _:
            conclusion = f"{hard} fares worse than {easy}{worse}"
        case _:
            conclusion = f"there is no measurable difference between their gains{worse}"
    return f"{metric}: {'; '.join(parts)}. By the {by}, {conclusion}."
