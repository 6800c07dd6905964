"""`lrec data prepare`: apart from `describe`, because the DataModule's type brings Lightning with it."""

from lrec.data.datasets import SequenceDataModule
from lrec.data.describe import describe


def prepare(data: SequenceDataModule) -> None:
    """Prepare a data set's store and print its statistics.

    Args:
        data: The data set; its store is written unless it is there.
    """
    data.prepare_data()
    describe(data.store_path)
