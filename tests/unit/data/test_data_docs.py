"""docs/data.md and docs/data-reference.md name every error of the data layer, every configuration and every option."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lrec.data.datamodule import SequenceDataModule

ROOT = Path(__file__).parents[3]
PAGE = "".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("data.md", "data-reference.md"))


def fixed_words(message: ast.expr) -> list[str]:
    """The parts of a message that do not depend on the case."""
    if isinstance(message, ast.Constant):
        return [str(message.value)]
    if isinstance(message, ast.JoinedStr):
        return [str(part.value) for part in message.values if isinstance(part, ast.Constant)]
    return []


def errors() -> Iterator[tuple[str, list[str]]]:
    """Where the data layer raises a UserError, and the fixed parts of its message."""
    for file in sorted((ROOT / "src" / "lrec" / "data").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError":
                yield f"{file.name}:{node.lineno}", fixed_words(node.args[0])


def runs_of_three(text: str) -> list[str]:
    words = re.findall(r"[\w.'/*-]+", text)
    return [" ".join(words[start : start + 3]) for start in range(len(words) - 2)]


def test_every_error_is_in_the_catalogue() -> None:
    catalogue = set(runs_of_three(PAGE[PAGE.index("## Errors") :]))
    found = [(place, [run for part in parts for run in runs_of_three(part)]) for place, parts in errors()]
    # A message of two fixed words, or from another library, cannot be looked up.
    assert [place for place, runs in found if runs and not catalogue.intersection(runs)] == []
    assert sum(bool(runs) for _, runs in found) > 60


def test_every_configuration_of_data_is_named() -> None:
    for file in (ROOT / "configs" / "data").glob("*.yaml"):
        assert f"`data/{file.name}`" in PAGE


@pytest.mark.parametrize("option", list(inspect.signature(SequenceDataModule).parameters))
def test_every_shared_option_is_named(option: str) -> None:
    assert f"| `{option}` |" in PAGE
