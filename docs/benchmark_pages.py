"""The site's pages of benchmarks: they lie beside the scripts that write them, outside of docs/."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A section for them behind the others."""
    assert config.nav is not None
    config.nav.append({"Benchmarks": [f"benchmarks/{page.name}" for page in _pages(config)]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each."""
    for page in _pages(config):
        files.append(File.generated(config, f"benchmarks/{page.name}", abs_src_path=str(page)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Links to them lead out of docs/ in the repository, but not in the site."""
    return markdown.replace("](../benchmarks/", "](benchmarks/")


def _pages(config: MkDocsConfig) -> list[Path]:
    return sorted(Path(config.config_file_path).parent.glob("benchmarks/*.md"))
