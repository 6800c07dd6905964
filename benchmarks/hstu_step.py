"""User CPU time of a training step of each architecture at equal N_body, by one thread: python benchmarks/hstu_step.py

The architectures take turns in each round. A figure is the median of the rounds; "of plain" is the ratio of medians.
"""

import argparse
import statistics
import time
from dataclasses import replace

import torch

from lrec.model import cost
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.losses import full_softmax
from lrec.model.network_sizes import find_size
from lrec.model.transformer import Transformer
from lrec.training.optim import Optimizer

HSTU = Architecture(attention="hstu", mlp="none", position_bias=True)
ARCHITECTURES = {
    "plain": Architecture(),
    "plain, past": Architecture(time="past"),
    "plain, input": Architecture(time="input"),
    "modern": Architecture("rms", "swiglu", "rotary", True),
    "hstu": HSTU,
    "hstu, past": replace(HSTU, time="past"),
    "hstu, request": replace(HSTU, time="request"),
}


class Steps:
    """Training of one network on random full windows."""

    def __init__(self, config: TransformerConfig, rows: int) -> None:
        self.net = Transformer(config)
        self.optimizer, _ = Optimizer().build(self.net, 1000)
        shape = (rows, config.max_len)
        self.items_BL, self.targets_M = torch.randint(config.n_items, shape), torch.randint(config.n_items, shape)
        gaps_BT = 10 ** (torch.rand(rows, config.max_len + 1) * 6)
        self.times_BT = None if config.architecture.time == "none" else gaps_BT.long().cumsum(1)

    def seconds(self, steps: int, mixed: bool) -> float:
        """User CPU time of a step; mixed as Lightning's bf16-mixed is."""
        started = time.process_time()
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                loss = self.net(
                    self.items_BL,
                    lambda hidden_BLD, table_VD: full_softmax(
                        hidden_BLD.flatten(0, 1), table_VD, self.targets_M.flatten()
                    ),
                    times_BT=self.times_BT,
                )
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return (time.process_time() - started) / steps


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", default=["98k", "786k"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[50, 200])
    parser.add_argument("--positions", type=int, default=4000, help="of a step")
    parser.add_argument("--items", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="of a round")
    parser.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'size':<6}{'length':>7}  {'architecture':<16}{'N_body':>10}{'ms a step':>11}{'of plain':>10}")
    for size in options.sizes:
        for length in options.lengths:
            configs = {
                name: TransformerConfig(options.items, length, *find_size(size), architecture=architecture)
                for name, architecture in ARCHITECTURES.items()
            }
            trained = {name: Steps(config, options.positions // length) for name, config in configs.items()}
            spent: dict[str, list[float]] = {name: [] for name in trained}
            for each in range(options.rounds + 1):
                for name, steps in trained.items():
                    seconds = steps.seconds(options.steps, options.precision == "bf16-mixed")
                    if each:  # the first round warms up
                        spent[name].append(seconds)
            medians = {name: statistics.median(values) for name, values in spent.items()}
            for name, median in medians.items():
                print(
                    f"{size:<6}{length:>7}  {name:<16}{cost.n_body(configs[name]):>10,}{1000 * median:>11.1f}"
                    f"{median / medians['plain']:>10.2f}"
                )


if __name__ == "__main__":
    main()
