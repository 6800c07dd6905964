"""Imports in src/lrec point down or sideways, never up, never in a circle; and some commands start without torch.

Imports inside functions count: they only delay a circle until the function is called. Imports by a name in a table
(`lrec.X`, the commands of `lrec`) do not count: such a table keeps its module independent of all others.
"""

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest

import lrec
from lrec.data.store.prepare import RawInteractions, prepare_store

PACKAGE = Path(__file__).parents[2] / "src" / "lrec"

# What each room may import, the lowest room first. A room is a folder, or a file at the root of the package.
ROOMS = {
    "errors": "",
    "common": "errors",
    "options": "errors",
    "run": "errors common options",
    "data": "errors common options",
    "model": "errors options",
    "laws": "errors common options",
    "ranking": "common model",
    "checkpoint": "errors common run model",
    "evaluation": "errors common options data model ranking",
    "serving": "errors common options run data model ranking checkpoint",
    "training": "errors common options run data model ranking checkpoint evaluation serving",
    "tasks": "errors common options run data model ranking evaluation serving",
    "study": "errors common options run data model laws checkpoint evaluation serving training",
    "backtest": "errors common run data ranking evaluation serving study",
    "cli": "errors common options training",
    "__main__": "cli",
    "__init__": "",
}
LIGHTNING = {"lightning", "lightning_fabric", "lightning_utilities", "pytorch_lightning"}


class Import(NamedTuple):
    """One import of a module of lrec: of another module, or of a library."""

    importer: str
    imported: str
    line: int
    inside: bool

    def __str__(self) -> str:
        place = " inside a function" if self.inside else ""
        return f"{self.importer}:{self.line} imports {self.imported}{place}"


def modules() -> dict[str, Path]:
    """Each file of the package by its dotted name below lrec; a folder's __init__ has the folder's name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


MODULES = modules()


def imports(importer: str) -> Iterator[Import]:
    """All imports of a module. `inside` marks those inside functions."""

    def visit(node: ast.AST, inside: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{importer}:{child.lineno}: imports name the whole module"
                names = [f"{child.module}.{alias.name}" for alias in child.names]
            else:
                names = []
            for name in names:
                yield Import(importer, _module_of(name), child.lineno, inside)
            yield from visit(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    return visit(ast.parse(MODULES[importer].read_text(encoding="utf-8")), inside=False)


def _module_of(name: str) -> str:
    """The module that an import reads: its name below lrec, or the full name in another library."""
    root, _, below = name.partition(".")
    if root != "lrec":
        return name
    if below in lrec._HOME:
        return lrec._HOME[below].removeprefix("lrec.")
    while below and below not in MODULES:
        below = below.rpartition(".")[0]
    return below or "__init__"


OWN = [found for name in MODULES for found in imports(name) if found.imported in MODULES]


def room(module: str) -> str:
    """The file or folder directly below lrec that a module belongs to."""
    return module.partition(".")[0]


def test_every_module_has_a_room() -> None:
    assert {room(module) for module in MODULES} == ROOMS.keys()


def test_rooms_import_only_those_before_them() -> None:
    names = list(ROOMS)
    assert [name for place, name in enumerate(names) if not set(ROOMS[name].split()) <= set(names[:place])] == []


def test_imports_match_the_table() -> None:
    drawn: dict[str, set[str]] = {name: set() for name in ROOMS}
    for found in OWN:
        drawn[room(found.importer)].add(room(found.imported))
    known = {"__init__"}  # __version__, and names that are looked up on first use
    strange = {name: sorted(to - {name} - set(ROOMS[name].split()) - known) for name, to in drawn.items()}
    assert {name: to for name, to in strange.items() if to} == {}
    assert {name: missing for name in ROOMS if (missing := set(ROOMS[name].split()) - drawn[name])} == {}


def test_no_imports_go_in_a_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for found in OWN:
        graph[found.importer].add(found.imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def imported_by(*rooms: str) -> set[str]:
    return {found.imported.partition(".")[0] for name in MODULES if room(name) in rooms for found in imports(name)}


def test_laws_import_neither_torch_nor_lightning() -> None:
    assert imported_by("laws").isdisjoint(LIGHTNING | {"torch"})


def test_network_ranking_evaluation_and_checkpoints_know_nothing_of_lightning() -> None:
    assert imported_by("common", "options", "model", "ranking", "evaluation", "checkpoint").isdisjoint(LIGHTNING)


def test_data_know_nothing_of_the_trainer() -> None:
    found = {found.imported for name in MODULES if room(name) == "data" for found in imports(name)}
    assert {name for name in found if room(name) in LIGHTNING} <= {"lightning.pytorch.LightningDataModule"}


# All in one process, the lightest command first: each command also has what earlier ones imported.
LIGHT = """
import contextlib, io, json, sys
import lrec
heavy = lambda: sorted({"torch", "lightning", "lightning_fabric", "pytorch_lightning"} & set(sys.modules))
found = {"import lrec": heavy()}
from lrec.cli import main
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main(command)
    assert out.getvalue(), command
    found[" ".join(command[:3])] = heavy()
print(json.dumps(found))
"""


def test_what_does_not_train_starts_without_lightning_and_torch(tmp_path: Path) -> None:
    rows = pl.DataFrame({"user": ["a"] * 3, "item": ["x", "y", "z"], "time": [1, 2, 3]})
    store = prepare_store(tmp_path, "rows", {}, 0, lambda: RawInteractions(rows))
    (tmp_path / "table.csv").write_text("N,loss\n1e3,3.4\n1e4,3.2\n1e5,3.1\n1e6,3.05\n")
    points = ["--points", str(tmp_path / "table.csv"), "--x=N", "--y=loss", "--law=lsrm", "--holdout=0"]
    fitted = ["scaling", "fit", *points, "--compare=false", f"--out={tmp_path / 'fit'}"]
    commands = [["--help"], ["data", "describe", str(store)], ["sizes"], ["scaling", "study", "--help"], fitted]
    commands += [["scaling", name, "--help"] for name in ("compare", "plan")]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, json.dumps(commands)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 1 + len(commands)
    assert {command: libraries for command, libraries in found.items() if libraries} == {}
