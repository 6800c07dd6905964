"""A metric of your own: if the next item is rare, how often is it in the list?

Try it from this folder: lrec fit --model.metrics my_metric.RareHitRate ... --checkpoint.monitor val/rareHR@10

See docs/extending.md. Shape suffixes: B targets, V items.
"""

from dataclasses import dataclass

from torch import Tensor

from lrec.evaluation.metrics import Found, Mean


@dataclass(frozen=True)
class RareHitRate(Mean):
    """rareHR@k: the share of hits among the targets whose item has at most `most` training interactions."""

    name = "rareHR"
    most: int = 20

    def of_targets(self, found: Found, k: int) -> Tensor:
        return (found.rank_B <= k).double()

    def shares(self, found: Found, k: int) -> Tensor:
        counts_B = found.counts_V[found.targets_B.clamp(min=0)]
        return ((found.targets_B >= 0) & (counts_B <= self.most)).double()
