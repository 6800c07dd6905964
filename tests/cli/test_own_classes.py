"""Classes of the user's own file in the current folder, named on the command line: trained, saved, resumed, refused."""

import json
import re
import shutil
from collections.abc import Callable
from inspect import signature
from pathlib import Path

import polars as pl
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lrec as package
from lrec.data.datamodule import SequenceDataModule
from lrec.evaluation.baselines import BASELINES
from lrec.evaluation.metrics import KS
from lrec.model import cost
from lrec.model.config import Dropout, OverDepth
from lrec.training.lightning_cli import compose
from lrec.training.module import model_of

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for example in EXAMPLES.glob("*.py"):
        shutil.copy(example, tmp_path)
    nameless = "class Nameless(Mean):\n    def of_targets(self, found, k): return found.rank_B\n"
    (tmp_path / "nothing.py").write_text(
        f"from lrec.evaluation.metrics import Mean\n\nclass Nothing: ...\n\n{nameless}"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def options(log_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [
        "--config=data/csv.yaml",
        "--config=trainer/laptop.yaml",
        f"--data.path={log_csv}",
        "--data.user_column=who",
        "--data.item_column=what",
        "--data.time_column=when",
        f"--data.data_dir={tmp_path_factory.mktemp('stores')}",
        "--data.max_len=10",
        "--data.targets_per_step=256",
        "--model.size=3k",
        "--trainer.max_epochs=2",
        "--trainer.enable_progress_bar=false",
    ]


def points_of(run: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in (run / "points.jsonl").read_text().splitlines()]


def test_a_model_by_its_class_path(options: list[str], folder: Path, lrec: Callable[..., str]) -> None:
    constant = ["--model.optimizer.decay=constant", "--model.optimizer.warmup=0"]
    own = ["--model=noisy_recommender.NoisyRecommender", "--model.noise=0.5", *constant]
    lrec("fit", *options, *own, "--trainer.default_root_dir=half", "--trainer.max_epochs=1")
    lrec("fit", "--config=half/config.yaml", "--trainer.max_epochs=2", "--ckpt_path=last")
    lrec("fit", *options, *own, "--trainer.default_root_dir=whole")
    config = yaml.safe_load(Path("whole/config.yaml").read_text())
    assert config["model"]["class_path"] == "noisy_recommender.NoisyRecommender"
    assert (config["model"]["init_args"]["noise"], config["model"]["init_args"]["size"]) == (0.5, "3k")
    whole, resumed = points_of(Path("whole")), points_of(Path("half"))
    assert whole[-1]["val_loss"] == resumed[-1]["val_loss"] < whole[0]["val_loss"]
    assert whole[0]["N_body"] == 12 * 16**2
    assert f"loss {whole[-1]['test_loss']:.4f}" in lrec("test", "--config=whole/config.yaml")
    model = model_of(config)
    assert type(model).__name__ == "NoisyRecommender"
    assert model.network_config(n_items=40, max_len=10).width == 16


@pytest.mark.slow
def test_a_part_of_a_block_by_its_class_path(
    options: list[str], folder: Path, log_csv: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    constant = ["--model.optimizer.decay=constant", "--model.optimizer.warmup=0", "--model.optimizer.lr=0.01"]
    own = ["--model.architecture.attention=gated_attention.GatedAttention", "--model.architecture.qk_norm=false"]
    lrec("fit", *options, *own, *constant, "--trainer.default_root_dir=whole")
    lrec("fit", *options, *own, *constant, "--trainer.default_root_dir=half", "--trainer.max_epochs=1")
    lrec("fit", "--config=half/config.yaml", "--trainer.max_epochs=2", "--ckpt_path=last")
    whole, resumed = points_of(Path("whole")), points_of(Path("half"))
    assert whole[-1]["val_loss"] == resumed[-1]["val_loss"] < whole[0]["val_loss"]
    assert whole[0]["N_body"] == (5 + 8) * 16**2  # queries, keys, values, gate, out; the perceptron
    assert f"loss {whole[-1]['test_loss']:.4f}" in lrec("test", "--config=whole/config.yaml")
    assert "the checkpoint has architecture.attention gated_attention.GatedAttention, the config softmax" in refused(
        "test", "--config=whole/config.yaml", "--model.architecture.attention=softmax"
    )
    lrec("predict", "--config=whole/config.yaml")
    recommend = ["recommend", "--ckpt_path=whole", f"--histories={log_csv}", "--out=lists.parquet"]
    error = refused(*recommend)
    assert "whole names the class gated_attention.GatedAttention, which is not lrec's own: --trust" in error
    lrec(*recommend, "--trust")
    predicted, found = (pl.read_parquet(f).sort("user") for f in ("whole/predictions.parquet", "lists.parquet"))
    assert predicted["items"].to_list() == found["items"].to_list()
    export = ["export", "--ckpt_path=whole", "--out=exported"]
    assert "--trust" in refused(*export)
    lrec(*export, "--trust")
    model = package.load("exported", trust=True)
    assert type(model.net.blocks[0].attention).__name__ == "GatedAttention"
    assert cost.n_total(model.net.config) == sum(parameter.numel() for parameter in model.net.parameters())
    warm = ["--model.warm_start=whole", "--trainer.default_root_dir=warm", "--trainer.max_epochs=1"]
    assert " kept, 0 new, 0 gone" in lrec("fit", *options, *own, *warm)


@pytest.mark.parametrize(
    ("own", "phase"),
    [
        (["--model.loss=smoothed_softmax.SmoothedSoftmax", "--model.loss.share=0.2"], "adamw"),
        pytest.param(
            ["--model.optimizer=nesterov.Nesterov", "--model.optimizer.lr=0.3"], "sgd", marks=pytest.mark.slow
        ),
        pytest.param(
            ["--model.optimizer=torch.optim.Adagrad", "--model.optimizer.lr=0.1", "--model.parametrisation=scaled"],
            "adagrad",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["loss", "optimizer", "torch's optimizer"],
)
def test_a_loss_and_an_optimizer_by_class_path(
    own: list[str], phase: str, options: list[str], folder: Path, lrec: Callable[..., str]
) -> None:
    kept = {"dirpath": "kept", "filename": "{step}", "every_n_train_steps": 13, "save_top_k": -1}
    keep = f"--trainer.callbacks+={json.dumps({'class_path': 'ModelCheckpoint', 'init_args': kept})}"
    lrec("fit", *options, *own, keep, "--trainer.default_root_dir=whole")
    lrec("fit", *options, *own, "--trainer.default_root_dir=resumed", "--ckpt_path=kept/step=13.ckpt")
    whole, resumed = points_of(Path("whole")), points_of(Path("resumed"))
    assert len(whole) == 2
    for name in ("val_loss", "test_loss", "step", "flops", "lr_phase"):
        assert [point[name] for point in whole] == [point[name] for point in resumed]
    assert whole[-1]["val_loss"] < whole[0]["val_loss"]
    assert {point["lr_phase"] for point in whole} == {phase}
    assert f"loss {whole[-1]['test_loss']:.4f}" in lrec("test", "--config=whole/config.yaml")
    assert package.load("whole").item_ids.len() == 40


def test_a_metric_by_its_class_path(
    options: list[str], folder: Path, log_csv: Path, lrec: Callable[..., str], refused: Callable[..., str]
) -> None:
    own = ["--model.metrics=my_metric.RareHitRate", "--model.metrics.most=60"]
    monitor = [f"--{group}.monitor=val/rareHR@10_unseen" for group in ("checkpoint", "early_stopping")]
    said = lrec("fit", *options, *own, *monitor, "--trainer.default_root_dir=whole")
    names = [f"rareHR@{k}{suffix}" for k in KS for suffix in ("", "_unseen")]
    figures = json.loads(Path("whole/metrics.json").read_text())
    for scorer in ("model", *BASELINES):
        assert set(names) <= figures[scorer].keys()
    assert said.count("  rareHR  ") == 2 * (1 + len(BASELINES)), "lines of the table"
    assert "rareHR@10_unseen" in said.splitlines()[-1]
    points = points_of(Path("whole"))
    best = max(points, key=lambda point: point["metrics"]["val/rareHR@10_unseen"])
    assert best["best"]
    assert best["selected_on"] == "val/rareHR@10_unseen"
    assert {f"test/{name}" for name in names} | {f"test/markov/{name}" for name in names} <= best["metrics"].keys()
    assert best["metrics"]["test/rareHR@10"] == figures["model"]["rareHR@10"]
    assert not list(log_csv.parent.glob("**/baselines")), "whose figures would lack the metric"
    events = EventAccumulator("whole", {"scalars": 0}).Reload()
    assert {f"various/{stage}/{name}" for stage in ("val", "test") for name in names} <= set(events.Tags()["scalars"])
    config = yaml.safe_load(Path("whole/config.yaml").read_text())
    assert config["model"]["metrics"] == [{"class_path": "my_metric.RareHitRate", "init_args": {"most": 60}}]
    assert f"{figures['model']['rareHR@10']:.4f}" in lrec("test", "--config=whole/config.yaml")
    tasks = ["tasks", "--runs=whole", "--tasks=long_tail", "--out=tasks"]
    assert "config.yaml names the class my_metric.RareHitRate, which is not lrec's own: --trust" in refused(*tasks)
    lrec(*tasks, "--trust")
    assert "rareHR@10" in Path("tasks/tasks.md").read_text()
    (section,) = json.loads(Path("tasks/tasks.json").read_text())["tasks"]["long_tail"]["sections"]
    assert all("rareHR@10" in group["scorers"]["3k"] for group in section["groups"].values())
    lrec("recommend", "--ckpt_path=whole", f"--histories={log_csv}", "--out=lists.parquet")  # without --trust
    assert "--trust" not in lrec("export", "--ckpt_path=whole", "--out=exported")


def test_overlays_and_flags_are_those_of_the_chosen_model(folder: Path) -> None:
    Path("flat.yaml").write_text("model: {size: 98k, dropout: {embedding: 0.1}}\n")
    Path("own.yaml").write_text(
        "model: {class_path: noisy_recommender.NoisyRecommender, init_args: {size: 3k, noise: 0.25}}\n"
    )
    Path("more.yaml").write_text("model: {dropout: {residual: {first: 0.2}}}\n")
    data = ["--config=configs/data/synthetic.yaml"]
    plain = compose([*map(_shipped, data), "--config=flat.yaml", "--config=more.yaml", "--model.top_k=3"])["model"]
    assert (plain["size"], plain["top_k"], plain["optimizer"]["lr"]) == ("98k", 3, 0.008)
    dropout = Dropout(0.1, residual=OverDepth(first=0.2))
    assert model_of({"model": plain}).network_config(9, 9).dropout == dropout
    explicit = {"class_path": "lrec.SequentialRecommender", "init_args": plain}
    assert model_of({"model": explicit}).network_config(9, 9) == model_of({"model": plain}).network_config(9, 9)
    for order, size in ((["own", "flat", "more"], "98k"), (["flat", "own", "more"], "3k")):
        own = compose([*map(_shipped, data), *(f"--config={name}.yaml" for name in order), "--model.noise=0.75"])
        assert own["model"]["class_path"] == "noisy_recommender.NoisyRecommender"
        assert own["model"]["init_args"] | {"noise": 0.75, "size": size} == own["model"]["init_args"]
        assert model_of(own).network_config(9, 9).dropout == dropout


@pytest.mark.parametrize(
    ("chosen", "options"),
    [
        (["nesterov.Nesterov"], {"lr": 0.5, "momentum": 0.9}),
        (["nesterov.Nesterov", "--model.optimizer.lr=0.008"], {"lr": 0.008, "momentum": 0.9}),
        (["torch.optim.SGD"], {"lr": 0.001, "weight_decay": 0.0}),
    ],
)
def test_an_own_optimizer_has_its_own_defaults(folder: Path, chosen: list[str], options: dict[str, float]) -> None:
    data = [_shipped("--config=configs/data/synthetic.yaml"), "--model.size=3k"]
    found = compose([*data, "--model.optimizer", *chosen])["model"]["optimizer"]
    assert found["class_path"] == chosen[0]
    assert found["init_args"] | options == found["init_args"]


def test_making_an_object_leaves_the_options_as_they_are(folder: Path) -> None:
    def options() -> dict[str, dict[str, object]]:
        metrics = [{"class_path": "my_metric.RareHitRate", "init_args": {"most": 60}}]
        return {"model": {"size": "3k", "metrics": metrics, "optimizer": {"class_path": "torch.optim.SGD"}}}

    config = options()
    model = model_of(config)
    assert config == options()
    assert model.optimizer.keywords["weight_decay"] == 0, "torch's default, not that of lrec.Optimizer"


def _shipped(argument: str) -> str:
    from lrec.options.config_files import with_shipped_configs

    return with_shipped_configs([argument])[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model=nothing.Nothing"], "--model: nothing.Nothing is no subclass of SequentialRecommender"),
        (["--model=nothing.Missing"], "--model: nothing.Missing: module 'nothing' has no attribute 'Missing'"),
        (
            ["--model=my_files.Missing"],
            "--model: my_files.Missing: No module named 'my_files': is my_files.py in the current folder?",
        ),
        (["--model=noisy_recommender.NoisyRecommender", "--model.noises=1"], "--model: no option 'noises'"),
        (
            ["--model.architecture.attention=nothing.Nothing"],
            "model.architecture.attention nothing.Nothing is no subclass of lrec.model.blocks.Attention",
        ),
        (["--model.loss=nothing.Nothing"], "--model.loss: nothing.Nothing is no subclass of Loss"),
        (["--model.optimizer=nothing.Nothing"], "--model.optimizer: nothing.Nothing is no subclass of OptimizerConfig"),
        (["--model.optimizer=nesterov.Nesterov", "--model.optimizer.x=1"], "--model.optimizer: no option 'x'"),
        (
            ["--model.metrics=nothing.Nothing"],
            "--model.metrics: Expected a <class 'list'>; nothing.Nothing is no subclass of Metric",
        ),
        (
            ["--model.metrics=lrec.evaluation.metrics.MRR"],
            "--model.metrics lrec.MRR: there is a metric MRR already",
        ),
        (
            ["--model.metrics=nothing.Nameless"],
            "--model.metrics nothing.Nameless: give the class a name, the part before @k",
        ),
        (["--model.optimizer.lr=fast"], "--model.optimizer.lr: Expected a <class 'float'>. Got value: fast"),
    ],
)
def test_a_class_that_does_not_fit_is_one_line(
    arguments: list[str], says: str, options: list[str], folder: Path, refused: Callable[..., str]
) -> None:
    assert refused("fit", *options, *arguments) == f"lrec: error: {says}"
    assert {path.suffix for path in folder.iterdir()} <= {".py", ""}
    assert not (folder / "runs").exists()


def test_help_ends_after_what_people_use_and_help_all_has_the_options_of_lrec_s_own_model(
    capsys: pytest.CaptureFixture[str], lrec: Callable[..., str]
) -> None:
    with pytest.raises(SystemExit):
        lrec("fit", "--help")
    short = capsys.readouterr().out
    assert short.startswith("usage: lrec fit --config FILE ... [options]\n")
    assert short.endswith("\nlrec fit --help_all lists all options.\n")
    options = re.findall(r"^  --([\w.]+) +\w", short, re.MULTILINE)
    assert len(options) == 20
    assert {"data.path", "model.size", "model.optimizer.lr", "trainer.max_epochs", "ckpt_path"} <= set(options)
    with pytest.raises(SystemExit) as stop:
        lrec("fit", "--help_all")
    assert stop.value.code == 0
    _, _, everything = capsys.readouterr().out.partition("\nAll options:\n")
    for option in ("model.architecture.norm", "data", *(name for name in options if not name.startswith("data."))):
        assert re.search(rf"^  (-c( CONFIG)?, )?--{option}( |, --{option}\+ )", everything, re.MULTILINE)
    assert re.findall(r"``|:\w+:`", everything) == [], "Sphinx"
    of_data = {
        name for cls in (package.InteractionsDataModule, SequenceDataModule) for name in signature(cls).parameters
    }
    assert {name.removeprefix("data.") for name in options if name.startswith("data.")} <= of_data


@pytest.mark.parametrize("logger", ["CSVLogger", "false"])
def test_the_configuration_stays_in_the_run_s_folder(
    logger: str, options: list[str], folder: Path, lrec: Callable[..., str]
) -> None:
    elsewhere = ["--trainer.logger.save_dir=elsewhere"] if logger != "false" else []
    where = ["--trainer.default_root_dir=run", "--trainer.max_epochs=1", f"--trainer.logger={logger}"]
    lrec("fit", *options, *where, *elsewhere)
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["model"]["size"] == "3k"
    assert not list(Path().glob("elsewhere/**/config.yaml"))
    assert list(Path().glob("elsewhere/**/metrics.csv")) or logger == "false"
    assert "loss" in lrec("test", "--config=run/config.yaml")
