"""Put labels beside points so that they do not cover one another."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

# offsets in points with their alignment, the most readable first
_PLACES = (
    (7, 0, "left", "center"), (-7, 0, "right", "center"), (0, 8, "center", "bottom"), (0, -8, "center", "top"),
    (6, 8, "left", "bottom"), (6, -8, "left", "top"), (-6, 8, "right", "bottom"), (-6, -8, "right", "top"),
    (0, 20, "center", "bottom"), (0, -20, "center", "top"), (8, 20, "left", "bottom"), (-8, -20, "right", "top"),
)  # fmt: skip
_POINT = 5  # half a marker, px


def place_labels(axes: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each label at the first of a dozen places around its point that is free, else at the one least covered.

    Args:
        axes: with its limits and layout fixed.
        labels: x, y, text, colour; earlier ones choose first.
    """
    centres = [axes.transData.transform((x, y)) for x, y, _, _ in labels]
    taken = [Bbox.from_extents(x - _POINT, y - _POINT, x + _POINT, y + _POINT) for x, y in centres]
    inside = axes.get_window_extent()
    for x, y, text, colour in labels:
        best = None
        for dx, dy, across, up in _PLACES:
            note = axes.annotate(
                text, (x, y), xytext=(dx, dy), textcoords="offset points", ha=across, va=up, size=9.5, color=colour
            )
            box = note.get_window_extent()
            covered = sum(_shared(box, other) for other in taken) + (_area(box) - _shared(box, inside))
            if best is None or covered < best[0]:
                if best is not None:
                    best[1].remove()
                best = (covered, note, box)
            else:
                note.remove()
            if covered == 0:
                break
        if best is not None:
            taken.append(best[2])


def _shared(one: Bbox, other: Bbox) -> float:
    box = Bbox.intersection(one, other)
    return 0.0 if box is None else _area(box)


def _area(box: Bbox) -> float:
    return float(box.width * box.height)
