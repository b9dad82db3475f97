"""Masks to label maps and to colours: one fixed colour per label, overlays, and which segment is the background.

Label 0 means "no slot"; slot k has the label k + 1.
"""

import colorsys

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped, UInt8

from slotzoo.errors import ConfigError, nearest


BACKGROUND_MODES = ("spread_out", "concentrated", "both")
BACKGROUND_METRICS = ("area", "distance")
# The order of the published pictures: black, red, green, blue, yellow, cyan, magenta. More follow below.
_FIRST = ((0, 0, 0), (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255))
_LABELS = 256


def _colours() -> UInt8[np.ndarray, "label 3"]:
    """Beyond the named ones: hues a golden angle apart, so that neighbours never look alike."""
    table = list(_FIRST)
    for k in range(_LABELS - len(_FIRST)):
        red, green, blue = colorsys.hsv_to_rgb(
            (0.1 + 0.618034 * k) % 1.0, (0.55, 0.85)[k % 2], (0.95, 0.7)[k // 2 % 2]
        )
        table.append((round(255 * red), round(255 * green), round(255 * blue)))
    return np.asarray(table, np.uint8)


COLOURS = _colours()


def colour_labels(labels: Integer[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """A label map in the fixed colours; labels beyond 255 begin again at 1."""
    return COLOURS[np.where(labels < _LABELS, labels, 1 + (labels - 1) % (_LABELS - 1))]


def overlay(
    image: UInt8[np.ndarray, "*batch height width 3"],
    labels: Integer[np.ndarray, "*batch height width"],
    *,
    opacity: float = 0.45,
) -> UInt8[np.ndarray, "*batch height width 3"]:
    """The image with its segments tinted and outlined; label 0 stays as it is."""
    tint = colour_labels(labels).astype(np.float32)
    mixed = (1 - opacity) * image.astype(np.float32) + opacity * tint
    mixed = np.where((labels > 0)[..., None], mixed, image)
    return np.where(_outline(labels)[..., None], tint, mixed).round().astype(np.uint8)


def _outline(labels: Integer[np.ndarray, "*batch height width"]) -> Bool[np.ndarray, "*batch height width"]:
    """Points of a segment whose lower or right neighbour belongs to another one."""
    edge = np.zeros(labels.shape, bool)
    edge[..., :-1, :] |= labels[..., :-1, :] != labels[..., 1:, :]
    edge[..., :-1] |= labels[..., :-1] != labels[..., 1:]
    return edge & (labels > 0)


def raw_labels(masks: Float[np.ndarray, "slot *space"]) -> Integer[np.ndarray, "*space"]:
    """1 + the slot with the largest mask."""
    return np.argmax(masks, axis=0) + 1


def processed_labels(
    masks: Float[np.ndarray, "slot *space"], *, threshold: float = 0.5
) -> Integer[np.ndarray, "*space"]:
    """1 + the slot with the largest mask, and 0 where no mask reaches the threshold."""
    return np.where(np.max(masks, axis=0) < threshold, 0, raw_labels(masks))


def without_background(
    masks: Float[np.ndarray, "slot height width"],
    mode: str = "spread_out",
    metric: str = "area",
    *,
    threshold: float = 0.5,
) -> Integer[np.ndarray, "height width"]:
    """Labels of objects, 0 for the background.

    `spread_out`: the background is what no slot is sure of. `concentrated`: it is one slot, the one whose convex hull
    has the largest area (or whose points lie farthest apart, `metric="distance"`). `both`: either. In the mode
    `both` what no slot is sure of is a candidate as well, as in object-discovery-pytorch. **Raises** `ConfigError` for
    an unknown mode or metric.
    """
    for option, value, known in (
        ("background_detection", mode, BACKGROUND_MODES),
        ("background_metric", metric, BACKGROUND_METRICS),
    ):
        if value not in known:
            raise ConfigError(
                f"{option}={value}: unknown.{nearest(str(value), known)} Choose one of: {', '.join(known)}."
            )
    sure = processed_labels(masks, threshold=threshold)
    if mode == "spread_out":
        return sure
    labels = raw_labels(masks) if mode == "concentrated" else sure
    largest = largest_segment(labels, len(masks) + 1, metric)
    return np.where(labels == largest, 0, labels)


def largest_segment(labels: Integer[np.ndarray, "height width"], count: int, metric: str) -> int:
    """The label, of 0 to `count - 1`, whose convex hull is largest: by area, or by its two farthest points."""
    sizes = []
    for label in range(count):
        hull = convex_hull(np.argwhere(labels == label))
        if len(hull) < 3:  # empty, a point or a line
            sizes.append(0.0)
        elif metric == "area":
            y, x = hull.T.astype(np.float64)
            sizes.append(0.5 * abs(np.dot(y, np.roll(x, -1)) - np.dot(x, np.roll(y, -1))))
        else:
            apart = hull[:, None].astype(np.float64) - hull[None]
            sizes.append(float(np.sqrt(np.square(apart).sum(-1).max())))
    return int(np.argmax(sizes))


def convex_hull(points: Integer[np.ndarray, "point 2"]) -> Integer[np.ndarray, "corner 2"]:
    """The corners of the convex hull in order, without points on its edges (Andrew's monotone chain)."""
    if len(points) < 3:
        return points
    # Only the first and the last point of each row can be a corner.
    ordered = points[np.lexsort((points[:, 1], points[:, 0]))]
    rows, first = np.unique(ordered[:, 0], return_index=True)
    last = np.append(first[1:], len(ordered)) - 1
    left = [(int(row), int(ordered[i, 1])) for row, i in zip(rows, first, strict=True)]
    right = [(int(row), int(ordered[i, 1])) for row, i in zip(rows, last, strict=True)]
    candidates = sorted({*left, *right})
    if len(candidates) < 3:
        return np.asarray(candidates)

    def chain(path: list[tuple[int, int]]) -> list[tuple[int, int]]:
        kept: list[tuple[int, int]] = []
        for point in path:
            while len(kept) > 1 and _turn(kept[-2], kept[-1], point) <= 0:
                kept.pop()
            kept.append(point)
        return kept[:-1]

    return np.asarray(chain(candidates) + chain(candidates[::-1]))


def _turn(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> int:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def draw_boxes(
    image: UInt8[np.ndarray, "height width 3"],
    boxes: Float[np.ndarray, "box 4"],
    present: Shaped[np.ndarray, " box"],
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with frames around what is present, each in its colour: lines along the first and last pixels inside.

    Boxes are top, left, bottom, right, outer edges in pixels.
    """
    height, width, _ = image.shape
    out = image.copy()
    for number, (box, there) in enumerate(zip(boxes, present, strict=True)):
        if there < 0.5 or not np.isfinite(box).all():
            continue
        (top, bottom), (left, right) = (
            (int(np.clip(round(float(low)), 0, size - 1)), int(np.clip(round(float(high)) - 1, 0, size - 1)))
            for low, high, size in ((box[0], box[2], height), (box[1], box[3], width))
        )
        bottom, right = max(top, bottom), max(left, right)  # a line at least
        colour = COLOURS[1 + number % (_LABELS - 1)]
        out[top : bottom + 1, [left, right]] = colour
        out[[top, bottom], left : right + 1] = colour
    return out
