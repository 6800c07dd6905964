"""Classes of the user's own file in the current folder, named on the command line: trained, saved, resumed, refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lrec.lightning_cli import compose
from lrec.module import model_of
from lrec.shape import Dropout, OverDepth

MODEL = """
from torch import Tensor

from lrec import SequentialRecommender


class Cautious(SequentialRecommender):
    '''Trains on a part of the loss.'''

    def __init__(self, share: float = 1.0, **options) -> None:
        super().__init__(**options)
        self.share = share

    def training_step(self, batch, batch_idx: int) -> Tensor:
        return self.share * super().training_step(batch, batch_idx)


class NoModel:
    pass
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_models.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
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
    own = ["--model=my_models.Cautious", "--model.share=0.5", *constant]
    lrec("fit", *options, *own, "--trainer.default_root_dir=half", "--trainer.max_epochs=1")
    lrec("fit", "--config=half/config.yaml", "--trainer.max_epochs=2", "--ckpt_path=last")
    lrec("fit", *options, *own, "--trainer.default_root_dir=whole")
    config = yaml.safe_load(Path("whole/config.yaml").read_text())
    assert config["model"]["class_path"] == "my_models.Cautious"
    assert (config["model"]["init_args"]["share"], config["model"]["init_args"]["size"]) == (0.5, "3k")
    whole, resumed = points_of(Path("whole")), points_of(Path("half"))
    assert whole[-1]["val_loss"] == resumed[-1]["val_loss"] < whole[0]["val_loss"]
    assert whole[0]["N_body"] == 12 * 16**2
    assert f"loss {whole[-1]['test_loss']:.4f}" in lrec("test", "--config=whole/config.yaml")
    model = model_of(config)
    assert type(model).__name__ == "Cautious"
    assert model.network_config(n_items=40, max_len=10).width == 16


def test_overlays_and_flags_are_those_of_the_chosen_model(folder: Path) -> None:
    Path("flat.yaml").write_text("model: {size: 98k, dropout: {embedding: 0.1}}\n")
    Path("own.yaml").write_text("model: {class_path: my_models.Cautious, init_args: {size: 3k, share: 0.25}}\n")
    Path("more.yaml").write_text("model: {dropout: {residual: {first: 0.2}}}\n")
    data = ["--config=configs/data/synthetic.yaml"]
    plain = compose([*map(_shipped, data), "--config=flat.yaml", "--config=more.yaml", "--model.top_k=3"])["model"]
    assert (plain["size"], plain["top_k"]) == ("98k", 3)
    dropout = Dropout(0.1, residual=OverDepth(first=0.2))
    assert model_of({"model": plain}).network_config(9, 9).dropout == dropout
    explicit = {"class_path": "lrec.SequentialRecommender", "init_args": plain}
    assert model_of({"model": explicit}).network_config(9, 9) == model_of({"model": plain}).network_config(9, 9)
    for order, size in ((["own", "flat", "more"], "98k"), (["flat", "own", "more"], "3k")):
        own = compose([*map(_shipped, data), *(f"--config={name}.yaml" for name in order), "--model.share=0.75"])
        assert own["model"]["class_path"] == "my_models.Cautious"
        assert own["model"]["init_args"] | {"share": 0.75, "size": size} == own["model"]["init_args"]
        assert model_of(own).network_config(9, 9).dropout == dropout


def _shipped(argument: str) -> str:
    from lrec.parser import with_shipped_configs

    return with_shipped_configs([argument])[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model=my_models.NoModel"], "--model: my_models.NoModel is no subclass of SequentialRecommender"),
        (["--model=my_models.Missing"], "--model: my_models.Missing: module 'my_models' has no attribute 'Missing'"),
        (["--model=my_files.Missing"], "--model: my_files.Missing: No module named 'my_files'"),
        (["--model=my_models.Cautious", "--model.shares=1"], "--model: no option 'shares'"),
        (["--model.optimizer.lr=fast"], "--model.optimizer.lr: Expected a <class 'float'>. Got value: fast"),
    ],
)
def test_a_class_that_does_not_fit_is_one_line(
    arguments: list[str], says: str, options: list[str], folder: Path, refused: Callable[..., str]
) -> None:
    assert refused("fit", *options, *arguments) == f"lrec: error: {says}"
    assert [path.name for path in folder.iterdir() if path.name != "__pycache__"] == ["my_models.py"]


def test_help_lists_the_options_of_lrec_s_own_model(
    capsys: pytest.CaptureFixture[str], lrec: Callable[..., str]
) -> None:
    with pytest.raises(SystemExit):
        lrec("fit", "--help")
    text = capsys.readouterr().out
    for option in (
        "--model.size",
        "--model.optimizer.lr",
        "--model.architecture.norm",
        "--trainer.max_epochs",
        "--data ",
    ):
        assert option in text


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
