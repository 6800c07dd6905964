"""fit, validate, test and predict as a user runs them on a log of their own."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import backend_context, metadata

from lrec.run import Run

POINT_FIELDS = (
    "schema",
    "study",
    "run",
    "size",
    "n_layers",
    "d_model",
    "n_heads",
    "N_body",
    "N_head",
    "N_total",
    "D",
    "U",
    "epochs",
    "flops",
    "step",
    "train_loss",
    "val_loss",
    "test_loss",
    "metrics",
    "selected_on",
    "lr_phase",
    "best",
    "status",
    "seed",
    "precision",
    "world_size",
    "wall_s",
    "data_hash",
    "config_hash",
    "commit",
)


@pytest.fixture(scope="module")
def options(log_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Configuration of a quick run on the log."""
    config = {
        "data": {
            "class_path": "lrec.InteractionsDataModule",
            "init_args": {
                "data_dir": str(tmp_path_factory.mktemp("stores")),
                "path": str(log_csv),
                "user_column": "who",
                "item_column": "what",
                "time_column": "when",
                "max_len": 10,
                "targets_per_step": 256,
            },
        },
        "model": {
            "size": "3k",
            "optimizer": {"lr": 0.01},
            "parametrisation": "standard",  # one rate for all
            "dropout": {"attention": {"first": 0.1, "last": 0.1}, "residual": {"first": 0.1, "last": 0.1}},
        },
        "trainer": {"max_epochs": 6, "enable_progress_bar": False, "log_every_n_steps": 4},
    }
    path = tmp_path_factory.mktemp("config") / "quick.yaml"
    path.write_text(yaml.safe_dump(config))
    return [f"--config={path}", "--config=trainer/laptop.yaml", "--trainer.max_epochs=6"]


def points_of(run: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in (run / "points.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    from lrec.cli import main

    folder = tmp_path_factory.mktemp("runs") / "first"
    main(["fit", *options, f"--trainer.default_root_dir={folder}"])
    return folder


def test_a_run_leaves_what_the_design_says(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "checkpoints", "items.parquet", "points.jsonl", "metrics.json"} <= names
    items = pl.read_parquet(run / "items.parquet")
    assert set(items["raw_id"]) <= {f"item-{i}" for i in range(40)}
    points = points_of(run)
    assert len(points) == 6
    assert all(set(POINT_FIELDS) <= set(point) for point in points)
    assert [point["epochs"] for point in points] == pytest.approx([1, 2, 3, 4, 5, 6])
    assert all(point["D"] == point["U"] * (index + 1) for index, point in enumerate(points))
    assert all(point["status"] == "finished" for point in points)
    (best,) = [point for point in points if point["best"]]
    assert best["val_loss"] == min(point["val_loss"] for point in points)
    assert [point["test_loss"] is not None for point in points] == [point["best"] for point in points]


def test_the_model_learns_and_beats_popularity(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["model"]["loss"] < metrics["popularity"]["loss"] - 0.5
    assert metrics["model"]["NDCG@10"] > 1.5 * metrics["popularity"]["NDCG@10"]
    assert points_of(run)[-1]["train_loss"] < points_of(run)[0]["train_loss"]


def test_baselines_stand_beside_the_model(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    # In this log an item is mostly followed by the next one and hardly ever comes back soon.
    assert metrics["markov"]["NDCG@10"] > 2 * metrics["popularity"]["NDCG@10"]
    assert metrics["popularity"]["NDCG@10"] > metrics["repeat-last"]["NDCG@10"]
    assert metrics["markov"]["loss"] < metrics["popularity"]["loss"]
    assert metrics["repeat-last"]["loss"] is None
    assert 0 < metrics["recent-popularity"]["NDCG@10_unseen"] < metrics["markov"]["NDCG@10_unseen"]


def test_tensorboard_opens_on_training_and_validation(run: Path) -> None:
    events = EventAccumulator(str(run))
    events.Reload()
    tags = events.Tags()["scalars"]
    first = {tag for tag in tags if not tag.startswith("various/")}
    assert first == {"train/loss", "train/lr", "val/loss", "val/NDCG@10", "val/HR@10", "val/coverage@10"}
    groups = sorted({tag.split("/")[0] for tag in tags})
    assert groups == ["train", "val", "various"], "TensorBoard opens the first two in the order of the alphabet"
    assert {
        "val/NDCG@10_unseen",
        "val/popularity/NDCG@10",
        "test/markov/HR@1",
        "scaling/N_body",
        "perf/memory_gib",
    } <= {tag.removeprefix("various/") for tag in tags}
    points = points_of(run)
    (best,) = [point for point in points if point["best"]]
    for name in ("val/loss", "val/NDCG@10_unseen"):
        (shown,) = events.Scalars(f"various/scaling/best/{name}")
        assert (shown.step, shown.value) == (best["step"], pytest.approx(best["metrics"][name]))
    val_loss = [event.value for event in events.Scalars("various/scaling/val_loss")]
    assert val_loss == pytest.approx([point["val_loss"] for point in points])
    # Learning rates by step: the schedule rises to 0.02 (Muon) and falls to 0 at the run's last step.
    rates = {event.step + 1: event.value for event in events.Scalars("train/lr")}
    steps = 6 * points[0]["step"]
    assert all(0 < rate <= 0.02 for step, rate in rates.items() if step < steps)
    assert rates[max(rates)] == min(rates.values()) < 0.001


def test_hparams_begin_with_what_runs_differ_in(run: Path) -> None:
    """As TensorBoard itself lists them: it shows five options and five figures until it is asked for more."""
    events = EventMultiplexer({"run": str(run)}).Reload()
    context = backend_context.Context(TBContext(data_provider=MultiplexerDataProvider(events, str(run))))
    of_runs = context.hparams_metadata(RequestContext(), "")
    experiment = context.experiment_from_metadata(RequestContext(), "", True, of_runs, [])
    names = [info.name for info in experiment.hparam_infos]
    assert set(names[:5]) == {"N_body", "N_total", "lr", "dropout", "epochs"}
    assert {"data.max_len", "model.optimizer.lr", "model.dropout.attention.first"} <= set(names[5:])
    row = metadata.parse_session_start_info_plugin_data(of_runs["run"][metadata.SESSION_START_INFO_TAG]).hparams
    n_total = points_of(run)[0]["N_total"]
    assert row["N_total"].number_value == n_total, "a number, by which TensorBoard can sort and draw"
    assert [row[name].number_value for name in ("N_body", "lr", "dropout", "epochs")] == [3072, 0.01, 0.1, 6]
    compared = [info.name.tag for info in experiment.metric_infos]
    assert compared[:4] == [
        f"various/{name}" for name in ("scaling/best/val/loss", "test/loss", "test/NDCG@10", "test/HR@10")
    ]
    assert set(compared) <= set(context.scalars_metadata(RequestContext(), "")["run"])


def test_checkpoints_load_without_pickled_code(run: Path) -> None:
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["lrec"]["layers"] == 1
    (best,) = [point for point in points_of(run) if point["best"]]
    assert checkpoint["lrec"]["D"] == best["D"]


def test_test_and_validate_repeat_the_figures_of_fit(run: Path, lrec: Callable[..., str]) -> None:
    before = json.loads((run / "metrics.json").read_text())
    points = (run / "points.jsonl").read_bytes()
    printed = lrec("test", "--config", run / "config.yaml")
    assert json.loads((run / "metrics.json").read_text())["model"] == before["model"]
    for baseline in ("popularity", "recent-popularity", "repeat-last", "markov"):
        assert re.search(rf"^{baseline} ", printed, re.MULTILINE)
    assert f"loss {before['model']['loss']:.4f}" in printed
    verdict = printed.strip().splitlines()[-1]
    relation = "better" if before["model"]["loss"] < before["markov"]["loss"] else "no better"
    compared = f"loss {before['model']['loss']:.4f} against {before['markov']['loss']:.4f}"
    assert verdict.startswith(f"{relation} than markov, the best baseline: {compared}")
    (best,) = [point for point in points_of(run) if point["best"]]
    assert f"{run / 'checkpoints' / 'best.ckpt'}, after {best['epochs']:.3g} epochs\n" in printed
    lrec("validate", "--config", run / "config.yaml", "--ckpt_path", run / "checkpoints" / "best.ckpt")
    validated = json.loads((run / "metrics.json").read_text())
    (best,) = [point for point in points_of(run) if point["best"]]
    assert validated["stage"] == "val"
    assert validated["model"]["loss"] == pytest.approx(best["val_loss"], abs=1e-6)
    assert (run / "points.jsonl").read_bytes() == points
    lrec("test", "--config", run / "config.yaml")


def test_predict_writes_raw_ids_without_seen_items(run: Path, log_csv: Path, lrec: Callable[..., str]) -> None:
    lrec("predict", "--config", run / "config.yaml", "--model.top_k", 5)
    predictions = pl.read_parquet(run / "predictions.parquet")
    log = pl.read_csv(log_csv)
    assert set(predictions["user"]) == set(log["who"])
    assert len(predictions) == log["who"].n_unique()
    seen = dict(log.group_by("who").agg("what").iter_rows())
    for user, items, scores in predictions.iter_rows():
        assert len(items) == len(set(items)) == 5
        assert not set(items) & set(seen[user])
        assert scores == sorted(scores, reverse=True)


def test_the_same_seed_gives_the_same_run_and_so_does_resuming_in_mid_epoch(
    run: Path, options: list[str], tmp_path: Path, lrec: Callable[..., str]
) -> None:
    steps = points_of(run)[0]["step"]
    assert steps > 3
    keep = {
        "class_path": "ModelCheckpoint",
        "init_args": {
            "dirpath": str(tmp_path / "kept"),
            "filename": "{step}",
            "every_n_train_steps": steps + 2,
            "save_top_k": -1,
        },
    }
    again, resumed = tmp_path / "again", tmp_path / "resumed"
    lrec("fit", *options, f"--trainer.default_root_dir={again}", f"--trainer.callbacks+={json.dumps(keep)}")
    for name in ("train_loss", "val_loss", "test_loss", "metrics", "D", "flops"):
        assert [point[name] for point in points_of(run)] == [point[name] for point in points_of(again)]
    middle = tmp_path / "kept" / f"step={steps + 2}.ckpt"
    lrec("fit", *options, f"--trainer.default_root_dir={resumed}", f"--ckpt_path={middle}")
    undisturbed, after = points_of(run), points_of(resumed)
    for name in ("val_loss", "test_loss", "metrics", "D", "step"):
        assert [point[name] for point in undisturbed] == [point[name] for point in after]


def test_few_large_steps_get_a_hint(options: list[str], tmp_path: Path, lrec: Callable[..., str]) -> None:
    few = [f"--trainer.default_root_dir={tmp_path / 'few'}", "--data.targets_per_step=4096", "--trainer.max_epochs=1"]
    printed = lrec("fit", *options, *few)
    assert "no more than 1 optimizer step of 4,096 targets each" in printed
    found = re.search(r"--data.targets_per_step (\d+) would make it ([\d,]+)$", printed, re.M)
    assert found
    more = [f"--trainer.default_root_dir={tmp_path / 'more'}", "--trainer.max_epochs=1"]
    assert "no more than" not in lrec("fit", *options, *more, f"--data.targets_per_step={found[1]}")
    assert points_of(tmp_path / "more")[-1]["step"] == int(found[2].replace(",", ""))


def test_a_run_whose_steps_end_before_an_evaluation_says_so(
    options: list[str], run: Path, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    an_epoch = points_of(run)[0]["step"]
    for ends, steps in (("--trainer.max_steps=2", 2), ("--trainer.max_epochs=1", an_epoch)):
        folder = tmp_path / f"short-{steps}"
        rarely = ("--trainer.check_val_every_n_epoch=2", "--early_stopping.check_on_train_epoch_end=true")
        rarely += (f"--trainer.default_root_dir={folder}",)
        assert "training ended without an evaluation" in lrec("fit", *options, *rarely, ends)
        last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert last["global_step"] == steps, "no step of training is lost"
        assert points_of(folder) == []
    trial = f"--trainer.default_root_dir={tmp_path / 'trial'}"
    assert "without an evaluation" not in lrec("fit", *options, trial, "--trainer.fast_dev_run=true")


@pytest.mark.parametrize("epochs", [1, 2], ids=["evaluated", "before the first evaluation"])
def test_a_diverged_run_stops_and_says_so(
    epochs: int, options: list[str], tmp_path: Path, lrec: Callable[..., str]
) -> None:
    folder = tmp_path / "diverged"
    rarely = f"--trainer.check_val_every_n_epoch={epochs}"
    printed = lrec("fit", *options, rarely, f"--trainer.default_root_dir={folder}", "--model.optimizer.lr=1e30")
    assert "diverged" in printed
    assert Run(folder).diverged
    points = points_of(folder)
    assert points[-1]["status"] == "diverged"
    assert not any(point["best"] for point in points)
    assert len(points) < 6


def test_a_sanity_check_without_a_target_in_the_catalogue_is_no_divergence(
    tmp_path: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrec.data.batching.eval_batches.MAX_TARGETS", 2)
    old = [f"old{user},item{(user + time) % 7},{time}" for user in range(30) for time in range(12)]
    new = [f"new{user},new{item},{8 + item}" for user in range(4) for item in range(2)]  # the shortest histories
    (tmp_path / "log.csv").write_text("\n".join(["user,item,time", *old, *new]))
    split = '{"class_path": "lrec.GlobalTemporal", "init_args": {"validate_from": 8, "test_from": 10}}'
    options = (f"--data.path={tmp_path / 'log.csv'}", f"--data.data_dir={tmp_path}", f"--data.split={split}")
    run = ("--config=data/csv.yaml", "--config=trainer/laptop.yaml", *options, "--model.size=3k")
    run += (f"--trainer.default_root_dir={tmp_path / 'run'}", "--trainer.max_epochs=1", "--points.test=false")
    lrec("fit", *run, "--trainer.num_sanity_val_steps=2")
    assert [point["status"] for point in points_of(tmp_path / "run")] == ["finished"]


@pytest.mark.parametrize("command", ["fit", "test"])
def test_what_is_no_checkpoint_is_refused(
    command: str, run: Path, log_csv: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    damaged = tmp_path / "damaged.ckpt"
    damaged.write_bytes((run / "checkpoints" / "best.ckpt").read_bytes()[:-1000])
    for path in (log_csv, damaged):
        folder = f"--trainer.default_root_dir={tmp_path / 'run'}"
        error = refused(command, "--config", run / "config.yaml", "--ckpt_path", path, folder)
        assert f"{path}: not a checkpoint that lrec wrote" in error


def test_another_network_s_checkpoint_is_refused(run: Path, refused: Callable[..., str]) -> None:
    error = refused("test", "--config", run / "config.yaml", "--model.size", "25k")
    assert "the checkpoint has layers 1, the config 2" in error


def test_a_sample_validates_during_training_and_all_users_are_tested(
    lrec: Callable[..., str], options: list[str], tmp_path: Path
) -> None:
    def fit(name: str, *more: str) -> tuple[str, list[dict]]:  # type: ignore[type-arg]
        folder = tmp_path / name
        printed = lrec("fit", *options, "--trainer.max_epochs=2", f"--trainer.default_root_dir={folder}", *more)
        return printed, points_of(folder)

    printed, sampled = fit("sampled", "--data.validation_users=70")
    assert "validation: 70 of 300 users (--data.validation_users 70)" in printed
    _, every = fit("every", "--data.validation_users=all")
    for some, whole in zip(sampled, every, strict=True):
        assert some["train_loss"] == whole["train_loss"]
        some, whole = some["metrics"], whole["metrics"]
        assert (some["val/targets"], whole["val/targets"]) == (70, 300)
        assert some["val/popularity/targets"] == 70
        # The sample's figure agrees with that of all users within 4 standard errors.
        for name, error in (("loss", "loss_se"), ("NDCG@10_unseen", "NDCG@10_unseen_se")):
            assert 0 < whole[f"val/{error}"] < some[f"val/{error}"]
            assert abs(some[f"val/{name}"] - whole[f"val/{name}"]) < 4 * some[f"val/{error}"]
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("sampled", "every")]
    assert metrics[0]["model"]["targets"] == metrics[1]["model"]["targets"] == 300
    printed = lrec("test", "--config", tmp_path / "every" / "config.yaml", "--data.test_users=80")
    assert "test: 80 of 300 users (--data.test_users 80)" in printed
    tested = json.loads((tmp_path / "every" / "metrics.json").read_text())
    assert (tested["users"], tested["users_in_all"], tested["model"]["targets"]) == (80, 300, 80)
