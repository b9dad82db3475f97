"""Line charts as inline SVG: no script, no other file, readable in light and dark."""

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np


# CSS variables, so that the page's light and dark themes both have enough contrast. They are near Okabe and
# Ito's colours, apart for every colour vision; the dashes tell the series apart without any colour.
COLOURS = tuple(f"var(--series-{i})" for i in range(6))
DASHES = ("", "6 3", "2 3", "8 3 2 3", "12 4", "4 4")
WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 56, 18, 10, 38
# More points than pixels add nothing but bytes.
MAX_POINTS = 400
CSS = """
.chart { width: 100%; height: auto; display: block; }
.chart .grid { stroke: var(--line); stroke-width: 1; }
.chart .axis { stroke: var(--muted); stroke-width: 1; }
.chart text { fill: var(--muted); font: 11px var(--font); }
.chart polyline { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.chart .faint { stroke-width: 1; opacity: .35; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .1rem 0 .4rem; padding: 0; }
.legend { font-size: .82rem; list-style: none; }
.legend svg { width: 28px; height: 10px; vertical-align: middle; margin-right: .35rem; }
.legend b { font-weight: 600; font-variant-numeric: tabular-nums; }
"""


def line_chart(
    series: Mapping[str, tuple[Sequence[float | int], Sequence[float | int | None]]],
    *,
    title: str,
    x_label: str = "step",
    y_label: str = "",
    logarithmic: bool = False,
    smooth: bool = False,
) -> str:
    """An HTML figure with one line per series: name -> (x values, y values).

    Values that are None, NaN or infinite leave a gap. `logarithmic` needs positive values and is ignored
    otherwise. `smooth` draws a running mean over the raw line, made faint.
    """
    clean = {name: finite(x, y) for name, (x, y) in series.items()}
    points = [(a, b) for xs, ys in clean.values() for a, b in zip(xs, ys, strict=True) if math.isfinite(b)]
    if not points:
        return _figure(title, "<p class=missing>No finite values were logged.</p>", "")
    logarithmic = logarithmic and min(b for _, b in points) > 0
    scale = Scale(points, logarithmic)
    body = [*scale.axes(x_label, y_label)]
    keys = []
    for i, (name, (xs, ys)) in enumerate(clean.items()):
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
        style = f'style="stroke:{colour}"' + (f' stroke-dasharray="{dash}"' if dash else "")
        if smooth and len(xs) > 40:
            body += [f'<polyline class="faint" {style} points="{p}"/>' for p in scale.lines(xs, ys)]
            ys = _running_mean(ys)
        lines = scale.lines(xs, ys)
        body += [f'<polyline {style} points="{p}"><title>{escape(name)}</title></polyline>' for p in lines]
        for x, y in scale.lonely(xs, ys):
            body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" style="fill:{colour}"/>')
        last = next((b for b in reversed(ys) if math.isfinite(b)), None)
        value = "" if last is None else f" <b>{short_number(last)}</b>"
        line = f'<line x1="1" y1="5" x2="27" y2="5" stroke-width="3" {style}/>'
        key = f'<svg viewBox="0 0 28 10" aria-hidden="true">{line}</svg>'
        keys.append(f"<li>{key}{escape(name)}{value}</li>")
    summary = escape(f"{title}: {', '.join(clean)} over {x_label}", quote=True)
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{summary}"'
    svg = f'<svg class="chart" {box}>{"".join(body)}</svg>'
    return _figure(title, svg, f'<ul class="legend">{"".join(keys)}</ul>')


def _figure(title: str, body: str, legend: str) -> str:
    return f'<figure class="card"><figcaption>{escape(title)}</figcaption>{legend}{body}</figure>'


class Scale:
    """Where values lie on the picture."""

    def __init__(self, points: Sequence[tuple[float, float]], logarithmic: bool):
        self.logarithmic = logarithmic
        x = [a for a, _ in points]
        y = [self._value(b) for _, b in points]
        self.x0, self.x1 = min(x), max(x)
        # Steps and frames have no halves.
        self.whole = all(a == round(a) for a in x)
        self.y0, self.y1 = min(y), max(y)
        if self.x0 == self.x1:
            self.x0, self.x1 = self.x0 - 0.5, self.x1 + 0.5
        # A flat line lies in the middle; others keep a little room above and below.
        room = 0.05 * (self.y1 - self.y0) or max(abs(self.y0) * 0.1, 1e-12)
        self.y0, self.y1 = self.y0 - room, self.y1 + room

    def _value(self, y: float) -> float:
        return math.log10(y) if self.logarithmic else y

    def x(self, value: float) -> float:
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (self._value(value) - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

    def stretches(self, xs: Sequence[float], ys: Sequence[float]) -> list[list[tuple[float, float]]]:
        """Where the points lie, a list for each stretch without a gap."""
        found: list[list[tuple[float, float]]] = [[]]
        for a, b in _thinned(xs, ys):
            if math.isfinite(b):
                found[-1].append((self.x(a), self.y(b)))
            elif found[-1]:
                found.append([])
        return [stretch for stretch in found if stretch]

    def lines(self, xs: Sequence[float], ys: Sequence[float]) -> list[str]:
        """Point lists, one for each stretch without a gap that has two points or more."""
        stretches = (stretch for stretch in self.stretches(xs, ys) if len(stretch) > 1)
        return [" ".join(f"{x:.1f},{y:.1f}" for x, y in stretch) for stretch in stretches]

    def lonely(self, xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
        """Points without a neighbour to draw a line to."""
        found = [math.isfinite(y) for y in ys]
        return [
            (self.x(x), self.y(y))
            for i, (x, y) in enumerate(zip(xs, ys, strict=True))
            if found[i] and not (i > 0 and found[i - 1]) and not (i + 1 < len(ys) and found[i + 1])
        ]

    def axes(self, x_label: str, y_label: str) -> list[str]:
        bottom = HEIGHT - BOTTOM
        parts = []
        for tick in ticks(self.y0, self.y1, 5):
            value = 10**tick if self.logarithmic else tick
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short_number(value)}</text>')
        for tick in ticks(self.x0, self.x1, 5, whole=self.whole):
            x = self.x(tick)
            parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            parts.append(
                f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{short_number(tick)}</text>'
            )
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
        if y_label:
            label = escape(y_label) + (" (logarithmic)" if self.logarithmic else "")
            centre = (TOP + bottom) / 2
            turn = f'transform="rotate(-90 12 {centre})" x="12" y="{centre}"'
            parts.append(f'<text {turn} text-anchor="middle">{label}</text>')
        return parts


def finite(xs: Sequence[float | int], ys: Sequence[float | int | None]) -> tuple[list[float], list[float]]:
    return [float(x) for x in xs], [math.nan if y is None or not math.isfinite(y) else float(y) for y in ys]


def _thinned(xs: Sequence[float], ys: Sequence[float]) -> list[tuple[float, float]]:
    """At most about MAX_POINTS points: of each stretch its lowest and its highest, so that spikes stay."""
    pairs = list(zip(xs, ys, strict=True))
    size = -(-len(pairs) // (MAX_POINTS // 2))
    if size <= 2:
        return pairs
    kept = []
    for start in range(0, len(pairs), size):
        part = pairs[start : start + size]
        finite = [p for p in part if math.isfinite(p[1])]
        if not finite:
            kept.append(part[0])
            continue
        kept += sorted({min(finite, key=lambda p: p[1]), max(finite, key=lambda p: p[1])})
    return [*kept, pairs[-1]] if kept[-1] != pairs[-1] else kept


def _running_mean(ys: Sequence[float]) -> list[float]:
    """A centred mean over a fortieth of the points; gaps are left out of it and stay gaps."""
    y = np.asarray(ys)
    there = np.isfinite(y)
    half = max(1, len(y) // 80)
    window = np.ones(2 * half + 1)
    total = np.convolve(np.where(there, y, 0.0), window, mode="same")
    count = np.convolve(there.astype(float), window, mode="same")
    return np.where(there, total / np.maximum(count, 1.0), np.nan).tolist()


def ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Round numbers inside of [low, high], about so many; `whole` ones only if asked."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    step = float(max(1, round(step))) if whole else step
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def short_number(value: float) -> str:
    """Short: 12500 -> 12.5k, 0.00031 -> 3.1e-4."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if size >= 1e4:
        return f"{value / 1000:.4g}k"
    return f"{value:.4g}"
