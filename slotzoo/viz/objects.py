"""How a model takes images apart: the seeds' grids in the seeds' order, overlays, boxes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer, Shaped, UInt8

from slotzoo.viz.images import as_rgb, to_uint8, write_png
from slotzoo.viz.segments import colour_labels, draw_boxes, overlay, processed_labels, raw_labels
from slotzoo.viz.strips import labelled_rows


@dataclasses.dataclass(frozen=True)
class Apart:
    """One image and what a model made of it, values in [0, 1]; `extra` as in `slotzoo.models.objects`."""

    image: Float[np.ndarray, "height width channel"]
    reconstruction: Float[np.ndarray, "height width channel"]
    masks: Float[np.ndarray, "slot height width"]
    pictures: Float[np.ndarray, "slot height width channel"]
    extra: Mapping[str, Shaped[np.ndarray, "..."]] = dataclasses.field(default_factory=dict)
    true: Integer[np.ndarray, "height width"] | None = None

    def slot_pictures(self) -> Float[np.ndarray, "slot height width channel"]:
        """What each slot paints, on white."""
        if "codes" in self.extra:  # attention maps: the picture is the image already, white where nothing looks
            return self.pictures
        masks = self.masks[..., None]
        return self.pictures * masks + (1 - masks)


def picture_row(one: Apart, *, threshold: float = 0.5) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
    """Title -> picture, in the order of the published grids.

    Slot Attention: image, reconstruction, raw and processed segments, each slot. SLATE: image, what the dVAE and
    what the slots make of it, each attention map. GNM: image, reconstruction, background, each cell, with a
    green corner where an object is.
    """
    row = {"image": one.image}
    if "dvae" in one.extra:
        row |= {"dVAE": one.extra["dvae"], "from slots": one.reconstruction}
    else:
        row |= {"reconstruction": one.reconstruction}
    if "background" in one.extra:
        row |= {"background": one.extra["background"]}
    shown = {title: _bytes(picture) for title, picture in row.items()}
    slots = _bytes(one.slot_pictures())
    if "presence" in one.extra:
        for cell, there in enumerate(one.extra["presence"]):
            picture = _bytes(one.pictures[cell + 1])
            if there > 0.5:
                picture[:2, :2] = (0, 255, 0)
            shown[f"cell {cell + 1}"] = picture
        return shown
    if "dvae" not in one.extra:
        shown["segments"] = colour_labels(raw_labels(one.masks))
        shown[f"sure ({threshold:g})"] = colour_labels(processed_labels(one.masks, threshold=threshold))
    return shown | {f"slot {i + 1}": picture for i, picture in enumerate(slots)}


def object_grid(rows: Sequence[Apart], *, threshold: float = 0.5) -> UInt8[np.ndarray, "height width 3"]:
    """`picture_row` of several images, one below the other."""
    made = [picture_row(row, threshold=threshold) for row in rows]
    return _grid(made)


def segment_grid(rows: Sequence[Apart]) -> UInt8[np.ndarray, "height width 3"]:
    """Image, reconstruction, true segments where there are any, found segments, overlay; boxes where there are any."""
    made = []
    for one in rows:
        image = _bytes(one.image)
        row = {"image": image, "reconstruction": _bytes(one.reconstruction)}
        if one.true is not None:
            row["true"] = colour_labels(one.true)
        labels = raw_labels(one.masks)
        row |= {"found": colour_labels(labels), "overlay": overlay(image, labels)}
        if "boxes" in one.extra:
            row["boxes"] = draw_boxes(image, one.extra["boxes"], one.extra["presence"])
        made.append(row)
    return _grid(made)


def _grid(rows: Sequence[Mapping[str, UInt8[np.ndarray, "height width 3"]]]) -> UInt8[np.ndarray, "..."]:
    strips = {str(number): np.stack(list(row.values())) for number, row in enumerate(rows)}
    return labelled_rows(strips, titles=tuple(rows[0]))


def _bytes(image: Float[np.ndarray, "*batch height width channel"]) -> UInt8[np.ndarray, "..."]:
    return np.array(to_uint8(as_rgb(image)))


def write_apart(
    folder: Path, one: Apart, objects: Integer[np.ndarray, "height width"], *, threshold: float = 0.5
) -> Integer[np.ndarray, "height width"]:
    """Write every picture of one image into a folder of its own; return its raw segments.

    `objects` are the segments without their background.
    """
    segments = raw_labels(one.masks)
    image = _bytes(one.image)
    pictures = {
        "image": image,
        "reconstruction": _bytes(one.reconstruction),
        "segments": colour_labels(segments),
        "sure": colour_labels(processed_labels(one.masks, threshold=threshold)),
        "objects": colour_labels(objects),
        "overlay": overlay(image, objects),
    }
    if "dvae" in one.extra:
        pictures["dvae"] = _bytes(one.extra["dvae"])
    if "boxes" in one.extra:
        pictures["boxes"] = draw_boxes(image, one.extra["boxes"], one.extra["presence"])
    pictures |= {f"slot_{k + 1}": picture for k, picture in enumerate(_bytes(one.slot_pictures()))}
    for name, picture in pictures.items():
        write_png(folder / f"{name}.png", picture)
    return segments
