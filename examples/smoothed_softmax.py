"""A loss of your own: full softmax with label smoothing.

Try it from this folder: lrec fit --model.loss smoothed_softmax.SmoothedSoftmax --model.loss.share 0.1 ...
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from lrec import Loss
from lrec.model.losses import full_softmax


@dataclass(frozen=True)
class SmoothedSoftmax(Loss):
    """Cross-entropy to smoothed targets: every item has the probability share / V. The target has 1 - share more.

    With scores s, it is log(sum of e^s) - (1 - share) s_target - share mean(s). This is the full softmax plus
    share (s_target - mean(s)), so it needs no second product with the table.
    """

    share: float = 0.1

    def __call__(self, hidden_MD: Tensor, table_VD: Tensor, targets_M: Tensor, counts_V: Tensor) -> Tensor:
        above_mean_MD = F.embedding(targets_M, table_VD) - table_VD.mean(0)
        return full_softmax(hidden_MD, table_VD, targets_M) + self.share * (hidden_MD * above_mean_MD).sum()

    def flops_per_target(self, n_items: int, width: int) -> int:
        return 6 * n_items * width
