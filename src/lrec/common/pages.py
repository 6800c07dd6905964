"""HTML pages that need no other files."""

import base64
import html
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from lrec.common.text_tables import as_cell, counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def rendered(room: str, template: str, shown: dict[str, Any], **filters: Callable[..., str]) -> str:
    """A template of the package lrec.`room` with the values `shown`; an unknown name is an error. HTML templates may
    extend `page.html.j2` here. All templates have the filters `counted` and `cell`, those for HTML also `unbroken`."""
    rooms = ChoiceLoader([PackageLoader(f"lrec.{room}", "."), PackageLoader("lrec.common", ".")])
    escaping = select_autoescape(enabled_extensions=["html.j2"])
    environment = Environment(loader=rooms, autoescape=escaping, trim_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"unbroken": unbroken, "counted": counted, "cell": as_cell, **filters}
    return environment.get_template(template).render(shown)


def unbroken(text: str) -> Markup:
    """Text as HTML in which no option is broken across lines: the page's style keeps the class `option` in one line."""
    return Markup(re.sub(r"--[\w.]+", r'<span class="option">\g<0></span>', str(escape(text))))


def as_html(report: str) -> Markup:
    """A report in Markdown as HTML. Its pictures are only named, because they are separate files."""
    import markdown

    text = re.sub(r"^!\[(.*)\]\((.*)\)$", r"Picture \2: \1.", html.escape(report, quote=False), flags=re.M)
    return Markup(markdown.markdown(text, extensions=["tables"]))


def within_a_page(figure: "Figure") -> str:
    """A figure as the source of an <img>: SVG with text as text, the same each time."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lrec", "font.size": 9.5}):
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(text.getvalue().encode()).decode()}"
