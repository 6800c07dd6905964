"""Callbacks that write the files of a run, such as points.jsonl and metrics.json; they do not change its training."""

import json
import math
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lrec.common.files import commit_of, replacing, write_json
from lrec.common.text_tables import counted, lasting
from lrec.evaluation.evaluator import evaluation_table, verdict
from lrec.model import cost
from lrec.run import Point, Run, RunConfig
from lrec.training.checkpoint_callbacks import best_of, run_of
from lrec.training.module import SequentialRecommender, recommender
from lrec.training.schedule import ENDLESS, phase, schedule_steps
from lrec.training.strategies import precision_of

# Figures of the best evaluation, for TensorBoard's scaling/best/: the curves of val/ end with the last evaluation.
OF_BEST = ("val/loss", "val/NDCG@10_unseen")


class RunFiles(Callback):
    """Write RUN/config.yaml and RUN/items.parquet before the first step. By then the checkpoint is loaded, so that a
    refused run leaves its folder unchanged. This is the first callback of a run."""

    def __init__(self, options: dict[str, Any], loggers: list[Logger], alone: ExitStack) -> None:
        """Take all options of the run, its loggers, and `alone`, which holds the lock on its folder until fit ends."""
        self.config, self.loggers, self.alone = RunConfig(options), loggers, alone

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the loggers only now: Lightning creates the files of loggers just before this hook."""
        if self.loggers:
            trainer.loggers = self.loggers

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files; UserError if another process trains the same run."""
        run = run_of(trainer)
        self.alone.enter_context(run.alone())
        run.ended_file.unlink(missing_ok=True)
        run.write_config(self.config)
        with replacing(run.items_file) as temporary:
            recommender(pl_module).data.item_table().write_parquet(temporary)


class ScalingPoints(Callback):
    """Write a line to RUN/points.jsonl at every evaluation, and the same numbers under scaling/ in TensorBoard.

    When lrec tests the best checkpoint after fit, its point is marked best and gets the test loss and metrics.
    """

    def __init__(
        self, study: str | None = None, run: str | None = None, horizon: float | None = None, test: bool = True
    ) -> None:
        """Name the points.

        Args:
            study: Name of the study that the run belongs to.
            run: Name of the run; the run folder's name by default.
            horizon: Share of the whole training that this run has, if a study has horizons.
            test: Whether the best checkpoint is tested after fit.
        """
        self.study, self.run, self.horizon, self.test = study, run, horizon, test
        self.points: list[Point] = []
        self.started = self.spent_s = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a point, except from the sanity check, from `lrec validate`, and from a second evaluation after the same
        step: the last one, if time ends before the next step."""
        model = recommender(pl_module)
        again = bool(self.points) and self.points[-1].D == model.D
        if trainer.sanity_checking or trainer.state.fn != "fit" or again:
            return
        self.points.append(self._point(trainer, model))
        shown = ("N_body", "N_head", "N_total", "D", "U", "epochs", "flops", "train_loss", "val_loss")
        _log(trainer, {name: getattr(self.points[-1], name) for name in shown}, trainer.global_step)
        rank_zero_only(run_of(trainer).write_points)(self.points)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how the run ended, also if it diverged before the first evaluation."""
        model, keeper = recommender(pl_module), best_of(trainer)
        status = "diverged" if model.diverged else "finished"
        if model.diverged and not self.points:
            self.points = [replace(self._point(trainer, model), val_loss=None, metrics={})]
        # The points of a run that this one continues may be better than the best checkpoint, which is this run's own.
        score = getattr(keeper, "best_model_score", None)
        sign = -1 if getattr(keeper, "mode", "min") == "max" else 1
        figures = [point.metric(getattr(keeper, "monitor", None) or "val/loss") for point in self.points]
        order = [sign * figure if score is None else abs(figure - float(score)) for figure in figures]
        order = [math.inf if math.isnan(value) else value for value in order]
        best = None if self.test or not order else order.index(min(order))
        self.points = [replace(point, status=status, best=i == best) for i, point in enumerate(self.points)]
        rank_zero_only(run_of(trainer).write_points)(self.points)

    def _point(self, trainer: Trainer, model: SequentialRecommender) -> Point:
        run, data, config, metrics = run_of(trainer), model.data, model.config, _prefixed("val", model)
        return Point(
            **self._named(run),
            size=model.size,
            n_layers=config.layers,
            d_model=config.width,
            n_heads=config.heads,
            N_body=cost.n_body(config),
            N_head=cost.n_head(config),
            N_total=cost.n_total(config),
            D=model.D,
            U=data.U,
            epochs=model.D / data.U,
            flops=model.flops,
            step=trainer.global_step,
            train_loss=_finite(model.train_loss),
            val_loss=metrics.get("val/loss"),
            metrics=metrics,
            selected_on=getattr(best_of(trainer), "monitor", None),
            lr_phase=phase(trainer),
            status="diverged" if model.diverged else "running",
            seed=data.seed,
            precision=precision_of(trainer),
            world_size=trainer.world_size,
            wall_s=round(self._wall_s(), 3),
            floor=data.floor,
            data_hash=data.data_hash,
            config_hash=run.config_hash,
            commit=_commit(),
        )

    def _named(self, run: Run) -> dict[str, Any]:
        return {"study": self.study, "run": self.run or run.name, "horizon": self.horizon}

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After fit, mark the point of the tested checkpoint as the best."""
        if not self.points:
            return
        model = recommender(pl_module)
        test_loss, figures = _finite(model.evaluations["test"]["loss"]), _prefixed("test", model)
        for place, point in enumerate(self.points):
            if best := point.D == model.D:
                point = replace(point, test_loss=test_loss, metrics=point.metrics | figures)
                of_best = {f"best/{name}": point.metrics.get(name) for name in OF_BEST}
                _log(trainer, {"test_loss": test_loss, **of_best}, point.step)
            self.points[place] = replace(point, best=best)
        rank_zero_only(run_of(trainer).write_points)(self.points)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        points = json.dumps([point.to_dict() for point in self.points])
        checkpoint["lrec_points"] = {"points": points, "spent_s": self._wall_s()}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take over the points of the run that this one resumes or continues; a test keeps those of the fit."""
        if trainer.state.fn == "fit" and (stored := checkpoint.get("lrec_points")):
            mine = self._named(run_of(trainer))
            self.points = [Point(**point | mine) for point in json.loads(stored["points"])]
            self.spent_s = stored["spent_s"]

    def _wall_s(self) -> float:
        return self.spent_s + time.monotonic() - self.started


class Progress(Callback):
    """Write to RUN/progress every few seconds which step or batch a fit has reached, and how much time is left."""

    TELL_S = 5.0  # seconds between two updates
    _told = 0.0  # time of the last update
    _from: tuple[float, int] | None = None  # time and number of the first step of this attempt

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._from = self._from or (time.monotonic(), trainer.global_step)
        if self._is_due(trainer):
            (began, first), step, steps = self._from, trainer.global_step, schedule_steps(trainer)
            doing = f"training: step {step:,}" + (f" of {steps:,}" if steps < ENDLESS else "")
            if first < step and steps < ENDLESS:
                left = (time.monotonic() - began) * (steps - step) / (step - first)
                doing += f", at most {lasting(left)} left"
            run_of(trainer).write_progress(doing)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._from is not None and self._is_due(trainer):
            doing = "testing" if trainer.testing else "evaluating"
            batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
            run_of(trainer).write_progress(f"{doing}: batch {batch_idx + 1:,} of {sum(batches):,}")

    on_test_batch_end = on_validation_batch_end

    def _is_due(self, trainer: Trainer) -> bool:
        if due := trainer.is_global_zero and time.monotonic() >= self._told + self.TELL_S:
            self._told = time.monotonic()
        return due


class Announcer(Callback):
    """Print a message once the progress bar is closed."""

    message: str | None = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.message is not None:
            print(self.message)
        self.message = None


class EvaluationReport(Announcer):
    """After each test or validate, print the metrics of model and baselines, and write them to RUN/metrics.json."""

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if is_partial(trainer, "val"):
            given = f"--trainer.limit_val_batches {trainer.limit_val_batches}"
            print(f"{given}: the first users alone choose the best checkpoint")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._report("val", trainer, recommender(pl_module))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report("test", trainer, recommender(pl_module))

    @rank_zero_only
    def _report(self, stage: str, trainer: Trainer, model: SequentialRecommender) -> None:
        figures = {scorer.partition("/")[2] or "model": row for scorer, row in _of_stage(stage, model).items()}
        floor = (model.data.floor or {}).get(stage)
        table = evaluation_table(stage, figures, floor, model.metrics)
        trained = counted(model.D / model.data.U, "epoch")
        self.message = f"{trainer.ckpt_path or 'the network'}, after {trained}\n{table}"
        if is_partial(trainer, stage):
            limit = getattr(trainer, f"limit_{stage}_batches")
            self.message += f"\nthese figures are of the first users only: --trainer.limit_{stage}_batches is {limit}"
        if outside := int(figures["model"]["targets_outside_catalogue"]):
            named = counted(outside, "target")
            self.message += f"\n{named} outside the catalogue: left out of the loss, counted as misses in the ranking"
        monitor = getattr(best_of(trainer), "monitor", None) or "val/loss"
        before = [point.metric(monitor) for point in run_of(trainer).points]
        if line := verdict(figures, monitor, before, model.metrics, trainer.should_stop):
            self.message += f"\n{line}"
        _, sample = model.data.evaluated(stage)
        written = {
            "stage": stage,
            **({} if sample is None else {"users": sample[0], "users_in_all": sample[1]}),
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "D": model.D,
            "floor": floor,
            **{scorer: {name: _finite(value) for name, value in row.items()} for scorer, row in figures.items()},
            "data": model.data.described,
            "data_hash": model.data.data_hash,
            "config_hash": run_of(trainer).config_hash,
            "commit": _commit(),
        }
        write_json(run_of(trainer).metrics_file, written)


def is_partial(trainer: Trainer, stage: str) -> bool:
    """Whether a limit of batches leaves out some users of a stage, val or test."""
    batches, loader = getattr(trainer, f"num_{stage}_batches"), getattr(trainer, f"{stage}_dataloaders")
    return loader is not None and sum(batches) < len(loader)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _of_stage(stage: str, model: SequentialRecommender) -> dict[str, dict[str, float]]:
    """The figures of one stage: the model's by `stage`, the baselines' by `stage/baseline`."""
    return {scorer: row for scorer, row in model.evaluations.items() if scorer.partition("/")[0] == stage}


def _prefixed(stage: str, model: SequentialRecommender) -> dict[str, float | None]:
    rows = _of_stage(stage, model).items()
    return {f"{scorer}/{name}": _finite(value) for scorer, row in rows for name, value in row.items()}


def _log(trainer: Trainer, numbers: dict[str, float | None], step: int) -> None:
    for logger in trainer.loggers:
        logger.log_metrics({f"scaling/{name}": v for name, v in numbers.items() if v is not None}, step=step)


@cache
def _commit() -> str | None:
    """Commit of the running lrec checkout; None if lrec was not installed from a checkout."""
    here = Path(__file__).resolve()
    # A site-packages folder inside somebody's repository is not a checkout of lrec: its commits lack this file.
    return commit_of(here.parent, here.name)
