"""Will size pay on these data? The rule: what follows from what was measured."""

import math
from dataclasses import dataclass

from lrec.evaluation.ngrams import ORDERS
from lrec.model.network_sizes import SIZES

FROM, TO = "25k", "786k"

# While data last, ten times the size brings a third of a nat, and data last for a parameter of the blocks to every 12
# training targets. Both come from the measured ladders; benchmarks/outlook.md tries them with each left out.
NATS_PER_DECADE = 1 / 3
TARGETS_PER_PARAMETER = 12
INTERVAL_FACTOR = 1.5
NEXT_TO_NOTHING = 0.05  # nats: as much as sets without a gain differ from size to size

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
