"""From a matplotlib figure to SVG: one look for all, text that stays text, the same bytes for the same data.

A figure is drawn once, on white, in the colours below. As a file it stays so. Inside the page its colours become CSS
variables, so that it follows a light or dark background, and its ids get the figure's name, so that two figures in one
page never meet. Nothing of the user's own matplotlib settings is taken over.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind people tell apart; markers and line styles always differ, too.
INK, MUTED, GRID, PAPER = "#1b2430", "#5b6675", "#d9dee5", "#fffffe"
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
SERIES = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)), (0, (8, 3)))
_VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper", BLUE: "blue", ORANGE: "orange", GREEN: "green",
    VERMILION: "vermilion", PURPLE: "purple", SKY: "sky",
}  # fmt: skip
_LOOK: dict[Any, Any] = {  # matplotlib's own type is a list of every key there is
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of VLMs may hold a dollar sign
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "lines.linewidth": 1.6,
    "lines.markersize": 6,
}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A drawn figure, or a part of one.

    Attributes:
        name: of its file under `report/figures/`, without the ending.
        svg: the file's text.
        alt: what it shows, in words, for those who do not see it.
        width: px at which it reads best.
        height: px.
        can_scroll: whether a narrow screen scrolls it sideways rather than shrinking it.
    """

    name: str
    svg: str
    alt: str
    width: int
    height: int
    can_scroll: bool = False

    def inline(self) -> str:
        """What stands inside the svg element of the page, which writes that element itself."""
        body = self.svg[self.svg.index("<svg") :]
        body = body[body.index(">") + 1 : body.rindex("</svg>")]
        body = re.sub(r"<style.*?</style>", "", body, count=1, flags=re.DOTALL)  # it would hold for the whole page
        body = re.sub(r'\bstyle="[^"]*"', lambda match: _themed(match.group()), body)
        body = re.sub(r'\bid="([^"]+)"', rf'id="{self.name}-\1"', body)
        body = re.sub(r"url\(#([^)]+)\)", rf"url(#{self.name}-\1)", body)
        return re.sub(r'xlink:href="#([^"]+)"', rf'href="#{self.name}-\1"', body)


@contextmanager
def look() -> Iterator[None]:
    """Draw with our settings alone; the former ones come back after."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_LOOK)
        yield


def new_figure(width: int, height: int) -> Figure:
    """A figure of so many px; inside `look`."""
    return Figure(figsize=(width / 72, height / 72), layout="constrained")


def as_panel(figure: Figure, name: str, alt: str, *, can_scroll: bool = False) -> Panel:
    """Write the figure as SVG; inside `look`."""
    mpl.rcParams["svg.hashsalt"] = name
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # the reader's own font may have it
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = re.sub(r"\s*<!--.*?-->|<!DOCTYPE[^>]*>\s*", "", buffer.getvalue(), flags=re.DOTALL)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r'\b(?:d|x|y|transform)="[^"]*"', lambda match: _shorter(match.group()), svg)
    width, height = (round(72 * length) for length in figure.get_size_inches())
    svg = re.sub(r'(<svg [^>]*?)width="[^"]*"', rf'\1width="{width}"', svg, count=1)
    svg = re.sub(r'(<svg [^>]*?)height="[^"]*"', rf'\1height="{height}"', svg, count=1)
    return Panel(name=name, svg=svg, alt=alt, width=width, height=height, can_scroll=can_scroll)


def _shorter(attribute: str) -> str:
    """Coordinates to a hundredth of a px, each on one line."""
    rounded = re.sub(r"-?\d+\.\d+", lambda match: f"{float(match.group()):.2f}".rstrip("0").rstrip("."), attribute)
    return re.sub(r"\s+", " ", rounded)


def _themed(style: str) -> str:
    """The page's colours and font in place of the file's."""
    for colour, variable in _VARIABLES.items():
        style = style.replace(colour, f"var(--{variable})")
    return re.sub(r"font-family: [^;\"]*;? ?", "", style)
