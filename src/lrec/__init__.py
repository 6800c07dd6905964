"""Large sequential recommenders with scaling laws.

The names below are `load` and those that YAML files may use. Each is imported on first use: `import lrec` is fast.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    name: f"lrec.{module}"
    for module, names in {
        "training.module": "SequentialRecommender",
        "training.callbacks": "ScalingPoints EvaluationReport",
        "training.table_writers": "TargetWriter",
        "training.tensorboard": "ItemProjector RunTable",
        "serving.export": "load",
        "training.strategies": "FSDP2",
        "training.checkpoint_callbacks": "BestAndLast LastCheckpoint",
        "data.features": "Features",
        "data.sources.amazon": "AmazonDataModule",
        "data.sources.interactions": "InteractionsDataModule",
        "data.sources.movielens": "MovieLensDataModule",
        "data.sources.synthetic": "SyntheticDataModule",
        "data.splits.rules": "LastItems UserSplit",
        "data.splits.temporal": "GlobalTemporal",
        "data.splits.reduction": "Reduction",
        "model.config": "Architecture Dropout OverDepth",
        "model.blocks": "Attention MLP Positions",
        "model.losses": "FullSoftmax NextItems SampledSoftmax GBCE Loss",
        "training.throughput": "Throughput",
        "training.optim": "Optimizer OptimizerConfig Switch",
        "errors": "UserError",
    }.items()
    for name in names.split()
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'lrec' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
