"""What processes of `warm_python` have imported and worked out before they begin."""

import gc
from importlib import import_module

import torch

from lrec.cli import OWN_COMMANDS
from lrec.training.lightning_cli import compose
from lrec.training.throughput import measure_peak

for module in ("torch.distributed.run", *(path.rpartition(".")[0] for _, path in OWN_COMMANDS.values())):
    import_module(module)
# What jsonargparse makes of docstrings and types it keeps.
compose(["--data=lrec.SyntheticDataModule", "--model.size=3k"])
# So is the processor's rate. On one thread: OpenMP's others would not live in the processes that are forked.
torch.set_num_threads(1)
measure_peak(torch.device("cpu"), torch.float32, torch.get_num_threads())
gc.freeze()
