"""A trained network as an ONNX file: histories in, scores and the best items out, for any runtime without PyTorch.

docs/recommend.md describes its inputs, outputs and metadata. A row gets nan as scores and no items if its length is not
possible, or if within this length an item is no catalogue index or an event has no type. With features of events or
users, `Model.event_codes` makes the input events; -1 means that a value has no row.

Needs the extra `onnx`: pip install "lrec[onnx]".
"""

import json
import logging
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrec.common.files import replacing
from lrec.errors import UserError
from lrec.model.sharded_table import Shard, Table, all_scores
from lrec.model.transformer import Transformer
from lrec.serving.recommender import Model

INPUTS = ("items", "lengths", "times", "events")  # a network has the last two only if it reads them
OUTPUTS = ("scores", "top_items", "top_scores")
LARGEST = 2**31 - 2**27  # ONNX is a protocol buffer, which holds less than 2 GiB
TOLERANCE = 1e-4


class HistoryScores(nn.Module):
    """What the ONNX file computes. B histories, L positions, T = L + 1 times, D width, V catalogue, K list length."""

    def __init__(self, net: Transformer, k: int) -> None:
        super().__init__()
        self.net, self.k = net, k

    def forward(
        self, items_BL: Tensor, lengths_B: Tensor, times_BT: Tensor | None = None, events_BL: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The scores of all items, the best items that are not in the row, and the scores of these."""

        def head(hidden_BLD: Tensor, table: Table) -> Tensor:
            last_B1D = last_B[:, None, None].expand(-1, 1, hidden_BLD.shape[2])
            if isinstance(table, Shard) and table.added is not None:
                flat_B = last_B + torch.arange(items_BL.shape[0]) * items_BL.shape[1]
                table = replace(table, added=table.added.rows(flat_B))
            return all_scores(hidden_BLD.gather(1, last_B1D).squeeze(1), table)

        most = self.net.config.n_items - 1
        real_BL = torch.arange(items_BL.shape[1])[None] < lengths_B[:, None]
        known_BL = (items_BL >= 0) & (items_BL <= most)
        if events_BL is not None:
            last_type, least = self.net.config.event_types - 1, 0 if events_BL.ndim == 2 else -1
            fits = (events_BL >= least) & (events_BL <= last_type)
            known_BL = known_BL & (fits if events_BL.ndim == 2 else fits.all(2))
            events_BL = events_BL.clamp(least, last_type)
        fits_B1 = ((real_BL.sum(1) == lengths_B) & (lengths_B > 0) & (known_BL | ~real_BL).all(1))[:, None]
        items_BL, last_B = items_BL.clamp(0, most), (real_BL.sum(1) - 1).clamp(min=0)
        scores_BV = self.net(items_BL, head, times_BT=times_BT, events_BL=events_BL).where(fits_B1, math.nan)
        seen_BL = torch.where(real_BL, -math.inf, math.inf)
        unseen_BV = torch.full_like(scores_BV, math.inf).scatter_reduce(1, items_BL, seen_BL, "amin")
        top_BK = torch.minimum(scores_BV, unseen_BV).topk(self.k)
        listed_BK = fits_B1 & (top_BK.values != -math.inf)
        return scores_BV, top_BK.indices.where(listed_BK, -1), top_BK.values.where(fits_B1, math.nan)


def write_onnx(model: Model, file: Path, k: int) -> float:
    """Write the file and run it; returns its largest difference from PyTorch's scores. UserError if the extra is not
    installed, or if the network does not fit into one file."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise UserError(f'--out {file}: ONNX files need an extra: pip install "lrec[onnx]" ({error})') from None
    net = model.net.float().cpu()
    size = sum(parameter.numel() * parameter.element_size() for parameter in net.parameters())
    if size > LARGEST:
        raise UserError(f"--out {file}: {size / 2**30:.1f} GiB of parameters; an ONNX file holds less than 2")
    computes = HistoryScores(net, min(k, len(model.item_ids))).eval()
    longest, with_features = net.config.max_len, bool(model.features)
    columns = (2,) * with_features  # of the input events: a type alone has no such dimension
    given = _histories(net, 2, min(longest, 3), columns)  # torch.export takes one row or position for a constant
    batch = torch.export.Dim("batch", min=1)
    shapes: dict[str, dict[int, Any]] = {name: {0: batch} for name in INPUTS}
    if longest > 1:
        length = torch.export.Dim("length", min=1, max=longest)
        shapes |= {"items": {0: batch, 1: length}, "events": {0: batch, 1: length}, "times": {0: batch, 1: length + 1}}
    if with_features:  # a list may have more values than any list of the training
        shapes["events"] = shapes["events"] | {2: torch.export.Dim("columns", min=1)}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that lrec does not need
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            computes,
            tuple(map(given.get, INPUTS)),
            input_names=list(given),
            output_names=OUTPUTS,
            dynamic_shapes=tuple(shapes[name] if name in given else None for name in INPUTS),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["item_ids"] = json.dumps(model.item_ids.to_list())
    program.model.metadata_props["lrec"] = json.dumps(model.about)
    given = _histories(net, 5, longest, columns)
    with replacing(file) as temporary, torch.inference_mode():
        program.save(temporary, external_data=False)
        session = onnxruntime.InferenceSession(temporary, providers=["CPUExecutionProvider"])
        (scores_BV,) = session.run(["scores"], {name: values.numpy() for name, values in given.items()})
        difference = float(np.abs(scores_BV - computes(*map(given.get, INPUTS))[0].numpy()).max())
        if not difference <= TOLERANCE:
            raise AssertionError(f"the ONNX file's scores differ by {difference} from PyTorch's")
    return difference


def _histories(net: Transformer, rows: int, length: int, columns: tuple[int, ...]) -> dict[str, Tensor]:
    random, shape = np.random.default_rng(0), (rows, length)
    given = {"items": random.integers(net.config.n_items, size=shape)}
    given["lengths"] = random.integers(1, length, size=rows, endpoint=True)
    if net.reads_times:
        given["times"] = random.integers(0, 2**20, size=(rows, length + 1)).cumsum(1)
    if net.reads_events:
        given["events"] = random.integers(net.config.event_types, size=(*shape, *columns))
    return {name: torch.from_numpy(values) for name, values in given.items()}
