"""The runs of a study, and every option of each run."""

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

from lrec.common.start_stop import importing
from lrec.errors import UserError, check_range
from lrec.model.config import TransformerConfig
from lrec.options.config_files import find_config
from lrec.run import RunConfig, dotted
from lrec.study.options import DECAY, EPOCHS, STEP, Study, as_argument, ladder_n_body

if TYPE_CHECKING:
    from lrec.data.datamodule import SequenceDataModule
    from lrec.training.module import SequentialRecommender

Composed = dict[tuple[str, ...], dict[str, Any]]  # all options of a run, by the arguments that they are composed from


@dataclass(frozen=True)
class PlannedRun:
    name: str  # of its folder
    size: str
    seed: int
    fraction: float
    variant: str  # "" if the study has no variants
    ladder: str  # name of the group of runs that are fitted together: they differ only in size, seed and horizon
    held_out: bool  # whether its loss is predicted before it is trained
    options: dict[str, Any]  # all options of its `lrec fit`, nested as in config.yaml, except its output folder
    starts_from: str = ""  # name of the run whose best network it starts from
    horizon: float = 1.0  # it ends after this share of the training
    goes_on_from: str = ""  # run of the next shorter horizon, which it continues from before that run's rate falls
    own: float = 1.0  # share of its training that it does not take over from that run
    generation: int = 0  # number of runs before it, each of which starts from the one before

    @property
    def wave(self) -> tuple[int, float]:
        """The key to sort by: runs come after the runs that they start from or go on from."""
        return self.generation, self.horizon

    @property
    def config(self) -> RunConfig:
        return RunConfig(self.options)

    @cached_property
    def model(self) -> "SequentialRecommender":
        """The module that it trains, still without a network."""
        from lrec.training.module import model_of

        return model_of(self.options)

    def open_data(self) -> "SequenceDataModule":
        from lrec.data.datasets import datamodule_of

        return datamodule_of(self.options, "fit")

    def network(self, n_items: int) -> TransformerConfig:
        return self.model.network_config(n_items, self.config.value("data.max_len"))


def planned_runs(study: Study) -> list[PlannedRun]:
    """All runs: sizes x seeds x fractions x variants x horizons; UserError if `lrec fit` would refuse a run. Held-out
    sizes have only the largest fraction. Smaller fractions have all seeds with --fractions, else only the first."""
    composed: Composed = {}
    runs = _runs_of(study, study.samples(0), composed)
    epochs = [limits(run.config)[1] for run in runs]
    fractions = study.samples(max(math.inf if each is None or each < 0 else each for each in epochs))
    return runs if fractions == study.samples(0) else _runs_of(study, fractions, composed)


def _runs_of(study: Study, fractions: tuple[float, ...], composed: Composed) -> list[PlannedRun]:
    with importing():
        from lrec.training.lightning_cli import compose
    runs = list[PlannedRun]()
    for fraction, variant, size in product(fractions, study.every_variant, study.ladder):
        held_out = size in study.held_out
        seeds = study.size_seeds.get(size, study.holdout_seeds if held_out else study.seeds)
        if fraction < max(fractions):
            seeds = () if held_out else seeds if study.fractions else seeds[:1]
        ladder = [variant] if len(study.every_variant) > 1 else []
        ladder += [f"fraction-{fraction:g}"] if len(fractions) > 1 else []
        source, generation = study.starts_from.get(variant), len(study.sources_of(variant)) - 1
        for seed in seeds:
            check_range("--seeds", seed, at_least=0, at_most=2**32 - 1)
            # No other option depends on these three: runs that differ in nothing else are composed only once.
            own: dict[str, Any] = {"model.size": size, "seed_everything": seed, "data.seed": seed}
            given = study.given | ruled_options(study, size, fraction)
            options = own | given | dotted(study.size_options.get(size, {})) | dotted(study.every_variant[variant])
            own = {option: options.pop(option) for option in own}
            others = tuple(_arguments(study, options))
            if others not in composed:
                composed[others] = compose(_arguments(study, own | options))
            if fraction < 1:  # of the training data, which may be reduced already
                sample, whole = f"data.reduction.{study.reduce}", RunConfig(composed[others])
                if sample not in whole.flat:
                    raise UserError(f"--fractions {fraction:g}: the data module has no option {sample}")
                own[sample] = fraction * whole.value(sample, 1.0)
            place, options = (size, seed, fraction, variant), changed(composed[others], own)
            start = "" if source is None else _name(study, size, seed, fraction, source, max(study.horizons))
            run = PlannedRun(_name(study, *place), *place, "-".join(ladder), held_out, options, start)
            runs += _horizons(study, replace(run, generation=generation))
    return runs


def _name(study: Study, size: str, seed: int, fraction: float, variant: str, horizon: float = 1.0) -> str:
    share = "" if fraction == 1 else f"{study.reduce}-{fraction:g}"
    part = "" if horizon == 1 else f"horizon-{horizon:g}"
    return "-".join(filter(None, (size, share, variant, part, f"seed{seed}")))


def limits(config: RunConfig) -> tuple[int | None, float | None]:
    """The maximum steps and epochs of a run by its options; a share in limit_train_batches reduces the epochs."""
    epochs, share = config.value(EPOCHS), config.value("trainer.limit_train_batches")
    if isinstance(share, float) and epochs is not None and epochs > 0:
        epochs *= share
    return config.value("trainer.max_steps"), epochs


def epochs_alone(config: RunConfig) -> int | None:
    """The epochs of a run that nothing else limits; else None."""
    epochs = config.value(EPOCHS, -1)
    others = [config.value(f"trainer.{limit}", -1) for limit in ("max_steps", "max_time", "limit_train_batches")]
    return int(epochs) if epochs > 0 and others == [-1, -1, -1] else None


def of_all_data(runs: list[PlannedRun]) -> list[PlannedRun]:
    """The runs with the most data and the longest training."""
    most = max((run.fraction, run.horizon) for run in runs)
    return [run for run in runs if (run.fraction, run.horizon) == most]


def _horizons(study: Study, run: PlannedRun) -> list[PlannedRun]:
    """The run once for each horizon, the shortest first. Each can also train alone, with the same result."""
    if len(study.horizons) == 1:
        return [run]
    from lrec.training.optim import WSD_FALL

    get, runs = run.config.value, list[PlannedRun]()
    epochs, warmup = epochs_alone(run.config), get("model.optimizer.warmup", 0.0)
    if epochs is None or get(DECAY) != "wsd" or get("model.optimizer.switch.lr") is not None:
        needed = f"set its length with {EPOCHS} only, and use lrec's optimizer with {DECAY} wsd and without switch"
        raise UserError(f"--horizons {list(study.horizons)}: run {run.name} must {needed}")
    place, shorter, reached = (run.size, run.seed, run.fraction, run.variant), "", 0.0
    for horizon in sorted(study.horizons):
        passes = round(epochs * horizon, 9)
        if passes <= 0 or (passes > 1 and passes != int(passes)):
            wrong = "neither whole nor less than one"
            raise UserError(f"--horizons {horizon:g} of {EPOCHS} {epochs} is {passes:g}: {wrong}")
        changes = {EPOCHS: max(int(passes), 1), "trainer.limit_train_batches": None if passes >= 1 else passes}
        changes |= {"model.optimizer.warmup": warmup * min(study.horizons) / horizon, "points.horizon": horizon}
        name, options = _name(study, *place, horizon), changed(run.options, changes)
        own = 1 - (1 - WSD_FALL) * reached / horizon
        runs.append(replace(run, name=name, options=options, horizon=horizon, goes_on_from=shorter, own=own))
        shorter, reached = name, horizon
    return runs


def changed(options: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of a run's options with `changes`, which have dotted names."""
    options = deepcopy(options)
    for name, value in changes.items():
        *path, last = name.split(".")
        within = options
        for part in path:
            within = within[part].get("init_args", within[part])
        within[last] = value
    return options


def _arguments(study: Study, options: dict[str, Any]) -> list[str]:
    # The classes of model and data must come before their options, some of which the grid itself sets.
    classes = ("model", "model.class_path", "data", "data.class_path")
    in_order = sorted(options.items(), key=lambda option: option[0] not in classes)
    configs = [f"--config={find_config(config)}" for config in study.configs]
    return configs + [f"--{option}={as_argument(value)}" for option, value in in_order]


def ruled_options(study: Study, size: str, fraction: float) -> dict[str, float]:
    """The options that the study's rules give for a size and a fraction of the data."""
    n_body, largest = ladder_n_body(size), max(map(ladder_n_body, study.ladder))
    options = dict[str, float]()
    for option, rule in dotted(study.rules).items():
        match rule:
            case [factor, exponent, *shares] if len(shares) < 2 and all(isinstance(each, int | float) for each in rule):
                # Above the ladder, a step that falls further could become too small for the length of a history.
                scale = min(n_body, largest) if option == STEP else n_body
                value = factor * scale**exponent * fraction ** sum(shares)
                options[option] = round(value) if option == STEP else float(f"{value:.4g}")
            case _:
                raise UserError(f"--rules.{option}: {rule!r} is not [factor, exponent] or [factor, exponent, of share]")
    return options
