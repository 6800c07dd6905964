"""`lrec scaling outlook`: will larger networks pay on a data set? In a minute, it measures n-grams and tiny networks,
which train for seconds. A rule then turns these measurements into an outlook, in words.

Shape suffixes: N training interactions, U users, C cases; for the networks, B rows, L positions, M targets, D width,
V catalogue.
"""

import math
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrec.common.cpu_threads import one_core
from lrec.common.files import check_folder, write_json, write_text
from lrec.common.pages import rendered
from lrec.common.text_tables import amount, on_terminal
from lrec.data.batching.train_batches import BatchPlan, TrainLoader
from lrec.data.datasets import SequenceDataModule
from lrec.data.splits.reduction import TrainingPart, training_part
from lrec.data.splits.rules import ranges
from lrec.errors import UserError, check_range
from lrec.evaluation.cases import Cases, cases_before, rank_by_net
from lrec.evaluation.ngrams import ORDERS, ngram_losses
from lrec.model.config import TransformerConfig
from lrec.model.cost import n_body
from lrec.model.losses import FullSoftmax, Loss, SampledSoftmax
from lrec.model.network_sizes import SIZES, find_size
from lrec.model.transformer import Transformer
from lrec.training.optim import Optimizer

FROM, TO = "25k", "786k"

# With enough data, ten times the size lowers the loss by a third of a nat. Data are enough for one parameter of the
# blocks per 12 training targets. Both come from measured ladders; benchmarks/outlook.md tests them with each left out.
NATS_PER_DECADE = 1 / 3
TARGETS_PER_PARAMETER = 12
INTERVAL_FACTOR = 1.5
NEXT_TO_NOTHING = 0.05  # nats; on data sets without a gain, sizes differ by as much

# The rule applies if a network leads n-grams by this share of their lead over popularity. With a fifth, on clicks on
# news, size brought much less than the rule says.
LEAD = 0.25

# How much is measured.
SHARES = (0.125, 0.25, 0.5, 1.0)
LEAST_TRAINING_TARGETS, LEAST_CASES = 1000, 100
MOST_CASES = 5000
MOST_COUNTED = 4_000_000  # interactions that n-grams count: 1 GiB, three seconds

TINY = ("3k", "25k")
TINY_POSITIONS, TINY_EPOCHS = 2_000_000, 5
MOST_LEFT_OUT = 2000
# Small steps at a high learning rate learn most from few targets; with negatives, large catalogues are not slower.
TARGETS_PER_STEP = 1024
OPTIMIZER = Optimizer(lr=0.02, decay="cosine", muon=None)
LOSS_OF_LARGE_CATALOGUES = SampledSoftmax(negatives=512, power=0.75)
LARGE_CATALOGUE = 1024


@dataclass(frozen=True)
class Counted:
    """Losses of n-grams on the validation cases, in nats, and the number of training targets that they counted."""

    targets: int
    losses: dict[str, float]

    @property
    def best(self) -> float:
        """The loss of the best order, without popularity."""
        return min(self.losses[name] for name in ORDERS[1:])


@dataclass(frozen=True)
class Tiny:
    """A short run: its loss on the validation cases, and on training targets of users it was not trained on."""

    size: str
    n_body: int
    targets: int
    loss: float
    fresh_loss: float


@dataclass(frozen=True)
class Evidence:
    targets: int  # of training: U
    items: int
    cases: int  # validation targets over which losses are averaged
    noise: float  # standard error of popularity's loss minus the best loss, paired over targets
    counted: list[Counted]  # n-grams on shares of the users, each twice the one before
    tiny: list[Tiny]  # the short runs, without those that diverged


@dataclass(frozen=True)
class Outlook:
    """What to expect; the gain and its interval are None if the gain is unknown."""

    gain: float | None  # nats by which the loss falls from 25k to 786k parameters
    low: float | None
    high: float | None
    why: str
    by_amount: float  # the gain of other data sets with as much data, by the rule
    useful: float  # parameters of the blocks up to which size can pay; 0 if there is nothing to learn
    doubling: float  # nats that n-grams gained by the last doubling of the data
    more_gain: float | None  # nats that twice the data would add to the gain


def outlook_command(data: SequenceDataModule, out: Path | None = None, seed: int = 0) -> None:
    """Say whether larger networks will pay on a data set, up to which size, and what more data would bring.

    It counts n-grams and trains two tiny networks. This takes about a minute of one core for any number of
    interactions, and longer with more than 100,000 items.

    Args:
        data: The data set; its store is written if it does not exist.
        out: Folder for outlook.json and report.md; null writes none.
        seed: Seed of the sampled targets and of the short runs.
    """
    check_range("--seed", seed, at_least=0, at_most=2**32 - 1)
    if out is not None:
        check_folder(out, "--out")
    data.prepare_data()
    data.setup("fit")
    outlook = judge(evidence := measure(data, seed))
    shown = {"name": data.store.meta["name"], "evidence": evidence, "outlook": outlook, "orders": ORDERS}
    report = rendered("study", "outlook.md.j2", shown | {"small": FROM, "large": TO}, amount=amount)
    if out is not None:
        about = {"schema": 1, "data_hash": data.data_hash, "seed": seed, "from": FROM, "to": TO}
        write_json(out / "outlook.json", about | {"outlook": asdict(outlook), "evidence": asdict(evidence)})
        write_text(out / "report.md", report + "\n")
    print(on_terminal(report))


def measure(data: SequenceDataModule, seed: int) -> Evidence:
    """Count n-grams and train two tiny networks on the training part of a DataModule that is set up; progress goes to
    stderr. UserError if there are too few data."""
    random = np.random.default_rng(seed)
    val = data.cuts.val_targets
    known = np.flatnonzero(data.cuts.is_known(val))
    chosen = np.sort(random.permutation(known)[:MOST_CASES])
    cases = cases_before(data.cuts, val.users_T[chosen], val.positions_T[chosen], data.max_len)
    if data.U < LEAST_TRAINING_TARGETS or len(cases) < LEAST_CASES:
        has = f"{data.U:,} training targets and {len(cases):,} validation targets of known items"
        needed = f"an outlook needs {LEAST_TRAINING_TARGETS:,} and {LEAST_CASES}"
        raise UserError(f"{data.store_name}: {has}; {needed}")
    print("counting n-grams", file=sys.stderr, flush=True)
    counted, losses_of_orders = zip(*(_count(data, share, cases) for share in SHARES), strict=True)
    losses_C = losses_of_orders[-1]
    part, fresh = _left_out(data, random)
    if not part.n_targets:
        raise UserError(f"{data.store_name}: an outlook needs training targets of two users, and one has them all")
    positions = min(TINY_POSITIONS, TINY_EPOCHS * part.n_positions)
    targets = positions * part.n_targets // part.n_positions
    tiny, found_C = [], [losses_C[name] for name in ORDERS[1:]]
    for size in TINY:
        print(f"training {size} on {targets:,} targets", file=sys.stderr, flush=True)
        with one_core():
            net = train_briefly(data, part, size, positions, seed)
            loss_C, fresh_C = rank_by_net(net, cases).loss_C, rank_by_net(net, fresh).loss_C
        if np.isfinite(loss_C).all():
            found_C.append(loss_C)
            tiny.append(Tiny(size, n_body(net.config), targets, float(loss_C.mean()), float(fresh_C.mean())))
    gained_C = losses_C[ORDERS[0]] - min(found_C, key=lambda loss_C: float(loss_C.mean()))
    noise = float(gained_C.std() / math.sqrt(len(cases)))
    return Evidence(data.U, data.n_items, len(cases), noise, list(counted), tiny)


def _count(data: SequenceDataModule, share: float, cases: Cases) -> tuple[Counted, dict[str, np.ndarray]]:
    """n-grams of a share of the users, within the data's own reduction and with at most MOST_COUNTED interactions."""
    share *= min(1.0, MOST_COUNTED / max(int(data.batch_plan.part.lengths_U.sum()), 1))
    part = training_part(data.cuts, replace(data.reduction, users=data.reduction.users * share))
    items_N = data.cuts.catalogue_index_I[part.items(ranges(part.starts_U, part.lengths_U))]
    losses = ngram_losses(items_N, part.lengths_U, data.n_items, cases)
    means = {name: float(loss_C.mean()) for name, loss_C in losses.items()}
    return Counted(part.n_targets, means), losses


def _left_out(data: SequenceDataModule, random: np.random.Generator) -> tuple[TrainingPart, Cases]:
    """The training part without a twentieth of its users, and one training target of each left-out user: the last one
    if validation has one target per user, which then follows the training part, otherwise any."""
    part = data.batch_plan.part
    users = np.flatnonzero(part.lengths_U > 1)
    users = np.sort(random.permutation(users)[: min(max(len(users) // 20, 1), MOST_LEFT_OUT)])
    lengths_U = part.lengths_U.copy()
    lengths_U[users] = 0
    rows = part.rows_at(ranges(part.starts_U[users] + 1, part.lengths_U[users] - 1))
    owners, may_be = np.repeat(users, part.lengths_U[users] - 1), data.cuts.may_be_targets(rows)
    users, first_U, count_U = np.unique(owners[may_be], return_index=True, return_counts=True)
    chosen_U, validated = first_U + count_U - 1, data.cuts.val_targets.users_T
    if len(np.unique(validated)) < len(validated):
        chosen_U -= random.integers(0, count_U)
    fresh = cases_before(data.cuts, users, rows[may_be][chosen_U] - data.store.offsets_U1[users], data.max_len)
    return replace(part, lengths_U=lengths_U), fresh


def train_briefly(data: SequenceDataModule, part: TrainingPart, size: str, positions: int, seed: int) -> Transformer:
    """Train a network of a size of the ladder on about `positions` positions of the training part. The state of torch's
    own random numbers does not change."""
    plan = BatchPlan(part, data.max_len, max(TARGETS_PER_STEP, 2 * data.max_len))
    loader = TrainLoader(plan, seed)
    steps = max(positions // plan.targets_per_step, 1)
    loss_function: Loss = LOSS_OF_LARGE_CATALOGUES if data.n_items > LARGE_CATALOGUE else FullSoftmax()
    counts_V = torch.from_numpy(data.item_counts_V)
    with torch.random.fork_rng(devices=[]):
        shape = TransformerConfig(data.n_items, data.max_len, *find_size(size), parametrisation="standard")
        net = Transformer(shape, seed)
        torch.manual_seed(seed)
        optimizer, schedule = OPTIMIZER.build(net, steps)
        for batch in islice(chain.from_iterable(repeat(loader)), steps):
            head = partial(loss_function, targets_M=batch.targets_M, counts_V=counts_V)
            loss: Tensor = net(batch.items_BL, head, positions_M=batch.positions_M)
            (loss / max(batch.step_targets, 1)).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return net.eval()


def gain_by_amount(targets: float) -> float:
    """Nats from 25k to 786k parameters, with this number of training targets, if size pays as on measured data sets."""
    small, large = (12 * layers * width**2 for layers, width, _ in (SIZES[FROM], SIZES[TO]))
    decades = math.log10(min(targets / TARGETS_PER_PARAMETER, large) / small)
    return NATS_PER_DECADE * max(decades, 0.0)


def judge(evidence: Evidence) -> Outlook:
    """Give the outlook; the first reason that applies decides."""
    half, counted = evidence.counted[-2:]
    tiny = min(evidence.tiny, key=lambda run: run.loss, default=None)
    popularity = counted.losses[ORDERS[0]]
    ngram = min(popularity, counted.best)
    expected = gain_by_amount(evidence.targets)
    useful = evidence.targets / TARGETS_PER_PARAMETER
    gain: float | None = None
    if expected <= NEXT_TO_NOTHING:
        gain, fed = expected, f"{useful:,.0f} parameters, with {TARGETS_PER_PARAMETER} for each"
        why = f"{evidence.targets:,} training targets are enough for only {fed}"
    elif tiny is None:
        why = "the short runs diverged"
    elif popularity - min(ngram, tiny.loss) <= 2 * evidence.noise:
        gain = useful = 0.0
        why = "neither n-grams nor short runs find anything in the order of the items"
    elif (harder := tiny.loss - tiny.fresh_loss) > expected:
        why = f"validation is {harder:.2f} nats harder than training targets of users that were left out, so what a "
        why += "network learns from the past may no longer hold; if users are sessions, validate on whole sessions "
        why += "(data.split lrec.UserSplit)"
    elif ngram - tiny.loss < LEAD * (popularity - ngram):
        why = f"n-grams know about as much as the short runs ({ngram:.2f} and {tiny.loss:.2f}): only more training "
        why += "shows whether a network finds more than n-grams"
    else:
        gain = expected
        why = f"the short runs know {ngram - tiny.loss:.2f} nats more than n-grams, and validation is not much harder"
    low, high = (0.0, NEXT_TO_NOTHING) if gain is not None else (None, None)
    if gain is not None and gain > NEXT_TO_NOTHING:
        low, high = gain / INTERVAL_FACTOR, gain * INTERVAL_FACTOR
    more = gain_by_amount(2 * evidence.targets) - expected if gain is not None and useful else None
    return Outlook(gain, low, high, why, expected, useful, half.best - counted.best, more)
