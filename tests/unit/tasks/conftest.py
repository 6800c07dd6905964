"""Runs of two sizes on a small log with domains. Their networks are untrained, which is enough to check figures."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lrec.checkpoint.reading import ITEMS
from lrec.checkpoint.trained import items_as_tensors
from lrec.checkpoint.writing import write
from lrec.data.datasets import datamodule_of
from lrec.model.config import Architecture, TransformerConfig
from lrec.model.network_sizes import find_size
from lrec.model.transformer import Transformer
from lrec.options.config_files import with_shipped_configs
from lrec.run import Run
from lrec.tasks.trained_runs import Data, Ladder, ladder_of, load_run
from lrec.training.lightning_cli import compose

MAX_LEN, STEPS = 12, 4
SIZES = ("0.8k", "3k")


@pytest.fixture(scope="session")
def log_with_domains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """90 users with 4 to 80 interactions each, with repeats, over three domains of 20 items and some rare items."""
    random = np.random.default_rng(3)
    lines = ["user,item,time,domain,device"]
    for user in range(90):
        favourite = int(random.integers(3))
        for step in range(int(random.integers(3, 80)) if user % 3 else int(random.integers(52, 80))):
            domain = favourite if random.random() < 0.93 else int(random.integers(3))
            item = min(int(random.exponential(8)), 19)
            lines.append(
                f"u{user:02},{'xyz'[domain]}{item:02},{1000 * step + user},{'xyz'[domain]},{'xyz'[domain]}{step % 3}"
            )
        lines.append(f"u{user:02},x{'rare' if user % 9 else user},{10**6},x,x0")
    path = tmp_path_factory.mktemp("log") / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def make_run(log_with_domains: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """A run's folder, with config.yaml and a best checkpoint of a random, untrained network."""
    data_dir = tmp_path_factory.mktemp("data")

    def make(folder: Path, size: str, seed: int, warm_start: Path | None = None, **options: object) -> Path:
        chosen = {
            "data.path": log_with_domains, "data.data_dir": data_dir, "data.domain_column": "domain",
            "data.split.trajectory": STEPS, "data.split.held_out_users": 0.5, "data.max_len": MAX_LEN,
            "data.targets_per_step": 256, "model.size": size,
        }  # fmt: skip
        chosen |= {name.replace("__", "."): value for name, value in options.items()}
        arguments = ["--config=data/csv.yaml", *(f"--{name}={value}" for name, value in chosen.items())]
        config = compose(with_shipped_configs(arguments))
        config["model"]["warm_start"] = None if warm_start is None else str(warm_start)
        data = datamodule_of(config)
        data.prepare_data()
        data.setup()
        architecture, event_types = Architecture(**config["model"]["architecture"]), len(data.event_rows)
        shape = TransformerConfig(
            data.n_items, data.max_len, *find_size(size), architecture=architecture, event_types=event_types
        )
        net = Transformer(shape)
        torch.manual_seed(seed)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        (folder / "checkpoints").mkdir(parents=True)
        data.item_table().write_parquet(folder / "items.parquet")
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        weights = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
        items = items_as_tensors(data.item_table()["raw_id"], data.item_counts_V)
        about = shape.to_dict() | {"data_hash": data.data_hash}
        state = {"lrec": about, "state_dict": weights, "global_step": 7, ITEMS: items}
        write(folder / "checkpoints" / "best.ckpt", state)
        return folder

    return make


@pytest.fixture(scope="session")
def runs(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs: one of the smaller size, two seeds of the larger."""
    folder = tmp_path_factory.mktemp("runs")
    for size, seed in ((SIZES[0], 1), (SIZES[1], 1), (SIZES[1], 2)):
        make_run(folder / f"{size}-{seed}", size, seed)
    return folder


@pytest.fixture(scope="session")
def ladder(runs: Path) -> Ladder:
    """The same runs, loaded."""
    data = Data()
    return ladder_of([load_run(Run(folder), data) for folder in sorted(runs.iterdir())], data)
