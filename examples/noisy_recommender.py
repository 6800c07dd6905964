"""A LightningModule of your own: it trains on histories in which random items replace some items.

Try it from this folder: lrec fit --model noisy_recommender.NoisyRecommender --model.noise 0.1 --model.size 3k ...
"""

from typing import Any

import torch
from torch import Tensor

from lrec import SequentialRecommender


class NoisyRecommender(SequentialRecommender):
    """A SequentialRecommender whose inputs in training are partly random. Its targets are the true items."""

    def __init__(self, noise: float = 0.1, **options: Any) -> None:
        """Choose how noisy histories are in training.

        Args:
            noise: Share of the input items that are replaced.
        """
        super().__init__(**options)
        self.noise = noise

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        swapped_BL = torch.rand(batch.items_BL.shape, device=self.device) < self.noise
        random_BL = torch.randint_like(batch.items_BL, self.config.n_items)
        items_BL = torch.where(swapped_BL, random_BL, batch.items_BL)
        return super().training_step(batch._replace(items_BL=items_BL), batch_idx)
