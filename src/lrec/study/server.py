"""What the server that forks a study's runs has imported, once for all of them."""

import gc

from lrec.imports import importing

with importing():
    import torch.utils.tensorboard

    import lrec.lightning_cli
    import lrec.study.launch

gc.freeze()  # a run's collector is to leave alone what all runs share

__all__ = ["lrec", "torch"]
