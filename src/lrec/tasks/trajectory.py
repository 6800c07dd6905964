"""Trajectory: a user's last items are predicted step by step, and each prediction is fed back as input. Shape suffixes:
C users with a trajectory, T steps, B rows, L positions, D width, V catalogue, S seen pairs, R draws."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from lrec.evaluation.cases import Cases, batches, by_count, cases_before
from lrec.evaluation.shared_scoring import share_of, together
from lrec.model.attention_context import KeyValueCache
from lrec.model.transformer import Transformer
from lrec.ranking.best_items import Pairs
from lrec.ranking.common_order import Leading, newest_first
from lrec.ranking.scoring import score
from lrec.tasks.intervals import UserResamples
from lrec.tasks.results import POPULARITY, REPEAT_LAST, Draws, Group, NoCasesError, Section, TaskResult, compare_gains
from lrec.tasks.trained_runs import Ladder

Decoded = tuple[np.ndarray, np.ndarray]  # a scorer's own trajectory, (C, T); ranks of the true items, inf for a miss
HITS = range(1, 11)
BLEU_ORDERS = (2, 4)


@dataclass(frozen=True)
class Trajectories:
    """What is known about each user before the trajectory, and the trajectory."""

    histories: Cases  # the last max_len - T items, which a network reads
    seen: Cases  # everything before the trajectory
    truth_CT: np.ndarray  # the trajectory: catalogue indices, -1 outside the catalogue
    times_CT: np.ndarray | None  # times of the trajectory in whole seconds; each prediction is asked for at its time
    events_CT: np.ndarray | None  # `Split.events` of the trajectory; predicted items get the events of their steps


def trajectories(ladder: Ladder) -> Trajectories:
    """The trajectories of the split; NoCasesError if it has none that fit BLEU and max_len."""
    split = ladder.split
    users_C = np.flatnonzero((split.trajectory_U >= 0) & ~split.held_out_U)
    if len(users_C) == 0:
        raise NoCasesError(
            "No user has a trajectory. Train with --data.split.trajectory 10, which takes users with more than "
            "--data.split.trajectory_min_length interactions"
            f"{', or draw more --users' if ladder.most_users else ''}"
        )
    first_C = split.trajectory_U[users_C]
    steps_C = np.diff(split.store.offsets_U1)[users_C] - first_C
    steps = int(steps_C[0])
    if (steps_C != steps).any():
        raise NoCasesError(f"Trajectories have {steps_C.min()} to {steps_C.max()} items; all must be of one length")
    if steps < max(BLEU_ORDERS):
        raise NoCasesError(
            f"Trajectories of {steps} items are too short for BLEU-{max(BLEU_ORDERS)}; train with "
            f"--data.split.trajectory {max(BLEU_ORDERS)} or more"
        )
    if ladder.max_len <= steps:
        raise NoCasesError(
            f"A network of max_len {ladder.max_len} has no room for a history before {steps} steps; "
            f"train with --data.max_len above {steps}"
        )
    seen = cases_before(split, users_C, first_C, int(first_C.max()))
    if not len(seen):
        raise NoCasesError("No user with a trajectory has an item of the catalogue before it")
    store, users_C = split.store, seen.users_C
    rows_CT = (store.offsets_U1[users_C] + split.trajectory_U[users_C])[:, None] + np.arange(steps)
    truth_CT = split.catalogue_index_I[store.items_N[rows_CT]]
    times_CT = None if store.times_N is None else store.seconds(rows_CT)
    events = split.events(rows_CT.ravel())
    events_CT = None if events is None else events.reshape(*rows_CT.shape, *events.shape[1:])
    return Trajectories(seen.last(ladder.max_len - steps), seen, truth_CT, times_CT, events_CT)


@torch.inference_mode()
def decode(net: Transformer, given: Trajectories, repeats: bool) -> Decoded:
    """Predict the best item of each step, with a cache; without repeats, of those neither seen nor predicted before."""
    device, steps = net.items.weight.device, given.truth_CT.shape[1]
    items_CT, rank_CT = np.zeros_like(given.truth_CT), np.zeros(given.truth_CT.shape)
    for chosen_B, read in share_of(batches(given.histories, net)):
        last_B, (n_rows, width) = read.pop("positions_M"), read["items_BL"].shape
        cache = KeyValueCache(n_rows, width + steps - 1, device)
        rows_S, items_S = _seen(given.seen.where(chosen_B[:0] if repeats else chosen_B), device)
        rows_B = torch.arange(n_rows, device=device)
        for step in range(steps):
            targets_B = torch.from_numpy(given.truth_CT[chosen_B, step]).to(device)
            head = partial(score, targets_B=targets_B, seen_rows_S=rows_S, seen_items_S=items_S, k=1)
            scores = net(head=head, cache=cache, positions_M=rows_B if step else last_B, **read)
            if step == 0:
                cache.filled_B = last_B % width + 1
            best_B = scores.top_unseen_BK[:, 0].clamp(min=0)  # -1 only if the whole catalogue was seen
            items_CT[chosen_B, step] = scores.top_unseen_BK[:, 0].cpu().numpy()
            rank_CT[chosen_B, step] = scores.rank_unseen_B.cpu().numpy()
            if not repeats:
                rows_S, items_S = torch.cat([rows_S, rows_B]), torch.cat([items_S, best_B])
            read = {"items_BL": best_B[:, None]}
            if net.reads_times and given.times_CT is not None:
                read["times_BT"] = torch.from_numpy(given.times_CT[chosen_B, step : step + 2]).to(device)
            if net.reads_events and given.events_CT is not None:
                read["events_BL"] = torch.from_numpy(given.events_CT[chosen_B, step : step + 1]).to(device)
    return together(items_CT), together(rank_CT)


def decode_order(counts_V: np.ndarray, given: Trajectories, repeats: bool, leading: Leading | None = None) -> Decoded:
    """The same for popularity: always the most popular item; without repeats, one item after the other. If items lead,
    such as those of the history, always the first of them."""
    order, items, ranks = by_count(counts_V), [], []
    seen = None if repeats else _seen(given.seen)
    for truth_C in torch.from_numpy(given.truth_CT).T:
        found = order.ranked(truth_C, 1, leading, seen)
        items.append(found.top_unseen_BK[:, 0])
        ranks.append(found.rank_unseen_B)
        if seen is not None:
            rows_S = (items[-1] >= 0).nonzero()[:, 0]
            seen = Pairs(torch.cat([seen.rows_S, rows_S]), torch.cat([seen.items_S, items[-1][rows_S]]))
    return torch.stack(items, 1).numpy(), torch.stack(ranks, 1).numpy()


def _seen(seen: Cases, device: torch.device | None = None) -> Pairs:
    """The distinct items that each history holds."""
    pairs = np.unique(np.stack([seen.case_N, seen.items_N]), axis=1)
    return Pairs(*torch.from_numpy(pairs).to(device))


def matched(items_CT: np.ndarray, truth_CT: np.ndarray) -> np.ndarray:
    """Which predictions are in the true trajectory, at any place; a true item matches only its earliest prediction."""
    free_CT = truth_CT >= 0
    matched_CT = np.zeros(items_CT.shape, dtype=bool)
    for step in range(items_CT.shape[1]):
        same_CT = free_CT & (truth_CT == items_CT[:, step, None])
        matched_CT[:, step] = same_CT.any(1)
        found = np.flatnonzero(matched_CT[:, step])
        free_CT[found, same_CT[found].argmax(1)] = False
    return matched_CT


def trajectory_values(items_CT: np.ndarray, truth_CT: np.ndarray) -> dict[str, np.ndarray]:
    """NDCG and overlap of each user's trajectory. Let m(t) be 1 if the prediction of step t is `matched`, else 0:
    NDCG = sum_t m(t) / log2(1 + t), divided by the same sum with every m(t) = 1. Overlap = mean of m(t)."""
    matched_CT = matched(items_CT, truth_CT)
    discounts_T = 1 / np.log2(2 + np.arange(truth_CT.shape[1]))
    return {"NDCG": matched_CT @ discounts_T / discounts_T.sum(), "overlap": matched_CT.mean(1)}


def clipped_matches(items_CT: np.ndarray, truth_CT: np.ndarray, n: int) -> np.ndarray:
    """BLEU's precision: each user's share of n-grams in the true trajectory, each at most as often as it is there."""
    grams = [np.lib.stride_tricks.sliding_window_view(sequence_CT, n, axis=1) for sequence_CT in (items_CT, truth_CT)]
    # Each n-gram as one number; n-grams with an item outside the catalogue match nothing.
    _, codes = np.unique(np.concatenate([g.reshape(-1, n) for g in grams]), axis=0, return_inverse=True)
    mine, true = codes.ravel().reshape(2, *grams[0].shape[:2])
    true = np.where((grams[1] < 0).any(2), -1, true)
    return matched(mine, true).sum(1) / mine.shape[1]


def bleu(resamples: UserResamples, users_C: np.ndarray, items_CT: np.ndarray, truth_CT: np.ndarray) -> Draws:
    """Draws of BLEU (Papineni et al. 2002) over all trajectories together, with n-grams up to each of `BLEU_ORDERS`.

    It is the geometric mean over n of matched n-grams / n-grams. All trajectories have the same length, so there is no
    brevity penalty. torchmetrics' bleu_score would give one number, not a draw for each resample.
    """
    shares = [clipped_matches(items_CT, truth_CT, n) for n in range(1, max(BLEU_ORDERS) + 1)]
    precisions_NR = np.maximum([resamples.mean(share_C, users_C) for share_C in shares], 0)
    return {f"BLEU-{order}": np.prod(precisions_NR[:order], 0) ** (1 / order) for order in BLEU_ORDERS}


def trajectory(ladder: Ladder, seed: int) -> TaskResult:
    """HR by step, and NDCG, BLEU and overlap of the whole trajectory; with and without repeats of items."""
    result = TaskResult("trajectory", "Trajectory")
    try:
        given = trajectories(ladder)
    except NoCasesError as reason:
        result.notes.append(str(reason))
        return result
    if outside := int((given.truth_CT < 0).sum()):
        result.notes.append(f"Misses: {outside:,} of {given.truth_CT.size:,} trajectory items, not in the catalogue")
    rows_N, items_N = map(torch.from_numpy, (given.histories.case_N, given.histories.items_N))
    newest = newest_first(rows_N, items_N, len(ladder.counts_V))
    for repeats in (True, False):
        decoded = {runs[0].name: [decode(run.net, given, repeats) for run in runs] for runs in ladder.runs.values()}
        decoded[POPULARITY] = [decode_order(ladder.counts_V, given, repeats)]
        if repeats:
            decoded[REPEAT_LAST] = [decode_order(ladder.counts_V, given, repeats, newest)]
        result.sections += _sections(ladder, given, decoded, repeats, seed)
    result.notes.append("Without repeats, repeat-last has nothing to repeat and is equal to popularity")
    return result


def _sections(
    ladder: Ladder, given: Trajectories, decoded: dict[str, list[Decoded]], repeats: bool, seed: int
) -> list[Section]:
    """A section by step, and a section of the whole trajectory."""
    users_C, truth_CT = given.histories.users_C, given.truth_CT
    resamples = UserResamples(users_C, seed)
    n, steps = truth_CT.shape

    def at_step(runs: list[Decoded], step: int) -> Draws:
        hits = [{f"HR@{k}": (rank_CT[:, step] <= k).astype(np.float64) for k in HITS} for _, rank_CT in runs]
        return resamples.means(hits, users_C)

    def of_whole(runs: list[Decoded]) -> Draws:
        draws = resamples.means([trajectory_values(items_CT, truth_CT) for items_CT, _ in runs], users_C)
        of_runs = [bleu(resamples, users_C, items_CT, truth_CT) for items_CT, _ in runs]
        return draws | {name: np.mean([each[name] for each in of_runs], 0) for name in of_runs[0]}

    by_step = {
        f"step {step + 1}": Group(n, n, {scorer: at_step(runs, step) for scorer, runs in decoded.items()})
        for step in range(steps)
    }
    whole = {"whole": Group(n, n, {scorer: of_whole(runs) for scorer, runs in decoded.items()})}
    how = "items may be predicted again" if repeats else "nothing seen or predicted before is predicted"
    first = Section(f"By step; {how}", ladder.sizes, by_step, ("HR@10", "HR@1"))
    first.drawn = tuple(dict.fromkeys(f"step {step}" for step in (1, 2, (steps + 1) // 2, steps)))
    first.findings = [compare_gains(first, metric, f"step {steps}", "step 1") for metric in first.shown]
    return [first, Section(f"Whole trajectory; {how}", ladder.sizes, whole, ("NDCG", "overlap", "BLEU-2", "BLEU-4"))]
