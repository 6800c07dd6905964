"""A run that --trainer.max_time ends: its schedule follows the time, so that warm-up and decay end with the run."""

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer

# Steps of a schedule that has time alone for its limit: more than a run takes, so that time is what moves it.
ENDLESS = 10**9


def schedule_steps(trainer: Trainer) -> int:
    """Steps of the run's schedule: those that epochs and steps allow."""
    return int(min(trainer.estimated_stepping_batches, ENDLESS))


def schedule_position(trainer: Trainer) -> int | None:
    """How far the schedule is, in its own steps: as far as the steps or the time, whichever is nearer to its end.

    The same on every process. None where time is no limit.
    """
    share = _share_of_time(trainer)
    if share is None:
        return None
    by_time: int = trainer.strategy.broadcast(int(share * schedule_steps(trainer)))
    return max(trainer.global_step, by_time)


def time_is_over(trainer: Trainer) -> bool:
    """Whether a limit of time is reached."""
    return _share_of_time(trainer) == 1


def _share_of_time(trainer: Trainer) -> float | None:
    """How much of the time that is allowed has been spent, from 0 to 1; None where it has no limit."""
    shares = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None:
            spent = callback.time_elapsed()
            shares.append(spent / (spent + left) if left > 0 else 1.0)
    return max(shares, default=None)
