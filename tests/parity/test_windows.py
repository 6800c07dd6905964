"""Figures of windows, by user and of warm targets, against their definitions in plain Python, from the raw rows.

Random tables have ties in scores and in time, repeats, items that are new in the window, and users without any.
"""

import math
from collections.abc import Callable
from pathlib import Path
from statistics import mean, pstdev

import numpy as np
import polars as pl
import pytest
import torch

from lrec.data.batching.eval_batches import EvalBatch, EvalBatches
from lrec.data.batching.train_batches import Ranks
from lrec.data.splits.rules import Split, Targets
from lrec.data.splits.temporal import GlobalTemporal
from lrec.data.store.prepare import RawInteractions, prepare_store
from lrec.data.store.store import Store
from lrec.evaluation.evaluator import Evaluation
from lrec.evaluation.metrics import KS, METRICS
from lrec.ranking.scoring import score

VALIDATE_FROM, TEST_FROM, TEST_UNTIL = 40, 50, 70
WITH_ERROR = ("NDCG", "recall", "MAP")  # the metrics of sets that have a standard error
Rows = list[tuple[str, str, int]]
Score = Callable[[str, str], int]


def random_rows(seed: int) -> Rows:
    random = np.random.default_rng(seed)
    rows = []
    for user in range(60):
        for _ in range(random.integers(1, 25)):
            time = int(random.integers(100))
            rows.append((f"u{user}", f"i{random.integers(30 + 15 * (time > 45))}", time))
    return rows


def ordered(rows: Rows) -> dict[str, list[tuple[str, int]]]:
    """Each user's items with their times, in time order, ties in the order of the rows."""
    return {
        user: sorted(((i, t) for u, i, t in rows if u == user), key=lambda pair: pair[1])
        for user in sorted({row[0] for row in rows})
    }


def listed(score_of: Score, user: str, catalogue: list[str], without: set[str]) -> list[str]:
    """The catalogue's items by score; ties in the order of the catalogue."""
    return sorted((item for item in catalogue if item not in without), key=lambda item: -score_of(user, item))


def naive_window(rows: Rows, score_of: Score, seen_too: bool, warm: bool) -> dict[str, float]:
    histories = ordered(rows)
    catalogue = sorted({item for items in histories.values() for item, time in items if time < VALIDATE_FROM})
    values: dict[str, list[float]] = {}
    hits_of_all: dict[int, list[tuple[int, int]]] = {k: [] for k in KS}
    for user, items in histories.items():
        places = [p for p, (_, time) in enumerate(items) if p > 0 and TEST_FROM <= time < TEST_UNTIL]
        if not places:
            continue
        before = {item for item, _ in items[: places[0]]} & set(catalogue)
        truth = {items[p][0] for p in places} & (set(catalogue) if warm else {items[p][0] for p in places})
        if not before or not truth:
            continue
        ranking = listed(score_of, user, catalogue, set() if seen_too else before)
        for k in KS:
            hits = [place for place, item in enumerate(ranking[:k], start=1) if item in truth]
            best = range(1, min(k, len(truth)) + 1)
            found = {
                "HR": float(bool(hits)),
                "NDCG": sum(1 / math.log2(1 + p) for p in hits) / sum(1 / math.log2(1 + p) for p in best),
                "MRR": 1 / hits[0] if hits else 0.0,
                "recall": len(hits) / len(truth),
                "precision": len(hits) / k,
                "MAP": sum((n + 1) / p for n, p in enumerate(hits)) / min(k, len(truth)),
            }
            if warm:
                del found["MRR"]  # which lrec does not split into parts
            hits_of_all[k].append((len(hits), len(truth)))
            for name, value in found.items():
                values.setdefault(f"{name}@{k}", []).append(value)
    suffix = "" if seen_too else "_unseen"
    suffix += "_warm" if warm else ""
    figures = {f"{name}{suffix}": mean(each) for name, each in values.items()}
    for name in (name for name in values if name.startswith(WITH_ERROR)):
        figures[f"{name}{suffix}_se"] = pstdev(values[name]) / len(values[name]) ** 0.5
    for k, pairs in hits_of_all.items():
        figures[f"micro_recall@{k}{suffix}"] = sum(h for h, _ in pairs) / sum(n for _, n in pairs)
    return figures


def naive_by_user(rows: Rows, score_of: Score, seen_too: bool) -> dict[str, float]:
    """Targets one by one: the mean over users of the means over their targets; a tie counts half a rank."""
    histories = ordered(rows)
    catalogue = sorted({item for items in histories.values() for item, time in items if time < VALIDATE_FROM})
    values: dict[str, list[float]] = {}
    for user, items in histories.items():
        mine: dict[str, list[float]] = {}
        for place, (target, time) in enumerate(items):
            before = {item for item, _ in items[:place]} & set(catalogue)
            if place == 0 or not TEST_FROM <= time < TEST_UNTIL or not before:
                continue
            others = [item for item in catalogue if item != target and (seen_too or item not in before)]
            gaps = [score_of(user, item) - score_of(user, target) for item in others]
            rank = 1 + sum(gap > 0 for gap in gaps) + sum(gap == 0 for gap in gaps) / 2
            if target not in catalogue or (not seen_too and target in before):
                rank = math.inf
            for k in KS:
                mine.setdefault(f"HR@{k}", []).append(float(rank <= k))
                mine.setdefault(f"NDCG@{k}", []).append(1 / math.log2(1 + rank) if rank <= k else 0.0)
        for name, each in mine.items():
            values.setdefault(name, []).append(mean(each))
    suffix = "_by_user" if seen_too else "_unseen_by_user"
    figures = {f"{name}{suffix}": mean(each) for name, each in values.items()}
    return figures | {f"{name}{suffix}_se": pstdev(each) / len(each) ** 0.5 for name, each in values.items()}


def store_of(rows: Rows, folder: Path) -> Store:
    frame = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    return Store.open(prepare_store(folder, "rows", {}, 0, lambda: RawInteractions(frame)))


def evaluated(
    split: Split, hidden_UD: torch.Tensor, table_ID: torch.Tensor, n_parts: int, world: int
) -> dict[str, float]:
    """Figures of Evaluation over the test's batches, of `world` processes and in `n_parts` parts each."""
    sets = bool(split.sets_2[1])
    users_T, ends_T = split.test_targets
    sizes_T = split.test_targets_U[users_T] if sets else None
    users_U = None if sets else torch.from_numpy(np.unique(users_T))
    evaluation = Evaluation(torch.from_numpy(split.counts_V), METRICS, sets, True, users_U)
    targets = Targets(users_T, ends_T)
    loaders = [EvalBatches(split, targets, 6, Ranks(world, rank), sizes_T=sizes_T) for rank in range(world)]
    batches = [batch for loader in loaders for batch in loader]
    parts: list[EvalBatch] = [part for batch in batches for part in batch.parts(n_parts)]
    for batch in parts:
        hidden_MD, table_VD = hidden_UD[batch.users_M], table_ID[split.catalogue_V]
        found = score(hidden_MD, table_VD, batch.targets_M, batch.seen_targets_S, batch.seen_items_S, max(KS))
        evaluation.update(found, batch)
    return evaluation.compute()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("targets", ["window", "all"])
def test_figures_equal_their_definitions(tmp_path: Path, seed: int, targets: str) -> None:
    rows = random_rows(seed)
    store = store_of(rows, tmp_path)
    rule = GlobalTemporal(VALIDATE_FROM, TEST_FROM, test_targets=targets, test_until=TEST_UNTIL)  # type: ignore[arg-type]
    split = rule(store)
    generator = torch.Generator().manual_seed(seed)
    hidden_UD = torch.randint(-1, 2, (store.n_users, 3), generator=generator).float()
    table_ID = torch.randint(-1, 2, (store.n_items, 3), generator=generator).float()
    scores_UI = (hidden_UD @ table_ID.T).long().tolist()
    users, items = store.raw_user_ids.to_list(), store.item_table["raw_id"].to_list()
    user_place, item_place = ({raw: place for place, raw in enumerate(raws)} for raws in (users, items))

    def score_of(user: str, item: str) -> int:
        return int(scores_UI[user_place[user]][item_place[item]])

    figures = evaluated(split, hidden_UD, table_ID, n_parts=1, world=1)
    for seen_too in (True, False):
        if targets == "all":
            expected = naive_by_user(rows, score_of, seen_too)
        else:
            expected = naive_window(rows, score_of, seen_too, warm=False)
            expected |= naive_window(rows, score_of, seen_too, warm=True)
        assert expected.keys() <= figures.keys()
        assert {name: figures[name] for name in expected} == pytest.approx(expected)
    if targets == "window":
        assert figures["targets_sets"] < figures["targets"], "some sets have several items"
        assert figures["targets_outside_catalogue"] > 0
    for n_parts, world in ((3, 1), (1, 2)):
        assert evaluated(split, hidden_UD, table_ID, n_parts, world) == pytest.approx(figures, nan_ok=True)
