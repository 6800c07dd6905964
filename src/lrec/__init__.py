"""Large sequential recommenders with scaling laws.

The names below are those a YAML may use, and `load`; they are imported on first use, so that `import lrec` stays fast.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "SequentialRecommender": "lrec.training.module",
    "ScalingPoints": "lrec.training.callbacks",
    "EvaluationReport": "lrec.training.callbacks",
    "ItemProjector": "lrec.training.tensorboard",
    "RunTable": "lrec.training.tensorboard",
    "load": "lrec.serving.export",
    "FSDP2": "lrec.training.strategies",
    "BestAndLast": "lrec.training.checkpoint_callbacks",
    "LastCheckpoint": "lrec.training.checkpoint_callbacks",
    "AmazonDataModule": "lrec.data.sources.amazon",
    "InteractionsDataModule": "lrec.data.sources.interactions",
    "MovieLensDataModule": "lrec.data.sources.movielens",
    "SyntheticDataModule": "lrec.data.sources.synthetic",
    "LastItems": "lrec.data.splits.rules",
    "GlobalTemporal": "lrec.data.splits.temporal",
    "UserSplit": "lrec.data.splits.rules",
    "Reduction": "lrec.data.splits.reduction",
    "Architecture": "lrec.model.config",
    "Dropout": "lrec.model.config",
    "OverDepth": "lrec.model.config",
    "Attention": "lrec.model.blocks",
    "MLP": "lrec.model.blocks",
    "Positions": "lrec.model.blocks",
    "FullSoftmax": "lrec.model.losses",
    "SampledSoftmax": "lrec.model.losses",
    "GBCE": "lrec.model.losses",
    "Throughput": "lrec.training.throughput",
    "Loss": "lrec.model.losses",
    "Optimizer": "lrec.training.optim",
    "OptimizerConfig": "lrec.training.optim",
    "Switch": "lrec.training.optim",
    "UserError": "lrec.errors",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lrec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
