"""The plans of epochs, each made once on a machine, by the process that wants it first, and memory-mapped by all."""

import atexit
import os
import shutil
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from lrec.common.files import locked, replacing
from lrec.data.batching.train_batches import BatchPlan, EpochPlan


@dataclass(frozen=True)
class SharedPlans:
    """The plans of a run's epochs in a folder, which each start of a run makes again.

    Attributes:
        plan: That of all epochs.
        seed: Seed of the order of training.
        folder: Where processes of this run share them.
    """

    plan: BatchPlan
    seed: int
    folder: Path

    def epoch(self, epoch: int) -> EpochPlan:
        """The same as `plan.epoch(seed, epoch)`."""
        mine = self.folder / str(epoch)
        names = [field.name for field in fields(EpochPlan)]
        with locked(self.folder / ".lock"):
            if not mine.exists():
                made = self.plan.epoch(self.seed, epoch)
                with replacing(mine) as unfinished:
                    unfinished.mkdir()
                    for name in names:
                        np.save(unfinished / f"{name}.npy", getattr(made, name))
            # Processes take their steps together: nobody will ask for the epoch before the last one.
            shutil.rmtree(self.folder / str(epoch - 2), ignore_errors=True)
            return EpochPlan(*(np.asarray(np.load(mine / f"{name}.npy", mmap_mode="r")) for name in names))


def shared_folder(token: str) -> Path:
    """A folder of this user's on this machine for processes that have the same token; it goes with its maker."""
    folder = Path(tempfile.gettempdir()) / f"lrec-plans-{os.getuid()}-{token}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if folder.stat().st_uid != os.getuid():
            raise
    else:
        atexit.register(_remove, folder, os.getpid())
    return folder


def _remove(folder: Path, maker: int) -> None:
    if os.getpid() == maker:  # not a process that was forked from it
        shutil.rmtree(folder, ignore_errors=True)
