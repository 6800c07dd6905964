"""The metric that chooses a run's best checkpoint, or stops it: which there are, and which end of one is the best."""

from lrec.errors import UserError
from lrec.evaluation.metrics import best_is, metric_names

MONITORED = [f"val/{name}" for name in metric_names() if best_is(name) is not None]


def mode_of(monitor: str, mode: str | None, option: str) -> str:
    """`mode`, or what follows from the metric's name; UserError where the two contradict each other.

    Args:
        monitor: Name of the metric, with val/ before it.
        mode: What was asked for; None for what follows from the name, and min where nothing does.
        option: What has `monitor` and `mode`, for the message.
    """
    best = best_is(monitor.removeprefix("val/"))
    if best is None:
        return mode or "min"
    if mode not in (None, best):
        raise UserError(f"{option}.mode {mode}: the best {monitor} is its {best}; {option}.mode null does without")
    return best


def check_monitored(monitor: str, option: str) -> None:
    """UserError where there is no such metric, or neither end of it is the best."""
    if monitor not in MONITORED:
        raise UserError(f"{option}.monitor {monitor}: choose one of {', '.join(MONITORED)}")
