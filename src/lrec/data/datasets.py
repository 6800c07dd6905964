"""Every data set and split, so that options accept their bare names and --help lists them; and `lrec data prepare`."""

from typing import Any

from lrec.data.datamodule import SequenceDataModule
from lrec.data.sources.amazon import AmazonDataModule
from lrec.data.sources.interactions import InteractionsDataModule
from lrec.data.sources.movielens import MovieLensDataModule
from lrec.data.sources.synthetic import SyntheticDataModule
from lrec.data.splits.rules import LastItems, UserSplit
from lrec.data.splits.temporal import GlobalTemporal
from lrec.data.store.store import describe, print_rows
from lrec.options.objects import from_config

__all__ = ["AmazonDataModule", "GlobalTemporal", "InteractionsDataModule", "LastItems", "MovieLensDataModule"]
__all__ += ["SequenceDataModule", "SyntheticDataModule", "UserSplit", "datamodule_of", "prepare"]


def datamodule_of(config: dict[str, Any], stage: str | None = None) -> SequenceDataModule:
    """The DataModule that a run's configuration names; with `stage`, its store is prepared, and it is set up for this
    stage. UserError if its options do not fit it."""
    data = from_config(config, "data", SequenceDataModule)  # type: ignore[type-abstract]
    if stage is not None:
        data.prepare_data()
        data.setup(stage)
    return data


def prepare(data: SequenceDataModule) -> None:
    """Prepare a data set's store, and print its statistics and the sizes of the split's parts.

    Args:
        data: The data set; lrec writes its store unless the store exists.
    """
    data.prepare_data()
    store = data.open_store()
    describe(store.path)
    split = data.cut(store)
    shown = {name: f"{count:,}" for name, count in split.counts.items()}
    print()
    print_rows([("split", repr(data.split)), *shown.items()])
