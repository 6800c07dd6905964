"""A run's checkpoints on the command line: resumed, exported, refused."""

import json
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lrec as package
from lrec.checkpoint.reading import read
from lrec.checkpoint.writing import write
from lrec.cli import main
from lrec.data.datasets import datamodule_of
from lrec.ranking.scoring import score

OPTIONS = [
    "--config=data/synthetic.yaml",
    "--config=trainer/laptop.yaml",
    "--data.n_users=200",
    "--data.n_items=40",
    "--data.length=12",
    "--data.targets_per_step=256",
    "--model.size=3k",
    "--trainer.max_epochs=2",
    "--trainer.enable_progress_bar=false",
]

STOPS = """
import os, signal
from lightning.pytorch import Callback

class Stops(Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs")
    main(["fit", *OPTIONS, f"--data.data_dir={folder}", f"--trainer.default_root_dir={folder / 'run'}"])
    return folder / "run"


def test_the_best_that_is_also_the_last_is_written_once(run: Path) -> None:
    best, last = run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt"
    assert torch.load(best, weights_only=True)["global_step"] == read(last)["global_step"]
    assert best.samefile(last)


def test_the_best_of_several_is_the_best(
    run: Path, tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    options = [*OPTIONS, f"--data.data_dir={run.parent}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    for kept in (2, -1):
        error = refused("fit", *options, f"--checkpoint.save_top_k={kept}")
        assert f"--checkpoint.save_top_k {kept}: best.ckpt can be the name of only one" in error
    printed = lrec("fit", *options, "--checkpoint.save_top_k=2", "--checkpoint.filename=best-{step}")
    points = [json.loads(line) for line in (tmp_path / "run" / "points.jsonl").read_text().splitlines()]
    first, second = sorted(points, key=lambda point: float(point["val_loss"]))[:2]
    files = {f"best-{point['step']}.ckpt" for point in (first, second)}
    assert {file.name for file in (tmp_path / "run" / "checkpoints").iterdir()} == {"last.ckpt"} | files
    assert f"best-{first['step']}.ckpt, after" in printed


def test_an_interrupted_run_goes_on_beside_a_callback_that_keeps_its_own(
    run: Path, tmp_path: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stops.py").write_text(STOPS)
    monkeypatch.chdir(tmp_path)
    own = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(tmp_path / "kept"), "save_last": True}}
    where = [f"--data.data_dir={run.parent}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    keep = f"--trainer.callbacks+={json.dumps(own)}"
    with pytest.raises(SystemExit) as stop:
        lrec("fit", *OPTIONS, *where, keep, "--trainer.callbacks+=stops.Stops", "--trainer.log_every_n_steps=2")
    assert stop.value.code == 75
    assert torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    curves = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.step for event in curves.Scalars("train/loss")] == [1]  # of the last step before the interruption


def test_an_interrupted_run_that_keeps_no_last_checkpoint_does_not_promise_one(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stops.py").write_text(STOPS)
    monkeypatch.chdir(tmp_path)
    where = [f"--data.data_dir={run.parent}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit):
        main(["fit", *OPTIONS, *where, "--trainer.callbacks+=stops.Stops", "--checkpoint.save_last=false"])
    assert "lrec: interrupted at step 2\n" in capsys.readouterr().err


def steps_of(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "points.jsonl").read_text().splitlines()]


def test_a_run_that_ended_with_an_epoch_goes_on_with_other_accumulation(
    run: Path, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    first, second = steps_of(run)
    where = (f"--data.data_dir={run.parent}", f"--trainer.default_root_dir={tmp_path / 'run'}")
    fit = ("fit", *OPTIONS, *where, "--trainer.check_val_every_n_epoch=2")
    lrec(*fit, f"--trainer.max_steps={first}", "--trainer.accumulate_grad_batches=2")
    lrec(*fit, "--ckpt_path=last", "--trainer.accumulate_grad_batches=3")
    assert steps_of(tmp_path / "run") == [second]


def test_whole_epochs_are_not_counted_with_limited_ones(
    run: Path, tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    where = (f"--data.data_dir={run.parent}", f"--trainer.default_root_dir={tmp_path / 'run'}")
    limit, whole = "--trainer.limit_train_batches=3", run / "checkpoints" / "last.ckpt"
    error = refused("fit", *OPTIONS, *where, limit, f"--ckpt_path={whole}")
    assert f"{whole} has epochs of 8 steps, this run of 3: give the same --data.targets_per_step" in error
    lrec("fit", *OPTIONS, *where, limit, "--trainer.max_epochs=1", "--points.test=false")
    assert "last.ckpt has epochs of 3 steps, this run of 8" in refused("fit", *OPTIONS, *where, "--ckpt_path=last")
    lrec("fit", *OPTIONS, *where, limit, "--ckpt_path=last", "--points.test=false")
    assert steps_of(tmp_path / "run") == [3, 6]


@pytest.mark.parametrize("every", [1, 5])
def test_a_run_is_interrupted_between_steps_that_an_evaluation_follows(
    every: int, run: Path, tmp_path: Path, lrec: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stops.py").write_text(STOPS)
    monkeypatch.chdir(tmp_path)
    options = [*OPTIONS, f"--data.data_dir={run.parent}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    options += ["--trainer.val_check_interval=1", "--trainer.max_epochs=1", f"--checkpoint.every_n_epochs={every}"]
    with pytest.raises(SystemExit) as stop:
        lrec("fit", *options, "--trainer.callbacks+=stops.Stops")
    assert stop.value.code == 75
    assert steps_of(tmp_path / "run") == [1, 2]
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == 2
    lrec("fit", *options, "--ckpt_path=last")
    assert steps_of(tmp_path / "run") == list(range(1, 9))


@pytest.mark.parametrize(
    ("option", "evaluated"), [("--trainer.max_steps=16", [8, 16]), ("--trainer.check_val_every_n_epoch=2", [16])]
)
def test_a_run_that_stops_at_the_end_of_an_epoch_and_again_in_the_next_one_loses_no_step_and_no_evaluation(
    option: str, evaluated: list[int], run: Path, tmp_path: Path, lrec: Callable[..., str], monkeypatch: Any
) -> None:
    (tmp_path / "stops_twice.py").write_text(STOPS.replace("== 1", "in (7, 10)"))
    monkeypatch.chdir(tmp_path)
    where = [f"--data.data_dir={run.parent}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    fit = ("fit", *OPTIONS, *where, option, "--ckpt_path=last", "--trainer.callbacks+=stops_twice.Stops")
    for _ in range(2):
        with pytest.raises(SystemExit):
            lrec(*fit, "--trainer.log_every_n_steps=4")
    lrec(*fit, "--trainer.log_every_n_steps=4")
    assert steps_of(tmp_path / "run") == evaluated
    curves = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.step for event in curves.Scalars("train/loss")] == [3, 7, 11, 15]


def test_a_second_ctrl_c_stops_at_once(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    press = "os.kill(os.getpid(), signal.SIG{})"
    (tmp_path / "presses.py").write_text(STOPS.replace(press.format("TERM"), "; ".join([press.format("INT")] * 2)))
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    where = [f"--data.data_dir={run.parent}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as stop:
        main(["fit", *OPTIONS, *where, "--trainer.callbacks+=presses.Stops"])
    assert stop.value.code == 130
    assert "lrec: interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_whose_steps_ended_within_an_epoch_goes_on_as_if_it_had_not(
    run: Path, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    options = ["fit", *OPTIONS, f"--data.data_dir={run.parent}"]
    options += ["--model.optimizer.decay=constant", "--model.optimizer.warmup=0", "--trainer.log_every_n_steps=2"]
    lrec(*options, f"--trainer.default_root_dir={tmp_path / 'straight'}")
    short = [*options, f"--trainer.default_root_dir={tmp_path / 'short'}"]
    lrec(*short, "--trainer.max_steps=3")
    lrec(*short, "--trainer.max_steps=11", "--ckpt_path=last")
    assert torch.load(tmp_path / "short" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 11
    lrec(*short, "--ckpt_path=last")
    losses = [
        [json.loads(line)["val_loss"] for line in (tmp_path / name / "points.jsonl").read_text().splitlines()]
        for name in ("straight", "short")
    ]
    assert losses[0] == losses[1]
    curves = []
    for name in ("straight", "short"):
        events = EventAccumulator(str(tmp_path / name))
        events.Reload()
        curves.append([(event.step, event.value) for event in events.Scalars("train/loss")])
    assert curves[0] == curves[1]


def test_a_checkpoint_without_an_optimizer_cannot_be_resumed(
    run: Path, tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    options = [*OPTIONS, f"--data.data_dir={run.parent}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    lrec("fit", *options, "--checkpoint.save_weights_only=true", "--checkpoint.save_last=link")
    assert "last.ckpt has no optimizer" in refused("fit", *options, "--trainer.max_epochs=3", "--ckpt_path=last")


def test_an_optimizer_of_torch_goes_on_with_the_options_it_had(
    run: Path, tmp_path: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    options = [*OPTIONS, f"--data.data_dir={run.parent}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    options += ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1"]
    assert "model.optimizer: Nesterov momentum requires" in refused("fit", *options, "--model.optimizer.nesterov=true")
    lrec("fit", *options, "--model.optimizer.momentum=0.9", "--trainer.max_epochs=1")
    options += ["--ckpt_path=last"]
    assert "--model.optimizer.momentum 0.9, not 0.5" in refused("fit", *options, "--model.optimizer.momentum=0.5")
    lrec("fit", *options, "--model.optimizer.momentum=0.9")
    assert steps_of(tmp_path / "run") == [8, 16]


def test_last_begins_a_run_where_there_is_none(run: Path, tmp_path: Path, lrec: Callable[..., str]) -> None:
    options = [*OPTIONS, f"--data.data_dir={run.parent}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    lrec("fit", *options, "--ckpt_path=last")
    once = (tmp_path / "run" / "points.jsonl").read_text()
    lrec("fit", *options, "--ckpt_path=last")  # finished: only the test is repeated
    assert len(once.splitlines()) == len((tmp_path / "run" / "points.jsonl").read_text().splitlines()) == 2
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["ckpt_path"] is None


def test_a_run_that_stopped_early_does_not_train_on(run: Path, tmp_path: Path, lrec: Callable[..., str]) -> None:
    options = [*OPTIONS, f"--data.data_dir={run.parent}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    options += ["--trainer.max_epochs=20", "--model.optimizer.lr=1e-9", "--early_stopping.min_delta=1"]
    options += ["--early_stopping.patience=2"]
    advice = "val/loss was the best at the last evaluation: see --early_stopping\n"
    assert advice in lrec("fit", *options)
    stopped = [json.loads(line) for line in (tmp_path / "run" / "points.jsonl").read_text().splitlines()]
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == stopped[-1]["step"], "no evaluation is lost"
    written = last.stat().st_mtime_ns
    assert advice in lrec("fit", *options, "--ckpt_path=last")
    assert len((tmp_path / "run" / "points.jsonl").read_text().splitlines()) == len(stopped) == 3
    assert last.stat().st_mtime_ns == written
    assert advice in lrec("test", "--config", tmp_path / "run" / "config.yaml")


def test_an_exported_run_recommends_what_predict_does(run: Path, tmp_path: Path, lrec: Callable[..., str]) -> None:
    printed = lrec("export", "--ckpt_path", run / "checkpoints" / "best.ckpt", "--out", tmp_path / "model")
    assert "40 item ids written to" in printed
    model = package.load(tmp_path / "model")
    lrec("predict", "--config", run / "config.yaml", "--model.top_k=5", "--model.exclude_seen=false")
    predictions = pl.read_parquet(run / "predictions.parquet")
    config = yaml.safe_load((run / "config.yaml").read_text())
    data = datamodule_of(config)
    data.prepare_data()
    data.setup()
    index = {raw_id: item for item, raw_id in enumerate(model.item_ids)}
    user = 3
    history = data.store.items_N[data.store.offsets_U1[user] : data.store.offsets_U1[user + 1]]
    items_BL = torch.tensor([[index[raw_id] for raw_id in data.store.item_table["raw_id"].gather(history)]])
    none, no_target_B = torch.zeros(0, dtype=torch.int64), torch.tensor([-1])
    with torch.no_grad():
        best = model.net(items_BL, lambda hidden, table: score(hidden[:, -1], table, no_target_B, none, none, 5))
    expected = predictions.filter(user=data.store.raw_user_ids[user])["items"][0]
    assert model.item_ids.gather(best.top_BK[0].numpy()).to_list() == expected.to_list()


def test_what_no_run_can_go_on_from(
    run: Path, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [*OPTIONS, f"--data.data_dir={run.parent}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    folder = tmp_path / "shards.ckpt"
    folder.mkdir()
    for command in ("fit", "test"):
        error = refused(command, *options, f"--ckpt_path={folder}")
        assert f"--ckpt_path {folder}: not a checkpoint that lrec wrote, or a damaged one" in error
    assert "has no last checkpoint" in refused("validate", *options, "--ckpt_path=last")
    says = "--out model.pt: name a .safetensors or .onnx file, or a folder"
    assert says in refused("export", f"--ckpt_path={tmp_path}", "--out=model.pt")
    assert "no such checkpoint" in refused("export", f"--ckpt_path={tmp_path / 'no.ckpt'}", f"--out={tmp_path / 'out'}")
    assert "every_n_steps must be at least 0, got -1" in refused("fit", *options, "--last.every_n_steps=-1")
    options += ["--trainer.strategy=lrec.FSDP2"]
    group = "--trainer.strategy.shard_group="
    for n in (3, 0):
        assert f"shard_group {n} must divide the number of processes, 1" in refused("fit", *options, f"{group}{n}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "0")
    assert "choose --trainer.default_root_dir" in refused("fit", *OPTIONS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("net.norm.weight"), "lacks the parameter net.norm.weight"),
        (lambda state: state.update(more=torch.ones(2)), "also has the parameter more"),
        (lambda state: state.update({"net.norm.weight": torch.ones(5)}), "has net.norm.weight as (5,) floats"),
    ],
    ids=["missing", "extra", "misshapen"],
)
def test_a_checkpoint_with_other_parameters_is_refused(
    change: Callable[[dict[str, torch.Tensor]], object],
    says: str,
    run: Path,
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    checkpoint = read(run / "checkpoints" / "last.ckpt")
    change(checkpoint["state_dict"])
    path = tmp_path / "other.ckpt"
    write(path, checkpoint)
    more = ["--trainer.max_epochs=3", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    for command in ("test", "fit"):
        error = refused(command, *OPTIONS, f"--data.data_dir={run.parent}", *more, f"--ckpt_path={path}")
        assert f"{path} {says}" in error


def test_nothing_is_predicted_by_a_network_that_diverged(
    run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    checkpoint = read(run / "checkpoints" / "last.ckpt")
    checkpoint["state_dict"]["net.norm.weight"][3] = torch.nan
    write(tmp_path / "nan.ckpt", checkpoint)
    error = refused("predict", f"--config={run / 'config.yaml'}", f"--ckpt_path={tmp_path / 'nan.ckpt'}")
    assert f"{tmp_path / 'nan.ckpt'}: the parameter net.norm.weight is not finite" in error


@pytest.mark.parametrize("damage", ["flipped", "cut off"])
def test_a_damaged_checkpoint_is_refused_before_anything_is_written(
    damage: str, run: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    data = (run / "checkpoints" / "last.ckpt").read_bytes()
    with zipfile.ZipFile(run / "checkpoints" / "last.ckpt") as archive:
        largest = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
    middle = data.index(largest) + len(largest) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 8]) + data[middle + 1 :]
    path = tmp_path / "last.ckpt"
    path.write_bytes(flipped if damage == "flipped" else data[:middle])
    options = [*OPTIONS, f"--data.data_dir={run.parent}", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    for command in ("fit", "test", "validate", "predict") if damage == "flipped" else ("fit",):
        error = refused(command, *options, f"--ckpt_path={path}")
        assert f"--ckpt_path {path}: not a checkpoint that lrec wrote, or a damaged one" in error
    assert not (tmp_path / "run").exists()
