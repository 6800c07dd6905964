"""What is released: a wheel that works without the checkout, and files beside it that agree with it."""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lrec import __version__

REPOSITORY = Path(__file__).parents[2]


def test_the_version_is_one_everywhere(lrec: Callable[..., str]) -> None:
    version = lrec("--version").split()[1]
    assert yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())["version"] == version
    assert re.search(r"^## (\S+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version  # type: ignore[index]


def test_pre_commit_runs_what_ci_runs() -> None:
    (local,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {hook["name"] for hook in local["hooks"]}
    checked = (REPOSITORY / ".ci" / "run").read_text().partition('echo "+ ruff, mypy"')[2].splitlines()
    assert hooks == {line.removesuffix(" .").removesuffix(" --check") for line in checked if line}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `lrec` of a new environment that has the wheel and uses the libraries of this environment."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed")
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, REPOSITORY]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("lrec-*.whl")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    # A plain path, so that this environment's own .pth files are not read: one may lead to the checkout.
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin" / "lrec"


@pytest.mark.slow
def test_a_wheel_works_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments: str) -> str:
        command = [installed, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    assert run("--version") == f"lrec {__version__}\n"
    code = "import lrec; print(lrec.__file__)"
    where = subprocess.run([installed.with_name("python"), "-c", code], env=environment, capture_output=True, text=True)
    assert Path(where.stdout).is_relative_to(installed.parents[1])
    assert "12 runs" in run("scaling", "study", "--config", "configs/study/quickstart.yaml", "--dry_run")
    tiny = ("--sizes=[0.8k,1.7k,3k,4.8k,6.9k]", "--holdout=1", "--seeds=[1]", "--size_seeds={}", "--name=tiny")
    data = ("--options.data.n_users=300", "--options.data.n_items=50", "--options.data.length=20")
    printed = run("scaling", "study", "--config", "configs/study/quickstart.yaml", *tiny, *data)
    assert "Mean absolute error" in printed
    assert (tmp_path / "studies" / "tiny" / "fit" / "fit.json").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"data", "studies"}
