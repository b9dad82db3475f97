"""How a model follows the objects of a video: segments, predicted flow and depth, boxes, attention of every slot.

Label 0 is the background (or no slot), and a slot has one label through the whole clip, so it keeps its colour.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer, Shaped, UInt8

from slotzoo.viz.images import as_rgb, comfortable_scale, enlarge, to_uint8, write_png, write_text
from slotzoo.viz.segments import colour_labels, draw_boxes, overlay
from slotzoo.viz.strips import labelled_rows
from slotzoo.viz.videos import write_video


# Of viridis (van der Walt and Smith, 2015), from far to near.
_DEPTH = np.asarray([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float32)


@dataclasses.dataclass(frozen=True)
class Track:
    """One clip and what a model made of it.

    `predictions` and `targets` by name: `flow` as colours and `rgb` in [0, 1], `depth` with one channel. With
    `background` slot 0 is no object. `hints` are the boxes the model was given, in the order of its objects.
    """

    video: UInt8[np.ndarray, "time height width 3"]
    masks: Float[np.ndarray, "time slot height width"]
    slots: Float[np.ndarray, "time slot dim"]
    predictions: Mapping[str, Float[np.ndarray, "time height width channel"]]
    targets: Mapping[str, Shaped[np.ndarray, "time height width channel"]] = dataclasses.field(
        default_factory=dict
    )
    attention: Float[np.ndarray, "time slot token"] | None = None
    true: Integer[np.ndarray, "time height width"] | None = None
    hints: Float[np.ndarray, "object 4"] | None = None
    background: bool = False

    @property
    def labels(self) -> Integer[np.ndarray, "time height width"]:
        """The slot with the largest mask: its number, from 0 with a background slot, else from 1."""
        return np.argmax(self.masks, axis=1).astype(np.int32) + (0 if self.background else 1)

    def label_of(self, slot: int) -> int:
        """The label, and so the colour, of a slot."""
        return slot + (0 if self.background else 1)


def panels(track: Track) -> dict[str, UInt8[np.ndarray, "time height width 3"]]:
    """Title -> clip: the video with boxes, true and found segments, each prediction beside its target."""
    labels = track.labels
    most = int(labels.max(initial=0))
    boxed = np.stack(
        [draw_boxes(frame, *boxes_of(found, most)) for frame, found in zip(track.video, labels, strict=True)]
    )
    if track.hints is not None:
        height, width = track.video.shape[1:3]
        scale = np.asarray([height, width, height, width], np.float32)
        boxed[0] = draw_boxes(track.video[0], track.hints * scale, np.asarray(track.hints.any(-1)))
    shown = {"video": track.video, "boxes": boxed}
    if track.true is not None:
        shown["true"] = colour_labels(track.true)
    shown |= {"found": colour_labels(labels), "overlay": overlay(track.video, labels)}
    for name, prediction in track.predictions.items():
        target = track.targets.get(name)
        bounds = _bounds(prediction if target is None else target)
        if target is not None and name not in ("rgb", "video"):
            shown[f"{name}, true"] = as_picture(target, bounds)
        shown[name] = as_picture(prediction, bounds)
    return shown


def as_picture(
    values: Shaped[np.ndarray, "*time height width channel"], bounds: tuple[float, float] | None = None
) -> UInt8[np.ndarray, "*time height width 3"]:
    """Three channels in [0, 1] as they are, one channel from `bounds` in colours from far (blue) to near (yellow)."""
    if values.shape[-1] != 1:
        return np.array(to_uint8(as_rgb(values)))
    low, high = _bounds(values) if bounds is None else bounds
    near = 1 - np.clip(
        np.nan_to_num((np.asarray(values[..., 0], np.float32) - low) / max(high - low, 1e-6)), 0, 1
    )
    place = near * (len(_DEPTH) - 1)
    first = np.minimum(place.astype(np.int32), len(_DEPTH) - 2)
    share = (place - first)[..., None]
    return np.rint((1 - share) * _DEPTH[first] + share * _DEPTH[first + 1]).astype(np.uint8)


def _bounds(values: Shaped[np.ndarray, "..."]) -> tuple[float, float]:
    finite = np.asarray(values, np.float32)[np.isfinite(np.asarray(values, np.float32))]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)


def boxes_of(
    labels: Integer[np.ndarray, "height width"], most: int
) -> tuple[Float[np.ndarray, "label 4"], Integer[np.ndarray, " label"]]:
    """Top, left, bottom, right of every label 1 to `most`, and whether it is there.

    They are the outer edges in pixels, as of boxes from 0 to 1: a label in row 2 alone reaches from 2 to 3.
    """
    boxes, there = np.zeros((most, 4), np.float32), np.zeros(most, np.int32)
    for label in range(1, most + 1):
        rows, columns = np.nonzero(labels == label)
        if len(rows):
            boxes[label - 1] = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
            there[label - 1] = 1
    return boxes, there


def track_video(
    track: Track, *, scale: int | None = None
) -> UInt8[np.ndarray, "time video_height video_width 3"]:
    """`panels` side by side, frame by frame, with the frame's number."""
    shown = panels(track)
    frames = []
    for time in range(len(track.video)):
        # The margin for the number is as wide for every frame.
        row = {"    ": np.stack([clip[time] for clip in shown.values()])}
        canvas = labelled_rows(row, titles=tuple(shown), scale=scale)
        frames.append(write_text(canvas, str(time), left=4, top=canvas.shape[0] // 2))
    return np.stack(frames)


def slot_video(
    track: Track, *, scale: int | None = None
) -> UInt8[np.ndarray, "time video_height video_width 3"]:
    """Every slot in a column, framed in its colour: what of the frame it owns, and where it looks."""
    time, count, height, width = track.masks.shape
    video = track.video[:, None].astype(np.float32)
    owned = np.rint(track.masks[..., None] * video + (1 - track.masks[..., None]) * 255).astype(np.uint8)
    rows = {"owns": owned}
    if track.attention is not None:
        looks = attention_maps(track.attention, height, width)
        rows["looks at"] = np.rint(looks[..., None] * video + (1 - looks[..., None]) * 255).astype(np.uint8)
    colours = colour_labels(np.asarray([track.label_of(slot) for slot in range(count)]))
    borders = [(int(r), int(g), int(b)) for r, g, b in colours]
    titles = tuple(f"slot {slot}" for slot in range(count))
    return np.stack(
        [
            labelled_rows(
                {name: clip[t] for name, clip in rows.items()}, titles=titles, borders=borders, scale=scale
            )
            for t in range(time)
        ]
    )


def attention_maps(
    attention: Float[np.ndarray, "time slot token"], height: int, width: int
) -> Float[np.ndarray, "time slot height width"]:
    """Attention over the tokens of an encoder's grid, enlarged to the frame: each token covers its own pixels."""
    time, slots, tokens = attention.shape
    rows = max(1, round(math.sqrt(tokens * height / width)))
    while tokens % rows:
        rows -= 1
    grid = attention.reshape(time, slots, rows, tokens // rows)
    across = np.arange(height) * rows // height
    along = np.arange(width) * (tokens // rows) // width
    return np.asarray(grid[:, :, across][..., along], np.float32)


def track_strip(
    tracks: Sequence[Track], *, columns: int = 6, scale: int | None = None
) -> UInt8[np.ndarray, "strip_height strip_width 3"]:
    """Time along the width, the `panels` of every clip one below the other."""
    length = min(len(track.video) for track in tracks)
    times = sorted({int(t) for t in np.linspace(0, length - 1, min(columns, length)).round()})
    rows = {}
    for number, track in enumerate(tracks, start=1):
        for name, clip in panels(track).items():
            rows[name if len(tracks) == 1 else f"{number}: {name}"] = clip[times]
    return labelled_rows(rows, titles=tuple(f"frame {t}" for t in times), scale=scale)


def track_arrays(track: Track) -> dict[str, Shaped[np.ndarray, "..."]]:
    """What a program would go on with: `slots`, `masks`, `labels` over time, and the boxes of what was found.

    `boxes` is float32 (time, label, 4): top, left, bottom, right of label 1 and up, outer edges in pixels, zeros where
    it is not.
    """
    labels = track.labels
    most = track.label_of(track.masks.shape[1] - 1)
    boxes = np.stack([boxes_of(frame, most)[0] for frame in labels])
    return {"slots": track.slots, "masks": track.masks, "labels": labels, "boxes": boxes}


def write_track(folder: Path, track: Track) -> None:
    """Write `tracks`, `slots` and `overlay` as videos, and the segments of every frame as `masks/<frame>.png`."""
    write_video(folder / "tracks", track_video(track), fps=6)
    write_video(folder / "slots", slot_video(track), fps=6)
    scale = comfortable_scale(*track.video.shape[1:3])
    write_video(folder / "overlay", enlarge(overlay(track.video, track.labels), scale), fps=6)
    for number, picture in enumerate(colour_labels(track.labels)):
        write_png(folder / "masks" / f"{number:05}.png", picture)


def flow_colours(
    flow: Float[np.ndarray, "*time height width 2"], *, scaling: float
) -> Float[np.ndarray, "*time height width 3"]:
    """Flow as the colour wheel that SAVi predicts: hue `(atan2(f_1, f_0) / pi + 1) / 2`, saturation `scaling |f|`.

    White at rest, values in [0, 1]. Source: Kipf et al., SAVi, 2022.
    """
    hue = (np.arctan2(flow[..., 1], flow[..., 0]) / np.pi + 1) / 2
    saturation = np.clip(np.hypot(flow[..., 0], flow[..., 1]) * scaling, 0, 1)
    # The colour of a hue, one channel a third of the circle behind the other.
    shifted = (hue[..., None] + np.asarray([1.0, 2 / 3, 1 / 3])) % 1.0
    full = np.clip(np.abs(6 * shifted - 3) - 1, 0, 1)
    return (1 - saturation[..., None] * (1 - full)).astype(np.float32)


def flow_wheel(size: int = 97) -> UInt8[np.ndarray, "size size 3"]:
    """The key to the colours of flow: where a point moves (row, column) from the middle, and how far."""
    rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    colours = flow_colours(np.stack([rows, columns], -1).astype(np.float32), scaling=1.0)
    return to_uint8(np.where(np.hypot(rows, columns)[..., None] <= 1, colours, 1.0).astype(np.float32))
