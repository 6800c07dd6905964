"""Tables and reports: Markdown in files, aligned text on a terminal."""

import re
from collections.abc import Collection, Iterable
from itertools import groupby
from pathlib import Path


def rows_table(rows: list[list[str]], text: Collection[int] = ()) -> str:
    """A Markdown table whose first row is the header; columns in `text` are aligned left, others right."""
    head, *others = ["| " + " | ".join(map(as_cell, row)) + " |" for row in rows]
    rules = ["---" if i in text else "---:" for i in range(len(rows[0]))]
    return "\n".join([head, "|" + "|".join(rules) + "|", *others])


def as_cell(text: str) -> str:
    return text.replace("|", r"\|")


def on_terminal(markdown: str, folder: Path = Path()) -> str:
    """A report for a terminal: aligned tables without bars, underlined headings, and a line for each picture, with a
    path that begins with `folder`."""
    text = re.sub(r"^#+ (.*)$", lambda heading: f"{heading[1]}\n{'-' * len(heading[1])}", markdown.strip(), flags=re.M)
    text = re.sub(r"^!\[(.*)\]\((.*)\)$", lambda picture: f"{folder / picture[2]}: {picture[1]}", text, flags=re.M)
    blocks = groupby(text.splitlines(), key=lambda line: line.startswith("|"))
    return "\n".join(line for is_table, lines in blocks for line in (_aligned(lines) if is_table else lines))


def _aligned(table: Iterable[str]) -> list[str]:
    """The lines of a Markdown table with aligned columns, and two spaces between columns."""
    cells = (re.split(r"(?<!\\)\|", line)[1:-1] for line in table)
    head, rules, *rows = [[cell.strip().replace(r"\|", "|") for cell in line] for line in cells]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    sides = [">" if rule.endswith(":") else "<" for rule in rules]
    lines = [head, ["-" * width for width in widths], *rows]
    return ["  ".join(map("{:{}{}}".format, line, sides, widths)).rstrip() for line in lines]


def lasting(seconds: float) -> str:
    """A duration: 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def counted(number: float, noun: str) -> str:
    """A number with its noun, in the singular if the number is shown as 1: 1 run, 1,024 targets, 0.5 epochs."""
    shown = f"{number:,.0f}" if isinstance(number, int) or number >= 100 else f"{number:.3g}"
    return f"{shown} {noun}" if shown == "1" else f"{shown} {noun}s"


def amount(number: float) -> str:
    """Format a number of parameters or FLOPs, such as 62k or 2.5M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"
