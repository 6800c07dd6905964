"""What a run came to, in one line: the model beside the best baseline on the metric that was monitored, what to try."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from lrec.evaluation.metrics import best_is
from lrec.run import Point


def verdict(figures: Mapping[str, Mapping[str, float]], monitor: str, points: Sequence[Point]) -> str | None:
    """The line; None where no baseline has the metric, or neither end of it is the best.

    Args:
        figures: Every metric of the model and of each baseline on the same targets, by scorer: model, popularity ...
        monitor: Metric that chose the checkpoint, with val/ before it.
        points: The run's evaluations in order.
    """
    metric = monitor.removeprefix("val/")
    best_end = best_is(metric)
    baselines = {name: row[metric] for name, row in figures.items() if name != "model" and metric in row}
    baselines = {name: value for name, value in baselines.items() if math.isfinite(value)}
    if best_end is None or not baselines:
        return None
    choose: Callable[[Iterable[float]], float] = min if best_end == "min" else max
    baseline = choose(baselines.values())
    name = next(name for name, value in baselines.items() if value == baseline)
    model = figures["model"][metric]
    better = model != baseline and choose((model, baseline)) == model
    line = f"than {name}, the best baseline: {metric} {model:.4f} against {baseline:.4f}"
    return f"better {line}" if better else f"no better {line}; {_what_to_try(monitor, choose, points)}"


def _what_to_try(monitor: str, choose: Callable[[Iterable[float]], float], points: Sequence[Point]) -> str:
    values = [value for point in points if math.isfinite(value := point.metric(monitor))]
    if values and choose(values) == values[-1]:
        return f"{monitor} was the best at the last evaluation: more --trainer.max_epochs, max_steps or max_time"
    return f"try another --model.optimizer.lr, --model.dropout or --model.size, and choose by {monitor}"
