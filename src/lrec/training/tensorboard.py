"""What TensorBoard shows of a run: train/ and val/ first, its row in the table of runs, its items in the projector."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch.utils.tensorboard.summary import hparams

from lrec.checkpoint.reading import read
from lrec.checkpoint.trained import trained_in
from lrec.common.files import replacing, write_text
from lrec.data.formats.readers import read_titles
from lrec.errors import check_range
from lrec.model import cost
from lrec.model.sharded_table import whole_table
from lrec.training.checkpoint_callbacks import best_of, run_of
from lrec.training.module import recommender

# The curves that TensorBoard shows first.
FIRST = ("train/loss", "train/lr", "val/loss", "val/NDCG@10", "val/HR@10", "val/coverage@10")
# Prefix of all other curves. TensorBoard opens the first two groups in alphabetical order; this is the third.
REST = "various/"
# The figures in the table of runs, the most important ones first.
COMPARED = (
    *("scaling/best/val/loss", "test/loss", "test/NDCG@10", "test/HR@10"),
    *("test/NDCG@10_unseen", "test/HR@10_unseen", "scaling/best/val/NDCG@10_unseen"),
)


def tag_of(name: str) -> str:
    return name if name in FIRST else f"{REST}{name}"


class RunLogger(TensorBoardLogger):
    """Writes the curves of a run into its folder. Only here, curves that are not in `FIRST` get the prefix `REST`."""

    def __init__(self, folder: str) -> None:
        super().__init__(folder, name="", version="", default_hp_metric=False)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({tag_of(name): value for name, value in metrics.items()}, step)


class RunTable(Callback):
    """A row for the run in TensorBoard's HPARAMS: the options, with the metrics of val and test."""

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the options; TensorBoard takes the metrics from the curves of the same names."""
        run = run_of(trainer)
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not run.config_file.is_file() or not loggers:
            return
        model, options = recommender(pl_module), run.config.flat
        leading = {
            "N_body": cost.n_body(model.config),
            "N_total": cost.n_total(model.config),
            "lr": options.get("model.optimizer.lr"),
            "dropout": max((rate for name, rate in options.items() if name.startswith("model.dropout.")), default=None),
            "epochs": None if trainer.max_epochs == -1 else trainer.max_epochs,
        }
        others = {name: value for name, value in options.items() if name.startswith(("model.", "data."))}
        plain = bool | int | float | str | None
        columns = {name: v if isinstance(v, plain) else str(v) for name, v in (leading | others).items()}
        summaries = hparams(columns, dict.fromkeys(map(tag_of, COMPARED)))
        # TensorBoard begins with columns that are marked as different between runs, and at first shows at most five.
        plugin = summaries[0].value[0].metadata.plugin_data
        content = HParamsPluginData.FromString(plugin.content)
        for column in content.experiment.hparam_infos:
            column.differs = column.name in leading
        plugin.content = content.SerializeToString()
        for summary in summaries:
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
        """Choose the items and their titles.

        Args:
            items: Number of items (the most popular items); 0 for none.
            titles: File with a title of each item (CSV, TSV, JSON lines, Parquet, or MovieLens's movies.dat).
            title_item_column: Column of item ids in this file; by default the first column.
            title_column: Column of titles in this file.
        """
        check_range("projector.items", items, at_least=0)
        self.items = items
        self.names = None if titles is None else read_titles(titles, title_item_column, title_column)

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write RUN/projector/ and RUN/projector_config.pbtxt, which names it."""
        kept, folder = best_of(trainer), run_of(trainer).folder
        if self.items == 0 or kept is None or not kept.best_model_path:
            return
        items = recommender(pl_module).data.item_table()
        table = items.sort("count", "item", descending=[True, False]).head(self.items)
        parameters = trained_in(read(Path(kept.best_model_path), optimizer=False, verify=False)).parameters
        vectors = whole_table(parameters).float().numpy()[table["item"].to_numpy()]
        shown = table.select("raw_id", "count", "domain").rename({"raw_id": "item"})
        if self.names is not None:
            shown = shown.join(self.names, on="item", how="left", maintain_order="left")
        shown = shown.select(column for column in shown if not column.is_null().all())
        # Each row must be one line of the file, whatever a title contains.
        text = pl.all().cast(pl.String).fill_null("").str.replace_all(r"\s+", " ").str.strip_chars()
        with replacing(folder / "projector" / "items.tsv") as temporary:
            shown.select(text).write_csv(temporary, separator="\t", quote_style="never")
        # SummaryWriter.add_embedding would write text, which is five times as large and takes a hundred times as long.
        with replacing(folder / "projector" / "vectors.bytes") as temporary:
            np.ascontiguousarray(vectors).tofile(temporary)
        config = ProjectorConfig()
        shown_by = config.embeddings.add(tensor_name="items", tensor_shape=vectors.shape)
        shown_by.tensor_path, shown_by.metadata_path = "projector/vectors.bytes", "projector/items.tsv"
        write_text(folder / "projector_config.pbtxt", str(config))
