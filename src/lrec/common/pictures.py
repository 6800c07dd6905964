"""What all pictures have in common: colours, frame, a text for people who cannot see them, and files."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lrec.common.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of Okabe and Ito: colour-blind people can tell them apart too (jfly.uni-koeln.de/color).
BLUE, ORANGE, GREY, INK = "#0072b2", "#d55e00", "#5a5a5a", "#222222"


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
    metadata = SummaryMetadata(summary_description=alt_text(figure))
    _write_event(path, Summary.Value(tag=f"scaling/{path.stem}", image=image, metadata=metadata))


def show_text(path: Path, markdown: str) -> None:
    """Write an event file with which TensorBoard shows a text under scaling/; `path` gives its folder and name."""
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.text.metadata import create_summary_metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    metadata, text = create_summary_metadata("", ""), make_tensor_proto([markdown.encode()])
    _write_event(path, Summary.Value(tag=f"scaling/{path.stem}", tensor=text, metadata=metadata))


def _write_event(path: Path, value: Any) -> None:
    # Not torch's SummaryWriter: it draws figures again, and importing torch takes longer than fitting most laws.
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    suffix = f".{path.stem}"
    for old in path.parent.glob(f"events.out.tfevents.*{suffix}"):
        old.unlink()
    writer = EventFileWriter(str(path.parent), filename_suffix=suffix)
    writer.add_event(Event(wall_time=time.time(), step=0, summary=Summary(value=[value])))
    writer.close()
