"""`lrec fit` that starts from a network trained on a smaller catalogue."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import lrec as package


def logs(folder: Path) -> tuple[Path, Path]:
    """A log over items 0..29, and a later one over 3..35, in both of which an item is followed by the next one."""
    random = np.random.default_rng(0)
    paths = []
    for name, first, last in (("early", 0, 30), ("late", 3, 36)):
        lines = ["user,item,time"]
        for user in range(200):
            item = int(random.integers(first, last))
            for step in range(12):
                lines.append(f"u{user},i{item},{1_600_000_000 + step}")
                item = first + (item + 1 - first) % (last - first)
        paths.append(folder / f"{name}.csv")
        paths[-1].write_text("\n".join(lines) + "\n")
    return paths[0], paths[1]


def arguments(log: Path, run: Path, **changed: object) -> list[str]:
    options = {
        "data.path": log,
        "data.data_dir": run.parent / "stores",
        "data.max_len": 12,
        "data.targets_per_step": 128,
        "model.size": "3k",
        "model.optimizer.lr": 0.01,
        "model.parametrisation": "standard",
        "trainer.max_epochs": 4,
        "trainer.enable_progress_bar": "false",
        "trainer.default_root_dir": run,
    } | {name.replace("__", "."): value for name, value in changed.items()}
    return [
        "fit",
        "--config=data/csv.yaml",
        "--config=trainer/laptop.yaml",
        *(f"--{n}={v}" for n, v in options.items()),
    ]


@pytest.fixture(scope="module")
def early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the early log."""
    from lrec.cli import main

    folder = tmp_path_factory.mktemp("grown")
    main(arguments(logs(folder)[0], folder / "early"))
    return folder / "early"


def test_rows_are_kept_by_raw_id_and_new_ones_begin_near_their_mean(early: Path, lrec: Callable[..., str]) -> None:
    run = early.parent / "still"
    late = early.parent / "late.csv"
    printed = lrec(*arguments(late, run, model__warm_start=early, model__optimizer__lr=1e-12, trainer__max_epochs=1))
    assert "27 items kept, 6 new, 3 gone" in printed
    old, grown = package.load(early), package.load(run)
    rows = dict(zip(old.item_ids, old.net.items.weight.detach(), strict=True))
    mean = old.net.items.weight.detach().mean(0)
    drawn = grown.net.draw_(torch.empty(grown.net.items.weight.shape), "items.weight", grown.net.items.weight.shape, 0)
    for raw_id, row, draw in zip(grown.item_ids, grown.net.items.weight.detach(), drawn, strict=True):
        torch.testing.assert_close(row, rows.get(raw_id, mean + draw), atol=1e-6, rtol=0)
    for name, parameter in old.net.named_parameters():
        if name != "items.weight":
            torch.testing.assert_close(dict(grown.net.named_parameters())[name], parameter, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_a_warm_start_learns_faster_and_later_commands_do_without_the_old_run(
    early: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    late = early.parent / "late.csv"
    losses = {}
    exported = early.parent / "exported"
    lrec("export", "--ckpt_path", early, "--out", exported)
    for name, options in (("cold", {}), ("warm", {"model__warm_start": exported})):
        lrec(*arguments(late, early.parent / name, **options, trainer__max_epochs=1))
        points = (early.parent / name / "points.jsonl").read_text().splitlines()
        losses[name] = json.loads(points[0])["val_loss"]
    assert losses["warm"] < losses["cold"] - 0.5

    (exported / "model.safetensors").unlink()
    lrec("test", "--config", early.parent / "warm" / "config.yaml")
    lrec("fit", "--config", early.parent / "warm" / "config.yaml", "--ckpt_path=last", "--trainer.max_epochs=2")
    assert len((early.parent / "warm" / "points.jsonl").read_text().splitlines()) == 2
    error = refused(*arguments(late, early.parent / "none", model__warm_start=exported))
    assert "holds neither model.safetensors" in error


def test_another_shape_is_refused(early: Path, refused: Callable[..., str]) -> None:
    options = arguments(early.parent / "late.csv", early.parent / "wide", model__warm_start=early, model__size="12k")
    assert "has width 16, the config 32" in refused(*options)


def test_types_of_event_are_kept_by_name(tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]) -> None:
    for name, kinds in (("old", ("buy", "view")), ("new", ("add", "view"))):
        lines = [
            "user,item,time,kind",
            *(f"u{u},i{(u + s) % 7},{s},{kinds[(u + s) % 2]}" for u in range(30) for s in range(8)),
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    options = {"data__event_column": "kind", "trainer__max_epochs": 1}
    lrec(*arguments(tmp_path / "old.csv", tmp_path / "old", **options))
    options["model__warm_start"] = tmp_path / "old"
    still = {"model__optimizer__lr": 1e-12}
    assert " 0 new" in lrec(*arguments(tmp_path / "new.csv", tmp_path / "new", **options, **still))
    old, new = (package.load(tmp_path / name).net.events.weight.detach() for name in ("old", "new"))
    torch.testing.assert_close(new[1], old[1], atol=1e-6, rtol=0)  # view; add begins near the mean of buy and view
    assert 0 < (new[0] - old.mean(0)).abs().max() < 0.1
    del options["data__event_column"]
    error = refused(*arguments(tmp_path / "new.csv", tmp_path / "none", **options))
    assert "knows the types of event buy, view, the data have none" in error


def test_the_projector_shows_the_items_and_the_table_the_run(early: Path) -> None:
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import plugin_data_pb2
    from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
    from werkzeug.test import Client

    multiplexer = EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(early.parent))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(early.parent))
    plugin = ProjectorPlugin(TBContext(logdir=str(early.parent), data_provider=provider))
    routes = plugin.get_plugin_apps()
    (config,) = [json.loads(Client(routes["/info"]).get(f"/?run={early.name}").data)["embeddings"]]
    assert [entry["tensorName"] for entry in config] == ["items"]
    vectors = np.frombuffer(Client(routes["/tensor"]).get(f"/?run={early.name}&name=items").data, dtype=np.float32)
    lines = Client(routes["/metadata"]).get(f"/?run={early.name}&name=items").data.decode().splitlines()
    table = pl.read_parquet(early / "items.parquet").sort("count", "item", descending=[True, False])
    assert lines[0] == "item\tcount"
    assert lines[1:] == [f"{raw_id}\t{count}" for raw_id, count in table.select("raw_id", "count").iter_rows()]
    model = package.load(early)
    expected = model.net.items.weight.detach().numpy()[model.index(table["raw_id"])]
    np.testing.assert_array_equal(vectors.reshape(expected.shape), expected)

    tags = multiplexer.SummaryMetadata(early.name, "_hparams_/session_start_info")
    content = plugin_data_pb2.HParamsPluginData.FromString(tags.plugin_data.content).session_start_info.hparams
    assert content["model.size"].string_value == "3k"
    assert content["data.max_len"].number_value == 12


def test_titles_in_the_projector(early: Path, tmp_path: Path, lrec: Callable[..., str]) -> None:
    (tmp_path / "ml-1m_movies.dat").write_bytes("1::Amélie (2001)::Comedy\n2::Heat::Crime\n".encode("latin-1"))
    lines = ["user,item,time", *(f"u{u},{1 + (u + s) % 3},{s}" for u in range(20) for s in range(6))]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    titles = {"projector__titles": tmp_path / "ml-1m_movies.dat", "projector__items": 2}
    lrec(*arguments(tmp_path / "log.csv", tmp_path / "run", **titles, trainer__max_epochs=1))
    header, *rows = (tmp_path / "run" / "projector" / "items.tsv").read_text().splitlines()
    assert header == "item\tcount\ttitle"
    assert len(rows) == 2
    assert all(row.split("\t")[2] == {"1": "Amélie (2001)", "2": "Heat", "3": ""}[row.split("\t")[0]] for row in rows)
