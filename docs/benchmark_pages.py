"""The site's pages of benchmarks: they lie beside the scripts that write them, outside of docs/."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A section for them behind the others."""
    assert config.nav is not None
    config.nav.append({"Benchmarks": list(_pages(config))})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each."""
    for name, page in _pages(config).items():
        files.append(File.generated(config, name, abs_src_path=str(page)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links lead from docs/ to benchmarks/ and back in the repository; the site has benchmarks/ inside of docs/."""
    return markdown.replace("../benchmarks/", "benchmarks/").replace("../docs/", "../")


def _pages(config: MkDocsConfig) -> dict[str, Path]:
    root = Path(config.config_file_path).parent
    return {page.relative_to(root).as_posix(): page for page in sorted((root / "benchmarks").rglob("*.md"))}
