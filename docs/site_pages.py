"""What the site shows from outside of docs/: the pages of benchmarks/, and the source files that pages link to."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

LINKED = ("src/lrec/**/*.py", "examples/*.py", "examples/*.ipynb", "tests/unit/test_imports.py")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A section for the benchmarks behind the others."""
    assert config.nav is not None
    config.nav.append({"Benchmarks": list(_pages(config))})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each page and each linked file."""
    for name, page in (_pages(config) | _linked(config)).items():
        files.append(File.generated(config, name, abs_src_path=str(page), inclusion=InclusionLevel.INCLUDED))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links lead from docs/ to its neighbours and back in the repository; the site has these inside of docs/."""
    for folder in ("benchmarks/", "src/", "examples/", "tests/"):
        markdown = markdown.replace(f"../{folder}", folder)
    return markdown.replace("../docs/", "../")


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).parent


def _pages(config: MkDocsConfig) -> dict[str, Path]:
    pages = sorted((_root(config) / "benchmarks").rglob("*.md"))
    return {page.relative_to(_root(config)).as_posix(): page for page in pages}


def _linked(config: MkDocsConfig) -> dict[str, Path]:
    files = [file for pattern in LINKED for file in _root(config).glob(pattern)]
    return {file.relative_to(_root(config)).as_posix(): file for file in files}
