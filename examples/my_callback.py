"""A callback of your own: it prints a line for each evaluation that is the best so far.

    lrec fit --config configs/data/synthetic.yaml --model.size 3k --trainer.callbacks+=my_callback.Announcer

See docs/extending.md.
"""

from lightning.pytorch import Callback, LightningModule, Trainer


class Announcer(Callback):
    """Prints each evaluation whose metric is the highest so far."""

    def __init__(self, metric: str = "NDCG@10") -> None:
        """Choose the metric.

        Args:
            metric: The name of the metric, without val/.
        """
        self.metric = metric
        self.best = -1.0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare the new value of the metric with the best value so far."""
        value = float(trainer.callback_metrics[f"val/{self.metric}"])
        if value > self.best and trainer.is_global_zero:
            print(f"step {trainer.global_step}: {self.metric} {value:.4f}")
        self.best = max(self.best, value)
