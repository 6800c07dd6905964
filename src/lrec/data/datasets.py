"""Every data set and split: once imported, options accept their bare names, and --help lists them."""

from typing import Any

from lrec.data.amazon import AmazonDataModule
from lrec.data.base import SequenceDataModule
from lrec.data.interactions import InteractionsDataModule
from lrec.data.movielens import MovieLensDataModule
from lrec.data.splits import LastItems
from lrec.data.synthetic import SyntheticDataModule
from lrec.data.temporal import GlobalTemporal
from lrec.data.user_split import UserSplit
from lrec.parser import made_of

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
    return made_of(config, "data", SequenceDataModule)  # type: ignore[type-abstract]
