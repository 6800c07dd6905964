"""What TensorBoard shows of a run besides its curves: its row in the table of runs, and its items in the projector."""

from pathlib import Path

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from lrec import checkpoints
from lrec.callbacks import OF_BEST
from lrec.data.titles import read_titles
from lrec.errors import UserError
from lrec.files import replacing, write_text
from lrec.interruption import best_of
from lrec.module import SequentialRecommender
from lrec.run import Run

COMPARED = (
    *(f"scaling/best/{name}" for name in OF_BEST),
    *("test/loss", "test/NDCG@10", "test/NDCG@10_unseen", "test/HR@10_unseen"),
)


class RunTable(Callback):
    """A row for the run in TensorBoard's HPARAMS: the options of model and data, with the metrics of val and test."""

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the options in config.yaml; TensorBoard takes the metrics from the curves of the same names."""
        run = Run(Path(trainer.default_root_dir))
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not run.config_file.is_file() or not loggers:
            return
        options = {
            name: value if value is None or isinstance(value, bool | int | float | str) else str(value)
            for name, value in run.config.flat.items()
            if name.startswith(("model.", "data."))
        }
        for summary in hparams(options, dict.fromkeys(COMPARED)):
            loggers[0].experiment.file_writer.add_summary(summary)


class ItemProjector(Callback):
    """Write the best checkpoint's most popular items for TensorBoard's PROJECTOR: embedding, title, count, domain."""

    def __init__(
        self,
        items: int = 10_000,
        titles: Path | None = None,
        title_item_column: str | None = None,
        title_column: str = "title",
    ) -> None:
        """Choose what is shown.

        Args:
            items: Number of items, the most popular ones; 0 for none.
            titles: File with a title per item (CSV, TSV, JSON lines, Parquet, or MovieLens's movies.dat).
            title_item_column: Its column of item ids; the first one by default.
            title_column: Its column of titles.
        """
        if items < 0:
            raise UserError(f"projector.items must be at least 0, not {items}")
        self.items = items
        self.names = None if titles is None else read_titles(titles, title_item_column, title_column)

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write RUN/projector/ and RUN/projector_config.pbtxt, which names it."""
        kept = best_of(trainer)
        best = "" if kept is None else kept.best_model_path
        if self.items == 0 or not best:
            return
        assert isinstance(pl_module, SequentialRecommender)
        run = Path(trainer.default_root_dir)
        table = pl_module.data.item_table()
        table = table.sort("count", "item", descending=[True, False]).head(self.items)
        parameters = checkpoints.trained(checkpoints.read(Path(best), optimizer=False)).parameters
        vectors = parameters["items.weight"].float().numpy()[table["item"].to_numpy()]
        shown = table.select("raw_id", "count", "domain").rename({"raw_id": "item"})
        if self.names is not None:
            shown = shown.join(self.names, on="item", how="left", maintain_order="left")
        shown = shown.select(column for column in shown if not column.is_null().all())
        # Each row must be one line of the file, whatever a title contains.
        plain = [" ".join(str(value if value is not None else "").split()) for row in shown.rows() for value in row]
        lines = ["\t".join(plain[i : i + shown.width]) for i in range(0, len(plain), shown.width)]
        write_text(run / "projector" / "items.tsv", "\n".join(["\t".join(shown.columns), *lines]) + "\n")
        with replacing(run / "projector" / "vectors.bytes") as temporary:
            np.ascontiguousarray(vectors).tofile(temporary)
        write_text(
            run / "projector_config.pbtxt",
            "embeddings {\n"
            '  tensor_name: "items"\n'
            '  tensor_path: "projector/vectors.bytes"\n'
            f"  tensor_shape: {vectors.shape[0]}\n  tensor_shape: {vectors.shape[1]}\n"
            '  metadata_path: "projector/items.tsv"\n'
            "}\n",
        )
