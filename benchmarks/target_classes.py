"""Classes that benchmarks/targets.py names by class path: targets beyond the next item, and losses.

Shape suffixes: B rows, L positions, M targets, K next items, D width, V catalogue, N negatives, F kinds of feedback.
"""

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from lrec import SampledSoftmax, SequentialRecommender
from lrec.data.batching.train_batches import TrainBatch
from lrec.model.losses import _draw
from lrec.model.sharded_table import Table, whole


class WithHead(SequentialRecommender):
    """A head that only training uses, in addition to the network: it gets the rate of the blocks' matrices, and
    checkpoints do not contain it."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        configured: Any = super().configure_optimizers()
        in_blocks = self.net.blocks[0].mlp.up.weight
        for group in configured["optimizer"].param_groups:
            if any(parameter is in_blocks for parameter in group["params"]):
                group["params"].append(self.head)
        return configured

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        del checkpoint["state_dict"]["head"]


class MultiToken(WithHead):
    """A matrix on the hidden state for each further item, whose cross-entropy is added to that of the next item."""

    def __init__(self, further: int = 2, weight: float = 0.3, **options: Any) -> None:
        """Choose the heads.

        Args:
            further: Items after the next one.
            weight: Weight of the loss of each further item; the next item has 1.
        """
        super().__init__(**options)
        width = self.shape[1]
        self.weight = weight
        self.head = nn.Parameter(torch.zeros(further, width, width))  # added to the identity

    def loss_sum(self, batch: TrainBatch) -> Tensor:
        next_MK = batch.next_targets(1 + len(self.head))

        def head(hidden_BLD: Tensor, table: Table) -> Tensor:
            table_VD, hidden_MD = whole(table), hidden_BLD.flatten(0, 1)[batch.positions_M]
            loss = self.loss(hidden_MD, table_VD, batch.targets_M, self.counts_V)
            for place, matrix_DD in enumerate(self.head, start=1):
                there_M = next_MK[:, place] >= 0
                some_MD = hidden_MD[there_M]
                targets_M = next_MK[there_M, place]
                further = self.loss(some_MD + some_MD @ matrix_DD, table_VD, targets_M, self.counts_V)
                loss = loss + self.weight * further
            return loss

        loss_sum: Tensor = self.net(batch.items_BL, head)
        return loss_sum


class Feedback(WithHead):
    """A second head for the feedback to the next item, a feature of its event: linear in the hidden state, the item's
    row and their product. The last target of a window has none, since a batch has only the events that are read."""

    def __init__(self, weight: float = 0.3, **options: Any) -> None:
        """Choose the head.

        Args:
            weight: Weight of the loss of the feedback.
        """
        super().__init__(**options)
        self.weight = weight

    def configure_model(self) -> None:
        super().configure_model()
        self.head = nn.Parameter(torch.zeros(self.config.event_types, 3 * self.config.width))

    def loss_sum(self, batch: TrainBatch) -> Tensor:
        assert batch.events_BL is not None
        there_M = batch.next_targets(2)[:, 1] >= 0
        feedback_M = batch.events_BL.flatten()[batch.positions_M[there_M.roll(1)]]

        def head(hidden_BLD: Tensor, table: Table) -> Tensor:
            table_VD, hidden_MD = whole(table), hidden_BLD.flatten(0, 1)[batch.positions_M]
            loss = self.loss(hidden_MD, table_VD, batch.targets_M, self.counts_V)
            some_MD, rows_MD = hidden_MD[there_M], F.embedding(batch.targets_M[there_M], table_VD)
            scores_MF = torch.cat([some_MD, rows_MD, some_MD * rows_MD], 1) @ self.head.T
            return loss + self.weight * F.cross_entropy(scores_MF, feedback_M, reduction="sum")

        loss_sum: Tensor = self.net(batch.items_BL, head, events_BL=batch.events_BL)
        return loss_sum


@dataclass(frozen=True)
class Corrected(SampledSoftmax):
    """Corrected logQ: the denominator does not contain the target, and a target has as its weight the probability of
    any other item under the network. Source: arXiv 2507.09331, and the code of its authors (NonameUntitled/logq).

    With P the probability of the target, the gradient of -log P is (1 - P) times that of
    log(sum over others of e^s) - s_target, and the others are drawn with q_j / (1 - q_target).
    """

    power: float = 1.0

    def __call__(self, hidden_MD: Tensor, table_VD: Table, targets_M: Tensor, counts_V: Tensor) -> Tensor:
        target_M, scores_MN, log_q_M = drawn_scores(self, hidden_MD, table_VD, targets_M, counts_V)
        others_M = scores_MN.logsumexp(1) + torch.log1p(-log_q_M.exp())
        drawn_M = (scores_MN > torch.finfo(scores_MN.dtype).min).sum(1).clamp(min=1)
        weight_M = torch.sigmoid(others_M - drawn_M.log() - target_M).detach()
        return (weight_M * (others_M - target_M)).sum()


def drawn_scores(
    loss: SampledSoftmax, hidden_MD: Tensor, table: Table, targets_M: Tensor, counts_V: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The scores of targets; those of negatives minus their logQ, or the least finite number if the negative is the
    target of the row; and the logQ of targets."""
    table_VD = whole(table)
    mass_V = counts_V.double() ** loss.power
    log_q_V = (mass_V / mass_V.sum()).log().float()
    negatives_N = _draw(loss.negatives, counts_V, loss.power)
    scores_MN = hidden_MD @ F.embedding(negatives_N, table_VD).T - log_q_V[negatives_N]
    hit_MN = negatives_N == targets_M[:, None]
    scores_MN = scores_MN.masked_fill(hit_MN, torch.finfo(scores_MN.dtype).min)
    return (hidden_MD * F.embedding(targets_M, table_VD)).sum(1), scores_MN, log_q_V[targets_M]
