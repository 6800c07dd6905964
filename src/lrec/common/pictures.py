"""What all pictures have in common: colours, frame, a text for people who cannot see them, and files."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrec.common.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of Okabe and Ito: colour-blind people can tell them apart too (jfly.uni-koeln.de/color).
BLUE, ORANGE, GREY, INK = "#0072b2", "#d55e00", "#5a5a5a", "#222222"
LABEL_POINTS = 8  # font size of the names of lines
LineEnd = tuple[str, float, float, Any]  # name of a line, x and y of its last point, colour


def new_figure(width: float, height: float, alt: str) -> "Figure":
    """An empty figure, with its size in inches; `alt` says what it shows, for people who cannot see it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    figure.set_label(alt)
    return figure


def alt_text(figure: "Figure") -> str:
    return str(figure.get_label())


def draw_frame(axes: "Axes") -> None:
    """Draw a faint grid in the background, and hide the top and right edges."""
    axes.grid(True, which="major", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def label_ends(axes: "Axes", ends: Sequence[LineEnd]) -> None:
    """Write the name of each line to the right of the axes, where the line ends, or as near to it as the other names
    allow. Call it when everything is drawn: the scales must be final."""
    axes.autoscale_view()
    grid, figure = axes.get_gridspec(), axes.get_figure(root=True)
    assert figure is not None
    inches = 0.72 * figure.get_figheight() / (grid.nrows if grid is not None else 1)
    step = 1.3 * LABEL_POINTS / 72 / inches  # of a line of text, as a share of the axes' height
    at = (axes.transScale + axes.transLimits).transform([(x, y) for _, x, y, _ in ends])
    order = sorted(range(len(ends)), key=lambda i: -at[i][1])
    heights, below = [], float("inf")
    for i in order:
        heights.append(below := min(at[i][1], below - step))
    least = 0.0
    for place in reversed(range(len(order))):  # up again, if the names have reached the bottom
        heights[place] = least = max(heights[place], least)
        least += step
    for i, height in zip(order, heights, strict=True):
        name, x, y, color = ends[i]
        line = {"arrowstyle": "-", "color": color, "lw": 0.5, "shrinkA": 0, "shrinkB": 3}
        look: dict[str, Any] = {"color": color, "fontsize": LABEL_POINTS, "va": "center", "arrowprops": line}
        axes.annotate(name, (x, y), (1.02, height), textcoords="axes fraction", **look)


def entitle(axes: "Axes", finding: str, key: str) -> None:
    """Write what the picture shows as its title, and below it, smaller, what no name of a line says."""
    axes.set_title(f"{finding}\n", fontsize=10, loc="left")
    axes.text(0, 1.02, key, transform=axes.transAxes, fontsize=LABEL_POINTS, color=GREY)


def write_png(path: Path, figure: "Figure") -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with replacing(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)  # savefig would draw twice, the first time for the layout


def save_figure(path: Path, figure: "Figure") -> None:
    """Write a picture as a file, and next to it an event file with which TensorBoard shows it under scaling/."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

    write_png(path, figure)
    width, height = figure.canvas.get_width_height()
    image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=path.read_bytes())
    _write_event(path, image=image, metadata=SummaryMetadata(summary_description=alt_text(figure)))


def remove_figure(path: Path) -> None:
    """Remove a picture of earlier results, if there is one, and its event file."""
    path.unlink(missing_ok=True)
    _remove_event(path)


def show_text(path: Path, markdown: str) -> None:
    """Write an event file with which TensorBoard shows a text under scaling/; `path` gives its folder and name."""
    from tensorboard.plugins.text.metadata import create_summary_metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    _write_event(path, tensor=make_tensor_proto([markdown.encode()]), metadata=create_summary_metadata("", ""))


def _write_event(path: Path, **shown: Any) -> None:
    # Not torch's SummaryWriter: it draws figures again, and importing torch takes longer than fitting most laws.
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    _remove_event(path)
    writer = EventFileWriter(str(path.parent), filename_suffix=f".{path.stem}")
    summary = Summary(value=[Summary.Value(tag=f"scaling/{path.stem}", **shown)])
    writer.add_event(Event(wall_time=time.time(), step=0, summary=summary))
    writer.close()


def _remove_event(path: Path) -> None:
    for old in path.parent.glob(f"events.out.tfevents.*.{path.stem}"):
        old.unlink()
