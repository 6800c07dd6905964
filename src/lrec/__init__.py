"""Large sequential recommenders with scaling laws.

The names below are those a YAML may use, and `load`; they are imported on first use, so that `import lrec` stays fast.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "SequentialRecommender": "lrec.module",
    "ScalingPoints": "lrec.callbacks",
    "EvaluationReport": "lrec.callbacks",
    "ItemProjector": "lrec.tensorboard",
    "RunTable": "lrec.tensorboard",
    "load": "lrec.export",
    "FSDP2": "lrec.strategies",
    "BestAndLast": "lrec.interruption",
    "LastCheckpoint": "lrec.interruption",
    "AmazonDataModule": "lrec.data.amazon",
    "InteractionsDataModule": "lrec.data.interactions",
    "MovieLensDataModule": "lrec.data.movielens",
    "SyntheticDataModule": "lrec.data.synthetic",
    "LastItems": "lrec.data.splits",
    "GlobalTemporal": "lrec.data.temporal",
    "UserSplit": "lrec.data.user_split",
    "Reduction": "lrec.data.reduction",
    "Architecture": "lrec.shape",
    "Dropout": "lrec.shape",
    "MuP": "lrec.shape",
    "OverDepth": "lrec.shape",
    "Attention": "lrec.blocks",
    "MLP": "lrec.blocks",
    "Positions": "lrec.blocks",
    "FullSoftmax": "lrec.losses",
    "SampledSoftmax": "lrec.losses",
    "GBCE": "lrec.losses",
    "Throughput": "lrec.throughput",
    "Loss": "lrec.losses",
    "Optimizer": "lrec.optim",
    "OptimizerConfig": "lrec.optim",
    "Switch": "lrec.optim",
    "UserError": "lrec.errors",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lrec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
