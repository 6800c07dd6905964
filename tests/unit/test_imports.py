"""Which way imports point in src/lrec: down or sideways, never up, never in a circle; and what starts without torch.

Imports inside functions count: they only put a circle off until the function is called. What is imported by a name in
a table (`lrec.X`, the commands of `lrec`) is not followed: such a table is there so that its module knows nobody.
"""

import ast
import graphlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pytest

import lrec
from lrec.data.prepare import RawInteractions, prepare_store

PACKAGE = Path(__file__).parents[2] / "src" / "lrec"

# From the ground up. A module may import from its own layer and from those before it; "data" stands for all of data/.
LAYERS = {
    "ground": "errors imports memory config_file files signals figures tables wording class_paths parser arguments "
    "processes allocator accelerator clock run",
    "what is computed": "data shape shards dropout attention_bias reading blocks hstu event_times event_types "
    "item_table net item_vectors losses cpu_threads pairs best_items shortlist scoring metrics cost traffic precision "
    "common_order markov item_graph baselines cases ngrams laws standard_errors",
    "a network trained, kept and used": "parallel touched_rows optim switch checkpoints checkpoint_writes agreement "
    "saving strategies interruption export onnx_file warm_start recommend recommend_command target_losses sizes "
    "monitor time_limit train_loss verdict",
    "the trainer": "kept_baselines evaluator module callbacks throughput tensorboard",
    "lightning_cli": "lightning_options lightning_help lightning_cli",
    "studies and tasks": "study tasks",
    "command line": "cli __main__ __init__",
}
OF_LAYER = {name: layer for layer, names in enumerate(LAYERS.values()) for name in names.split()}

# laws/ knows tables of points: neither runs nor studies, neither Lightning nor torch.
LAWS_MAY_IMPORT = {"laws", "errors", "files", "figures", "tables", "wording", "class_paths"}
LIGHTNING = {"lightning", "lightning_fabric", "lightning_utilities", "pytorch_lightning"}


class Import(NamedTuple):
    """That one module of lrec imports another, or a library."""

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
    """All imports of a module, those inside functions marked."""

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
    """The module, named from below lrec, that an import reads; that of another library as it is."""
    root, _, below = name.partition(".")
    if root != "lrec":
        return name
    if below in lrec._HOME:
        return lrec._HOME[below].removeprefix("lrec.")
    while below and below not in MODULES:
        below = below.rpartition(".")[0]
    return below or "__init__"


OWN = [found for name in MODULES for found in imports(name) if found.imported in MODULES]


def part(module: str) -> str:
    """The file or folder directly below lrec that a module belongs to."""
    return module.partition(".")[0]


def test_every_module_has_a_layer() -> None:
    assert {part(module) for module in MODULES} == OF_LAYER.keys()
    assert set(Counter(" ".join(LAYERS.values()).split()).values()) == {1}


def test_no_import_climbs() -> None:
    climbs = [str(found) for found in OWN if OF_LAYER[part(found.imported)] > OF_LAYER[part(found.importer)]]
    assert climbs == []


def test_no_imports_go_in_a_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in MODULES}
    for found in OWN:
        graph[found.importer].add(found.imported)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def imported_by(*parts: str) -> set[str]:
    return {found.imported for name in MODULES if part(name) in parts for found in imports(name)}


def test_laws_know_tables_of_points_only() -> None:
    found = {part(name) for name in imported_by("laws")}
    assert found & OF_LAYER.keys() <= LAWS_MAY_IMPORT
    assert found.isdisjoint(LIGHTNING | {"torch"})


def test_what_is_computed_knows_nothing_of_the_trainer() -> None:
    found = imported_by(*LAYERS["what is computed"].split())
    assert {name for name in found if part(name) in LIGHTNING} <= {"lightning.pytorch.LightningDataModule"}


# In one process, the lightest first: what one command imports the next has too.
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
