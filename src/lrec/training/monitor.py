"""The metric that chooses a run's best checkpoint, or stops it: which end of it is the best, and what a run came to by
it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from lrec.errors import UserError
from lrec.evaluation.metrics import METRICS, Metric, best_is, metric_names
from lrec.run import Point


def mode_of(monitor: str, mode: str | None, option: str, metrics: Sequence[Metric] = METRICS) -> str:
    """`mode`, or what follows from the metric's name; UserError where the two contradict each other.

    Args:
        monitor: Name of the metric, with val/ before it.
        mode: What was asked for; None for what follows from the name, and min where nothing does.
        option: What has `monitor` and `mode`, for the message.
        metrics: Those that there are.
    """
    best = best_is(monitor.removeprefix("val/"), metrics)
    if best is None:
        return mode or "min"
    if mode not in (None, best):
        raise UserError(f"{option}.mode {mode}: the best {monitor} is its {best}; {option}.mode null does without")
    return best


def check_monitored(monitor: str, option: str, metrics: Sequence[Metric]) -> None:
    """UserError where there is no such metric, or neither end of it is the best."""
    monitored = [f"val/{name}" for name in metric_names(metrics) if best_is(name, metrics) is not None]
    if monitor not in monitored:
        raise UserError(f"{option}.monitor {monitor}: choose one of {', '.join(monitored)}")


def verdict(
    figures: Mapping[str, Mapping[str, float]],
    monitor: str,
    points: Sequence[Point],
    metrics: Sequence[Metric] = METRICS,
) -> str | None:
    """What a run came to, in one line: the model beside the best baseline on the monitored metric, and what to try.

    None where no baseline has the metric, or neither end of it is the best.

    Args:
        figures: Every metric of the model and of each baseline on the same targets, by scorer: model, popularity ...
        monitor: Metric that chose the checkpoint, with val/ before it.
        points: The run's evaluations in order.
        metrics: Those that there are.
    """
    metric = monitor.removeprefix("val/")
    best_end = best_is(metric, metrics)
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
