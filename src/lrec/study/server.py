"""What the server that forks a study's runs has imported, once for all of them."""

import gc

from lrec.imports import importing

with importing():
    import torch.utils.tensorboard  # noqa: F401

    import lrec.lightning_cli
    import lrec.study.launch  # noqa: F401

gc.freeze()  # a run's collector is to leave alone what all runs share
