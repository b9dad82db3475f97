"""What SAVi does to a clip before a model sees it, in numpy: sizes, crops, windows, flow as colours, depth.

A clip is a mapping that has some of: `video` float32 (time, height, width, 3) 0 to 1, `flow` float32 (..., 2) pixels
(rows, columns), `depth` float32 (..., 1) metres, `segmentations` int (time, height, width), `padding_mask` uint8 alike,
1 where something was seen, `boxes` float32 (time, objects, 4) ymin, xmin, ymax, xmax over height and width, zeros
where an object is not seen. Every function gives a new mapping. Source: google-research/slot-attention-video,
lib/preprocessing.
"""

import functools
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8

from slotzoo.data.resize import resize_bilinear
from slotzoo.errors import ConfigError


Clip = dict[str, np.ndarray]
Window = tuple[int, int, int, int]  # y, x, height, width
DepthScale = Literal["log", "log_plus", "invert_plus", "metres"]
_SMOOTH, _LABELS = ("video", "flow", "depth"), ("segmentations", "padding_mask")


def frame_size(clip: Clip) -> tuple[int, int]:
    """Height and width of the frames."""
    for name in (*_SMOOTH, *_LABELS):
        if name in clip:
            return clip[name].shape[1], clip[name].shape[2]
    raise ConfigError(f"A clip of {', '.join(clip)} has no frames.")


@functools.lru_cache(maxsize=64)
def _centres(old: int, new: int) -> np.ndarray:
    """Source of every new pixel: the one that holds its centre, floor((i + 1/2) old / new)."""
    index = np.floor((np.arange(new, dtype=np.float32) + np.float32(0.5)) * (np.float32(old) / np.float32(new)))
    return np.minimum(index.astype(np.int64), old - 1)


def resize(clip: Clip, height: int, width: int) -> Clip:
    """Colours, flow and depth bilinear without antialias, labels nearest, both by pixel centres; flow scaled too."""
    old = frame_size(clip)
    if old == (height, width):
        return dict(clip)
    out = dict(clip)
    for name in _SMOOTH:
        if name in clip:
            out[name] = resize_bilinear(clip[name], (height, width))
    if "flow" in clip:
        out["flow"] = out["flow"] * np.asarray([height / old[0], width / old[1]], np.float32)
    rows, columns = _centres(old[0], height), _centres(old[1], width)
    for name in _LABELS:
        if name in clip:
            out[name] = clip[name][:, rows[:, None], columns[None, :]]
    return out


def resize_small(clip: Clip, size: int, max_size: int | None = None) -> Clip:
    """The shorter side to `size`, less where the longer one would pass `max_size`."""
    height, width = frame_size(clip)
    ratio = size / min(height, width)
    if max_size is not None:
        ratio = min(ratio, max_size / max(height, width))
    return resize(clip, round(height * ratio), round(width * ratio))


def _cut(
    boxes: Float32[np.ndarray, "time objects 4"], window: Window, size: tuple[int, int]
) -> Float32[np.ndarray, "time objects 4"]:
    """Boxes as fractions of a window of frames of `size`; zeros for those that lie outside."""
    y, x, height, width = window
    scale = np.asarray([size[0] / height, size[1] / width] * 2, np.float32)
    shift = np.asarray([y / height, x / width] * 2, np.float32)
    moved = np.clip(boxes * scale - shift, 0, 1)
    inside = (moved[..., 2:] > moved[..., :2]).all(axis=-1, keepdims=True)
    return np.where(inside, moved, np.float32(0))


def crop(clip: Clip, window: Window) -> Clip:
    """Rows y to y + height, columns x to x + width of every frame."""
    y, x, height, width = window
    size = frame_size(clip)
    if y < 0 or x < 0 or y + height > size[0] or x + width > size[1] or height < 1 or width < 1:
        raise ConfigError(
            f"A window of {height} x {width} at {y}, {x} is not inside frames of {size[0]} x {size[1]}."
        )
    out = dict(clip)
    for name in (*_SMOOTH, *_LABELS):
        if name in clip:
            out[name] = clip[name][:, y : y + height, x : x + width]
    if "boxes" in clip:
        out["boxes"] = _cut(clip["boxes"], window, size)
    return out


def central_crop(clip: Clip, height: int, width: int) -> Clip:
    """The middle of every frame."""
    old = frame_size(clip)
    return crop(clip, ((old[0] - height) // 2, (old[1] - width) // 2, height, width))


def crop_or_pad(clip: Clip, height: int, width: int) -> Clip:
    """The upper left part of every frame, with zeros below and to the right where it is smaller."""
    old = frame_size(clip)
    kept = min(height, old[0]), min(width, old[1])
    out = crop(clip, (0, 0, *kept))
    around = ((0, 0), (0, height - kept[0]), (0, width - kept[1]))
    for name in (*_SMOOTH, *_LABELS):
        if name in out:
            out[name] = np.pad(out[name], (*around, (0, 0)) if out[name].ndim == 4 else around)
    if "boxes" in out:
        out["boxes"] = _cut(clip["boxes"], (0, 0, height, width), old)
    return out


def frames(clip: Clip, start: int, length: int) -> Clip:
    """Frames `start` to `start + length`, zeros (also in `padding_mask`) after the last."""
    return {
        name: np.pad(
            x[start : start + length], ((0, max(0, start + length - len(x))), *[(0, 0)] * (x.ndim - 1))
        )
        for name, x in clip.items()
    }


def drop_frames(clip: Clip, every: int) -> Clip:
    """Every `every`-th frame."""
    return {name: x[::every] for name, x in clip.items()}


def flip(clip: Clip, *, rows: bool = False, columns: bool = False) -> Clip:
    """Upside down, left to right; flow and boxes follow."""
    out = dict(clip)
    for axis, wanted in ((1, rows), (2, columns)):
        if not wanted:
            continue
        for name in (*_SMOOTH, *_LABELS):
            if name in out:
                out[name] = np.flip(out[name], axis)
        if "flow" in out:
            out["flow"] = out["flow"] * np.where(np.arange(2) == axis - 1, -1, 1).astype(np.float32)
        if "boxes" in out:
            low, high = (1 - out["boxes"][..., axis + 1], 1 - out["boxes"][..., axis - 1])
            boxes = out["boxes"].copy()
            boxes[..., axis - 1], boxes[..., axis + 1] = low, high
            out["boxes"] = np.where(out["boxes"].any(axis=-1, keepdims=True), boxes, np.float32(0))
    return out


def sample_window(
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    min_object_covered: float = 0.75,
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    area: tuple[float, float] = (0.08, 1.0),
    tries: int = 100,
) -> Window:
    """A random window by the rule of TensorFlow's `sample_distorted_bounding_box` for a box that is the whole frame.

    `aspect` is width over height, `area` the share of the frame; the window covers at least `min_object_covered` of
    it. The whole frame after `tries` failures.
    """
    whole = size[0] * size[1]
    for _ in range(tries):
        ratio = float(rng.uniform(*aspect))
        window = _window_of_ratio(rng, size, ratio, area[0] * whole, area[1] * whole)
        if window is not None and window[2] * window[3] >= min_object_covered * whole:
            return window
    return 0, 0, size[0], size[1]


def _window_of_ratio(
    rng: np.random.Generator, size: tuple[int, int], ratio: float, least: float, most: float
) -> Window | None:
    low, high = round((least / ratio) ** 0.5), round((most / ratio) ** 0.5)
    if round(high * ratio) > size[1]:
        high = int((size[1] + 0.5 - 1e-7) / ratio)
        high -= round(high * ratio) > size[1]
    high = min(high, size[0])
    height = min(low, high)
    height += int(rng.integers(high - height + 1))
    width = round(height * ratio)
    if width * height < least:
        height += 1
        width = round(height * ratio)
    if width * height > most:
        height -= 1
        width = round(height * ratio)
    if not (least <= width * height <= most and 0 < width <= size[1] and 0 < height <= size[0]):
        return None
    y, x = (int(rng.integers(room)) if room > 0 else 0 for room in (size[0] - height, size[1] - width))
    return y, x, height, width


def resized_crop(
    clip: Clip,
    window: Window,
    height: int,
    width: int,
    *,
    relative_box_area: float = 0.0,
    seed_area: bool = False,
) -> Clip:
    """A window at another size. Boxes that keep less than `relative_box_area` of their area in it become zeros.

    `seed_area` measures what is left as the authors do, larger by the frame's pixels over those of the new size.
    """
    out = resize(crop(clip, window), height, width)
    if "boxes" in clip and relative_box_area > 0:
        size = frame_size(clip)
        pixels = height * width if seed_area else size[0] * size[1]
        left = _areas(out["boxes"]) * np.float32(window[2] * window[3] / pixels)
        enough = left >= relative_box_area * _areas(clip["boxes"])
        out["boxes"] = np.where(enough[..., None], out["boxes"], np.float32(0))
    return out


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def scale_depth(depth: Float32[np.ndarray, "..."], scale: DepthScale) -> Float32[np.ndarray, "..."]:
    """`log`: log d; `log_plus`: log(1 + d); `invert_plus`: 1 / (1 + d); `metres`: d."""
    if scale == "log":
        return np.log(depth)
    if scale == "log_plus":
        return np.log1p(depth)
    return 1 / (1 + depth) if scale == "invert_plus" else depth


def flow_to_rgb(flow: Float32[np.ndarray, "*time height width 2"]) -> UInt8[np.ndarray, "*time height width 3"]:
    """Flow as colours: the direction is the hue, white is rest, sqrt(height^2 + width^2) / 50 pixels are full colour.

    The first component, which MOVi's rows are, is taken for x, as the authors do.
    """
    height, width = flow.shape[-3:-1]
    first, second = flow[..., 0], flow[..., 1]
    hue = (np.arctan2(second, first) / np.float32(np.pi) + 1) * np.float32(3)  # 0 to 6
    length = np.sqrt(first * first + second * second)
    strength = np.clip(length * np.float32(50 / np.sqrt(height * height + width * width)), 0, 1)
    wheel = (np.abs(hue - 3) - 1, 2 - np.abs(hue - 2), 2 - np.abs(hue - 4))
    rgb = np.stack([1 - strength + strength * np.clip(channel, 0, 1) for channel in wheel], axis=-1)
    return np.minimum(np.floor(rgb * np.float32(255.5)), 255).astype(np.uint8)
