"""A scaling study: train the small sizes, fit a law, write the prediction, only then train the large sizes, and judge.

Started again, a study goes on where it stopped: finished runs are kept, an unfinished one is resumed.
"""

import json
import os
import re
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from lrec import cost
from lrec.cli import find_config
from lrec.errors import UserError
from lrec.files import json_hash, write_json
from lrec.net import SIZES, TransformerConfig, find_size
from lrec.scaling.fit import fit_points
from lrec.scaling.laws import LAWS
from lrec.scaling.points import read_points, source_hash
from lrec.scaling.predict import predict
from lrec.scaling.runs import Run, finished_point, train
from lrec.scaling.study_report import Ladder, by_ladder, print_plan, write_report


def study(
    name: str,
    configs: list[str],
    sizes: list[str],
    out: Path | None = None,
    seeds: tuple[int, ...] = (1,),
    holdout_seeds: tuple[int, ...] = (1,),
    size_seeds: dict[str, tuple[int, ...]] | None = None,
    fractions: tuple[float, ...] = (1.0,),
    reduce: Literal["users", "interactions", "recent"] = "users",
    holdout: int = 2,
    options: dict[str, Any] | None = None,
    rules: dict[str, Any] | None = None,
    size_options: dict[str, dict[str, Any]] | None = None,
    variants: dict[str, dict[str, Any]] | None = None,
    starts_from: dict[str, str] | None = None,
    law: str | None = "lsrm",
    x: Literal["N_body", "N_total"] = "N_body",
    jobs: int = 1,
    dry_run: bool = False,
) -> None:
    """Train a ladder of sizes, fit a law to the small ones and predict the large ones before they are trained.

    Args:
        name: Name of the study.
        configs: Configuration files that every run is composed of, as for lrec fit --config.
        sizes: Entries of the ladder.
        out: Folder of the study; studies/NAME by default.
        seeds: Seeds of the fitted sizes, a run each.
        holdout_seeds: Seeds of the held-out sizes, a run each.
        size_seeds: Seeds of single sizes, in place of these.
        fractions: Shares of the training data; each has a ladder and a fit of its own.
        reduce: What a fraction is a share of; users, interactions, or the most recent part of each history.
        holdout: Number of largest sizes that are predicted instead of fitted.
        options: Options of lrec fit that all runs share, nested or by dotted name such as trainer.max_epochs.
        rules: Options that follow the size, each as [factor, exponent]: factor * N_body ** exponent, to four digits.
        size_options: Further options by size.
        variants: Further options by name of a variant; all runs are trained once in each variant, and compared.
        starts_from: Variants whose runs start from the best network of another variant's run of the same size and seed.
        law: Law to fit to each fraction and variant; lsrm is L(x) = E + (x0/x)^a; none: no fit, with holdout 0.
        x: Parameters the law counts.
        jobs: Runs side by side, each with an equal share of the cores.
        dry_run: Print the runs with their hours, memory and disk, and stop.
    """
    grid = Grid(
        configs,
        sizes,
        seeds,
        holdout_seeds,
        size_seeds or {},
        fractions,
        reduce,
        holdout,
        options or {},
        rules or {},
        size_options or {},
        variants or {"": {}},
        starts_from or {},
    )
    _check(grid, law, jobs)
    runs = grid.runs()
    if dry_run:
        print_plan(runs, jobs)
        return
    out = out or Path("studies") / name
    book = _Book(out, name, runs, {"law": str(law), "x": x})
    book.train([run for run in runs if not run.held_out], jobs)
    ladders = [] if law is None else [_fit_ladder(out, mine, law, x) for mine in by_ladder(runs).values()]
    if holdout:
        _write_prediction(out / "prediction.json", ladders, runs)
        book.train([run for run in runs if run.held_out], jobs)
    print(write_report(out, name, runs, ladders))


def ladder_n_body(size: str) -> int:
    """N_body of an entry of the ladder."""
    return cost.n_body(TransformerConfig(1, 1, *SIZES[size]))


@dataclass(frozen=True)
class Grid:
    """Sizes x seeds x fractions x variants, and what the configurations are composed of; the arguments of `study`."""

    configs: list[str]
    sizes: list[str]
    seeds: tuple[int, ...]
    holdout_seeds: tuple[int, ...]
    size_seeds: dict[str, tuple[int, ...]]
    fractions: tuple[float, ...]
    reduce: str
    holdout: int
    options: dict[str, Any]
    rules: dict[str, Any]
    size_options: dict[str, dict[str, Any]]
    variants: dict[str, dict[str, Any]]
    starts_from: dict[str, str]

    @property
    def ladder(self) -> list[str]:
        """The sizes in order of N_body."""
        return sorted(self.sizes, key=ladder_n_body)

    def runs(self) -> list[Run]:
        """Every run with its whole configuration; UserError where `lrec fit` would refuse it."""
        held_out = self.ladder[len(self.ladder) - self.holdout :]
        return [
            self._run(size, seed, fraction, variant, size in held_out)
            for fraction, variant, size in product(self.fractions, self.variants, self.ladder)
            for seed in self.size_seeds.get(size, self.holdout_seeds if size in held_out else self.seeds)
        ]

    def _run(self, size: str, seed: int, fraction: float, variant: str, held_out: bool) -> Run:
        from lrec.lightning_cli import compose

        options = {"model.size": size, "seed_everything": seed, "data.seed": seed}
        by_rule = {option: _power(option, rule, size) for option, rule in _dotted(self.rules).items()}
        for more in (self.options, by_rule, self.size_options.get(size, {}), self.variants[variant]):
            options |= _dotted(more)
        if fraction != 1:
            options[f"data.reduction.{self.reduce}"] = fraction
        arguments = [f"--config={find_config(config)}" for config in self.configs]
        arguments += [f"--{option}={_as_argument(value)}" for option, value in options.items()]
        ladder = [variant] if len(self.variants) > 1 else []
        ladder += [f"fraction-{fraction:g}"] if len(self.fractions) > 1 else []
        source = self.starts_from.get(variant)
        return Run(
            self._name(size, seed, fraction, variant),
            size,
            seed,
            fraction,
            variant,
            "-".join(ladder),
            held_out,
            compose(arguments),
            "" if source is None else self._name(size, seed, fraction, source),
        )

    def _name(self, size: str, seed: int, fraction: float, variant: str) -> str:
        share = "" if fraction == 1 else f"{self.reduce}-{fraction:g}"
        return "-".join(part for part in (size, share, variant, f"seed{seed}") if part)


def _dotted(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their dotted names; of an option given twice, the later one counts."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= _dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _power(option: str, rule: Any, size: str) -> float:
    match rule:
        case [int() | float() as factor, int() | float() as exponent]:
            return float(f"{factor * ladder_n_body(size) ** exponent:.4g}")
    raise UserError(f"--rules.{option}: {rule!r} is not [factor, exponent]")


def _as_argument(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _check(grid: Grid, law: str | None, jobs: int) -> None:
    for size in [*grid.sizes, *grid.size_seeds, *grid.size_options]:
        find_size(size)
    for option in ("sizes", "seeds", "fractions"):
        values = getattr(grid, option)
        if not values or len(set(values)) < len(values):
            raise UserError(f"--{option} {list(values)}: name at least one, and each once")
    if grid.holdout and not grid.holdout_seeds:
        raise UserError("--holdout_seeds: name at least one")
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}")
    if law is not None and law not in LAWS:
        raise UserError(f"--law: {law!r} is none of {', '.join(LAWS)}")
    for variant in grid.variants:
        if not re.fullmatch(r"[\w.-]*", variant):
            raise UserError(f"--variants: the name {variant!r} must be made of letters, digits, '.', '_' and '-'")
    for variant, source in grid.starts_from.items():
        if not {variant, source} <= set(grid.variants) or source in grid.starts_from:
            raise UserError(
                f"--starts_from {variant}: {source}: name two of --variants ({', '.join(grid.variants)}), "
                "the second one starting anew"
            )
    if law is None:
        if grid.holdout:
            raise UserError(f"--holdout {grid.holdout}: without a law nothing is predicted, set it to 0")
        return
    needed = len(LAWS[law].parameters) + 1
    if not 0 <= grid.holdout <= len(grid.sizes) - needed:
        raise UserError(
            f"the law {law} needs at least {needed} fitted sizes (its parameters + 1): "
            f"{len(grid.sizes)} sizes with --holdout {grid.holdout} leave {len(grid.sizes) - grid.holdout}"
        )


class _Book:
    """study.json: the grid and the state of each run, written after every change."""

    def __init__(self, out: Path, name: str, runs: list[Run], judged_by: dict[str, str]) -> None:
        self.out, self.name = out, name
        self.path = out / "study.json"
        grid = {"name": name, **judged_by, "runs": [asdict(run) for run in runs]}
        self.head = {"name": name, "grid_hash": json_hash(grid), "grid": grid}
        self.state = {run.name: "waiting" for run in runs}
        if self.path.is_file():
            if json.loads(self.path.read_text(encoding="utf-8"))["grid_hash"] != self.head["grid_hash"]:
                raise UserError(
                    f"{out} belongs to a study with another grid: choose another --out, or remove the folder"
                )
        elif out.exists() and any(out.iterdir()):
            raise UserError(f"{out} is not empty and holds no study: choose another --out")
        self._write()

    def _write(self) -> None:
        write_json(self.path, self.head | {"state": self.state})

    def train(self, runs: list[Run], jobs: int) -> None:
        """Train what is not finished, with a line on the terminal for each run that is."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        finished = train(runs, self.out / "runs", self.name, jobs, max(cores // jobs, 1))
        for done, (run, point) in enumerate(finished, start=1):
            self.state[run.name] = point["status"]
            self._write()
            loss = "diverged" if point["test_loss"] is None else f"test loss {point['test_loss']:.4f}"
            kind = "held out" if run.held_out else "fitted"
            print(f"[{done}/{len(runs)} {kind}] {run.name}: {loss}, {point['wall_s']:.0f} s", flush=True)


def _fit_ladder(out: Path, runs: list[Run], law: str, x: str) -> Ladder:
    """Fit the small sizes of one ladder and predict its large ones; no large run is read."""
    points = read_points([out / "runs" / run.name / "points.jsonl" for run in runs if not run.held_out], x, "test_loss")
    fitted = fit_points(LAWS[law], points)
    example = finished_point(out / "runs" / next(run.name for run in runs if not run.held_out))
    assert example is not None
    large = sorted({_count(run, x, example) for run in runs if run.held_out})
    return Ladder(runs[0].ladder, x, source_hash(points), fitted, tuple(predict(fitted, large)) if large else ())


def _count(run: Run, x: str, example: dict[str, Any]) -> int:
    """The parameters a run will have, from its size and from the catalogue that a finished run found."""
    config = run.net_config(n_items=example["N_head"] // example["d_model"])
    return cost.n_body(config) if x == "N_body" else cost.n_total(config)


def _write_prediction(path: Path, ladders: list[Ladder], runs: list[Run]) -> None:
    """Commit to the prediction while the large runs are unread; a later start must find the same one."""
    prediction = {
        "ladders": [
            {
                "ladder": ladder.name,
                "law": ladder.fit.law.name,
                "x": ladder.x,
                "source_hash": ladder.source_hash,
                "parameters": ladder.fit.parameters,
                "predictions": [asdict(point) for point in ladder.predictions],
            }
            for ladder in ladders
        ],
        "held_out_runs": {run.name: run.options for run in runs if run.held_out},
    }
    if not path.is_file():
        write_json(path, prediction)
    elif json.loads(path.read_text(encoding="utf-8")) != json.loads(json.dumps(prediction)):
        raise UserError(f"{path} was written from other points than the runs now hold: choose another --out")
