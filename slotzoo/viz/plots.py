"""Line charts as PNG pictures, for where an HTML page is too much."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from slotzoo.errors import DataError
from slotzoo.viz.curves import BOTTOM, HEIGHT, LEFT, RIGHT, WIDTH, Scale, finite, short_number, ticks
from slotzoo.viz.images import font, write_png


# Okabe and Ito's colours on white, as in the report's light theme.
COLOURS = ("#0072b2", "#d55e00", "#007a5a", "#a8477f", "#7a6400", "#555c66")
_ZOOM = 2
_TEXT = 11
_ROW = 16  # of the legend


def write_plot(
    path: str | Path,
    series: Mapping[str, tuple[Sequence[float | int], Sequence[float | int | None]]],
    *,
    title: str,
    x_label: str,
    y_label: str = "",
) -> Path:
    """Write a chart with one line per series, name -> (x values, y values); None leaves a gap.

    Raises `DataError` where there is no finite value.
    """
    clean = {name: finite(x, y) for name, (x, y) in series.items()}
    points = [(a, b) for xs, ys in clean.values() for a, b in zip(xs, ys, strict=True) if np.isfinite(b)]
    if not points:
        raise DataError(f"The chart {title!r} has no finite values.")
    scale = Scale(points, logarithmic=False)
    legend = _ROW * len(clean) + 22
    picture = Image.new("RGB", (_ZOOM * WIDTH, _ZOOM * (HEIGHT + legend)), "white")
    draw = ImageDraw.Draw(picture)
    place = lambda x, y: (_ZOOM * x, _ZOOM * (y + legend))
    small, bold = font(_ZOOM * _TEXT), font(_ZOOM * (_TEXT + 2))
    draw.text(
        (_ZOOM * 8, _ZOOM * 4),
        title + (f" ({y_label})" if y_label and y_label not in title else ""),
        "black",
        bold,
    )
    bottom = HEIGHT - BOTTOM
    for tick in ticks(scale.y0, scale.y1, 5):
        draw.line([place(LEFT, scale.y(tick)), place(WIDTH - RIGHT, scale.y(tick))], "#e1e4ea", 2)
        draw.text(place(LEFT - 6, scale.y(tick)), short_number(tick), "#5a6270", small, anchor="rm")
    for tick in ticks(scale.x0, scale.x1, 5, whole=scale.whole):
        draw.line([place(scale.x(tick), bottom), place(scale.x(tick), bottom + 4)], "#5a6270", 2)
        draw.text(place(scale.x(tick), bottom + 6), short_number(tick), "#5a6270", small, anchor="mt")
    draw.line([place(LEFT, bottom), place(WIDTH - RIGHT, bottom)], "#5a6270", 2)
    draw.text(place((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 16), x_label, "#5a6270", small, anchor="mt")
    for number, (name, (xs, ys)) in enumerate(clean.items()):
        colour = COLOURS[number % len(COLOURS)]
        for stretch in scale.stretches(xs, ys):
            there = [place(x, y) for x, y in stretch]
            if len(there) > 1:
                draw.line(there, colour, 2 * _ZOOM, joint="curve")
            else:
                x, y = there[0]
                draw.ellipse([x - 4, y - 4, x + 4, y + 4], colour)
        row = _ZOOM * (22 + _ROW * number + _ROW / 2)
        draw.line([(_ZOOM * LEFT, row), (_ZOOM * (LEFT + 24), row)], colour, 3 * _ZOOM)
        draw.text((_ZOOM * (LEFT + 30), row), name, "black", small, anchor="lm")
    return write_png(path, np.asarray(picture))
