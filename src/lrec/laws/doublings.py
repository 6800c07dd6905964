"""What twice the size, twice the training and both would bring, by a forecast in size and data, and what they cost."""

import numpy as np

from lrec.common.text_tables import rows_table
from lrec.laws.choosers import flops_per_interaction
from lrec.laws.forecast import Forecast


def doublings(forecast: Forecast, x: str) -> list[str]:
    """A table of the losses expected, from the largest size and the longest run on, and the cheapest fall of the loss;
    nothing of a forecast in the size alone."""
    if forecast.columns != ("x", "d"):
        return []
    points = forecast.points
    size, length = (float(points[name].to_numpy().max()) for name in ("x", "d"))
    again = "u" in points.columns and length > 1.001 * float(points["u"].to_numpy().max())
    more = "passes" if again else "data"
    places = {
        "the same": (size, length),
        f"twice {x}": (2 * size, length),
        f"twice the {more}": (size, 2 * length),
        "both": (2 * size, 2 * length),
    }
    flops = flops_per_interaction(points)
    rows = [["from the largest on", "loss", "90 % low", "90 % high", "fall", "FLOPs"]]
    per_flop: dict[str, float] = {}
    here, *_ = predictions = forecast.predict(np.array([*places.values()]))
    for (name, place), p in zip(places.items(), predictions, strict=True):
        times, fall = float(flops(place[0]) * place[1] / (flops(size) * length)), here.predicted - p.predicted
        rows.append([name, *(f"{loss:.4f}" for loss in (p.predicted, p.low, p.high)), f"{fall:.4f}", f"{times:.2f}"])
        if times > 1:
            per_flop[name] = fall / (times - 1)
    best = max(per_flop, key=per_flop.__getitem__)
    cheapest = f"The cheapest fall of the loss is expected of {best}."
    if per_flop[best] <= 0:
        cheapest = "None of them is expected to lower the loss."
    return ["### Twice as much of size and data", rows_table(rows, text=(0,)), cheapest]
