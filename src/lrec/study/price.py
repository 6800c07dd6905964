"""What it costs to train a network and to answer a request with it, estimated from a run of the study."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lrec.model import cost
from lrec.model.config import TransformerConfig
from lrec.model.network_sizes import find_size
from lrec.run import run_of_study
from lrec.study.budget import gib_of, spent_hours
from lrec.study.grid import PlannedRun
from lrec.study.options import Study

WIDTHS = 8  # the width of a network that is not trained yet is a multiple of this


@dataclass(frozen=True)
class Price:
    """The price of a network: hours of a core or a GPU to train it, and money if an hour has a price; GiB of memory (of
    each GPU, if it trains on GPUs) and of disk; milliseconds that one core or GPU needs for a request."""

    size: str
    unit: str
    hours: float
    money: float | None
    memory_gib: float
    disk_gib: float
    request_ms: float


def price_of(study: Study, run: PlannedRun, times: float = 1.0) -> Price | None:
    """The price of a network with `times` the parameters of that of a finished run, counted by the study's x, if it is
    trained in the same way. None if the run's options are not known.

    The estimate uses the FLOPs per second of this run, from the first step to the last evaluation. A request encodes a
    whole history and scores the catalogue once; nothing is cached between requests.
    """
    if not run.options:
        return None
    last = run_of_study(study.folder, run.name).points[-1]
    trained, beside = run.network(last.N_head // last.d_model), last.N_total - last.N_body
    network = wider(trained, times, beside if study.x == "N_total" else 0)
    place, hours = study.placement(run.config), spent_hours(study, [run]) / run.own
    forward, head = cost.flops_per_interaction(network).forward, 2 * cost.n_head(network)
    train_hours = hours * forward / cost.flops_per_interaction(trained).forward
    memory_gib, gpu_gib, disk_gib = gib_of(network, run.config, place)
    return Price(
        f"{network.layers}x{network.width}",
        "GPU" if place.gpus else "core",
        train_hours,
        None if study.price_per_hour is None else train_hours * study.price_per_hour,
        gpu_gib or memory_gib,
        disk_gib,
        1000 * (network.max_len * (forward - head) + head) / (last.flops / (3600 * hours)),
    )


def price_rows(prices: Sequence[Price | None]) -> list[tuple[str, list[str]]]:
    """A row for each part of a price, with a cell for each network; no rows if a price is not known."""
    known = [price for price in prices if price is not None]
    if len(known) < len(prices):
        return []
    unit, place = known[0].unit, "GPU memory" if known[0].unit == "GPU" else "memory"
    rows = [(f"training, {unit}-hours", [_two_digits(price.hours) for price in known])]
    if money := [price.money for price in known if price.money is not None]:  # either all have one, or none has
        rows.append(("training, price", [_two_digits(each) for each in money]))
    rows.append((f"{place} to train, GiB", [f"{price.memory_gib:.1f}" for price in known]))
    rows.append(("disk, GiB", [_two_digits(price.disk_gib) for price in known]))
    rows.append((f"one request, ms on a {unit}", [_two_digits(price.request_ms) for price in known]))
    return rows


def _two_digits(number: float) -> str:
    return f"{float(f'{number:.2g}'):,g}"


def wider(network: TransformerConfig, times: float, beside: int = 0) -> TransformerConfig:
    """A network with the same number of blocks, and about `times` the parameters: in the blocks, and in `beside` others
    that grow with the width, as the item table does."""
    if times == 1:
        return network
    of_blocks, of_others = cost.n_body(network) / network.width**2, beside / network.width
    wanted = times * (cost.n_body(network) + beside)
    width = (math.sqrt(of_others**2 + 4 * of_blocks * wanted) - of_others) / (2 * of_blocks)
    shape = find_size(f"{network.layers}x{WIDTHS * max(round(width / WIDTHS), 1)}")
    return replace(network, width=shape.width, heads=shape.heads)
