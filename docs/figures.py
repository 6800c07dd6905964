"""Draws the figures of the documentation, one SVG file for each: `python docs/figures.py`.

A flow is a grid of boxes and the arrows between them. Grey boxes are files, yellow boxes are steps. In the figure
`house`, each box is a folder or file of src/lrec (a room), and the arrows are the imports in the code.
"""

import re
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 190, 72, 40, 44, 16

STYLE = """
  .page { fill: #ffffff }
  .file { fill: #eef2f7; stroke: #4a6076 }
  .step { fill: #fff6e5; stroke: #b07a1e }
  text { font: 12px sans-serif; fill: #333333; text-anchor: middle }
  .title { font: bold 13px sans-serif; fill: #111111 }
  .path { font: 11px monospace; fill: #555555 }
  polyline { fill: none; stroke: #555555; stroke-width: 1.5; marker-end: url(#head) }
"""


class Box(NamedTuple):
    """One box: its place in the grid, whether it is a file or a step, and up to three lines. The last is a path."""

    column: int
    row: int
    kind: str
    title: str
    line: str
    path: str = ""


class Figure(NamedTuple):
    """A flow: what it shows, its boxes by name, and which box leads to which."""

    label: str
    boxes: dict[str, Box]
    arrows: list[str]


FIGURES = {
    "training-step": Figure(
        "A training step: from the store to a new set of weights",
        {
            "store": Box(0, 0, "file", "store", "items of all users", "data/store/store.py"),
            "plan": Box(1, 0, "step", "batch plan", "windows of this step", "data/batching/plan.py"),
            "net": Box(2, 0, "step", "Transformer", "hidden states", "model/transformer.py"),
            "loss": Box(3, 0, "step", "loss head", "pieces of the scores", "model/losses.py"),
            "sum": Box(3, 1, "step", "sum / targets of the step", "over all processes", "training/module.py"),
            "optimizer": Box(2, 1, "step", "optimizer", "AdamW, then SGD", "training/optim.py"),
            "agree": Box(
                1, 1, "step", "anyone stopping?", "all save and leave together", "training/checkpoint_callbacks.py"
            ),
            "checkpoint": Box(0, 1, "file", "checkpoints", "best.ckpt, last.ckpt", "checkpoint/writing.py"),
        },
        ["store plan", "plan net", "net loss", "loss sum", "sum optimizer", "optimizer agree", "agree checkpoint"],
    ),
    "preparation": Figure(
        "Preparation: from raw files to a store",
        {
            "raw": Box(0, 0, "file", "raw files", "CSV, JSON lines, Parquet", "any compression"),
            "blocks": Box(1, 0, "step", "blocks of whole rows", "4 MiB each", "data/formats/streams.py"),
            "parse": Box(2, 0, "step", "parse and count", "no row is lost", "data/formats/parsing.py"),
            "codes": Box(3, 0, "step", "ids to numbers", "64 bits for the rest", "data/store/encoding.py"),
            "order": Box(
                3, 1, "step", "order by user and time", "a range of users at a time", "data/store/ordering.py"
            ),
            "core": Box(2, 1, "step", "k-core", "until nothing changes", "data/store/ordering.py"),
            "write": Box(1, 1, "step", "write, then rename", "under a lock", "data/store/prepare.py"),
            "store": Box(0, 1, "file", "store", "flat arrays, hashes", "data/store/store.py"),
        },
        ["raw blocks", "blocks parse", "parse codes", "codes order", "order core", "core write", "write store"],
    ),
    "study": Figure(
        "A study: small sizes, a written prediction, large sizes, a verdict",
        {
            "grid": Box(0, 0, "step", "grid of runs", "sizes, seeds, shares", "study/grid.py"),
            "small": Box(1, 0, "step", "train small sizes", "lrec fit, a process each", "study/launch.py"),
            "points": Box(2, 0, "file", "all_points.jsonl", "a point per run", "study/record.py"),
            "predict": Box(3, 0, "step", "predict large sizes", "forecast or law", "study/prediction.py"),
            "prediction": Box(3, 1, "file", "prediction.json", "written before they train", "study/prediction.py"),
            "large": Box(2, 1, "step", "train large sizes", "in the same way", "study/launch.py"),
            "judge": Box(1, 1, "step", "compare", "error, interval, naive", "laws/analysis.py"),
            "report": Box(0, 1, "file", "report.md", "fit.json, figures", "study/report.py"),
        },
        [
            "grid small",
            "small points",
            "points predict",
            "predict prediction",
            "prediction large",
            "large judge",
            "judge report",
        ],
    ),
    "forecast": Figure(
        "A forecast: from points to a prediction with an interval",
        {
            "points": Box(0, 0, "file", "points", "N, D, U, loss", "laws/table.py"),
            "curves": Box(1, 0, "step", "many curves", "each shape, each stop", "laws/mixture.py"),
            "weigh": Box(2, 0, "step", "weigh them", "by how well they explain", "laws/mixture.py"),
            "quantile": Box(3, 0, "step", "cautious quantile", "never above the best seen", "laws/forecast.py"),
            "interval": Box(3, 1, "step", "90 % interval", "misfit grows with distance", "laws/forecast.py"),
            "holdout": Box(2, 1, "step", "held-out sizes", "beside naive and laws", "laws/predict.py"),
            "verdict": Box(1, 1, "step", "verdict", "in words", "laws/analysis.py"),
            "fit": Box(0, 1, "file", "fit.json, plans", "with a hash", "laws/fit_json.py"),
        },
        [
            "points curves",
            "curves weigh",
            "weigh quantile",
            "quantile interval",
            "interval holdout",
            "holdout verdict",
            "verdict fit",
        ],
    ),
}


PACKAGE = Path(__file__).parents[1] / "src" / "lrec"
# The column of each room, and what the room does. Its floor (the row) follows from its imports.
ROOMS = {
    "cli": (2, "which commands there are", ""),
    "backtest": (0, "networks at several times,", "tested on what follows"),
    "study": (0, "a ladder: tuned, trained,", "predicted, judged"),
    "tasks": (3, "five hard tasks,", "a file each"),
    "training": (2, "all that knows", "Lightning's Trainer"),
    "evaluation": (1, "the figures of", "any scorer"),
    "serving": (3, "recommend, export", ""),
    "ranking": (2, "scores to ranks", "and lists"),
    "checkpoint": (3, "a network on disk", ""),
    "laws": (0, "points to forecasts,", "intervals, plans"),
    "data": (2, "a log to batches", ""),
    "model": (3, "the network,", "plain torch"),
    "run": (1, "a run's folder", ""),
    "options": (1, "options to objects", ""),
    "common": (3, "files, tables, pictures,", "hardware"),
}


def house() -> Figure:
    """The rooms of src/lrec. Each room is on a floor above the rooms that it imports.

    An arrow leads from a room to each room that it imports, unless it also reaches this room through another room.
    """
    below = {room: _imported(room) & ROOMS.keys() - {room} for room in ROOMS}

    def reached(room: str) -> set[str]:
        return below[room].union(*map(reached, below[room]))

    def floor(room: str) -> int:
        return max((1 + floor(other) for other in below[room]), default=0)

    boxes = {}
    for room, (column, *lines) in ROOMS.items():
        title = f"{room}/" if (PACKAGE / room).is_dir() else f"{room}.py"
        boxes[room] = Box(column, max(map(floor, ROOMS)) - floor(room), "file", title, *lines)
    arrows = [
        f"{room} {other}" for room in ROOMS for other in ROOMS
        if other in below[room] and not any(other in reached(between) for between in below[room])
    ]  # fmt: skip
    return Figure("The folders of src/lrec and the imports between them", boxes, arrows)


def _imported(room: str) -> set[str]:
    """The folders and files directly below src/lrec that a room's files import."""
    files = (PACKAGE / room).rglob("*.py") if (PACKAGE / room).is_dir() else [PACKAGE / f"{room}.py"]
    text = "\n".join(file.read_text() for file in files)
    return set(re.findall(r"^ *(?:from|import) lrec\.(\w+)", text, re.MULTILINE))


FIGURES["house"] = house()


def svg(figure: Figure) -> str:
    """The figure as text."""
    columns = 1 + max(box.column for box in figure.boxes.values())
    rows = 1 + max(box.row for box in figure.boxes.values())
    width = 2 * MARGIN + columns * WIDTH + (columns - 1) * GAP_X
    height = 2 * MARGIN + rows * HEIGHT + (rows - 1) * GAP_Y
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(figure.label)}">',
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" markerWidth="9" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path d="M0,0 L9,4 L0,8 z" fill="#555555"/></marker></defs>',
        f'<rect class="page" width="{width}" height="{height}"/>',
    ]
    parts += [_arrow(*(figure.boxes[name] for name in arrow.split())) for arrow in figure.arrows]
    for box in figure.boxes.values():
        x, y = _corner(box)
        parts.append(f'<rect class="{box.kind}" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>')
        last = "path" if box.path.endswith(".py") else "line"
        lines = (("title", box.title, 24), ("line", box.line, 42), (last, box.path, 59))
        parts += [
            f'<text class="{kind}" x="{x + WIDTH // 2}" y="{y + down}">{escape(text)}</text>'
            for kind, text, down in lines
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _corner(box: Box) -> tuple[int, int]:
    return MARGIN + box.column * (WIDTH + GAP_X), MARGIN + box.row * (HEIGHT + GAP_Y)


def _arrow(start: Box, end: Box) -> str:
    """An arrow from one box to another box, which is beside it or on another row."""
    (x, y), (to_x, to_y) = _corner(start), _corner(end)
    if y != to_y:
        middle, to_middle = x + WIDTH // 2, to_x + WIDTH // 2
        return f'<polyline points="{middle},{y + HEIGHT} {to_middle},{to_y - 2}"/>'
    middle = y + HEIGHT // 2
    ends = (x + WIDTH, to_x - 2) if to_x > x else (x, to_x + WIDTH + 2)
    return f'<polyline points="{ends[0]},{middle} {ends[1]},{middle}"/>'


if __name__ == "__main__":
    for name, figure in FIGURES.items():
        (Path(__file__).parent / f"{name}.svg").write_text(svg(figure))
