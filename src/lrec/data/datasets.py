"""Every data set and split: once imported, options accept their bare names, and --help lists them."""

from lrec.data.amazon import AmazonDataModule
from lrec.data.base import SequenceDataModule
from lrec.data.interactions import InteractionsDataModule
from lrec.data.movielens import MovieLensDataModule
from lrec.data.splits import LastItems
from lrec.data.synthetic import SyntheticDataModule
from lrec.data.temporal import GlobalTemporal

__all__ = [
    "AmazonDataModule",
    "GlobalTemporal",
    "InteractionsDataModule",
    "LastItems",
    "MovieLensDataModule",
    "SequenceDataModule",
    "SyntheticDataModule",
]
