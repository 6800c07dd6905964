"""Targets that share a row are scored as if each had its own row, as in an evaluation of one target."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from lrec.data.batching.eval_batches import EvalBatch, EvalBatches
from lrec.data.batching.train_batches import Ranks
from lrec.data.splits.rules import Split, Targets, UserSplit
from lrec.evaluation.baselines import Baselines
from lrec.evaluation.cases import Cases, batches, cases_before, rank_by_net
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.transformer import Transformer
from lrec.ranking.scoring import score

MAX_LEN, K = 8, 5
ARCHITECTURES = {
    "softmax": Architecture(),
    "past": Architecture(attention="hstu", mlp="none", position_bias=True, time="past"),
    "request": Architecture(attention="hstu", mlp="none", position_bias=True, time="request"),
}


@pytest.fixture
def split(make_store) -> Split:
    """Some users validate with whole histories; a tenth of their items are only theirs, so outside the catalogue."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(60):
        for place in range(int(random.integers(1, 15))):
            item = f"{user}-{place}" if random.random() < 0.1 else str(int(random.integers(12)))
            rows.append((f"{user:02}", item, 10 * place**2 + int(random.integers(10))))
    return UserSplit(validation=0.4, test=0.2)(make_store(rows))


def network(split: Split, name: str) -> Transformer:
    config = TransformerConfig(len(split.catalogue_V), MAX_LEN, 2, 12, 3, architecture=ARCHITECTURES[name])
    net = Transformer(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net


@torch.inference_mode()
def scored(net: Transformer, batch: EvalBatch) -> list[torch.Tensor]:
    """Losses, ranks and lists of the batch's targets."""

    def head(hidden_MD: torch.Tensor, table_VD: torch.Tensor) -> list[torch.Tensor]:
        return list(score(hidden_MD, table_VD, batch.targets_M, batch.seen_targets_S, batch.seen_items_S, K))

    return net(batch.items_BL, head, positions_M=batch.positions_M, times_BT=batch.times_BT)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("n", [2, 3])
def test_parts_of_a_batch_are_scored_as_the_whole(
    split: Split, name: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, targets = network(split, name), split.val_targets
    (batch,) = EvalBatches(split, targets, MAX_LEN, with_times=net.reads_times)
    assert batch.parts(n) == [batch], "too small to be divided"
    monkeypatch.setattr("lrec.data.batching.eval_batches.MAX_TARGETS", len(batch.targets_M))
    parts = batch.parts(n)
    assert len(parts) == n
    assert torch.equal(torch.cat([part.users_M for part in parts]), batch.users_M)
    assert torch.equal(torch.cat([part.weights_M for part in parts]), batch.weights_M)
    found = [torch.cat(fields) for fields in zip(*(scored(net, part) for part in parts), strict=True)]
    for mine, expected in zip(found, scored(net, batch), strict=True):
        torch.testing.assert_close(mine, expected, equal_nan=True)
    assert batch.parts(len(batch.items_BL) + 1) == [batch], "a part has a row"


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in ("past", "request") else []) for name in ARCHITECTURES],
)
def test_a_target_in_a_shared_row_is_scored_as_it_is_alone(split: Split, name: str) -> None:
    net, targets = network(split, name), split.val_targets
    baselines = Baselines(split, torch.device("cpu"))
    found, rows = [], 0
    for batch in EvalBatches(split, targets, MAX_LEN, with_times=net.reads_times):
        rows += len(batch.items_BL)
        of_all = [scored(net, batch), *(list(baselines.score(each, batch)) for each in baselines.names)]
        for target, user in enumerate(batch.users_M.tolist()):
            if batch.weights_M[target]:
                found.append((user, [part[target] for parts in of_all for part in parts]))
    expected = []
    for one in range(len(targets.users_T)):
        alone = Targets(targets.users_T[one : one + 1], targets.positions_T[one : one + 1])
        (batch,) = EvalBatches(split, alone, MAX_LEN, with_times=net.reads_times)
        of_all = [scored(net, batch), *(list(baselines.score(each, batch)) for each in baselines.names)]
        if batch.weights_M[0]:
            expected.append((int(batch.users_M[0]), [part[0] for parts in of_all for part in parts]))
    outside = int((~split.is_known(targets)).sum())
    longer = int((targets.positions_T > MAX_LEN).sum())
    assert outside > 10
    assert longer > 20
    users = len(np.unique(targets.users_T))
    assert rows <= users + longer + (outside if net.reads_times else 0), "what fits shares a row"

    def order(pair: tuple[int, list[torch.Tensor]]) -> tuple[float, ...]:
        return pair[0], *(round(float(part.nan_to_num(-1, -1)), 3) for part in pair[1] if part.ndim == 0)

    found, expected = sorted(found, key=order), sorted(expected, key=order)
    assert len(found) == len(expected)
    for (user, mine), (other, theirs) in zip(found, expected, strict=True):
        assert user == other
        for one, two in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("world", [1, 3])
def test_each_target_is_evaluated_once(split: Split, world: int) -> None:
    loaders = [EvalBatches(split, split.val_targets, MAX_LEN, Ranks(world, rank)) for rank in range(world)]
    assert len({len(loader) for loader in loaders}) == 1
    served = [batch for loader in loaders for batch in loader]
    users = Counter(user for batch in served for user in batch.users_M.tolist() if user >= 0)
    assert users == Counter(split.val_targets.users_T.tolist())
    items = Counter(item for batch in served for item in batch.targets_M[batch.users_M >= 0].tolist())
    store = split.store
    rows_T = store.offsets_U1[split.val_targets.users_T] + split.val_targets.positions_T
    assert items == Counter(split.catalogue_index_I[store.items_N[rows_T]].tolist())


def test_batches_of_shared_rows_are_bounded(make_lengths) -> None:
    split = UserSplit(validation=0.4, test=0.2)(make_lengths([3] * 300 + [700] * 5 + [40] * 200))
    served = list(EvalBatches(split, split.val_targets, 700))
    assert sum(len(batch.users_M) for batch in served) == len(split.val_targets.users_T)
    assert all(len(batch.users_M) <= 1024 and batch.items_BL.numel() <= 16384 for batch in served)


def with_blanks(cases: Cases) -> Cases:
    """Blank a third of the items, mostly the same ones in all cases of a user, but never a whole history."""
    place_N = np.arange(len(cases.items_N)) - np.repeat(cases.starts_C, cases.lengths_C)
    blank_N = (7 * place_N + cases.items_N) % 3 == 0
    blank_N ^= np.random.default_rng(2).random(len(blank_N)) < 0.03
    all_C = np.minimum.reduceat(blank_N, cases.starts_C)
    blank_N[cases.starts_C[all_C]] = False
    return replace(cases, blank_N=blank_N)


@pytest.mark.parametrize("blanks", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_cases_of_one_user_are_ranked_as_if_of_different_users(split: Split, name: str, blanks: bool) -> None:
    net = network(split, name)
    cases = cases_before(split, *split.val_targets, MAX_LEN)
    if blanks:
        cases = with_blanks(cases)
    strangers = replace(cases, users_C=np.arange(len(cases)))
    n_rows = [sum(len(read["items_BL"]) for _, read in batches(each, net)) for each in (cases, strangers)]
    assert n_rows[1] == len(cases)
    assert n_rows[0] < (0.9 if blanks else 0.7) * len(cases)
    mine, theirs = rank_by_net(net, cases), rank_by_net(net, strangers)
    np.testing.assert_allclose(mine.loss_C, theirs.loss_C, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(mine.rank_C, theirs.rank_C)
    np.testing.assert_array_equal(mine.top_CK, theirs.top_CK)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blanks_at_the_end_do_not_change_the_time_of_the_request(split: Split, name: str) -> None:
    """The network does not read them, so each case is ranked as if its history ended before them."""
    cases = cases_before(split, *split.val_targets, MAX_LEN)
    blank_N = cases.case_N != np.append(cases.case_N[2:], [-1, -1])  # the last two of each history
    blank_N[cases.starts_C] = False
    mine = rank_by_net(network(split, name), replace(cases, blank_N=blank_N))
    theirs = rank_by_net(network(split, name), cases.keeping(~blank_N))
    np.testing.assert_allclose(mine.loss_C, theirs.loss_C, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(mine.rank_C, theirs.rank_C)
