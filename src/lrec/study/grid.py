"""Which runs a study has, and the whole configuration of each."""

import json
import re
from dataclasses import dataclass
from itertools import product
from typing import Any

from lrec import cost
from lrec.errors import UserError
from lrec.parser import find_config
from lrec.shape import SIZES, TransformerConfig, find_size
from lrec.study.launch import Run


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

    def __post_init__(self) -> None:
        for size in [*self.sizes, *self.size_seeds, *self.size_options]:
            find_size(size)
        for option in ("sizes", "seeds", "fractions"):
            values = getattr(self, option)
            if not values or len(set(values)) < len(values):
                raise UserError(f"--{option} {list(values)}: name at least one, and each once")
        if self.holdout and not self.holdout_seeds:
            raise UserError("--holdout_seeds: name at least one")
        for variant in self.variants:
            if not re.fullmatch(r"[\w.-]*", variant):
                raise UserError(f"--variants: the name {variant!r} must be made of letters, digits, '.', '_' and '-'")
        for variant, source in self.starts_from.items():
            if not {variant, source} <= set(self.variants) or source in self.starts_from:
                raise UserError(
                    f"--starts_from {variant}: {source}: name two of --variants ({', '.join(self.variants)}), "
                    "the second one starting anew"
                )

    @property
    def ladder(self) -> list[str]:
        """The sizes in order of N_body."""
        return sorted(self.sizes, key=ladder_n_body)

    @property
    def held_out(self) -> list[str]:
        """The largest sizes, which are predicted instead of fitted."""
        return self.ladder[len(self.ladder) - self.holdout :]

    def runs(self) -> list[Run]:
        """Every run with its whole configuration; UserError where `lrec fit` would refuse it."""
        return [
            self._run(size, seed, fraction, variant, size in self.held_out)
            for fraction, variant, size in product(self.fractions, self.variants, self.ladder)
            for seed in self.size_seeds.get(size, self.holdout_seeds if size in self.held_out else self.seeds)
        ]

    def _run(self, size: str, seed: int, fraction: float, variant: str, held_out: bool) -> Run:
        from lrec.lightning_cli import compose

        options = {"model.size": size, "seed_everything": seed, "data.seed": seed}
        by_rule = {option: _power(option, rule, size) for option, rule in dotted(self.rules).items()}
        for more in (self.options, by_rule, self.size_options.get(size, {}), self.variants[variant]):
            options |= dotted(more)
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


def ladder_n_body(size: str) -> int:
    """N_body of an entry of the ladder."""
    return cost.n_body(TransformerConfig(1, 1, *SIZES[size]))


def combined(variants: dict[str, dict[str, Any]], values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every variant with every combination of the options' values, named after them, as in `both-lr-0.01`.

    Args:
        variants: Options by name of a variant.
        values: A list of values for each of further options, nested or by dotted name.
    """
    axes = dotted(values)
    for option, several in axes.items():
        if not isinstance(several, list) or not several:
            raise UserError(f"--grid.{option}: {several!r} is not a list of values")
    result: dict[str, dict[str, Any]] = {}
    for (variant, options), *chosen in product(variants.items(), *([(o, v) for v in axes[o]] for o in axes)):
        parts = [f"{option.rsplit('.')[-1]}-{_as_argument(value)}" for option, value in chosen]
        name = "-".join(part for part in (variant, *(re.sub(r"[^\w.-]+", "_", part) for part in parts)) if part)
        if name in result:
            raise UserError(f"--grid: two combinations would be named {name}: use --variants to name them")
        result[name] = options | dict(chosen)
    return result


def dotted(options: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their dotted names; of an option given twice, the later one counts."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _power(option: str, rule: Any, size: str) -> float:
    match rule:
        case [int() | float() as factor, int() | float() as exponent]:
            return float(f"{factor * ladder_n_body(size) ** exponent:.4g}")
    raise UserError(f"--rules.{option}: {rule!r} is not [factor, exponent]")


def _as_argument(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
