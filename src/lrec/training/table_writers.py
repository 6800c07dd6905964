"""Callbacks that write a table into a run's folder, batch by batch: the lists of `predict`, the targets of `test`.

Shape suffix: M targets of a batch.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import polars as pl
from lightning.pytorch import LightningModule, Trainer

from lrec.common.files import replacing, temporary
from lrec.common.text_tables import counted
from lrec.data.batching.eval_batches import EvalBatch, EvalBatches
from lrec.data.splits.rules import Targets
from lrec.errors import UserError
from lrec.training.callbacks import Announcer
from lrec.training.checkpoint_callbacks import run_of
from lrec.training.module import recommender

ROW_GROUP = 1024  # rows in memory at once while the tables of all batches become one file


class TableWriter(Announcer):
    """Write a table, batch by batch, to RUN/NAME.parquet; with several ranks, each writes its own NAME.RANK.parquet."""

    NAME, ROW = "", ""  # of the file, and what a row is

    def __init__(self) -> None:
        self._unfinished = ExitStack()

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._path = run_of(trainer).table_file(self.NAME, trainer.global_rank if trainer.world_size > 1 else None)
        self._batches: list[Path] = []
        self._rows = 0
        self._folder = self._unfinished.enter_context(temporary(self._path.with_suffix(".batches")))
        self._folder.mkdir()

    def add(self, table: pl.DataFrame) -> None:
        self._batches.append(self._folder / f"{len(self._batches)}.parquet")
        table.write_parquet(self._batches[-1])
        self._rows += len(table)

    def end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with self._unfinished, replacing(self._path) as whole:
            pl.scan_parquet(self._batches, glob=False).sink_parquet(whole, row_group_size=ROW_GROUP)
        if trainer.is_global_zero:  # files that another number of processes wrote are not of this table
            run, ranks = run_of(trainer), range(trainer.world_size) if trainer.world_size > 1 else (None,)
            ours = {run.table_file(self.NAME, rank) for rank in ranks}
            for file in {run.table_file(self.NAME), *run.folder.glob(f"{self.NAME}.[0-9]*.parquet")} - ours:
                file.unlink(missing_ok=True)
        self.message = f"{counted(self._rows, self.ROW)} written to {self._path}"

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._unfinished.close()


class PredictionWriter(TableWriter):
    """Write the lists of predict to RUN/predictions.parquet: user, items and scores (best first), a row per user."""

    NAME, ROW = "predictions", "user"
    on_predict_start, on_predict_end = TableWriter.begin, TableWriter.end

    def on_predict_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, *of_batch: Any) -> None:
        self.add(outputs.cast({"scores": pl.List(pl.Float64)}))


class TargetWriter(TableWriter):
    """Write what a test finds for each target to RUN/targets.parquet, in place of averages: for paired comparisons of
    two models, and for metrics of some users or items.

    The columns are user and item (raw ids), position (the number of the user's interactions before the target), loss
    (null if the item is outside the catalogue), rank and rank_unseen (infinite for a miss; rank_unseen leaves out the
    items of the history), and seen (whether the item is in the history; null outside the catalogue).
    """

    NAME, ROW = "targets", "target"
    on_test_end = TableWriter.end

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """UserError if a target is a set of items, which has no rank of its own."""
        if recommender(pl_module).data.has_sets("test"):
            what = "targets are sets of items, without a rank"
            raise UserError(f"lrec.TargetWriter: with data.split.targets window, {what}")
        self.begin(trainer, pl_module)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: EvalBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        batches = cast(EvalBatches, cast(Any, trainer.test_dataloaders).dataset)
        chosen_M, _ = batches.batches[batch_idx * trainer.world_size + trainer.global_rank]
        targets, store = Targets(*(each[chosen_M] for each in batches.targets)), batches.split.store
        items_M = store.items_N[batches.split.rows_of(targets)]
        loss_M, rank_M, unseen_M = (outputs[name].cpu().numpy() for name in ("loss_B", "rank_B", "rank_unseen_B"))
        columns = {
            "user": store.raw_user_ids.gather(targets.users_T),
            "item": store.item_table["raw_id"].gather(items_M),
            "position": targets.positions_T,
            "loss": pl.Series(loss_M).fill_nan(None),
            "rank": rank_M,
            "rank_unseen": unseen_M,
        }
        seen = pl.when(pl.col("rank").is_finite()).then(pl.col("rank_unseen").is_infinite())
        self.add(pl.DataFrame(columns).with_columns(seen=seen).filter(batch.weights_M.cpu().numpy() > 0))
