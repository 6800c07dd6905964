"""What the site shows from outside docs/: README.md as its home, pages of benchmarks/, and files that pages link to."""

import posixpath
import re
import subprocess
from pathlib import Path
from typing import Any

from markupsafe import Markup
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

from lrec.common.pages import unbroken

SHOWN = ("clicks.md", "peers.md")
"""Pages of benchmarks/ that are pages of the site. The others are text files on the site, for links."""
LINKED = (
    "CONTRIBUTING.md",
    "src/lrec/**/*.py",
    "examples/*.py",
    "examples/*.ipynb",
    "tests/**/*.py",
    "benchmarks/**/*.md",
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the section of benchmarks as the last one, and a link to the repository that this clone comes from."""
    assert config.nav is not None
    asked = subprocess.run(["git", "remote", "get-url", "origin"], capture_output=True, text=True)
    config.repo_url = asked.stdout.strip() if asked.stdout.startswith("https://") else config.repo_url
    config.nav.append({"Benchmarks": [f"benchmarks/{page}" for page in SHOWN]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each page and linked file, and README.md as the home page."""
    root = Path(config.config_file_path).parent
    for file in (file for pattern in LINKED for file in root.glob(pattern)):
        name = _on_site(file.relative_to(root).as_posix())
        files.append(File.generated(config, name, abs_src_path=str(file), inclusion=InclusionLevel.INCLUDED))
    home = re.sub(r"(\]\(|src=\")docs/", r"\1", (root / "README.md").read_text())
    files.append(File.generated(config, "index.md", content=home))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Change links between docs/ and other folders of the repository: the site has these folders inside docs/."""
    for folder in ("benchmarks/", "src/", "examples/", "tests/"):
        markdown = markdown.replace(f"../{folder}", folder)
    markdown = markdown.replace("../docs/", "../")

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), found[1]))
        return found[0] if _on_site(target) == target else f"]({found[1]}.txt)"

    return re.sub(r"\]\(([\w./-]+\.md)(#[\w-]+)?\)", link, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Mark the options in sentences, so that no line breaks inside an option."""
    return re.sub(r"<code>[^<]*</code>", lambda code: unbroken(Markup(code[0])), html)


def _on_site(name: str) -> str:
    """The name of a file on the site. Pages from outside docs/ that are not shown as pages are text files."""
    is_shown = not name.startswith("benchmarks/") or name.removeprefix("benchmarks/") in SHOWN
    return name if (is_shown and name != "CONTRIBUTING.md") or not name.endswith(".md") else f"{name}.txt"
