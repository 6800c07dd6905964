"""Every data set and split: once imported, options accept their bare names, and --help lists them."""

from typing import Any

from lrec.data.datamodule import SequenceDataModule
from lrec.data.sources.amazon import AmazonDataModule
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.sources.movielens import MovieLensDataModule
from lrec.data.sources.synthetic import SyntheticDataModule
from lrec.data.splits.rules import LastItems
from lrec.data.splits.temporal import GlobalTemporal
from lrec.data.splits.user_split import UserSplit
from lrec.options.objects import from_config

__all__ = [
    "AmazonDataModule",
    "GlobalTemporal",
    "InteractionsDataModule",
    "LastItems",
    "MovieLensDataModule",
    "SequenceDataModule",
    "SyntheticDataModule",
    "UserSplit",
    "datamodule_of",
]


def datamodule_of(config: dict[str, Any]) -> SequenceDataModule:
    """The DataModule that a run's configuration names; UserError where its options do not fit it."""
    return from_config(config, "data", SequenceDataModule)  # type: ignore[type-abstract]
