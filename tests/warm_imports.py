"""What processes of `warm_python` have imported and computed before they start."""

import gc
from importlib import import_module

import torch

from lrec.cli import OWN_COMMANDS
from lrec.training.lightning_cli import compose
from lrec.training.throughput import measure_peak

for module in ("torch.distributed.run", *(path.rpartition(".")[0] for _, path in OWN_COMMANDS.values())):
    import_module(module)
# jsonargparse caches what it reads from docstrings and types.
compose(["--data=lrec.SyntheticDataModule", "--model.size=3k"])
# The processor's rate is cached too. One thread only, because OpenMP's other threads do not survive a fork.
torch.set_num_threads(1)
measure_peak(torch.device("cpu"), torch.float32, torch.get_num_threads())
gc.freeze()
