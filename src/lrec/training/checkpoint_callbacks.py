"""Callbacks that save checkpoints: the best, the last (every few steps and on a signal), and the stable one."""

import os
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lrec.checkpoint.writing import IN_BACKGROUND, Anywhere, Saver
from lrec.common.start_stop import TRY_AGAIN, on_signals
from lrec.errors import UserError, check_range
from lrec.evaluation.metrics import Best
from lrec.model.sharded_table import gloo_group
from lrec.run import LAST, Run
from lrec.training.schedule import mode_of, share_of_time, stable_steps
from lrec.training.strategies import saver_of
from lrec.training.tally import ends_step


class BestAndLast(ModelCheckpoint):
    """Lightning's ModelCheckpoint in the run's own folder; it also writes last.ckpt after every evaluation.

    Training continues while a checkpoint is written. A checkpoint that is both the best and the last is written once.
    The name of the monitored metric says whether a high or a low value is the best.
    """

    def __init__(
        self, monitor: str = "val/loss", mode: Best | None = None, dirpath: str | None = None, **options: Any
    ) -> None:
        """Lightning's options; three of them have another meaning.

        Args:
            monitor: Metric that chooses the best checkpoint.
            mode: min or max: whether the lowest or the highest value is the best; null: as the name of the metric says.
            dirpath: null or checkpoints/ in the run's folder, where a run keeps its checkpoints in any case.
            options: The other options of ModelCheckpoint.
        """
        super().__init__(dirpath=dirpath, monitor=monitor, mode=mode_of(monitor, mode, "--checkpoint"), **options)
        name, kept = self.filename, self.save_top_k
        if kept not in (0, 1) and name is not None and "{step" not in name:
            advice = "give --checkpoint.filename best-{step} too, and later commands the path as --ckpt_path"
            raise UserError(f"--checkpoint.save_top_k {kept}: {name}.ckpt can be the name of only one: {advice}")
        if name in ("last", "stable"):
            raise UserError(f"--checkpoint.filename {name}: {name}.ckpt is another checkpoint of the run")
        if self._every_n_train_steps or self._train_time_interval is not None:
            why = "would choose the best checkpoint between evaluations: --last.every_n_steps keeps a recent one"
            raise UserError(f"--checkpoint.every_n_train_steps and train_time_interval {why}")
        self.save_last = bool(self.save_last)  # no symbolic link: one file is both already
        self._saved_step = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        own = os.path.realpath(run_of(trainer).checkpoints)
        if self.dirpath not in (None, own):
            raise UserError(f"--checkpoint.dirpath {self.dirpath}: a run keeps its checkpoints in {own}: use null")
        self.dirpath = own
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best checkpoint so far if it is in this run's folder, even if the folder was renamed."""

        def in_folder(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else ""

        paths = {name: in_folder(path) for name, path in state_dict.items() if name.endswith("_model_path")}
        if os.path.exists(paths["best_model_path"]):
            models = {in_folder(path): score for path, score in state_dict["best_k_models"].items()}
            super().load_state_dict(state_dict | paths | {"dirpath": self.dirpath, "best_k_models": models})

    def _should_save_on_train_epoch_end(self, trainer: Trainer) -> bool:
        """Not in the middle of an epoch, which a resumed run would take for a whole one."""
        return trainer.is_last_batch and super()._should_save_on_train_epoch_end(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Save the end of the time too, if no evaluation follows it."""
        loop = trainer.fit_loop
        if trainer.should_stop and loop._can_stop_early and not loop.epoch_loop._should_check_val_epoch():
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end of the last epoch too, if no evaluation has followed it."""
        if self.monitor in trainer.callback_metrics:  # else Lightning would warn
            super().on_train_epoch_end(trainer, pl_module)
        ends = trainer.global_step == trainer.max_steps or trainer.current_epoch + 1 == trainer.max_epochs
        ends = ends or trainer.should_stop  # of a Timer with interval epoch
        if self._should_save_on_train_epoch_end(trainer) or (ends and trainer.is_last_batch):
            self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last one also if the evaluation is not the best, or is not considered."""
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._save_last(trainer)

    def _save_last(self, trainer: Trainer) -> None:
        if not self._should_skip_saving_checkpoint(trainer):  # as if it is saved already
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save nothing: LastCheckpoint has saved a last step within an epoch while the epoch was still under way."""

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        saver = saver_of(trainer)
        if saver is None:
            super()._save_checkpoint(trainer, filepath)
            return
        if self._saved_step == trainer.global_step:  # the best one is saved, and this is last.ckpt
            saver.link_to(Path(filepath))
        else:
            trainer.save_checkpoint(filepath, self.save_weights_only, IN_BACKGROUND)
        self._saved_step = self._last_global_step_saved = trainer.global_step
        for logger in trainer.loggers if trainer.is_global_zero else []:
            saver.afterwards(partial(logger.after_save_checkpoint, self))


class LastCheckpoint(Callback):
    """Keep RUN/checkpoints/last.ckpt recent, and save before a signal ends the run, and before the rate falls.

    On Ctrl-C, SIGTERM, SIGUSR1 or SIGUSR2 to any process, a run that trains finishes its step, saves and exits with
    code 75. To continue, start the run again with --ckpt_path=last. Before and after the training, a process that gets
    a signal exits at once. If a run stopped early, its checkpoint says so, and the resumed run stops too.

    With `optimizer.decay wsd` and a limit of steps or epochs, RUN/checkpoints/stable.ckpt is saved at the last step
    before the rate falls. A longer run can continue from it as if it had trained from the start.
    """

    def __init__(self, every_n_steps: int = 1000) -> None:
        """Choose how much training an interruption may lose.

        Args:
            every_n_steps: Save after this many steps, and at each evaluation; 0 for evaluations only.
        """
        check_range("last.every_n_steps", every_n_steps, at_least=0)
        self.every_n_steps = every_n_steps
        self._signalled = self._fits = self._training = self._leaves = False
        self._saved_step = 0
        self._to_save: list[Path] = []
        self._told_anywhere = Anywhere()
        self._listening = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen for signals in place of Lightning, whose handlers save nothing and wait for other processes."""
        self._fits = self._fits or stage == "fit"
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        self._listening.close()
        self._listening.enter_context(on_signals(partial(self._note, trainer)))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on, signals and evaluations wait for the end of an optimizer step: both save a checkpoint."""
        self._training = True
        between, epoch, step = trainer.val_check_batch, trainer.fit_loop.max_batches, trainer.accumulate_grad_batches
        if isinstance(between, int) and between != epoch:
            whole = -(-between // step) * step
            trainer.val_check_batch = whole if between > epoch else min(whole, epoch)
        self._saved_step = trainer.global_step
        self._saver = saver_of(trainer) or Saver()  # which has nothing to do if Lightning itself writes
        self._stable_steps = stable_steps(trainer) if share_of_time(trainer) is None else None
        if trainer.world_size > 1:
            self._told_anywhere = Anywhere(gloo_group())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Leave after the step of a signal or the evaluation that followed it, once its figures are logged."""
        if self._leaves:
            self._saver.join()
            self._leave(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not ends_step(trainer, batch_idx):
            return
        self._saver.poll()
        interrupted = self._told_anywhere.last_time(self._signalled)
        step = trainer.global_step
        due = step == trainer.max_steps or 0 < self.every_n_steps <= step - self._saved_step
        # If an evaluation follows, do not save before it: a run that resumes from here would skip the evaluation. If
        # the epoch ends, save after it: Lightning would count its batches to the next epoch.
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        follows = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        self._leaves = bool(interrupted)
        if step == self._stable_steps and not follows:
            self._to_save.append(run_of(trainer).stable)
        if (interrupted or due) and not follows:
            self._saved_step = step
            self._to_save += _last_paths(trainer)
        if not trainer.is_last_batch:
            self.on_train_epoch_end(trainer)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        while self._to_save:
            _save(trainer, self._to_save.pop(0))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._training and trainer.global_step == self._stable_steps:
            _save(trainer, run_of(trainer).stable)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the last save. Exit if a signal came during the last evaluation: the next start runs the test."""
        self._saver.join()
        if self._told_anywhere.now(self._signalled):  # also keeps all from the test until the first has saved
            self._leave(trainer)
        self._training = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Record whether the run has stopped early; the end of its time does not count, as it may get more time."""
        checkpoint["lrec_stopped"] = trainer.should_stop and share_of_time(trainer) != 1

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        trainer.should_stop = checkpoint.get("lrec_stopped", False)  # after a test, for the advice

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: Any) -> None:
        self._listening.close()
        self._training = False

    on_exception = teardown  # type: ignore[assignment]

    def _note(self, trainer: Trainer, *_: Any) -> None:
        self._signalled = True
        if not self._training:  # there is nothing to save
            self._leave(trainer)

    def _leave(self, trainer: Trainer) -> None:
        if trainer.is_global_zero and not self._fits:
            print("\nlrec: interrupted", file=sys.stderr)
        elif trainer.is_global_zero:
            way_on = "; go on with --ckpt_path=last" if _last_paths(trainer) else ""
            print(f"\nlrec: interrupted at step {trainer.global_step}{way_on}", file=sys.stderr)
            run_of(trainer).write_end("interrupted")
        if self._training:
            self._told_anywhere.now(True)  # no process ends before the first has written
        # Only the first exits with 75: Lightning kills it as soon as a process that it has started fails.
        sys.exit(TRY_AGAIN if trainer.strategy.launcher is None or trainer.is_global_zero else 0)


def run_of(trainer: Trainer) -> Run:
    return Run(Path(trainer.default_root_dir))


def best_of(trainer: Trainer) -> ModelCheckpoint | None:
    """The callback that keeps the best checkpoint: lrec's own if there is one, else the first of the user's."""
    return next(iter(_keepers(trainer)), None)


def _keepers(trainer: Trainer) -> list[ModelCheckpoint]:
    kept = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    return [callback for callback in kept if isinstance(callback, BestAndLast)] or kept


def _save(trainer: Trainer, path: Path) -> None:
    """Save a checkpoint, in the background if lrec writes the file."""
    trainer.save_checkpoint(path, storage_options=None if saver_of(trainer) is None else IN_BACKGROUND)


def _last_paths(trainer: Trainer) -> list[Path]:
    """Where the run keeps its last checkpoint; nowhere with --checkpoint.save_last=false."""
    return [Path(each.dirpath) / LAST for each in _keepers(trainer) if each.save_last and each.dirpath][:1]
