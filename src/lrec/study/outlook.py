"""Will size pay on these data? What is measured in a minute before a study, and what follows from it.

Shape suffixes: N training interactions, U users, C cases.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lrec.common.cpu_threads import one_core
from lrec.data.datamodule import SequenceDataModule
from lrec.data.splits.reduction import TrainingPart, training_part
from lrec.data.splits.rules import ranges
from lrec.errors import UserError
from lrec.evaluation.cases import Cases, cases_before, rank_by_net
from lrec.evaluation.ngrams import ORDERS, ngram_losses
from lrec.model.cost import n_body
from lrec.model.network_sizes import SIZES
from lrec.study.short_run import train_briefly

# The rule: while data last, ten times the size brings a third of a nat, and data last for a parameter of the blocks to
# every 12 training targets. Both come from the measured ladders; benchmarks/outlook.md tries them with each left out.
NATS_PER_DECADE = 1 / 3
TARGETS_PER_PARAMETER = 12
INTERVAL_FACTOR = 1.5
NEXT_TO_NOTHING = 0.05  # nats: as much as sets without a gain differ from size to size

FROM, TO = "25k", "786k"
TINY = ("3k", "25k")
SHARES = (0.125, 0.25, 0.5, 1.0)

LEAST_TRAINING_TARGETS, LEAST_CASES = 1000, 100
MOST_CASES = 5000
MOST_COUNTED = 4_000_000  # interactions that n-grams count: a gibibyte, three seconds
TINY_POSITIONS, TINY_EPOCHS = 2_000_000, 5
MOST_LEFT_OUT = 2000

# A network that has left n-grams behind: by a quarter of what these know beyond popularity. With a fifth, on clicks on
# news, size brought much less than the rule says.
LEAD = 0.25


@dataclass(frozen=True)
class Counted:
    """Losses of n-grams on the validation cases, in nats, and the training targets that these were counted on."""

    targets: int
    losses: dict[str, float]

    @property
    def best(self) -> float:
        """That of the best order, popularity aside."""
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
    """What was measured.

    Attributes:
        targets: U, training targets.
        items: V.
        cases: Validation targets that losses are means over.
        noise: Standard error of the best loss below popularity's, paired over targets.
        counted: n-grams on shares of the users, each twice the one before.
        tiny: The short runs, without those that diverged.
    """

    targets: int
    items: int
    cases: int
    noise: float
    counted: list[Counted]
    tiny: list[Tiny]

    @property
    def best_tiny(self) -> Tiny | None:
        """The short run with the lowest loss; None where all have diverged."""
        return min(self.tiny, key=lambda run: run.loss, default=None)


@dataclass(frozen=True)
class Outlook:
    """What to expect.

    Attributes:
        gain: Nats by which the loss falls from 25k to 786k parameters; None: unknown.
        low: Lower end of what is likely, None where the gain is unknown.
        high: Upper end.
        why: The reason, as a sentence.
        by_amount: The gain of other sets with as much data.
        useful: Parameters of the blocks up to which size can pay; 0 where there is nothing to learn.
        doubling: Nats that n-grams gained by the last doubling of the data.
        more_gain: Nats that twice the data would add to the gain; None where that is unknown.
    """

    gain: float | None
    low: float | None
    high: float | None
    why: str
    by_amount: float
    useful: float
    doubling: float
    more_gain: float | None


def gain_by_amount(targets: float) -> float:
    """Nats from 25k to 786k parameters, on a set with so many training targets where size pays as on measured ones."""
    small, large = (12 * layers * width**2 for layers, width, _ in (SIZES[FROM], SIZES[TO]))
    decades = math.log10(min(targets / TARGETS_PER_PARAMETER, large) / small)
    return NATS_PER_DECADE * max(decades, 0.0)


def judge(evidence: Evidence) -> Outlook:
    """The outlook; the first reason that applies decides."""
    counted, half = evidence.counted[-1], evidence.counted[-2]
    popularity, tiny = counted.losses[ORDERS[0]], evidence.best_tiny
    ngram = min(popularity, counted.best)
    expected = gain_by_amount(evidence.targets)
    useful = evidence.targets / TARGETS_PER_PARAMETER
    gain: float | None = None
    if expected <= NEXT_TO_NOTHING:
        gain = expected
        why = (
            f"{evidence.targets:,} training targets feed {useful:,.0f} parameters, at {TARGETS_PER_PARAMETER} for each"
        )
    elif tiny is None:
        why = "the short runs diverged"
    elif popularity - min(ngram, tiny.loss) <= 2 * evidence.noise:
        gain = useful = 0.0
        why = "neither n-grams nor short runs find anything in the order of the items"
    elif tiny.loss - tiny.fresh_loss > expected:
        why = (
            f"validation is {tiny.loss - tiny.fresh_loss:.2f} nats harder than training targets of users that were "
            "left out, and what is learned from the past may not hold"
        )
    elif ngram - tiny.loss < LEAD * (popularity - ngram):
        why = (
            f"n-grams know about as much as the short runs ({ngram:.2f} and {tiny.loss:.2f}): what a network finds "
            "beyond them shows after more training only"
        )
    else:
        gain = expected
        why = f"the short runs know {ngram - tiny.loss:.2f} nats more than n-grams, and validation is like training"
    low, high = None, None
    if gain is not None:
        wide = gain > NEXT_TO_NOTHING
        low, high = (gain / INTERVAL_FACTOR, gain * INTERVAL_FACTOR) if wide else (0.0, NEXT_TO_NOTHING)
    more = None if gain is None or useful == 0 else gain_by_amount(2 * evidence.targets) - expected
    return Outlook(gain, low, high, why, expected, useful, half.best - counted.best, more)


def measure(data: SequenceDataModule, seed: int, begins: Callable[[str], None] = lambda stage: None) -> Evidence:
    """Count n-grams and train two tiny networks on the training part of a DataModule that is set up.

    Args:
        data: What `lrec fit` would train on, with its own reduction.
        seed: Of the sampled targets and of the short runs.
        begins: Called with the name of each stage before it begins.

    Raises:
        UserError: there is too little to tell anything.
    """
    random = np.random.default_rng(seed)
    cases = _validation_cases(data, random)
    if data.U < LEAST_TRAINING_TARGETS or len(cases) < LEAST_CASES:
        raise UserError(
            f"{data.store_name}: {data.U:,} training targets and {len(cases):,} validation targets of known items; an "
            f"outlook needs {LEAST_TRAINING_TARGETS:,} and {LEAST_CASES}"
        )
    begins("counting n-grams")
    counted, losses_C = [], []
    for share in SHARES:
        of_share, losses = _count(data, share, cases)
        counted.append(of_share)
        losses_C.append(losses)
    part, fresh = _left_out(data, random)
    positions = min(TINY_POSITIONS, TINY_EPOCHS * part.n_positions)
    targets = positions * part.n_targets // part.n_positions
    tiny, best_C = [], [losses_C[-1][name] for name in ORDERS[1:]]
    for size in TINY:
        begins(f"training {size} on {targets:,} targets")
        with one_core():
            net = train_briefly(data, part, size, positions, seed)
            loss_C, fresh_C = rank_by_net(net, cases).loss_C, rank_by_net(net, fresh).loss_C
        if np.isfinite(loss_C).all():
            best_C.append(loss_C)
            tiny.append(Tiny(size, n_body(net.config), targets, float(loss_C.mean()), float(fresh_C.mean())))
    best = min(best_C, key=lambda loss_C: float(loss_C.mean()))
    gained_C = losses_C[-1][ORDERS[0]] - best
    noise = float(gained_C.std() / math.sqrt(len(cases)))
    return Evidence(data.U, data.n_items, len(cases), noise, counted, tiny)


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
