"""`lrec export` writes any checkpoint as one safetensors file that can recommend; `lrec.load` reads it back.

The file has the network's parameters by name, the raw ids of the catalogue (item_ids: UTF-8 laid end to end;
item_ends: where each id ends), and the items' training interactions (item_counts). Its header has the network's
description as JSON, and a `checksum` of all this, which is verified.
"""

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import torch
from safetensors import safe_open

from lrec.checkpoint.reading import CHECKSUM, STATE, checksum, refuse_damage
from lrec.checkpoint.reading import read as read_checkpoint
from lrec.checkpoint.trained import CATALOGUE, Trained, build_network, items_as_tensors, items_of, trained_in
from lrec.checkpoint.writing import save_tensors
from lrec.common.files import check_writable, replacing, write_json, write_text
from lrec.common.text_tables import counted
from lrec.data.features import vectors_of_file, vocabularies_of
from lrec.errors import UserError, check_range
from lrec.model.config import TransformerConfig
from lrec.model.item_vectors import same_vectors, scaled, vectors_of
from lrec.model.sharded_table import OWN_ROWS, PROJECTION, VECTORS, rows_of_vectors, whole_table
from lrec.options.class_paths import check_trusted
from lrec.run import Run, served
from lrec.serving.card import MARK, card_of
from lrec.serving.recommender import Model


def export(
    ckpt_path: Path, out: Path, k: int = 10, item_vectors: Path | None = None, trust: bool = False, card: bool = False
) -> None:
    """Write a checkpoint as one file: safetensors, with its description as JSON next to it, or ONNX.

    Args:
        ckpt_path: A run's folder (its best checkpoint), a checkpoint (file or folder of shards), or an exported file.
        out: A .safetensors or .onnx file, or a folder for model.safetensors; an existing file is replaced.
        k: Length of the lists that an .onnx file gives.
        item_vectors: File of vectors, or of item features, that also has newer items; see lrec recommend.
        trust: Import classes that the checkpoint names and that are not lrec's own.
        card: Write a model card (.md) next to the file: the data, the test results with baselines, the forecast of the
            run's study, and limits. The checkpoint must be in the folder of its run.
    """
    check_range("--k", k, at_least=1)
    if Path(out).suffix in (".pt", ".pth", ".ckpt", ".bin"):
        raise UserError(f"--out {out}: name a .safetensors or .onnx file, or a folder")
    file = Path(out) if Path(out).suffix in (".safetensors", ".onnx") else Path(out) / "model.safetensors"
    check_writable(file, "--out")
    if not card and (page := file.with_suffix(".md")).is_file() and MARK in page.read_text("utf-8", "replace"):
        raise UserError(f"{page} is the card of an earlier export: write a new one with --card, or remove it")
    beside = {".json": '"n_items"'} if file.suffix == ".safetensors" else {}
    for ending, sign in (beside | ({".md": MARK} if card else {})).items():
        check_writable(other := file.with_suffix(ending), "--out")
        if other.is_file() and sign not in other.read_text("utf-8", "replace"):
            raise UserError(f"{other} is not from lrec export, and would be lost: move it, or choose another --out")
    model = load(ckpt_path, trust, item_vectors=item_vectors)
    step, about_it = model.about["step"], card_of(model, Path(ckpt_path)) if card else None
    if file.suffix == ".onnx":
        from lrec.serving.onnx import write_onnx

        difference = write_onnx(model, file, k)
        print(f"step {step} written to {file}; onnxruntime's scores differ by at most {difference:.1g}")
    else:
        write_safetensors(model, file)
        parameters, ids = sum(each.numel() for each in model.net.parameters()), counted(len(model.item_ids), "item id")
        print(f"{parameters:,} parameters at step {step} and {ids} written to {file}")
    if about_it is not None:
        write_text(file.with_suffix(".md"), about_it)
        print(f"model card written to {file.with_suffix('.md')}")


def write_safetensors(model: Model, file: Path) -> None:
    """Write a network and its item ids as one file, and its description as a JSON file next to it."""
    tensors = {name: tensor.contiguous() for name, tensor in model.net.state_dict().items()}
    tensors |= items_as_tensors(model.item_ids, model.counts_V)
    about = model.about | {"format": 2}
    text = json.dumps(about)
    with replacing(file) as temporary:
        save_tensors(tensors, temporary, {"lrec": text, CHECKSUM: checksum(text, tensors)})
    write_json(file.with_suffix(".json"), about)


def load(
    path: str | Path, trust: bool = False, new_items: bool = True, item_vectors: str | Path | None = None
) -> Model:
    """Load the network and its item ids from an exported file or its folder, from a run's folder (its best checkpoint),
    or from a checkpoint. If the network was trained with item vectors, its item table contains the rows that were made
    from these vectors.

    Args:
        path: The file or folder.
        trust: Import classes that the file names and that are not lrec's own, such as a part of a block.
        new_items: Also load new items, which have a vector but no training interaction. They come after all other
            items.
        item_vectors: A file with the vectors of new items, in place of the file of the training. In this file, the
            items of the catalogue must have the same vectors as in training.

    Raises:
        UserError: The path is none of these; the file is damaged; it names a class that is not trusted.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"the path of a model is expected, such as runs/first, not {type(path).__name__}")
    file = file_of(Path(path))
    stored = read(file, new_items, None if item_vectors is None else Path(item_vectors))
    config = shape_of(stored, file)
    check_trusted(config.to_dict(), trust, path)
    net = build_network(config, stored.parameters, file).eval()
    return Model(net, stored.item_ids, stored.about, stored.counts_V)


def read(path: Path, new_items: bool = True, item_vectors: Path | None = None) -> Trained:
    """Read what `load` needs, without importing any class that the file names."""
    exported = path.suffix == ".safetensors" and path.is_file()
    with refuse_damage(path, "file that lrec export wrote" if exported else "checkpoint that lrec wrote"):
        stored = _read_exported(path) if exported else trained_in(read_checkpoint(path, optimizer=False))
        if not len(stored.item_ids) == stored.item_ids.n_unique() == stored.about["n_items"]:
            raise ValueError("not one id for each item")
        trained_VW = stored.parameters.get(VECTORS)
        if item_vectors is not None:
            told = f"item_vectors {item_vectors}"
            if trained_VW is None:
                raise UserError(f"{told}: {path} was trained without item vectors, give a checkpoint with them")
            if any(each.of == "item" for each in vocabularies_of(stored.about)):
                given = vectors_of_file(item_vectors, stored.about, stored.item_ids)
                vectors_VW, new = scaled(*given, stored.item_ids, slice(None), told)
            else:
                vectors_VW, new = vectors_of(item_vectors, stored.item_ids)
            if not same_vectors(vectors_VW, trained_VW):
                raise UserError(f"{told}: {path} was trained with other vectors for its items")
            stored = stored._replace(new=new)
        return stored if trained_VW is None else _with_table(stored, new_items)


def _with_table(stored: Trained, new_items: bool) -> Trained:
    """The same network with one whole item table, as if it had been trained without vectors."""
    parameters = {name: value for name, value in stored.parameters.items() if not name.startswith("items.")}
    table_VD, ids, counts_V = whole_table(stored.parameters), stored.item_ids, stored.counts_V
    if new_items and stored.new is not None:
        table_VD = torch.cat([table_VD, rows_of_vectors(stored.parameters, stored.new.vectors_NW)])
        ids = pl.concat([ids, stored.new.ids])
        counts_V = None if counts_V is None else np.pad(counts_V, (0, len(stored.new.ids)))
    about = stored.about | {"n_items": len(ids), "vector_width": None, "own_rows": True}
    own_rows = {OWN_ROWS: table_VD.to(stored.parameters[PROJECTION].dtype)}
    return Trained(about, parameters | own_rows, ids, counts_V)


def shape_of(stored: Trained, path: Path) -> TransformerConfig:
    """The shape of the network that was read from `path`; UserError if `path` does not give it."""
    with refuse_damage(path):
        return TransformerConfig.from_dict(stored.about)


def _read_exported(path: Path) -> Trained:
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
    if checksum(metadata["lrec"], tensors) != metadata[CHECKSUM]:
        raise ValueError("not as it was written")
    items = {name: tensors.pop(name) for name in CATALOGUE if name in tensors}
    return Trained(json.loads(metadata["lrec"]), tensors, *items_of(items))


def file_of(path: Path) -> Path:
    """The file that a folder stands for: in a run's folder its best checkpoint, in an update's folder the best of the
    run that it serves, in an exported folder model.safetensors. For other paths, the path itself."""
    if not path.is_dir() or (path / STATE).exists():
        return path
    path = served(path)
    exported, best = path / "model.safetensors", Run(path).best
    if found := next((file for file in (best, exported) if file.exists()), None):  # best may be newer than an export
        return found
    raise UserError(
        f"{path} holds neither model.safetensors (lrec export) nor checkpoints/{best.name}, which lrec fit writes "
        "after its first validation"
    )
