"""What lrec saves by one pass over a history for all its targets.

An untrained network ranks all moves of some games of Go, except the first one: with each game in one row, and with each
move in a row of its own, as if every move were of another user. Since max_len is 256, moves after the 256th have rows
of their own in both. They are few moves, but most of the positions that are left. Seconds are of one processor thread,
as medians of alternating repeats. The losses of both ways are compared.

    python benchmarks/shared_rows.py --games go_games.txt.zst --page benchmarks/shared_rows.md
"""

import argparse
import io
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import zstandard
from rows import commit

import lrec
from lrec.common.files import write_text
from lrec.evaluation.cases import Cases, batches, cases_before, rank_by_net
from lrec.model.config import TransformerConfig
from lrec.model.network_sizes import SIZES
from lrec.model.transformer import Transformer

MAX_LEN = 256


def games(file: Path, number: int, folder: Path) -> Cases:
    """Every move except the first, from a tenth of the first games of a file."""
    few = folder / "games.txt"
    with file.open("rb") as packed:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(packed))
        few.write_text("".join(islice(lines, number)))
    split = lrec.UserSplit(validation=0.1, test=0.1)
    data = lrec.InteractionsDataModule(few, time_column=None, data_dir=folder, split=split, max_len=MAX_LEN)
    data.prepare_data()
    data.setup()
    users_T, positions_T = data.cuts.val_targets
    return cases_before(data.cuts, users_T, positions_T, MAX_LEN)


def positions(cases: Cases, net: Transformer) -> int:
    """Number of positions that are read, padding included."""
    return sum(read["items_BL"].numel() for _, read in batches(cases, net))


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=Path, required=True, help="A game per line.")
    parser.add_argument("--number", type=int, default=200, help="Games that are read, of which a tenth is ranked.")
    parser.add_argument("--sizes", nargs="+", default=["98k"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shared = games(options.games, options.number, Path(folder))
    alone = replace(shared, users_C=np.arange(len(shared)))
    n_games, n_items = len(np.unique(shared.users_C)), int(shared.items_N.max()) + 1
    nets = {size: Transformer(TransformerConfig(n_items, MAX_LEN, *SIZES[size])) for size in options.sizes}
    read, read_alone = (positions(cases, nets[options.sizes[0]]) for cases in (shared, alone))
    lines = [
        "# Targets of one history in one pass",
        "",
        *__doc__.split("\n\n", 1)[1].strip().splitlines(),
        "",
        f"{len(shared):,} moves of {n_games} games, {read:,} positions that are read instead of "
        f"{read_alone:,}; commit {commit()}, {platform.machine()}, torch {torch.__version__}.",
        "",
        "| size | a game in a row, s | a move in a row, s | times | largest difference of a loss |",
        "|---|---:|---:|---:|---:|",
    ]
    for size, net in nets.items():
        taken: dict[str, list[float]] = {"shared": [], "alone": []}
        losses = {}
        for _ in range(options.repeats):
            for name, cases in (("shared", shared), ("alone", alone)):
                since = time.process_time()
                losses[name] = rank_by_net(net, cases).loss_C
                taken[name].append(time.process_time() - since)
        one, other = (statistics.median(each) for each in taken.values())
        difference = np.nanmax(np.abs(losses["shared"] - losses["alone"]))
        lines.append(f"| {size} | {one:.2f} | {other:.2f} | {other / one:.0f} | {difference:.1e} |")
        print(lines[-1], flush=True)
    if options.page:
        write_text(options.page, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
