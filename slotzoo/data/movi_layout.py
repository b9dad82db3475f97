"""What MOVi's clips hold, by MOVi's names, and the part of it that is kept for training.

A clip is a flat mapping from feature to array as in TFDS (`instances/positions`); ragged features are a pair
`.../flat`, `.../row_lengths`. A record keeps the fields of `record_spec`, at the size that was rendered, so that crops,
sizes and targets can still be chosen. Source: Greff et al., "Kubric" (CVPR 2022), challenges/movi.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, Integer, UInt8, UInt16

from slotzoo.data.spec import FieldSpec, Record
from slotzoo.errors import DataError


Kind = Literal["movi_a", "movi_b", "movi_c", "movi_d", "movi_e"]
FRAMES, FPS = 24, 12
CHUNK = 6  # frames of a prepared record: what trackers are trained on
SHAPES = ("cube", "cylinder", "sphere")  # in MOVi-A's order
SIZES = ("small", "large")
COLORS = ("blue", "brown", "cyan", "gray", "green", "purple", "red", "yellow")
MATERIALS = ("metal", "rubber")
KUBASIC = (
    "cube",
    "cylinder",
    "sphere",
    "cone",
    "torus",
    "gear",
    "torus_knot",
    "sponge",
    "spot",
    "teapot",
    "suzanne",
)
CATEGORIES = (
    "Action Figures", "Bag", "Board Games", "Bottles and Cans and Cups", "Camera", "Car Seat", "Consumer Goods", "Hat",
    "Headphones", "Keyboard", "Legos", "Media Cases", "Mouse", "None", "Shoe", "Stuffed Toys", "Toys",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Layout:
    """What sets the five sets apart. `objects` and `moving` are the least and the most of a clip."""

    name: Kind
    objects: tuple[int, int]
    moving: tuple[int, int] | None  # None: all of them
    textured: bool
    camera: Literal["near", "shell", "moving"]
    test: bool  # whether there is a split of held-out objects and backgrounds


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("movi_a", (3, 10), None, False, "near", False),
        Layout("movi_b", (3, 10), None, False, "shell", False),
        Layout("movi_c", (3, 10), None, True, "shell", True),
        Layout("movi_d", (11, 23), (1, 3), True, "shell", True),
        Layout("movi_e", (11, 23), (1, 3), True, "moving", True),
    )
}


def record_spec(size: int | None = 128) -> dict[str, FieldSpec]:
    """Fields of a record that is kept: `size` the rendered one, any number of objects."""
    frame = (None, size, size)
    return {
        "video": FieldSpec((*frame, 3), "uint8", 0, 255, "RGB frames, 0 to 255"),
        "mask": FieldSpec(frame, "uint8", 0, 255, "label of every pixel, 0 is background, k + 1 box k"),
        "boxes": FieldSpec(
            (None, None, 4), "float32", 0, 1, "ymin, xmin, ymax, xmax of every object, zeros where unseen"
        ),
        "flow": FieldSpec((*frame, 2), "uint16", 0, 65535, "backward flow (rows, columns), within flow_range"),
        "flow_range": FieldSpec((2,), "float32", None, None, "pixels that 0 and 65535 stand for", time=False),
        "depth": FieldSpec((*frame, 1), "uint16", 0, 65535, "distance to the camera, within depth_range"),
        "depth_range": FieldSpec((2,), "float32", None, None, "metres that 0 and 65535 stand for", time=False),
    }


def quantized(x: Float[np.ndarray, "..."]) -> tuple[UInt16[np.ndarray, "..."], Float32[np.ndarray, "2"]]:
    """`x` as integers between its least and its greatest value, and these two."""
    low, high = np.float32(x.min()), np.float32(x.max())
    span = max(high - low, np.float32(1e-6))
    steps = np.rint((x.astype(np.float32) - low) / span * np.float32(65535))
    return np.clip(steps, 0, 65535).astype(np.uint16), np.asarray([low, low + span], np.float32)


def rescaled(x: UInt16[np.ndarray, "..."], bounds: Float32[np.ndarray, "2"]) -> Float32[np.ndarray, "..."]:
    """What integers stand for: x / 65535 (high - low) + low, in float32."""
    low, high = np.float32(bounds[0]), np.float32(bounds[1])
    return x.astype(np.float32) / np.float32(65535) * (high - low) + low


def dense_boxes(
    flat: Float32[np.ndarray, "seen 4"],
    frames_flat: Integer[np.ndarray, " entries"],
    lengths: Integer[np.ndarray, " objects"],
    frames: int,
    where: str,
) -> Float32[np.ndarray, "time objects 4"]:
    """Ragged boxes by object as an array over time, zeros in frames where an object is not seen."""
    boxes = np.zeros((frames, len(lengths), 4), np.float32)
    if len(flat) != len(frames_flat) or int(lengths.sum()) != len(flat):
        raise DataError(
            f"{where}: {len(flat)} boxes for {len(frames_flat)} frames and {int(lengths.sum())} entries of objects; "
            "they must agree."
        )
    if len(frames_flat) and not 0 <= int(frames_flat.min()) <= int(frames_flat.max()) < frames:
        raise DataError(f"{where}: a box belongs to frame {int(frames_flat.max())} of {frames}.")
    boxes[frames_flat, np.repeat(np.arange(len(lengths)), lengths)] = flat
    return boxes


def ragged_boxes(mask: UInt8[np.ndarray, "time height width"], objects: int) -> dict[str, np.ndarray]:
    """`instances/bboxes` and `instances/bbox_frames` of the pixels of each label: outer edges of pixels over the size.

    MOVi's lower and right edges are the last pixels' own numbers, of 256, which in few pixels would be too near.
    """
    flat, frames, lengths = [], [], []
    height, width = mask.shape[1:]
    for label in range(1, objects + 1):
        seen = 0
        for t, frame in enumerate(mask == label):
            rows, columns = np.flatnonzero(frame.any(axis=1)), np.flatnonzero(frame.any(axis=0))
            if not rows.size:
                continue
            seen += 1
            frames.append(t)
            box = rows[0] / height, columns[0] / width, (rows[-1] + 1) / height, (columns[-1] + 1) / width
            flat.append(box)
        lengths.append(seen)
    return {
        "instances/bboxes/flat": np.asarray(flat, np.float32).reshape(-1, 4),
        "instances/bboxes/row_lengths": np.asarray(lengths, np.int64),
        "instances/bbox_frames/flat": np.asarray(frames, np.int32),
        "instances/bbox_frames/row_lengths": np.asarray(lengths, np.int64),
    }


def kept(clip: Mapping[str, np.ndarray], where: str, *, frames: int | None = None) -> Record:
    """The record of a clip: its boxes over all `frames`, the rest over those that `clip` has."""
    boxes = dense_boxes(
        clip["instances/bboxes/flat"],
        clip["instances/bbox_frames/flat"],
        clip["instances/bboxes/row_lengths"],
        frames or len(clip["video"]),
        where,
    )
    out: Record = {"video": clip["video"], "mask": clip["segmentations"][..., 0], "boxes": boxes}
    if "backward_flow" in clip:
        out |= {"flow": clip["backward_flow"], "flow_range": clip["metadata/backward_flow_range"]}
    if "depth" in clip:
        out |= {"depth": clip["depth"], "depth_range": clip["metadata/depth_range"]}
    return out
