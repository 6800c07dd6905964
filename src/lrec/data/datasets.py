"""Every data set: once imported, `--data` and `class_path` accept its bare name, and --help lists it."""

from lrec.data.amazon import AmazonDataModule
from lrec.data.base import SequenceDataModule
from lrec.data.interactions import InteractionsDataModule
from lrec.data.movielens import MovieLensDataModule
from lrec.data.synthetic import SyntheticDataModule

__all__ = [
    "AmazonDataModule",
    "InteractionsDataModule",
    "MovieLensDataModule",
    "SequenceDataModule",
    "SyntheticDataModule",
]
