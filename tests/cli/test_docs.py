"""The commands and programs of the README and the docs run, page by page, with small stand-ins for the files they name.

Training is cut to one epoch. Studies, what reads their runs, and pages that train, except README and tutorial, take
minutes: `pytest -m slow` runs them, otherwise they are only parsed. What needs GPUs or a cluster is only parsed.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import polars as pl
import pytest
from _pytest.mark import ParameterSet
from stand_ins import write_points, write_stand_ins

from lrec.cli import main

REPOSITORY = Path(__file__).parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
# Commands for GPUs or several nodes, and commands that read such a run.
PARSED = re.compile(r"trainer/fsdp(-hybrid)?\.yaml|/shared/|runs/829m")
SLOW = re.compile(r"lrec (scaling|tasks|backtest) |trainer/fsdp-cpu\.yaml")
SHORT = {
    r"lrec fit ": ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"],
    r"lrec fit .*data/synthetic\.yaml": ["--data.n_users=300"],
    r"recipes/ml-1m-time\.yaml": ["--data.split.validate_from=0.8", "--data.split.test_from=0.9"],
    r"recipes/tennis\.yaml": ["--data.split.test_from=0.9", "--data.split.held_out_users=20"],
    r"lrec (test|predict) ": ["--trainer.enable_progress_bar=false"],
    r"lrec backtest ": ["--options.trainer.max_epochs=1", "--folds=3"],
    r"backtest/(globo|decks|tennis)\.yaml": ["--every=7d", "--until=2000-12-24", "--train_from=2000-09-08"],
    r"lrec scaling study ": ["--options.trainer.max_epochs=1", "--seeds=[1]", "--jobs=2"],
    r"study/(quickstart|tasks-synthetic)\.yaml": ["--options.data.n_users=300"],
    r"study/(go|architectures)\.yaml": [f"--options.data.split.init_args.{p}=0.2" for p in ("validation", "test")],
    r"study/(ablation|strategies)\.yaml": ["--options.model.optimizer.switch.at=2"],
}

Parse = Callable[[list[str]], None]


def blocks(page: Path) -> list[tuple[str, str]]:
    """The page's commands and programs in their order, each with its language."""
    found: list[tuple[str, str]] = []
    for language, block in re.findall(r"```(bash|python)\n(.*?)```", page.read_text(), re.DOTALL):
        if language == "python":
            found.append((language, block))
            continue
        lines = block.replace("\\\n", " ").splitlines()
        found += [(language, command.strip()) for line in lines for command in line.split("&&")]
    return [(language, text) for language, text in found if language == "python" or text.startswith("lrec ")]


def commands() -> list[str]:
    return [text for page in PAGES for language, text in blocks(page) if language == "bash"]


def quoted() -> list[str]:
    """Commands with options inside sentences, and those that pages of benchmarks show."""
    pages = [*PAGES, *sorted((REPOSITORY / "benchmarks").rglob("*.md"))]
    shown = re.compile(r"`(lrec (?!COMMAND)[^`]* --[^`]*)`|^    (lrec .*)$", re.MULTILINE)
    return sorted({inside or alone for page in pages for inside, alone in shown.findall(page.read_text())})


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader who has been through the tutorial and has looked at MovieLens."""
    folder = tmp_path_factory.mktemp("reader")
    write_stand_ins(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        run("lrec data prepare --config configs/data/ml-1m.yaml")
        for language, text in blocks(REPOSITORY / "docs" / "tutorial.md"):
            if language == "bash" and not SLOW.search(text):
                run(text)
    return folder


@pytest.fixture
def desk(reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which a test may change."""
    desk = tmp_path / "desk"
    shutil.copytree(reader, desk)
    monkeypatch.chdir(desk)
    return desk


def run(command: str) -> None:
    """Run a printed command, made short."""
    # The number in a store's name is a hash.
    command = re.sub(r"data/ml-1m-0123456789abcdef", lambda _: str(next(Path("data").glob("ml-1m-*"))), command)
    arguments = shlex.split(command)[1:]
    for pattern, options in SHORT.items():
        arguments += options if re.search(pattern, command) else []
    if "fsdp-cpu" in command:  # its second process repeats the command line of the first
        subprocess.run([sys.executable, "-m", "lrec", *arguments], check=True)
        return
    with patch.dict(os.environ):
        main(arguments)


def follow(page: Path, may_run: Callable[[str], bool], parse: Parse) -> None:
    """Run what the page shows, in order."""
    names = {
        "table": pl.DataFrame({"user": ["c_1"], "items": [["SKU-0001", "SKU-0007"]]}),
        "in_stock": ["SKU-0003", "SKU-0004"],
        "banned": ["SKU-0005"],
    }
    text = page.read_text()
    for folder in re.findall(r"--trainer\.default_root_dir (\S+)", text):
        shutil.rmtree(folder, ignore_errors=True)  # the page trains it itself
    for language, block in blocks(page):
        if language == "python":
            if "onnxruntime" in block:
                pytest.importorskip("onnxruntime", reason="needs the extra onnx")
            exec(block.replace('model.net.to("cuda")', "model.net"), names)
        elif PARSED.search(block):
            parse(shlex.split(block)[1:])
        elif may_run(block):
            run(block)


def stem(page: Path) -> str:
    return page.stem


def shown() -> list[ParameterSet]:
    """Pages with anything besides slow commands; marked slow if they train."""
    pages = [page for page in PAGES if any(not SLOW.search(text) for _, text in blocks(page))]
    trains = {
        page: any(re.match("lrec fit|lrec update|import lrec|.*Trainer", text) for _, text in blocks(page))
        for page in pages
    }
    begins = {"README", "tutorial"}
    return [
        pytest.param(page, marks=[pytest.mark.slow] if trains[page] and page.stem not in begins else [], id=page.stem)
        for page in pages
    ]


@pytest.mark.parametrize("page", shown())
def test_what_a_page_shows_runs(page: Path, desk: Path, parse: Parse) -> None:
    follow(page, lambda command: not SLOW.search(command), parse)


@pytest.mark.parametrize("command", sorted({text for text in commands() if SLOW.search(text) or "lrec fit" in text}))
def test_what_takes_minutes_parses(command: str, reader: Path, parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader)
    parse(shlex.split(command)[1:])


@pytest.mark.parametrize("command", quoted())
def test_what_a_page_quotes_parses(command: str, reader: Path, parse: Parse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(reader)
    parse(shlex.split(command)[1:])


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(SLOW.search(text) for _, text in blocks(p))], ids=stem)
def test_what_takes_minutes_runs(page: Path, desk: Path, parse: Parse) -> None:
    if page.stem in ("laws", "extending"):
        write_points(desk)
    follow(page, lambda command: True, parse)


@pytest.mark.parametrize("page", sorted((REPOSITORY / "benchmarks").glob("*.md")), ids=stem)
def test_a_benchmark_names_a_script_and_its_options(page: Path) -> None:
    shown = re.findall(r"^    (?:\w+=\S+ )*python (benchmarks/\w+\.py)(.*)$", page.read_text(), re.MULTILINE)
    assert shown
    for script, options in shown:
        program = (REPOSITORY / script).read_text()
        assert [option for option in re.findall(r"--\w+", options) if f'"{option}"' not in program] == []
