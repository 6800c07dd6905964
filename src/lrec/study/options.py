"""The options of a study: one frozen dataclass, whose docstring is the help of `lrec scaling study`."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, Literal

from lrec.common import hardware
from lrec.errors import UserError, check_range
from lrec.laws.forecast import LEAST_SIZES, Forecast
from lrec.laws.predict import method_named
from lrec.model import cost
from lrec.model.config import TransformerConfig
from lrec.model.network_sizes import even_ladder, find_size
from lrec.run import RunConfig, dotted
from lrec.study.placement import Placement, here, placement
from lrec.study.points import REPEATED

PLAN = "plan.json"  # holds the choices of a study with --hours
DECAY, MUON = "model.optimizer.decay", "model.optimizer.muon"
EPOCHS, STEP = "trainer.max_epochs", "data.targets_per_step"
Tunable = Literal["lr", "targets_per_step", "dropout"]


@dataclass(frozen=True)
class Runs:
    """The options of a command that trains many runs, a study or a backtest.

    Attributes:
        name: Name of the study or the backtest.
        configs: Configuration files of every run, as for lrec fit --config.
        data: Options of the data, as in lrec fit: --data.path log.csv --data.user_column user.
        options: Options of lrec fit for all runs, nested or by dotted name such as trainer.max_epochs.
        size_options: More options for single sizes.
        jobs: Number of runs at the same time, each with an equal share of cores; by default 1, or what a study with
            --hours plans.
        cores: Cores for all runs together; by default all that lrec may use.
        gpus: Numbers of the GPUs for all runs together, if they train on GPUs; by default all GPUs. A run gets the
            number in its trainer.devices, or an equal share if that is auto, and waits until they are free.
        memory_gib: Memory for all runs together, in GiB, estimated as in --dry_run; a run waits until enough is free.
        budget_hours: Hours of a core, or of a GPU for runs that train on GPUs. If the runs may take more, none starts.
            When these hours are spent, all runs stop.
        retries: How often a failed run is started again automatically; it resumes from its last checkpoint.
        restart: Names of runs to train again from the beginning.
        cluster: Train on a cluster as an array of jobs, with these parameters of submitit's AutoExecutor, such as
            {timeout_min: 600, slurm_partition: gpu}; a job may take a day by default. {cluster: local} tries it without
            a cluster and without a limit. A job gets the nodes and GPUs of its run: trainer.num_nodes, and
            trainer.devices, or gpus_per_node if that is auto.
        dry_run: Print the runs with their hours, memory and disk, and stop.
        status: Print the runs with their states and losses so far, and stop.
    """

    name: str = "study"
    configs: list[str] = field(default_factory=lambda: ["data/csv.yaml", "trainer/laptop.yaml"])
    data: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    size_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: int | None = None
    cores: int | None = None
    gpus: tuple[int, ...] | None = None
    memory_gib: float | None = None
    budget_hours: float | None = None
    retries: int = 0
    restart: tuple[str, ...] = ()
    cluster: dict[str, Any] | None = None
    dry_run: bool = False
    status: bool = False


@dataclass(frozen=True)
class Study(Runs):
    """Train small sizes of a ladder, predict the large sizes from them, then train the large sizes and compare.

    Attributes:
        sizes: Names of sizes, shapes such as 2x96, or {from: 3k, to: 3m, per_decade: 3} for evenly spaced shapes of
            the same depth. By default the sizes that the hours allow.
        out: Folder of the study; studies/NAME by default.
        hours: How long the study may take, in hours of the clock. From these hours, lrec chooses the sizes, the amount
            of data, the passes and the tuning, unless you set them. Only for a study without sizes.
        seeds: Seeds of the fitted sizes; each seed is a run.
        holdout_seeds: Seeds of the held-out sizes; each seed is a run.
        size_seeds: Seeds of single sizes, in place of seeds and holdout_seeds.
        fractions: Data samples, as shares of the training data such as [0.25, 0.5, 1]. Only the largest has held-out
            sizes. With more than four passes over the data, data samples tell the forecast how much size can gain. By
            default 1, 0.5 and 0.25 if held-out sizes are forecast and a run may make more than four passes, else 1.
        horizons: Parts of a run's training after which it also ends, such as [0.25, 0.5, 1]; 1 is all of it. Each is a
            run that continues the next shorter one, so all together take little more time than the longest. The
            learning rate is constant until it falls at the end (optimizer.decay wsd), and all have the warm-up of the
            shortest. Each part of trainer.max_epochs must be a whole number of epochs, or less than 1.
        reduce: What data samples are taken from: users, interactions, or the most recent part of each history. With
            hours and few users, it is the most recent part.
        holdout: Number of largest sizes that are predicted instead of fitted.
        rules: Options that depend on the size, as [factor, exponent]: factor * N_body ** exponent, to four digits
            (targets_per_step: rounded); or as [factor, exponent, exponent of the fraction], which also multiplies by
            fraction ** that exponent.
        variants: More options, by the name of a variant. All runs are trained in each variant, and compared.
        starts_from: For a variant, another variant: each run of the first starts from the best network of the second's
            run with the same size and seed. The second variant may itself start from a third.
        grid: Lists of values of any options, such as trainer.max_epochs; each combination is a variant.
        tune: What short runs choose by val/loss before all other runs: the learning rate (lr), and if you want also
            targets_per_step and dropout. The short runs are a study of their own, OUT-tuning. Each held-out size also
            tries its learning rate before it is predicted.
        law: What predicts the large sizes of each variant: forecast, which combines many curves; a law of the size,
            such as lsrm, L(x) = E + (x0/x)^a; a law of your own, by its class path; or null with holdout 0, for none.
        x: Which parameters the law counts.
        y: Which loss is fitted: that of the test targets, or that of the test targets and the split's trajectories.
        price_per_hour: Price of an hour of a core, or of a GPU for runs that train on GPUs. The report then has prices.
        budget_disk_gib: Disk space, in GiB. A study that may need more does not start.
        skip: Names of runs to leave out.
    """

    sizes: list[str] | dict[str, str | int] | None = None
    out: Path | None = None
    hours: float | None = None
    seeds: tuple[int, ...] = (1,)
    holdout_seeds: tuple[int, ...] = (1,)
    size_seeds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    fractions: tuple[float, ...] | None = None
    horizons: tuple[float, ...] = (1.0,)
    reduce: Literal["users", "interactions", "recent"] = "users"
    holdout: int = 2
    rules: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    starts_from: dict[str, str] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    tune: tuple[Tunable, ...] = ()
    law: str | None = "forecast"
    x: Literal["N_body", "N_total"] = "N_body"
    y: Literal["test_loss", "trajectory_loss"] = "test_loss"
    price_per_hour: float | None = None
    budget_disk_gib: float | None = None
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_range("--hours", self.hours, above=0)
        check_range("--price_per_hour", self.price_per_hour, above=0)
        for option, least in (("jobs", 1), ("cores", 1), ("retries", 0)):
            check_range(f"--{option}", getattr(self, option), at_least=least)
        for fraction in self.fractions or ():
            check_range("--fractions", fraction, above=0, at_most=1)
        if self.sizes is None and self.hours is None:
            raise UserError("--sizes: name the sizes of the ladder, or set --hours to the time that is available")
        for size in (*self.size_seeds, *self.size_options):
            find_size(size)
        lists: dict[str, Sequence[Any] | None] = {"sizes": None if self.sizes is None else self.ladder}
        lists |= {"seeds": self.seeds, "fractions": self.fractions, "horizons": self.horizons}
        lists |= {"holdout_seeds": self.holdout_seeds if self.holdout else None, "tune": self.tune or None}
        lists |= {f"size_seeds.{size}": seeds for size, seeds in self.size_seeds.items()}
        for option, values in lists.items():
            if values is not None and (not values or len(set(values)) < len(values)):
                raise UserError(f"--{option} {list(values)}: name at least one, and each once")
        if len(self.horizons) == 1 and self.horizons != (1.0,):
            raise UserError(f"--horizons {list(self.horizons)}: for one, set the length of the training instead")
        if self.tune and "lr" not in self.tune:
            raise UserError(f"--tune {list(self.tune)}: the learning rate must be tuned too: add lr")
        several = max(len(seeds) for seeds in (self.seeds, self.holdout_seeds, *self.size_seeds.values())) > 1
        varied, variants = {"model.size": "sizes"} | ({"data.seed": "seeds"} if several else {}), self.every_variant
        given = (self.given, self.rules, *self.size_options.values(), *variants.values())
        fixed = {option: value for options in given for option, value in dotted(options).items()}
        for option, lists_them in varied.items():
            if option in fixed:
                same = f"all runs with the option {option} {fixed[option]} would have the same"
                raise UserError(f"--{lists_them}: {same}: leave this option out")
        for variant in variants:
            if not re.fullmatch(r"[\w.-]*", variant):
                raise UserError(f"--variants: the name {variant!r} must be made of letters, digits, '.', '_' and '-'")
        for variant, source in self.starts_from.items():
            if not {variant, source} <= set(variants) or variant in self.sources_of(source):
                raise UserError(f"--starts_from {variant}: {source}: name two of {', '.join(variants)}, in no circle")
        if self.law is not None:
            self._check_law(self.law)
        elif self.holdout:
            raise UserError(f"--holdout {self.holdout}: without a law nothing is predicted, set it to 0")

    def _check_law(self, name: str) -> None:
        law, needed, what = method_named(name), LEAST_SIZES, "the forecast"
        if law is not None:
            needed, what = len(law.parameters) + 1, f"the law {name}"
            if len(law.variables) > 1:
                raise UserError(f"--law {name}: a study fits laws of size alone: use lrec scaling fit on its points")
        if self.sizes is not None:
            left = len(self.ladder) - self.holdout
            if self.holdout < 0 or left < needed:
                raise UserError(f"{what} needs at least {needed} fitted sizes: --holdout {self.holdout} leaves {left}")
            if self.x == "N_body" and len({*map(ladder_n_body, self.ladder)}) < len(self.ladder):
                raise UserError(f"--sizes {self.ladder}: two have the same N_body, so {what} cannot tell them apart")

    @property
    def folder(self) -> Path:
        return self.out or Path("studies") / self.name

    @property
    def n_jobs(self) -> int:
        return self.jobs or 1

    @property
    def n_cores(self) -> int:
        return self.cores or hardware.cores()

    @property
    def threads(self) -> int:
        return max(self.n_cores // self.n_jobs, 1)

    def placement(self, config: RunConfig) -> Placement:
        """What a run trains on: the number of GPUs in its trainer.devices, or an equal share if that is auto."""
        return placement(config, len(self.every_gpu) // self.n_jobs)

    @property
    def is_here(self) -> bool:
        return self.cluster is None or self.cluster.get("cluster") == "local"

    @property
    def every_gpu(self) -> tuple[str, ...]:
        """GPUs of all runs together, as CUDA_VISIBLE_DEVICES names them."""
        if self.cluster is not None and not self.is_here:  # each job has its own GPUs
            return tuple(map(str, range(self.n_jobs * int(self.cluster.get("gpus_per_node", 1)))))
        return here() if self.gpus is None else tuple(map(str, self.gpus))

    @property
    def given(self) -> dict[str, Any]:
        """Options of all runs, by dotted name: those that horizons need, those of the data, and all others."""
        needed = {DECAY: "wsd"} if len(self.horizons) > 1 else {}
        return needed | dotted({"data": self.data}) | dotted(self.options)

    def say_what_is_replaced(self) -> None:
        """Print the options that others replace: those of the data under --options, and these under --rules."""
        given = self.given
        for option, value in dotted({"data": self.data}).items():
            if given[option] != value:
                print(f"not used: --{option} {value}, because of --options.{option} {given[option]}")
        for option in sorted(given.keys() & dotted(self.rules).keys()):
            print(f"not used: --options.{option} {given[option]}, because of --rules.{option}")

    @property
    def every_variant(self) -> dict[str, dict[str, Any]]:
        """The options of every variant with every combination of the grid, named after both, such as `both-lr-0.01`."""
        grid = dotted(self.grid)
        for option, several in grid.items():
            if not isinstance(several, list) or not several:
                raise UserError(f"--grid.{option}: {several!r} is not a list of values")
        result: dict[str, dict[str, Any]] = {}
        for (variant, options), *chosen in product((self.variants or {"": {}}).items(), *grid.values()):
            own = dict(zip(grid, chosen, strict=True))
            parts = [f"{option.rsplit('.')[-1]}-{as_argument(value)}" for option, value in own.items()]
            name = "-".join(filter(None, (variant, *(re.sub(r"[^\w.-]+", "_", part) for part in parts))))
            if name in result:
                raise UserError(f"--grid: two combinations would be named {name}: use --variants to name them")
            result[name] = options | own
        return result

    def sources_of(self, variant: str) -> list[str]:
        """The variant, then the variant that it starts from, and so on along the chain, each once."""
        found = [variant]
        while (source := self.starts_from.get(found[-1])) is not None and source not in found:
            found.append(source)
        return found

    @property
    def ladder(self) -> list[str]:
        """All sizes by name, in order of N_body."""
        assert self.sizes is not None, "a study with --hours must be planned first"
        return sorted(_spaced(self.sizes) if isinstance(self.sizes, dict) else self.sizes, key=ladder_n_body)

    @property
    def most(self) -> float:
        """The largest share of the data."""
        return max(self.fractions or (1.0,))

    def samples(self, epochs: float) -> tuple[float, ...]:
        """The fractions, by default for runs of so many passes. With few, less data would just be less training."""
        forecasts = self.law == Forecast.name and self.holdout and len(self.horizons) == 1
        return self.fractions or ((1.0, 0.5, 0.25) if forecasts and epochs > REPEATED else (1.0,))

    @property
    def held_out(self) -> list[str]:
        return self.ladder[len(self.ladder) - self.holdout :]

    @property
    def fitted(self) -> list[str]:
        return self.ladder[: len(self.ladder) - self.holdout]


def _spaced(ladder: dict[str, str | int]) -> list[str]:
    if set(ladder) != {"from", "to", "per_decade"}:
        raise UserError(f"--sizes {ladder}: name from, to and per_decade, such as {{from: 3k, to: 3m, per_decade: 3}}")
    try:
        return even_ladder(str(ladder["from"]), str(ladder["to"]), int(ladder["per_decade"]))
    except ValueError as error:
        raise UserError(f"--sizes {ladder}: {error}") from None


def ladder_n_body(size: str) -> int:
    return cost.n_body(TransformerConfig(1, 1, *find_size(str(size))))


def as_argument(value: Any) -> str:
    """An option's value as it is written on a command line."""
    return value if isinstance(value, str) else json.dumps(value)
