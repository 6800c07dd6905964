"""What all pictures have in common."""

from pathlib import Path
from typing import TYPE_CHECKING

from lrec.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_frame(axes: "Axes") -> None:
    """A faint grid in the background, and no box."""
    axes.grid(True, which="major", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def save_figure(path: Path, figure: "Figure") -> None:
    """Write a picture as a file, and beside it for TensorBoard under scaling/, replacing earlier ones."""
    from torch.utils.tensorboard import SummaryWriter

    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    suffix = f".{path.stem}"
    for old in path.parent.glob(f"events.out.tfevents.*{suffix}"):
        old.unlink()
    with SummaryWriter(str(path.parent), filename_suffix=suffix) as writer:
        writer.add_figure(f"scaling/{path.stem}", figure)
