"""Every task's figures against the definitions of docs/tasks.md written out, one case and one item at a time."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import polars as pl
import pytest
import torch

from lrec.evaluation.cases import cases_before, cases_of_test, rank_by_net
from lrec.model.transformer import Transformer
from lrec.run import Run
from lrec.tasks.cold_start import cold_start
from lrec.tasks.long_tail import long_tail
from lrec.tasks.results import Section
from lrec.tasks.robustness import corrupted, robustness
from lrec.tasks.trained_runs import Data, Ladder, ladder_of, load_run
from lrec.tasks.trajectory import trajectory
from lrec.tasks.transfer import transfer

Case = tuple[list[int], int]  # history, target; an item is its catalogue index, -1 outside
SEED = 5
NOTHING: frozenset[int] = frozenset()


@dataclass
class World:
    """What the small log holds, computed in plain Python."""

    sequences: list[list[int]]  # of each user, -1 outside the catalogue
    held_out: list[bool]
    trajectory: list[int]  # first position, -1 for none
    counts: list[int]
    domains: list[str]
    domains_of: list[list[str]]  # of each user's items
    max_len: int

    def known(self, items: list[int], n: int) -> list[int]:
        """The last n catalogue items."""
        items = [item for item in items if item >= 0]
        return items[max(len(items) - n, 0) :]

    def test_cases(self) -> list[Case]:
        """The last item before the trajectory, of users not held out with three or more items up to it."""
        cases = []
        for sequence, out, first in zip(self.sequences, self.held_out, self.trajectory, strict=True):
            items = sequence if first < 0 else sequence[:first]
            if not out and len(items) >= 3:
                cases.append((self.known(items[:-1], self.max_len), items[-1]))
        return cases


@pytest.fixture(scope="module")
def world(ladder: Ladder) -> World:
    store = ladder.split.store
    raw = store.item_table["raw_id"].to_list()
    users = [
        [raw[item] for item in store.items_N[store.offsets_U1[u] : store.offsets_U1[u + 1]]]
        for u in range(store.n_users)
    ]
    held_out = [bool(out) for out in ladder.split.held_out_U]
    assert 3 < sum(held_out) < 45, "a good part of the long users is held out"
    first = [len(items) - 4 if len(items) > 15 else -1 for items in users]
    trained: Counter[str] = Counter()
    for items, out, begin in zip(users, held_out, first, strict=True):
        before = items if begin < 0 else items[:begin]
        if not out:
            trained.update(before[:-2] if len(before) >= 3 else before)
    catalogue = [item for item in raw if trained[item]]
    index = {item: i for i, item in enumerate(catalogue)}
    return World(
        sequences=[[index.get(item, -1) for item in items] for items in users],
        held_out=held_out,
        trajectory=first,
        counts=[trained[item] for item in catalogue],
        domains=[item[0] for item in catalogue],
        domains_of=[[item[0] for item in items] for items in users],
        max_len=ladder.max_len,
    )


def rank_of(scores: list[float], target: int, without: set[int] | frozenset[int] = NOTHING) -> float:
    """1 + the number of higher scores + half the ties; infinite if the target may not be listed."""
    if target < 0 or target in without:
        return math.inf
    others = [s for item, s in enumerate(scores) if item != target and item not in without]
    return 1 + sum(s > scores[target] for s in others) + sum(s == scores[target] for s in others) / 2


def best_of(scores: list[float], n: int, without: set[int] | frozenset[int] = NOTHING) -> list[int]:
    return sorted((i for i in range(len(scores)) if i not in without), key=lambda i: (-scores[i], i))[:n]


@torch.no_grad()
def net_scores(net: Transformer, history: list[int], blank: list[bool] | None = None) -> list[float]:
    """Scores after the last item that is not blank, from the whole history at once."""
    blank = blank or [False] * len(history)
    last = max(i for i, gone in enumerate(blank) if not gone)
    blank_BL = torch.tensor([blank]) if any(blank) else None
    scores: torch.Tensor = net(torch.tensor([history]), lambda h, t: h[0, last] @ t.T, blank_BL=blank_BL)
    return scores.tolist()


def repeat_scores(counts: list[int], history: list[int]) -> list[float]:
    """The history's items are ordered by their last place, above all others, which are ordered by count."""
    scores = [count / (sum(counts) + 1) for count in counts]
    for place, item in enumerate(history):
        scores[item] = 1.0 + place
    return scores


def metrics(rank: float) -> dict[str, float]:
    values = {}
    for k in (1, 5, 10, 50):
        values[f"HR@{k}"] = float(rank <= k)
        values[f"NDCG@{k}"] = 1 / math.log2(1 + rank) if rank <= k else 0.0
        values[f"MRR@{k}"] = 1 / rank if rank <= k else 0.0
    return values


def log_loss(scores: list[float], target: int) -> float:
    top = max(scores)
    return top + math.log(sum(math.exp(s - top) for s in scores)) - scores[target]


def check(section: Section, group: str, cases: list[Case], ladder: Ladder, world: World, blanks=None) -> None:
    """Check every scorer's figures in a group."""
    assert section.groups[group].cases == len(cases)
    blanks = blanks or [[False] * len(history) for history, _ in cases]
    unblanked = [
        [item for item, gone in zip(history, blank, strict=True) if not gone]
        for (history, _), blank in zip(cases, blanks, strict=True)
    ]
    scored = {
        runs[0].name: [
            [net_scores(run.net, history, blank) for (history, _), blank in zip(cases, blanks, strict=True)]
            for run in runs
        ]
        for runs in ladder.runs.values()
    }
    scored["popularity"] = [[[float(count) for count in world.counts] for _ in cases]]
    scored["repeat-last"] = [[repeat_scores(world.counts, history) for history in unblanked]]
    figures = section.estimates(group)
    assert set(figures) == set(scored)
    for name, seeds in scored.items():
        rows = [[metrics(rank_of(s, t)) for s, (_, t) in zip(scores, cases, strict=True)] for scores in seeds]
        for metric in rows[0][0]:
            expected = mean(mean(row[metric] for row in one) for one in rows)
            assert figures[name][metric].value == pytest.approx(expected, abs=1e-9), (name, metric)
        tops = [[best_of(s, 10) for s in scores] for scores in seeds]
        popularity = mean(mean(mean(world.counts[i] for i in top) for top in one) for one in tops)
        assert figures[name]["popularity@10"].value == pytest.approx(popularity)
        if "coverage@10" in figures[name]:
            coverage = mean(len({i for top in one for i in top}) / len(world.counts) for one in tops)
            assert figures[name]["coverage@10"].value == pytest.approx(coverage)
        if name not in ("popularity", "repeat-last"):
            losses = [
                mean(log_loss(s, t) for s, (_, t) in zip(scores, cases, strict=True) if t >= 0) for scores in seeds
            ]
            assert figures[name]["loss"].value == pytest.approx(mean(losses), rel=1e-5)


def test_long_tail(ladder: Ladder, world: World) -> None:
    result = long_tail(ladder, SEED)
    order = sorted(range(len(world.counts)), key=lambda i: (-world.counts[i], i))
    total, passed, group_of = sum(world.counts), 0, {}
    for item in order:
        middle = passed + world.counts[item] / 2
        group_of[item] = min(int(4 * middle / total), 3)
        passed += world.counts[item]
    masses = [sum(world.counts[i] for i in group_of if group_of[i] == g) for g in range(4)]
    assert max(masses) - min(masses) < 0.2 * total, "equal interaction mass, up to an item"
    for number, group in enumerate(("G1", "G2", "G3", "G4")):
        cases = [case for case in world.test_cases() if case[1] >= 0 and group_of[case[1]] == number]
        check(result.sections[0], group, cases, ladder, world)


def test_cold_start(ladder: Ladder, world: World) -> None:
    result = cold_start(ladder, SEED)
    users, items = result.sections
    assert list(users.groups) == ["last 10", "last 5", "last 3", "last 1"]
    assert result.notes[0] == "New users: no histories of 50, 40, 30, 20 items, as max_len is 12"
    new = [sequence for sequence, out in zip(world.sequences, world.held_out, strict=True) if out]
    for n in (10, 5, 1):
        check(users, f"last {n}", [(world.known(s[:-1], n), s[-1]) for s in new], ladder, world)
    for group, (least, most) in {"1 to 4": (1, 4), "20 or more": (20, 10**9)}.items():
        cases = [case for case in world.test_cases() if case[1] >= 0 and least <= world.counts[case[1]] <= most]
        if cases:
            check(items, group, cases, ladder, world)
        else:
            assert f"New items: no test target has {group} training interactions" in result.notes


def test_transfer(ladder: Ladder, world: World) -> None:
    section = transfer(ladder, SEED).sections[0]
    cases = [case for case in world.test_cases() if case[1] >= 0]
    mixed = [world.domains[t] in {world.domains[item] for item in history} for history, t in cases]
    for group, wanted in (("mix", True), ("diff", False)):
        mine = [case for case, is_mix in zip(cases, mixed, strict=True) if is_mix == wanted]
        check(section, group, mine, ladder, world)


@pytest.fixture(scope="module")
def transfer_ladder(runs: Path, make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    """Both sizes also have runs on domain y alone: two seeds from scratch, named by their shape, and one from a trained
    network."""
    folder = tmp_path_factory.mktemp("own")
    own = [
        make_run(folder / f"{size}-{seed}", name, seed, data__only_domain="y", **options)
        for size, shape in (("0.8k", "1x8"), ("3k", "1x16"))
        for name, seed, options in ((shape, 11, {}), (shape, 12, {}), (size, 13, {"warm_start": runs / f"{size}-1"}))
    ]
    data = Data()
    return ladder_of([load_run(Run(folder), data) for folder in [*sorted(runs.iterdir()), *own]], data)


def test_what_pretraining_is_worth_to_a_domain(transfer_ladder: Ladder, world: World) -> None:
    section = transfer(transfer_ladder, SEED).sections[1]
    items_of_y = [item for item, domain in enumerate(world.domains) if domain == "y"]
    cases = []
    for items, domains, out, first in zip(
        world.sequences, world.domains_of, world.held_out, world.trajectory, strict=True
    ):
        end = len(items) if first < 0 else first
        history = [item for item in items[: end - 1] if item in items_of_y]
        if not out and end >= 3 and domains[end - 1] == "y" and history:
            cases.append((world.known(history, world.max_len), items[end - 1]))
    assert 5 < len(cases) < len(world.test_cases())
    numbers = [items_of_y.index(target) if target >= 0 else -1 for _, target in cases]
    own = transfer_ladder.domains["y"]
    figures = {name: section.estimates(name) for name in section.groups}

    def own_scores(net: Transformer, history: list[int]) -> list[float]:
        return net_scores(net, [items_of_y.index(item) for item in history])

    def all_scores(net: Transformer, history: list[int]) -> list[float]:
        scores = net_scores(net, history)
        return [scores[item] for item in items_of_y]

    for group, by_size, score in (
        ("alone", own.alone, own_scores),
        ("zero-shot", transfer_ladder.runs, all_scores),
        ("fine-tuned", own.fine_tuned, own_scores),
    ):
        assert section.groups[group].cases == len(cases)
        for size, same_size in zip(section.names, by_size.values(), strict=True):
            seeds = [[score(run.net, history) for history, _ in cases] for run in same_size]
            found = figures[group][size]
            for metric in metrics(1):
                expected = mean(
                    mean(metrics(rank_of(s, number))[metric] for s, number in zip(one, numbers, strict=True))
                    for one in seeds
                )
                assert found[metric].value == pytest.approx(expected, abs=1e-9), (group, metric)
            expected = mean(
                mean(log_loss(s, number) for s, number in zip(one, numbers, strict=True) if number >= 0)
                for one in seeds
            )
            assert found["loss"].value == pytest.approx(expected, rel=1e-5)
            if group != "alone":
                difference = found["NDCG@10"].value - figures["alone"][size]["NDCG@10"].value
                assert found["NDCG@10_over_alone"].value == pytest.approx(difference)
        baselines = {
            "popularity": lambda history: [float(world.counts[item]) for item in items_of_y],
            "repeat-last": lambda history: [repeat_scores(world.counts, history)[item] for item in items_of_y],
        }
        for name, baseline in baselines.items():
            ranks = [rank_of(baseline(history), number) for (history, _), number in zip(cases, numbers, strict=True)]
            expected = mean(metrics(rank)["NDCG@10"] for rank in ranks)
            assert figures[group][name]["NDCG@10"].value == pytest.approx(expected)


def test_networks_of_all_domains_read_features_by_their_own_vocabulary(
    make_run: Callable[..., Path], log_with_domains: Path, tmp_path: Path
) -> None:
    options = {"data__event_features__categories": "[device]"}
    whole = make_run(tmp_path / "whole", "3k", 1, **options)
    alone = make_run(tmp_path / "alone", "3k", 2, data__only_domain="y", **options)
    data = Data()
    ladder = ladder_of([load_run(Run(folder), data) for folder in (whole, alone)], data)
    (vocabulary,), split = data.of(Run(whole)).learned.vocabularies, ladder.domains["y"].split
    # The device of every event with an item of y, in the order of the store, and of those before each target.
    log = pl.read_csv(log_with_domains).filter(domain="y").sort("user", "time", maintain_order=True)
    cases, devices = cases_of_test(split, ladder.max_len), log["device"].to_list()
    assert len(log) == split.store.offsets_U1[-1]
    known_N, read = split.catalogue_index_I[split.store.items_N] >= 0, []
    for user, position, length in zip(cases.users_C, cases.positions_C, cases.lengths_C, strict=True):
        first = split.store.offsets_U1[user]
        before = [devices[row] for row in range(first, first + position) if known_N[row]]
        read += before[-length:]
    index_W = ladder.split.catalogue_index_I[split.catalogue_V]
    targets_C = np.where(cases.targets_C >= 0, index_W[cases.targets_C], -1)
    events_N = vocabulary.codes(pl.Series(read))
    mine = replace(cases, items_N=index_W[cases.items_N], targets_C=targets_C, events_N=events_N)
    ((run,),) = ladder.runs.values()
    expected = np.nanmean(rank_by_net(run.net, mine, index_W).loss_C)
    found = transfer(ladder, SEED).sections[1].estimates("zero-shot")["3k"]["loss"]
    assert found.value == pytest.approx(float(expected), rel=1e-6)


def test_robustness(ladder: Ladder, world: World) -> None:
    section = robustness(ladder, SEED).sections[0]
    targets = ladder.split.test_targets
    clean = cases_before(ladder.split, targets.users_T, targets.positions_T, ladder.max_len)
    groups = corrupted(clean, len(world.counts), ladder.max_len, SEED)
    assert list(section.groups) == list(groups)
    check(section, "clean", world.test_cases(), ladder, world)
    for name in ("mix 0.3", "replaced 0.5", "blanked 0.5", "deleted 0.3", "inserted 0.3", "shuffled 0.4"):
        mine = groups[name]
        parts = np.split(mine.items_N, mine.starts_C[1:])
        blanks = None if mine.blank_N is None else [p.tolist() for p in np.split(mine.blank_N, mine.starts_C[1:])]
        cases = [(items.tolist(), int(target)) for items, target in zip(parts, mine.targets_C, strict=True)]
        check(section, name, cases, ladder, world, blanks)
        figures, before = section.estimates(name), section.estimates("clean")
        for scorer in figures:
            kept = figures[scorer]["HR@10"].value / before[scorer]["HR@10"].value
            assert figures[scorer]["HR@10_lost"].value == pytest.approx(1 - kept)


@pytest.mark.parametrize("repeats", [True, False])
def test_trajectory(ladder: Ladder, world: World, repeats: bool) -> None:
    result = trajectory(ladder, SEED)
    by_step, whole = result.sections[:2] if repeats else result.sections[2:]
    users = [
        (world.known(s[:first], world.max_len - 4), {i for i in s[:first] if i >= 0}, s[first:])
        for s, first, out in zip(world.sequences, world.trajectory, world.held_out, strict=True)
        if first >= 0 and not out
    ]
    scorers = {
        runs[0].name: [lambda history, net=run.net: net_scores(net, history) for run in runs]
        for runs in ladder.runs.values()
    }
    scorers["popularity"] = [lambda history: [float(count) for count in world.counts]]
    if repeats:
        scorers["repeat-last"] = [lambda history: repeat_scores(world.counts, history)]
    assert set(by_step.estimates("step 1")) == set(scorers)
    for name, seeds in scorers.items():
        walks = [[walk(score, *user, repeats) for user in users] for score in seeds]
        for step in range(4):
            figures = by_step.estimates(f"step {step + 1}")[name]
            for k in (1, 3, 10):
                expected = mean(mean(float(ranks[step] <= k) for _, ranks in one) for one in walks)
                assert figures[f"HR@{k}"].value == pytest.approx(expected), (name, step, k)
        figures = whole.estimates("whole")[name]
        truths = [truth for _, _, truth in users]
        predicted = [[items for items, _ in one] for one in walks]
        for metric, of in (("NDCG", ndcg), ("overlap", overlap)):
            expected = mean(mean(of(p, t) for p, t in zip(one, truths, strict=True)) for one in predicted)
            assert figures[metric].value == pytest.approx(expected)
        for order in (2, 4):
            expected = mean(bleu(one, truths, order) for one in predicted)
            assert figures[f"BLEU-{order}"].value == pytest.approx(expected), (name, order)


def walk(score, history: list[int], seen: set[int], truth: list[int], repeats: bool) -> tuple[list[int], list[float]]:
    """Predicted items and the true items' ranks, the whole history encoded again at every step."""
    items: list[int] = []
    ranks = []
    for true in truth:
        scores = score(history + items)
        without = set() if repeats else seen | set(items)
        ranks.append(rank_of(scores, true, without))
        items.append(best_of(scores, 1, without)[0])
    return items, ranks


def ndcg(items: list[int], truth: list[int]) -> float:
    left, gain = Counter(t for t in truth if t >= 0), 0.0
    for step, item in enumerate(items, start=1):
        if left[item]:
            left[item] -= 1
            gain += 1 / math.log2(1 + step)
    return gain / sum(1 / math.log2(1 + step) for step in range(1, len(truth) + 1))


def overlap(items: list[int], truth: list[int]) -> float:
    return sum((Counter(items) & Counter(t for t in truth if t >= 0)).values()) / len(truth)


def bleu(predicted: list[list[int]], truths: list[list[int]], order: int) -> float:
    product = 1.0
    for n in range(1, order + 1):
        found, total = 0, 0
        for items, truth in zip(predicted, truths, strict=True):
            mine = Counter(tuple(items[i : i + n]) for i in range(len(items) - n + 1))
            true = Counter(tuple(truth[i : i + n]) for i in range(len(truth) - n + 1))
            found += sum((mine & true).values())
            total += sum(mine.values())
        product *= found / total
    return product ** (1 / order)
