"""Batch plans and evaluation batches against obvious references, rank by rank."""

import multiprocessing
import pickle
from collections import Counter
from dataclasses import fields, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lrec.data.batching.eval_batches import EvalBatches
from lrec.data.batching.plan import BatchPlan, EpochPlan, shared_epoch
from lrec.data.batching.train_batches import Ranks, TrainBatch, TrainLoader
from lrec.data.sources.synthetic import SyntheticDataModule
from lrec.data.splits.reduction import Reduction, training_part
from lrec.data.splits.rules import LastItems, Split, Targets
from lrec.errors import UserError

FIXTURE_ONCE = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=30).map(lambda lengths: [*lengths, 5])


def windows(batch: TrainBatch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(inputs, targets) of each row with targets."""
    width = batch.items_BL.shape[1]
    rows: dict[int, list[tuple[int, int]]] = {}
    assert (batch.positions_M.diff() > 0).all()
    for position, target in zip(batch.positions_M.tolist(), batch.targets_M.tolist(), strict=True):
        rows.setdefault(position // width, []).append((position % width, target))
    found = []
    for row, pairs in rows.items():
        assert [place for place, _ in pairs] == list(range(len(pairs)))
        inputs = batch.items_BL[row].tolist()
        assert not any(inputs[len(pairs) :]), "padding is item 0"
        found.append((tuple(inputs[: len(pairs)]), tuple(target for _, target in pairs)))
    return found


def load(split: Split, plan: BatchPlan, *ranks: int, seed: int = 0, num_workers: int = 0) -> TrainLoader:
    return TrainLoader(plan, seed, Ranks(*ranks), num_workers)


@FIXTURE_ONCE
@given(LENGTHS, st.integers(1, 12), st.integers(0, 3), st.sampled_from([1.0, 0.6]))
def test_every_target_once_an_epoch_after_its_predecessors(
    make_lengths, lengths: list[int], max_len: int, seed: int, interactions: float
) -> None:
    split = LastItems()(make_lengths(lengths))
    part = training_part(split, Reduction(interactions=interactions))
    expected = Counter()
    for user in range(len(lengths)):
        places = part.starts_U[user] + np.arange(part.lengths_U[user])
        sequence = split.catalogue_index_I[part.items(places)].tolist()
        expected.update(pairwise(sequence))  # (input, target)
    if not expected:
        with pytest.raises(UserError, match="no training target"):
            BatchPlan(part, max_len, 2 * max_len)
        return
    plan = BatchPlan(part, max_len, 2 * max_len)
    assert part.n_targets == expected.total()
    assert plan.n_steps == np.ceil(part.n_targets / (2 * max_len))
    loader = load(split, plan, seed=seed)
    for _ in range(2):
        found: Counter = Counter()
        batches = list(loader)
        assert len(batches) == len(loader) == plan.n_steps
        for batch in batches:
            assert batch.items_BL.shape[1] <= max_len
            assert batch.step_targets == len(batch.targets_M)
            assert abs(batch.step_targets - part.n_targets / plan.n_steps) <= max_len
            for inputs, targets in windows(batch):
                # Every item belongs to one user, so the pairs tell whether inputs are the targets shifted by one.
                assert inputs[1:] == targets[:-1]
                found.update(zip(inputs, targets, strict=True))
        assert found == expected


@FIXTURE_ONCE
@given(LENGTHS, st.sampled_from([(1, 2), (2, 1), (2, 3), (5, 2)]))
def test_the_step_is_the_same_on_any_number_of_ranks(make_lengths, lengths: list[int], shape: tuple[int, int]) -> None:
    world, accumulation = shape
    split = LastItems()(make_lengths([*lengths, 30]))
    plan = BatchPlan(training_part(split, Reduction()), 8, 16)
    alone = list(load(split, plan))
    ranks = [list(load(split, plan, world, rank, accumulation)) for rank in range(world)]
    for step, whole in enumerate(alone):
        micro = [batches[step * accumulation + a] for batches in ranks for a in range(accumulation)]
        assert Counter(window for batch in micro for window in windows(batch)) == Counter(windows(whole))
        assert {batch.step_targets for batch in micro} == {whole.step_targets}
        assert all(batch.items_BL.numel() for batch in micro), "even a batch without windows has a row"
        sizes = [len(batch.targets_M) for batch in micro]
        assert max(sizes) <= whole.step_targets / len(micro) + 8


def test_the_plan_depends_on_seed_and_epoch_alone(make_lengths) -> None:
    split = LastItems()(make_lengths([40, 50, 60, 7, 7, 7]))
    plan = BatchPlan(training_part(split, Reduction()), 8, 16)
    assert pickle.dumps(plan.epoch(1, 2)) == pickle.dumps(plan.epoch(1, 2))
    assert len({pickle.dumps(plan.epoch(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_plans_and_inputs_take_four_bytes_if_that_is_enough(make_lengths) -> None:
    split = LastItems()(make_lengths([40, 50, 60, 7, 7, 7]))
    part = training_part(split, Reduction())
    plan = BatchPlan(part, 8, 16).epoch(0, 0)
    assert (plan.starts_W.dtype, plan.lengths_W.dtype) == (np.int32, np.int32)
    for world in (1, 400):  # with 400 processes most batches are empty
        batch = next(iter(load(split, BatchPlan(part, 8, 16), world, world - 1)))
        assert (batch.items_BL.dtype, batch.positions_M.dtype) == (torch.int32, torch.int32)
    # Windows that begin after 2^31 entries.
    far = replace(part, starts_U=part.starts_U + 2**31)
    beyond = BatchPlan(far, 8, 16).epoch(0, 0)
    assert beyond.starts_W.dtype == np.int64
    assert np.array_equal(beyond.starts_W, plan.starts_W + np.int64(2**31))


def test_short_and_long_windows_alternate(make_lengths) -> None:
    split = LastItems()(make_lengths([4 + u % 30 for u in range(900)]))
    plan = BatchPlan(training_part(split, Reduction()), 32, 64)
    first = plan.epoch(0, 0)
    lengths_T = np.array([first.lengths_W[a:b].mean() for a, b in pairwise(first.bounds)])
    assert len(lengths_T) > 150
    assert max(first.lengths_W[a:b].max() - first.lengths_W[a:b].min() for a, b in pairwise(first.bounds)) < 20
    whole = lengths_T.mean()
    for start in range(0, len(lengths_T) - 24, 8):
        assert abs(lengths_T[start : start + 24].mean() - whole) < 0.25 * whole
    later = plan.epoch(0, 1)
    assert first.lengths_W[: first.bounds[8]].tolist() != later.lengths_W[: later.bounds[8]].tolist()


def test_cuts_of_long_users_fall_everywhere(make_lengths) -> None:
    split = LastItems()(make_lengths([42]))
    plan = BatchPlan(training_part(split, Reduction()), 8, 16)
    starts = {int(start) for epoch in range(60) for start in plan.epoch(0, epoch).starts_W}
    assert starts == set(range(39))


def test_global_random_state_is_left_alone(make_lengths) -> None:
    split = LastItems()(make_lengths([42]))
    loader = load(split, BatchPlan(training_part(split, Reduction()), 8, 16))
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(before, torch.get_rng_state())


def as_lists(batches: list) -> list:
    return [[x.tolist() if isinstance(x, torch.Tensor) else x for x in batch] for batch in batches]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 4, 12])
def test_resume_in_mid_epoch_on_another_number_of_ranks(make_lengths, taken: int, num_workers: int) -> None:
    split = LastItems()(make_lengths([42] * 5))
    plan = BatchPlan(training_part(split, Reduction()), 8, 16)
    assert plan.n_steps == 13
    straight = load(split, plan)
    epochs = [as_lists(list(straight)) for _ in range(3)]

    pair = [load(split, plan, 2, rank, num_workers=num_workers) for rank in range(2)]
    list(pair[1])
    assert sum(1 for _ in pair[1]) == 13
    list(pair[0])
    iterator = iter(pair[0])
    for _ in range(taken):
        next(iterator)
    state = pair[0].state_dict()
    assert (state["epoch"], state["step"]) == ((1, taken) if taken else (0, 13))

    resumed = load(split, plan, num_workers=num_workers)
    resumed.load_state_dict(state)
    assert as_lists(list(resumed)) == epochs[1][taken:]
    assert as_lists(list(resumed)) == epochs[2]


def test_resume_needs_the_same_plan(make_lengths) -> None:
    split = LastItems()(make_lengths([42] * 5))
    part = training_part(split, Reduction())
    plan = BatchPlan(part, 8, 18)
    state = load(split, plan, 1, 0, 2, seed=7).state_dict()

    def resume(step: int, plan: BatchPlan = plan, seed: int = 7, accumulation: int = 2) -> None:
        load(split, plan, 1, 0, accumulation, seed=seed).load_state_dict(state | {"epoch": 0, "step": step})

    with pytest.raises(UserError, match=r"written with accumulate_grad_batches=2: resume with the same, not 1"):
        resume(3, accumulation=1)
    with pytest.raises(UserError, match=r"written with data.seed=7: resume with the same, not 8"):
        resume(3, seed=8)
    for step in (3, plan.n_steps):  # at the end too: Lightning continues to count the steps of an epoch
        for other in (32, 16):
            with pytest.raises(UserError, match=rf"written with data.targets_per_step=18: .* same, not {other}"):
                resume(step, BatchPlan(part, 8, other))
    resume(plan.n_steps, seed=8, accumulation=1)
    alike = BatchPlan(part, 8, 19)
    assert alike.n_steps == plan.n_steps
    resume(3, alike)


def test_a_step_must_hold_two_windows() -> None:
    with pytest.raises(UserError, match="with max_len 8, must be at least 16, got 15"):
        SyntheticDataModule(max_len=8, targets_per_step=15)


@FIXTURE_ONCE
@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=25), min_size=1, max_size=25),
    st.integers(1, 9),
    st.sampled_from([1, 2, 3]),
)
def test_evaluation_equals_the_reference(make_store, sequences: list[list[int]], max_len: int, world: int) -> None:
    rows = [(f"{user:03}", f"{item:02}", t) for user, items in enumerate(sequences) for t, item in enumerate(items)]
    split = LastItems()(make_store(rows))
    names = split.store.item_table["raw_id"].gather(split.catalogue_V).to_list()
    index = {name: place for place, name in enumerate(names)}
    tasks = {
        "val": split.val_targets,
        "test": split.test_targets,
        "predict": Targets(np.arange(len(sequences)), np.diff(split.store.offsets_U1)),
    }
    for stage, targets in tasks.items():
        loaders = [EvalBatches(split, targets, max_len, Ranks(world, rank)) for rank in range(world)]
        assert len({len(loader) for loader in loaders}) == 1
        users = []
        for batch in (batch for loader in loaders for batch in loader):
            width = batch.items_BL.shape[1]
            for row, user in enumerate(batch.users_M.tolist()):
                if user < 0:
                    assert batch.weights_M[row] == 0
                    continue
                users.append(user)
                raw = [f"{item:02}" for item in sequences[user]]
                cut = len(raw) - {"val": 2, "test": 1, "predict": 0}[stage]
                history, target = raw[:cut], [*raw, "none"][cut]
                known = [index[item] for item in history if item in index]
                length = min(len(known), max_len)
                assert batch.items_BL[row, :length].tolist() == known[len(known) - length :]
                assert batch.items_BL[row, length:].sum() == 0
                assert batch.positions_M[row] == row * width + length - 1
                assert batch.targets_M[row] == index.get(target, -1)
                assert batch.weights_M[row] == 1
                assert sorted(batch.seen_items_S[batch.seen_targets_S == row].tolist()) == sorted(set(known))
        expected = [user for user, items in enumerate(sequences) if len(items) >= 3 or stage == "predict"]
        assert sorted(users) == expected


def test_a_history_without_catalogue_items_has_weight_zero(make_lengths) -> None:
    split = LastItems(held_out_users=1.0)(make_lengths([60, 5]))
    held_out = np.array([0])
    (batch,) = EvalBatches(split, Targets(held_out, split.test_U[held_out]), 8)
    assert batch.weights_M.tolist() == [0]
    assert batch.targets_M.tolist() == [-1]
    assert batch.positions_M.tolist() == [0]


def test_evaluation_batches_are_bounded(make_lengths) -> None:
    split = LastItems()(make_lengths([3] * 1500 + [400] * 100))
    for max_len in (8, 400):
        loader = EvalBatches(split, split.test_targets, max_len)
        batches = list(loader)
        assert sum(len(batch.users_M) for batch in batches) == 1600
        assert all(len(batch.users_M) <= 1024 and batch.items_BL.numel() <= 16384 for batch in batches)


def test_processes_of_a_machine_share_an_epoch_s_plan(make_lengths, tmp_path: Path) -> None:
    split = LastItems()(make_lengths([30, 12, 7, 25, 5]))
    plan = BatchPlan(training_part(split, Reduction()), 6, 16)

    class Counted(BatchPlan):
        made: ClassVar[list[int]] = []

        def epoch(self, seed: int, epoch: int) -> EpochPlan:
            self.made.append(epoch)
            return super().epoch(seed, epoch)

    for epoch in range(4):
        expected = plan.epoch(3, epoch)
        for found in (shared_epoch(Counted(plan.part, 6, 16), 3, tmp_path, epoch) for _ in range(3)):
            for field in fields(EpochPlan):
                assert np.array_equal(getattr(found, field.name), getattr(expected, field.name))
    assert Counted.made == [0, 1, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} == {"2", "3", *(f".{n}.lock" for n in range(4))}


def test_workers_stay_from_epoch_to_epoch_and_serve_the_same(make_lengths) -> None:
    split = LastItems()(make_lengths([30, 12, 7, 25, 5]))
    plan = BatchPlan(training_part(split, Reduction()), 6, 16)
    here, there = load(split, plan), load(split, plan, num_workers=1)
    workers = set()
    for n_batches in (2, None, None):  # the first pass ends early
        for one, other in zip(islice(here, n_batches), islice(there, n_batches), strict=True):
            assert all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))
        workers |= {child.pid for child in multiprocessing.active_children()}
    assert len(workers) == 1


@FIXTURE_ONCE
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 10**6)), min_size=1, max_size=12), min_size=2),
    st.integers(1, 6),
)
def test_batches_carry_each_event_s_time_and_then_the_target_s(
    make_store, users: list[list[tuple[int, int]]], max_len: int
) -> None:
    users = [*users, [(1, 5), (2, 5), (1, 70), (3, 71), (4, 900)]]
    rows = [(f"{user:03}", f"{item}", time) for user, events in enumerate(users) for item, time in events]
    split = LastItems()(make_store(rows))
    index, offsets = split.catalogue_index_I[split.store.items_N], split.store.offsets_U1
    events = [
        list(zip(index[a:b].tolist(), split.store.times_N[a:b].tolist(), strict=True)) for a, b in pairwise(offsets)
    ]
    plan = BatchPlan(training_part(split, Reduction()), max_len, 2 * max_len)
    found = Counter()
    for batch in TrainLoader(plan, 0, with_times=True):
        assert batch.times_BT.shape[1] == batch.items_BL.shape[1] + 1
        for position, target in zip(batch.positions_M.tolist(), batch.targets_M.tolist(), strict=True):
            row, place = divmod(position, batch.items_BL.shape[1])
            item, *times = batch.items_BL[row, place].item(), *batch.times_BT[row, place : place + 2].tolist()
            found[(item, times[0]), (target, times[1])] += 1
    trained = [events[user][:length] for user, length in enumerate(split.train_U)]
    assert found == Counter(pair for sequence in trained for pair in pairwise(sequence))
    for batch in EvalBatches(split, split.test_targets, max_len, with_times=True):
        assert batch.times_BT.shape[1] == batch.items_BL.shape[1] + 1
        for row, user in enumerate(batch.users_M.tolist()):
            *history, (_, asked) = events[user]
            known = [time for item, time in history if item >= 0][-max_len:]
            assert batch.times_BT[row, : len(known) + 1].tolist() == [*known, asked]


def test_without_times_batches_are_what_they_were(make_lengths) -> None:
    split = LastItems()(make_lengths([9, 5]))
    plan = BatchPlan(training_part(split, Reduction()), 4, 8)
    assert all(batch.times_BT is None for batch in load(split, plan))
    assert all(batch.times_BT is None for batch in EvalBatches(split, split.val_targets, 4))
