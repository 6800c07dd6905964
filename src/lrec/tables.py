"""Markdown tables."""

from collections.abc import Collection


def rows_table(rows: list[list[str]], text: Collection[int] = (), padded: bool = True) -> str:
    """A table whose first row is the header.

    Args:
        rows: The cells.
        text: Which columns are text; the others are numbers and aligned to the right.
        padded: Pad the cells, so that the table reads as well on a terminal.
    """
    widths = [max(len(row[i]) for row in rows) if padded else 0 for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    rules = ["-" * max(width + 1, 3) + ("" if i in text else ":") for i, width in enumerate(widths)]
    lines.insert(1, "|" + "|".join(rules) + "|")
    return "\n".join(lines)
