"""Sentences of the pages, drawn at random, for readers to judge: which of them need a second reading?

Ten pages of docs/ are drawn, and 20 sentences of each. Pages of fewer than 20 sentences are left out, and so are the
pages in LEFT_OUT. Code, tables and headings are no sentences.

    python benchmarks/english.py --seed 1
"""

import argparse
import random
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES, SENTENCES = 10, 20
LEFT_OUT = {"ledger.md", "tasks.md", "costs.md", "api.md", "options.md"}  # of mostly tables, lists or generated text


def sentences_of(page: str) -> list[str]:
    """The sentences of a page in Markdown, as a reader sees them: without marks, a link as its text."""
    page = re.sub(r"^```.*?^```|<!--.*?-->|<[^>]+>", "", page, flags=re.DOTALL | re.MULTILINE)
    paragraphs = re.split(r"\n\s*\n|\n(?=[-*] |\d+\. )", page)
    prose = [text.strip() for text in paragraphs if not re.match(r"\s*(#|\||!|:::|    |---)", text)]
    found = list[str]()
    for paragraph in prose:
        text = re.sub(r"^([-*]|\d+\.) ", "", " ".join(paragraph.split()))
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).replace("**", "").replace("`", "")
        found += [each for each in re.split(r"(?<=[.?!:]) (?=[A-Z0-9]|lrec\b)", text) if len(each.split()) >= 6]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    chance = random.Random(parser.parse_args().seed)
    pages = {}
    for path in sorted((ROOT / "docs").rglob("*.md")):
        sentences = sentences_of(path.read_text(encoding="utf-8"))
        if path.name not in LEFT_OUT and len(sentences) >= SENTENCES:
            pages[path.relative_to(ROOT)] = sentences
    number = 0
    for path in sorted(chance.sample(sorted(pages), PAGES)):
        print(f"\n{path}")
        for sentence in sorted(chance.sample(pages[path], SENTENCES), key=pages[path].index):
            number += 1
            print(f"{number}. {sentence}")


if __name__ == "__main__":
    main()
