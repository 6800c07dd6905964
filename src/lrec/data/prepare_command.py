"""`lrec data prepare`, apart from `describe`, because it imports the DataModules and so Lightning."""

from lrec.data.datasets import SequenceDataModule
from lrec.data.store.statistics import describe, print_rows
from lrec.data.store.store import Store


def prepare(data: SequenceDataModule) -> None:
    """Prepare a data set's store, and print its statistics and what the split makes of it.

    Args:
        data: The data set; its store is written unless it is there.
    """
    data.prepare_data()
    describe(data.store_path)
    counts = data.cut(Store.open(data.store_path)).counts
    print()
    print_rows([("split", repr(data.split)), *((name, f"{count:,}") for name, count in counts.items())])
