"""The site of the documentation: every page, link and name is found, and no name or figure is left out."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lrec
from lrec.evaluation.baselines import BASELINES
from lrec.evaluation.metrics import metric_names

REPOSITORY = Path(__file__).parents[2]


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "api" / "index.html").read_text()
    assert "The network reads the last max_len" in " ".join(reference.split()), "docstrings are in the reference"
    home = (tmp_path / "index.html").read_text()
    assert 'src="results/ml-1m-hour.png"' in home, "the home page is README.md"
    for page in tmp_path.rglob("*.html"):
        assert "&lt;code&gt;" not in page.read_text(), f"{page} shows its tags"
    metrics = (tmp_path / "metrics" / "index.html").read_text()
    assert '<code><span class="option">--data.test_users</span></code>' in metrics
    assert (tmp_path / "benchmarks" / "clicks" / "index.html").exists()
    assert (tmp_path / "benchmarks" / "growth.md.txt").exists(), "what is no page is there as text"


def test_every_public_name_is_in_the_reference() -> None:
    page = (REPOSITORY / "docs" / "api.md").read_text()
    shown = re.findall(r"^::: lrec\S*?(\w+)$", page, re.MULTILINE)
    assert set(lrec.__all__) <= set(shown)


def test_every_figure_and_baseline_is_defined() -> None:
    page = (REPOSITORY / "docs" / "metrics.md").read_text()
    figures = {re.sub(r"@\d+(_unseen)?", "@k", name) for name in metric_names()}
    assert [name for name in (*figures, *BASELINES) if f"`{name}`" not in page] == []
