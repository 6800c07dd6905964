"""lrec from Python: Lightning's own Trainer, and everything that follows from a checkpoint alone."""

import gc
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import polars as pl
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelPruning,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

import lrec
from lrec import EvaluationReport, InteractionsDataModule, ScalingPoints, SequentialRecommender
from lrec.errors import UserError
from lrec.model.config import Architecture, Dropout, OverDepth
from lrec.model.losses import FullSoftmax, Loss, SampledSoftmax
from lrec.training.optim import Optimizer, Switch
from lrec.training.refused import refuse_trainer
from lrec.training.strategies import FSDP2
from small_checkpoints import write_by_hand


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """A trainer leaves its port in the environment: commands of later tests must not use it too."""
    with patch.dict(os.environ):
        yield


@dataclass(frozen=True)
class Doubled(FullSoftmax):
    """A loss that a checkpoint can keep."""

    factor: float = 2.0

    def __call__(self, *arguments: Any) -> Any:
        return self.factor * super().__call__(*arguments)


class Tripled(FullSoftmax):
    """A loss that a checkpoint cannot keep: its argument is no field of a dataclass."""

    def __init__(self, factor: float = 3.0) -> None:
        object.__setattr__(self, "secret", object())


class Own(SequentialRecommender):
    """The user's own model."""

    def __init__(self, note: str, loss: Loss = FullSoftmax(), **options: Any) -> None:  # noqa: B008
        super().__init__(loss=loss, **options)
        self.note = note


def data(log: Path, folder: Path, **options: Any) -> InteractionsDataModule:
    """All paths are strings."""
    return InteractionsDataModule(
        str(log),  # type: ignore[arg-type]
        user_column="who",
        item_column="what",
        time_column="when",
        data_dir=str(folder),
        max_len=10,
        targets_per_step=256,
        **options,
    )


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        default_root_dir=str(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def trained(log_csv: Path, stores: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """The checkpoint of a plain Trainer, moved away from all other files of its run, and its test figures."""
    folder = tmp_path_factory.mktemp("run")
    model = SequentialRecommender(size="3k", optimizer=Optimizer(lr=0.01))
    fitted = trainer(folder, max_epochs=2)
    fitted.fit(model, data(log_csv, stores))
    (figures,) = fitted.test(model, data(log_csv, stores), verbose=False)
    found = {f"{stage}/{n}": v for stage, named in model.evaluations.items() for n, v in named.items()}
    assert figures == pytest.approx({n: v for n, v in found.items() if n.startswith("test/") and math.isfinite(v)})
    assert figures == {name: float(value) for name, value in fitted.callback_metrics.items() if name in figures}
    assert list(folder.glob("lightning_logs/version_0/events.*"))  # Lightning's default logger
    alone = tmp_path_factory.mktemp("alone") / "model.ckpt"
    shutil.move(fitted.checkpoint_callback.best_model_path, alone)  # type: ignore[union-attr]
    return alone, figures


def test_a_loaded_model_tests_and_predicts_as_the_trained_one(
    trained: tuple[Path, dict[str, float]],
    log_csv: Path,
    stores: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, figures = trained
    elsewhere = SequentialRecommender.load_from_checkpoint(path, "meta", strict=True)
    assert {each.device.type for each in (elsewhere, *elsewhere.net.parameters())} == {"meta"}
    model = SequentialRecommender.load_from_checkpoint(str(path))
    assert (model.size, model.optimizer, model.D) == ("3k", Optimizer(lr=0.01), 2 * data_of(log_csv, stores).U)
    reports = trainer(tmp_path, callbacks=[EvaluationReport()])
    (again,) = reports.test(model, data(log_csv, stores), verbose=False)
    assert again == figures
    assert "the network, after 2 epochs" in capsys.readouterr().out
    batches = trainer(tmp_path).predict(model, data(log_csv, stores))
    predicted = pl.concat(batches).sort("user")  # type: ignore[arg-type]
    log = pl.read_csv(log_csv).sort("who", "when", maintain_order=True)
    histories = log.group_by(pl.col("who").alias("user"), maintain_order=True).agg(pl.col("what").alias("items"))
    expected = lrec.load(str(path)).recommend(histories).sort("user")
    assert predicted["items"].to_list() == expected["items"].to_list()
    assert predicted["user"].to_list() == expected["user"].to_list()
    assert predicted.schema == expected.drop("skipped", "fallback").schema


class OnMeta(SequentialRecommender):
    """A model whose network is built while another device is the default, as Lightning does it on a GPU."""

    def configure_model(self) -> None:
        with torch.device("meta"):
            super().configure_model()


@pytest.mark.parametrize("warm", [False, True])
def test_a_network_begins_with_the_same_values_whatever_the_default_device(
    warm: bool, trained: tuple[Path, dict[str, float]], log_csv: Path, stores: Path, tmp_path: Path
) -> None:
    begins = []
    for kind in (SequentialRecommender, OnMeta):
        model = kind(size="3k", warm_start=trained[0] if warm else None)
        torch.manual_seed(3)
        trainer(tmp_path, max_steps=0, logger=False).fit(model, data(log_csv, stores))
        begins.append(dict(model.net.named_parameters()))
    for name, parameter in begins[0].items():
        assert torch.equal(parameter, begins[1][name])


def test_touched_rows_are_refused_if_gradients_are_scaled(log_csv: Path, stores: Path, tmp_path: Path) -> None:
    model = SequentialRecommender(size="3k", loss=SampledSoftmax(5), optimizer=Optimizer(touched_rows=True))
    scaled = trainer(tmp_path, max_steps=1, logger=False, plugins=MixedPrecision("16-mixed", "cuda"))
    with pytest.raises(UserError, match="16-mixed scales whole gradients; use bf16-mixed or 32-true"):
        scaled.fit(model, data(log_csv, stores))


class Frozen(Callback):
    """Notes how many objects Python's garbage collection skips when training starts."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.objects = gc.get_freeze_count()


UNFIT: dict[str, Callable[[], dict[str, Any]]] = {
    "overfit_batches: the loader of lrec has a plan": lambda: {"overfit_batches": 2},
    "reload_dataloaders_every_n_epochs: the loader": lambda: {"reload_dataloaders_every_n_epochs": 1},
    "strategy DDPStrategy: the network stays in the processes that it spawns": lambda: {
        "strategy": DDPStrategy(start_method="spawn")
    },
    "strategy ModelParallelStrategy: lrec trains with": lambda: {"strategy": ModelParallelStrategy()},
    "callbacks GradientAccumulationScheduler: use": lambda: {"callbacks": [GradientAccumulationScheduler({0: 2})]},
    "callbacks StochasticWeightAveraging: it reads": lambda: {"callbacks": [StochasticWeightAveraging(0.1)]},
    "callbacks ModelPruning: it reads": lambda: {"callbacks": [ModelPruning("l1_unstructured")]},
}


@pytest.mark.parametrize("refusal", UNFIT)
def test_a_trainer_with_which_lrec_would_train_something_else_is_refused(refusal: str, tmp_path: Path) -> None:
    unfit = trainer(tmp_path, logger=False, **UNFIT[refusal]())
    with pytest.raises(UserError, match=f"--trainer.{refusal}"):
        refuse_trainer(unfit)


def test_a_model_asks_for_a_data_module_and_looks_at_its_trainer(log_csv: Path, stores: Path, tmp_path: Path) -> None:
    model, loaders = SequentialRecommender(size="3k"), data_of(log_csv, stores)
    with pytest.raises(
        UserError, match=r"give the trainer a DataModule of lrec, not loaders: trainer.fit\(model, data"
    ):
        trainer(tmp_path, logger=False).fit(model, loaders.train_dataloader(), loaders.val_dataloader())
    with pytest.raises(UserError, match=r"--trainer\.overfit_batches"):
        trainer(tmp_path, logger=False, overfit_batches=2).fit(model, loaders)
    # These callbacks use the network in their own setup, before that of the model.
    with pytest.raises(UserError, match=r"--trainer\.callbacks BackboneFinetuning: .* freeze in configure_model"):
        trainer(tmp_path, logger=False, callbacks=[BackboneFinetuning()]).fit(model, loaders)
    sharded = trainer(tmp_path, logger=False, strategy=FSDP2(), callbacks=[EMAWeightAveraging()])
    with pytest.raises(UserError, match=r"--trainer\.callbacks EMAWeightAveraging: it cannot average sharded"):
        sharded.fit(model, loaders)


def test_garbage_collection_passes_over_what_is_imported_while_a_trainer_works(
    log_csv: Path, stores: Path, tmp_path: Path
) -> None:
    frozen = Frozen()
    model = SequentialRecommender(size="3k")
    trainer(tmp_path, max_steps=1, limit_val_batches=0, callbacks=[frozen]).fit(model, data(log_csv, stores))
    assert frozen.objects > 100_000
    assert gc.get_freeze_count() == 0


def data_of(log: Path, folder: Path) -> InteractionsDataModule:
    module = data(log, folder)
    module.prepare_data()
    module.setup()
    return module


def test_training_goes_on_from_a_checkpoint_or_begins_with_its_network(
    trained: tuple[Path, dict[str, float]], log_csv: Path, stores: Path, tmp_path: Path
) -> None:
    path, figures = trained
    whole = trainer(tmp_path, max_epochs=3, callbacks=[ScalingPoints()])
    resumed = SequentialRecommender(size="3k", optimizer=Optimizer(lr=0.01))
    whole.fit(resumed, data(log_csv, stores), ckpt_path=str(path))
    assert resumed.D == 3 * data_of(log_csv, stores).U
    begun = SequentialRecommender.load_from_checkpoint(path, optimizer=Optimizer(lr=0.0001))
    trainer(tmp_path, max_epochs=1).fit(begun, data(log_csv, stores))
    assert begun.evaluations["val"]["loss"] < figures["test/loss"] + 0.5


class OwnData(InteractionsDataModule):
    """The user's own data."""


def test_training_does_not_begin_its_order_again_with_data_of_another_class(
    trained: tuple[Path, dict[str, float]], log_csv: Path, stores: Path, tmp_path: Path
) -> None:
    own = data(log_csv, stores)
    own.__class__ = OwnData
    with pytest.raises(UserError, match="trained with data of another class than OwnData: give the same; the order"):
        trainer(tmp_path, max_epochs=3, logger=False).fit(
            SequentialRecommender(size="3k", optimizer=Optimizer(lr=0.01)), own, ckpt_path=str(trained[0])
        )


def test_training_does_not_count_from_zero_again_in_a_subclass(
    trained: tuple[Path, dict[str, float]], log_csv: Path, stores: Path, tmp_path: Path
) -> None:
    class Own(SequentialRecommender):
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            pass

    with pytest.raises(UserError, match=r"Own\.on_load_checkpoint does not restore the run: call super\(\)"):
        trainer(tmp_path, max_epochs=3, logger=False).fit(
            Own(size="3k", optimizer=Optimizer(lr=0.01)), data(log_csv, stores), ckpt_path=str(trained[0])
        )


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (partial(Optimizer, decay="const"), r"optimizer\.decay const: choose cosine, linear, constant, wsd"),
        (partial(Switch, decay="flat"), r"optimizer\.switch\.decay flat: choose"),
        (partial(SequentialRecommender, parametrisation="standart"), r"model\.parametrisation standart: choose scaled"),
        (partial(SequentialRecommender, item_vectors_use="init"), r"model\.item_vectors_use init: choose initial"),
        (partial(InteractionsDataModule, "log.csv", cold_targets="drop"), r"data\.cold_targets drop: choose missed"),
        (partial(InteractionsDataModule, "log.csv", repeats="none"), r"data\.repeats none: choose True, False, not_in"),
        (partial(InteractionsDataModule, "log.csv", validation_users="al"), r"data\.validation_users al: choose auto"),
    ],
)
def test_a_misspelt_choice_is_refused_in_python_too(made: Callable[[], object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        made()


class Stops(Callback):
    """Fails at the start of a micro-batch."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.at:
            raise KeyError("stopped")


@pytest.mark.parametrize(("at", "every"), [(3, 1), (9, 2), (12, 2), (0, 1)])
def test_training_goes_on_exactly_from_a_checkpoint_saved_within_a_step(
    at: int, every: int, log_csv: Path, stores: Path, tmp_path: Path
) -> None:
    def fitted(ckpt_path: Path | None = None, **options: Any) -> SequentialRecommender:
        torch.manual_seed(0)
        model, limits = SequentialRecommender(size="0.8k"), {"max_epochs": 2, "limit_val_batches": 0, "logger": False}
        whole = trainer(tmp_path, accumulate_grad_batches=every, limit_train_batches=8, **limits, **options)
        whole.fit(model, data(log_csv, stores), ckpt_path=ckpt_path)
        return model

    with pytest.raises(KeyError, match="stopped"):
        fitted(callbacks=[OnExceptionCheckpoint(tmp_path, "stopped"), Stops(at)])
    uninterrupted, resumed = fitted(), fitted(tmp_path / "stopped.ckpt")
    assert all(torch.equal(*pair) for pair in zip(uninterrupted.parameters(), resumed.parameters(), strict=True))
    assert (resumed.D, resumed.flops) == (uninterrupted.D, uninterrupted.flops)
    fit = resumed.trainer
    assert fit.fit_loop.epoch_loop._batches_that_stepped == fit.global_step, "curves are written at the same steps"


def test_a_folder_of_shards_is_as_good(trained: tuple[Path, dict[str, float]], tmp_path: Path) -> None:
    folder = tmp_path / "sharded.ckpt"
    write_by_hand(folder, torch.load(trained[0], weights_only=True), 1)
    models = [SequentialRecommender.load_from_checkpoint(path).net.state_dict() for path in (trained[0], folder)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert lrec.load(folder).item_ids.equals(lrec.load(trained[0]).item_ids)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "explicit": {
        "layers": 2,
        "width": 16,
        "heads": 2,
        "dropout": Dropout(0.1, OverDepth(0.2, 0.1)),
        "parametrisation": "scaled",
    },
    "modern": {"size": "3k", "architecture": Architecture("rms", "swiglu", "rotary", True), "top_k": 3},
    "switch": {"size": "3k", "optimizer": Optimizer(switch=Switch(at=2)), "loss": lrec.GBCE(negatives=8)},
    "torch's optimizer": {"size": "3k", "optimizer": partial(torch.optim.SGD, lr=0.1)},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_comes_back(name: str, log_csv: Path, stores: Path, tmp_path: Path) -> None:
    fitted = trainer(tmp_path, max_steps=3, limit_val_batches=0, logger=False)
    fitted.fit(SequentialRecommender(**ARGUMENTS[name]), data(log_csv, stores))
    fitted.save_checkpoint(tmp_path / "model.ckpt")
    model = SequentialRecommender.load_from_checkpoint(tmp_path / "model.ckpt")
    for argument, value in ARGUMENTS[name].items():
        if argument == "optimizer" and isinstance(value, partial):
            made = model.optimizer(model.net.parameters())  # type: ignore[operator]
            assert (type(made), made.param_groups[0]["lr"]) == (torch.optim.SGD, 0.1)
        elif argument not in ("layers", "width", "heads"):
            assert getattr(model, argument) == value
    assert model.shape == SequentialRecommender(**ARGUMENTS[name]).shape


def test_a_model_and_a_loss_of_one_s_own(log_csv: Path, stores: Path, tmp_path: Path) -> None:
    def saved(loss: Loss) -> Path:
        fitted = trainer(tmp_path, max_steps=2, limit_val_batches=0, logger=False)
        fitted.fit(Own("mine", loss, size="3k"), data(log_csv, stores))
        fitted.save_checkpoint(tmp_path / "own.ckpt")
        return tmp_path / "own.ckpt"

    path = saved(Doubled(factor=4.0))
    with pytest.raises(UserError, match=r"names the class test_python\.Doubled, which is not lrec's own"):
        Own.load_from_checkpoint(path)
    model = Own.load_from_checkpoint(path, trust=True)
    assert (model.note, model.loss) == ("mine", Doubled(factor=4.0))
    assert Own.load_from_checkpoint(path, trust=True, note="yours").note == "yours"
    with pytest.raises(UserError, match=r"holds a test_python\.Own: use its own load_from_checkpoint"):
        SequentialRecommender.load_from_checkpoint(path, trust=True)
    assert lrec.load(path).about["model"] == "test_python.Own"  # no class of the checkpoint is needed
    path = saved(Tripled())
    with pytest.raises(UserError, match=r"could not keep loss, a Tripled: load_from_checkpoint\(\.\.\., loss=\.\.\.\)"):
        Own.load_from_checkpoint(path)
    tripled = Tripled()
    assert Own.load_from_checkpoint(path, loss=tripled).loss is tripled


class WithHead(SequentialRecommender):
    """The user's own model, with parameters beside the network."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.head = torch.nn.Linear(2, 1)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch, batch_idx) + self.head.weight.square().sum()


class Late(WithHead):
    """Its parameters exist only in training."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.head

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.head = torch.nn.Linear(2, 1)


def test_parameters_beside_the_network_are_trained_saved_and_loaded(
    log_csv: Path, stores: Path, tmp_path: Path
) -> None:
    def saved(model: SequentialRecommender) -> Path:
        fitted = trainer(tmp_path, max_steps=2, limit_val_batches=0, logger=False)
        fitted.fit(model, data(log_csv, stores))
        fitted.save_checkpoint(tmp_path / "own.ckpt")
        return tmp_path / "own.ckpt"

    model = WithHead(size="3k")
    before = model.head.weight.detach().clone()
    path = saved(model)
    assert not torch.equal(model.head.weight, before)
    loaded = WithHead.load_from_checkpoint(path)
    assert torch.equal(loaded.head.weight, model.head.weight)
    served = lrec.load(path).net.state_dict()  # the network alone
    assert all(torch.equal(served[name], value) for name, value in model.net.state_dict().items())
    with pytest.raises(UserError, match=r"own.ckpt has head.bias, which a new Late has not: make it in __init__"):
        Late.load_from_checkpoint(saved(Late(size="3k")))


def test_a_model_of_one_s_own_that_would_not_be_trained_or_counted_is_refused(
    log_csv: Path, stores: Path, tmp_path: Path
) -> None:
    class Untrained(WithHead):
        configure_optimizers = SequentialRecommender.configure_optimizers

    class Uncounted(SequentialRecommender):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.loss_sum(batch)

    class Alone(SequentialRecommender):
        def configure_callbacks(self) -> list[Callback]:
            return [Frozen()]

    class Unevaluated(SequentialRecommender):
        def validation_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            self.log("val/own", 1.0, batch_size=1)

    for kind, refusal in (
        (Unevaluated, r"Unevaluated\.validation_step evaluates no targets: call super\(\)\.validation_step"),
        (Alone, r"Alone\.configure_callbacks omits ProcessSetup: return \[\*super\(\)\.configure_callbacks\(\), "),
        (Untrained, r"lrec trains the network, not head\.weight: override configure_optimizers"),
        (Uncounted, r"Uncounted\.training_step does not count the targets: call super\(\)\.training_step"),
    ):
        with pytest.raises(UserError, match=refusal):
            trainer(tmp_path, max_steps=2, val_check_interval=1, limit_val_batches=1, logger=False).fit(
                kind(size="3k"), data(log_csv, stores)
            )


@pytest.mark.parametrize(
    ("options", "refusal"),
    [
        ({"loss": "SampledSoftmax"}, r"model\.loss must be an object of the class Loss, got 'SampledSoftmax'"),
        ({"loss": SampledSoftmax}, r"model\.loss must be an object of the class Loss, got <class"),
        ({"dropout": 0.1}, r"model\.dropout must be an object of the class Dropout, got 0\.1"),
        ({"architecture": "modern"}, r"model\.architecture must be an object of the class Architecture"),
        ({"architecture": Architecture(mlp=lrec.MLP)}, r"a class by its path, such as my_parts\.Mine"),  # type: ignore[arg-type]
        ({"split": lrec.GlobalTemporal}, r"data\.split must be an object of the class SplitRule, got <class"),
        ({"reduction": 0.5}, r"data\.reduction must be an object of the class Reduction, got 0\.5"),
        ({"optimizer": 0.1}, r"model\.optimizer must be an lrec\.Optimizer or a class of torch\.optim, got 0\.1"),
    ],
)
def test_values_of_another_kind_are_refused(
    options: dict[str, Any], refusal: str, log_csv: Path, stores: Path, tmp_path: Path
) -> None:
    def fit() -> None:
        of_data = options.keys() & {"split", "reduction"}
        model = SequentialRecommender(size="3k", **({} if of_data else options))
        chosen = data(log_csv, stores, **(options if of_data else {}))
        trainer(tmp_path, max_steps=1, logger=False).fit(model, chosen)

    with pytest.raises(UserError, match=refusal):
        fit()


def test_what_does_not_fit_is_refused(
    trained: tuple[Path, dict[str, float]], log_csv: Path, stores: Path, tmp_path: Path
) -> None:
    model = SequentialRecommender.load_from_checkpoint(trained[0])
    with pytest.raises(UserError, match="trained on other data, another split"):
        trainer(tmp_path).test(model, data(log_csv, stores, split=lrec.LastItems(held_out_users=0.5)))
    with pytest.raises(UserError, match="the checkpoint has layers 1, the config 2"):
        SequentialRecommender.load_from_checkpoint(trained[0], size="98k")
    with pytest.raises(UserError, match="no such checkpoint"):
        SequentialRecommender.load_from_checkpoint(tmp_path / "nowhere.ckpt")
    damaged = "not a checkpoint that lrec wrote, or a damaged one"
    for entry in ("lrec_items", "hyper_parameters"):
        before = torch.load(trained[0], weights_only=True)
        del before[entry]
        torch.save(before, tmp_path / "before.ckpt")
        with pytest.raises(UserError, match=damaged):
            SequentialRecommender.load_from_checkpoint(tmp_path / "before.ckpt")
    del before["lrec_items"]
    torch.save(before, tmp_path / "before.ckpt")
    with pytest.raises(UserError, match=damaged):
        lrec.load(tmp_path / "before.ckpt")
    with pytest.raises(UserError, match=r"hparams_file mine\.yaml: .* has the model's arguments"):
        SequentialRecommender.load_from_checkpoint(trained[0], hparams_file="mine.yaml")  # type: ignore[arg-type]


def test_a_checkpoint_of_lrec_fit_needs_nothing_beside_it(
    log_csv: Path, tmp_path: Path, lrec: Callable[..., str]
) -> None:
    import lrec as package

    lrec("fit", "--config=data/csv.yaml", "--config=trainer/laptop.yaml", f"--data.path={log_csv}",
         "--data.user_column=who", "--data.item_column=what", "--data.time_column=when", "--model.size=3k",
         f"--data.data_dir={tmp_path / 'stores'}", "--data.max_len=10", "--data.targets_per_step=256",
         f"--trainer.default_root_dir={tmp_path / 'run'}", "--trainer.max_epochs=1",
         "--trainer.enable_progress_bar=false")  # fmt: skip
    whole = package.load(tmp_path / "run")
    shutil.move(tmp_path / "run" / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    shutil.rmtree(tmp_path / "run")
    alone = package.load(tmp_path / "alone.ckpt")
    assert alone.item_ids.equals(whole.item_ids)
    assert alone.about == whole.about
    assert SequentialRecommender.load_from_checkpoint(tmp_path / "alone.ckpt").size == "3k"


def test_dir_lists_the_names() -> None:
    assert {"load", "SequentialRecommender", "InteractionsDataModule", "Attention", "UserError"} <= set(dir(lrec))
    for name in lrec.__all__:
        assert getattr(lrec, name).__name__ == name
