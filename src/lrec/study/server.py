"""What the server that forks a study's runs has imported, once for all of them."""

import gc

from lrec.common.start_stop import importing

with importing():
    import torch.utils.tensorboard  # noqa: F401


gc.freeze()  # a run's collector is to leave alone what all runs share
