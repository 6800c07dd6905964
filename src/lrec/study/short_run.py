"""A network trained for seconds, without Lightning and without a folder: what a tiny size learns from few targets."""

from functools import partial
from itertools import chain, islice, repeat

import torch
from torch import Tensor

from lrec.data.batching.plan import BatchPlan
from lrec.data.batching.train_batches import TrainBatch, TrainLoader
from lrec.data.datamodule import SequenceDataModule
from lrec.data.splits.reduction import TrainingPart
from lrec.model.config import TransformerConfig
from lrec.model.losses import FullSoftmax, Loss, SampledSoftmax
from lrec.model.network_sizes import find_size
from lrec.model.transformer import Transformer
from lrec.training.optim import Optimizer

# Small steps at a high rate learn most from few targets; negatives make large catalogues as fast as small ones.
TARGETS_PER_STEP = 1024
OPTIMIZER = Optimizer(lr=0.02)
LOSS_OF_LARGE_CATALOGUES = SampledSoftmax(negatives=512, power=0.75)
LARGE_CATALOGUE = 1024


def train_briefly(data: SequenceDataModule, part: TrainingPart, size: str, positions: int, seed: int) -> Transformer:
    """A network of a size of the ladder after about so many positions of the training part, ready to be evaluated.

    The same data and seed give the same network, and torch's own random numbers go on as if nothing had happened.
    """
    layers, width, heads = find_size(size)
    plan = BatchPlan(part, data.max_len, max(TARGETS_PER_STEP, 2 * data.max_len))
    loader = TrainLoader(plan, data.cuts.catalogue_index_I, seed)
    steps = max(positions // plan.targets_per_step, 1)
    loss_function: Loss = LOSS_OF_LARGE_CATALOGUES if data.n_items > LARGE_CATALOGUE else FullSoftmax()
    counts_V = torch.from_numpy(data.item_counts_V)
    with torch.random.fork_rng(devices=[]):
        net = Transformer(TransformerConfig(data.n_items, data.max_len, layers, width, heads), seed)
        torch.manual_seed(seed)
        optimizer, schedule = OPTIMIZER.build(net, steps)
        for batch in islice(chain.from_iterable(repeat(loader)), steps):
            loss = net(batch.items_BL, partial(_sum_over_targets, loss_function, batch, counts_V))
            (loss / max(batch.step_targets, 1)).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return net.eval()


def _sum_over_targets(loss: Loss, batch: TrainBatch, counts_V: Tensor, hidden_BLD: Tensor, table_VD: Tensor) -> Tensor:
    return loss(hidden_BLD.flatten(0, 1)[batch.positions_M], table_VD, batch.targets_M, counts_V)
