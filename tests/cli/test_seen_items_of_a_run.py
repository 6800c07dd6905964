"""Numbers for seen items, from the raw file to the recommendations: in this log, no user has an item twice."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lrec as library
from lrec.checkpoint.trained import refuse_other_network
from lrec.errors import UserError
from lrec.model.config import Architecture, TransformerConfig
from lrec.run import Run

ITEMS, LENGTH = 30, 20


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    random, lines = np.random.default_rng(0), ["user,item,time"]
    for user in range(400):
        items = random.permutation(ITEMS)[:LENGTH]
        lines += [f"u{user},i{item},{time}" for time, item in enumerate(items)]
    path = tmp_path_factory.mktemp("log") / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def trained(log: Path) -> Callable[..., Path]:
    from lrec.cli import main

    def train(name: str, *options: str) -> Path:
        run = log.parent / name
        if not run.exists():
            main(
                [
                    "fit",
                    *("--config=data/csv.yaml", "--config=trainer/laptop.yaml", f"--data.path={log}"),
                    *(f"--data.data_dir={log.parent}", f"--data.max_len={LENGTH}", "--data.targets_per_step=64"),
                    *("--model.layers=1", "--model.width=8", "--model.heads=1", "--trainer.max_epochs=3"),
                    *("--trainer.enable_progress_bar=false", f"--trainer.default_root_dir={run}", *options),
                ]
            )
        return run

    return train


def test_a_small_network_learns_that_no_item_comes_twice(trained: Callable[..., Path]) -> None:
    """The best loss of a last item is the logarithm of the items that are left."""
    without, seen = (trained(*given) for given in (("without",), ("seen", "--model.architecture.seen=true")))
    loss, loss_without = (Run(run).result.test_loss for run in (seen, without))  # type: ignore[union-attr]
    best = math.log(ITEMS - LENGTH + 1)
    assert best - 0.05 < loss < best + 0.1
    assert loss_without > best + 0.4
    model = library.load(seen)
    listed = model.recommend([[f"i{item}" for item in range(15)]], k=10, exclude_seen=False)["items"][0]
    assert {int(item[1:]) for item in listed} <= set(range(15, ITEMS))


def test_a_run_goes_on_only_with_the_same_choice(
    trained: Callable[..., Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = trained("without")
    options = [
        "fit",
        f"--config={run / 'config.yaml'}",
        f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}",
        "--trainer.max_epochs=4",
    ]
    said = refused(*options, "--model.architecture.seen=true", f"--trainer.default_root_dir={tmp_path / 'run'}")
    assert "architecture.seen False, the config True" in said
    said = refused("fit", f"--config={run / 'config.yaml'}", f"--ckpt_path={run}", "--trainer.max_epochs=4")
    assert f"name one of its checkpoints, such as {run / 'checkpoints' / 'last.ckpt'}" in said


def test_a_network_of_an_earlier_version_has_no_such_numbers() -> None:
    config = TransformerConfig(9, 4, 1, 8, 1)
    earlier = {name: value for name, value in config.to_dict().items() if name != "architecture.seen"}
    refuse_other_network(earlier, config)
    assert TransformerConfig.from_dict(earlier) == config
    with pytest.raises(UserError, match=r"architecture.seen False, the config True"):
        refuse_other_network(earlier, replace(config, architecture=Architecture(seen=True)))
