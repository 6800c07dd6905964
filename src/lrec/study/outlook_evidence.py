"""Will size pay on these data? What is measured in a minute: n-grams, and tiny networks trained for seconds.

Shape suffixes: N training interactions, U users, C cases; of the networks, B rows, L positions, M targets, D width,
V catalogue.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, islice, repeat

import numpy as np
import torch
from torch import Tensor

from lrec.common.cpu_threads import one_core
from lrec.data.batching.train_batches import BatchPlan, TrainBatch, TrainLoader
from lrec.data.datamodule import SequenceDataModule
from lrec.data.splits.reduction import TrainingPart, training_part
from lrec.data.splits.rules import ranges
from lrec.errors import UserError
from lrec.evaluation.cases import Cases, cases_before, rank_by_net
from lrec.evaluation.ngrams import ORDERS, ngram_losses
from lrec.model.config import TransformerConfig
from lrec.model.cost import n_body
from lrec.model.losses import FullSoftmax, Loss, SampledSoftmax
from lrec.model.network_sizes import find_size
from lrec.model.transformer import Transformer
from lrec.study.outlook_rule import Counted, Evidence, Tiny
from lrec.training.optim import Optimizer

SHARES = (0.125, 0.25, 0.5, 1.0)
LEAST_TRAINING_TARGETS, LEAST_CASES = 1000, 100
MOST_CASES = 5000
MOST_COUNTED = 4_000_000  # interactions that n-grams count: a gibibyte, three seconds

TINY = ("3k", "25k")
TINY_POSITIONS, TINY_EPOCHS = 2_000_000, 5
MOST_LEFT_OUT = 2000
# Small steps at a high rate learn most from few targets; negatives make large catalogues as fast as small ones.
TARGETS_PER_STEP = 1024
OPTIMIZER = Optimizer(lr=0.02)
LOSS_OF_LARGE_CATALOGUES = SampledSoftmax(negatives=512, power=0.75)
LARGE_CATALOGUE = 1024


def measure(data: SequenceDataModule, seed: int, begins: Callable[[str], None] = lambda stage: None) -> Evidence:
    """Count n-grams and train two tiny networks on the training part of a DataModule that is set up.

    `begins` is called with the name of each stage before it begins. UserError where there is too little to tell
    anything.
    """
    random = np.random.default_rng(seed)
    cases = _validation_cases(data, random)
    if data.U < LEAST_TRAINING_TARGETS or len(cases) < LEAST_CASES:
        raise UserError(
            f"{data.store_name}: {data.U:,} training targets and {len(cases):,} validation targets of known items; an "
            f"outlook needs {LEAST_TRAINING_TARGETS:,} and {LEAST_CASES}"
        )
    begins("counting n-grams")
    counted, losses_of_orders = zip(*(_count(data, share, cases) for share in SHARES), strict=True)
    losses_C = losses_of_orders[-1]
    part, fresh = _left_out(data, random)
    positions = min(TINY_POSITIONS, TINY_EPOCHS * part.n_positions)
    targets = positions * part.n_targets // part.n_positions
    tiny, found_C = [], [losses_C[name] for name in ORDERS[1:]]
    for size in TINY:
        begins(f"training {size} on {targets:,} targets")
        with one_core():
            net = train_briefly(data, part, size, positions, seed)
            loss_C, fresh_C = rank_by_net(net, cases).loss_C, rank_by_net(net, fresh).loss_C
        if np.isfinite(loss_C).all():
            found_C.append(loss_C)
            tiny.append(Tiny(size, n_body(net.config), targets, float(loss_C.mean()), float(fresh_C.mean())))
    gained_C = losses_C[ORDERS[0]] - min(found_C, key=lambda loss_C: float(loss_C.mean()))
    noise = float(gained_C.std() / math.sqrt(len(cases)))
    return Evidence(data.U, data.n_items, len(cases), noise, list(counted), tiny)


def _validation_cases(data: SequenceDataModule, random: np.random.Generator) -> Cases:
    targets = data.cuts.val_targets
    known = np.flatnonzero(data.cuts.is_known(targets))
    chosen = np.sort(random.permutation(known)[:MOST_CASES])
    return cases_before(data.cuts, targets.users_T[chosen], targets.positions_T[chosen], data.max_len)


def _count(data: SequenceDataModule, share: float, cases: Cases) -> tuple[Counted, dict[str, np.ndarray]]:
    """n-grams of a share of the users, within the data's own reduction and at most so many interactions."""
    share_counted = min(1.0, MOST_COUNTED / max(int(data.batch_plan.part.lengths_U.sum()), 1))
    reduction = replace(data.reduction, users=data.reduction.users * share_counted * share)
    part = training_part(data.cuts, reduction)
    items_N = data.cuts.catalogue_index_I[part.items(ranges(part.starts_U, part.lengths_U))]
    losses = ngram_losses(items_N, part.lengths_U, data.n_items, cases)
    means = {name: float(loss_C.mean()) for name, loss_C in losses.items()}
    return Counted(part.n_targets, means), losses


def _left_out(data: SequenceDataModule, random: np.random.Generator) -> tuple[TrainingPart, Cases]:
    """The training part without a twentieth of its users, and a training target of each of these."""
    part = data.batch_plan.part
    users = np.flatnonzero(part.lengths_U > 1)
    users = np.sort(random.permutation(users)[: min(max(len(users) // 20, 1), MOST_LEFT_OUT)])
    lengths_U = part.lengths_U.copy()
    lengths_U[users] = 0
    places = ranges(part.starts_U[users] + 1, part.lengths_U[users] - 1)
    owners = np.repeat(np.arange(len(users)), part.lengths_U[users] - 1)
    may_be = part.may_be_targets(places)
    counts_U = np.bincount(owners[may_be], minlength=len(users))
    have = counts_U > 0  # some of their events are targets
    chosen = np.cumsum(counts_U[have]) - counts_U[have] + random.integers(0, counts_U[have])
    users, places = users[have], places[may_be][chosen]
    rows = places if part.rows is None else part.rows[places]
    fresh = cases_before(data.cuts, users, rows - data.store.offsets_U1[users], data.max_len)
    return replace(part, lengths_U=lengths_U), fresh


def train_briefly(data: SequenceDataModule, part: TrainingPart, size: str, positions: int, seed: int) -> Transformer:
    """A network of a size of the ladder after about so many positions of the training part, ready to be evaluated.

    The same data and seed give the same network, and torch's own random numbers go on as if nothing had happened.
    """
    plan = BatchPlan(part, data.max_len, max(TARGETS_PER_STEP, 2 * data.max_len))
    loader = TrainLoader(plan, data.cuts.catalogue_index_I, seed)
    steps = max(positions // plan.targets_per_step, 1)
    loss_function: Loss = LOSS_OF_LARGE_CATALOGUES if data.n_items > LARGE_CATALOGUE else FullSoftmax()
    counts_V = torch.from_numpy(data.item_counts_V)
    with torch.random.fork_rng(devices=[]):
        net = Transformer(TransformerConfig(data.n_items, data.max_len, *find_size(size)), seed)
        torch.manual_seed(seed)
        optimizer, schedule = OPTIMIZER.build(net, steps)
        for batch in islice(chain.from_iterable(repeat(loader)), steps):

            def head(hidden_BLD: Tensor, table_VD: Tensor, batch: TrainBatch = batch) -> Tensor:
                hidden_MD = hidden_BLD.flatten(0, 1)[batch.positions_M]
                return loss_function(hidden_MD, table_VD, batch.targets_M, counts_V)

            loss: Tensor = net(batch.items_BL, head)
            (loss / max(batch.step_targets, 1)).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return net.eval()
