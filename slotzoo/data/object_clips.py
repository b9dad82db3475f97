"""Clips of objects that move, as trackers are trained on them: MOVi's records, cut, resized and coloured.

A record of `movi_a` to `movi_e` (published or double), and with a leading axis a batch, has

| field | dtype, shape | values |
|---|---|---|
| `video` | uint8 (time, size, size, 3) | RGB, 0 to 255 |
| `mask` | uint8 (time, size, size) | 0 background, k + 1 the object of row k of `boxes` |
| `boxes` | float32 (time, max_objects, 4) | ymin, xmin, ymax, xmax over height and width, 0 to 1; zeros where unseen |
| `visible` | uint8 (max_objects,) | 1 if a pixel of any frame of the record has the label k + 1 |
| `flow` (`flow=true`) | uint8 (time, size, size, 3) | backward flow on the colour wheel, white at rest |
| `depth` (`depth=true`) | float32 (time, size, size, 1) | `depth_scale` of the distance to the camera, at least 0 |

There is no row for the background in `boxes`, and no `centers`: a model makes them of the boxes, the middle
((ymin + ymax) / 2, (xmin + xmax) / 2). Objects are sorted by how much of the clip shows them, so those beyond
`max_objects` are the least visible; their pixels count as background. The targets of SAVi are `flow / 255`, `depth`
and `video / 255`, all 0 to 1 but `depth`, which is log(1 + metres) with `depth_scale=log_plus`.
Sources: Greff et al., "Kubric" (CVPR 2022); Kipf et al., "Conditional Object-Centric Learning from Video" (ICLR
2022) and Elsayed et al., "SAVi++" (NeurIPS 2022), whose preprocessing this is.
"""

import dataclasses

import numpy as np

from slotzoo.data import clip_ops
from slotzoo.data.clip_ops import Clip, DepthScale, Window
from slotzoo.data.movi_layout import rescaled
from slotzoo.data.resize import to_bytes
from slotzoo.data.spec import FieldSpec, Provenance, Record, WindowSource
from slotzoo.errors import ConfigError, DataError, nearest


DEPTH_SCALES: tuple[DepthScale, ...] = ("log", "log_plus", "invert_plus", "metres")


def clip_spec(
    size: int | None = 64, objects: int = 10, *, flow: bool = True, depth: bool = False
) -> dict[str, FieldSpec]:
    """Fields of a record with boxes for `objects` objects."""
    fields = {
        "video": FieldSpec((None, size, size, 3), "uint8", 0, 255, "RGB frames, 0 to 255"),
        "mask": FieldSpec(
            (None, size, size), "uint8", 0, objects, "label of every pixel, 0 is background, k + 1 box k"
        ),
        "boxes": FieldSpec(
            (None, objects, 4), "float32", 0, 1, "ymin, xmin, ymax, xmax of every object, zeros where unseen"
        ),
        "visible": FieldSpec(
            (objects,), "uint8", 0, 1, "whether the object with label k + 1 is seen in the clip", time=False
        ),
    }
    if flow:
        fields["flow"] = FieldSpec(
            (None, size, size, 3), "uint8", 0, 255, "backward optical flow as colours, white at rest"
        )
    if depth:
        fields["depth"] = FieldSpec(
            (None, size, size, 1), "float32", 0, None, "distance to the camera, transformed"
        )
    return fields


class ObjectClips:
    """Records of `movi_layout.record_spec` as a tracker takes them: `window` cuts, resizes, scales and colours.

    With `random_crop` (SAVi++'s augmentation) or `flip`, `augmented` takes one random window for all frames, or mirrors
    the clip left to right half of the time; a pipeline asks for that when it trains.
    """

    def __init__(
        self,
        origin: WindowSource,
        *,
        size: int | None = 64,
        max_objects: int = 10,
        flow: bool = True,
        depth: bool = False,
        depth_scale: str = "log_plus",
        random_crop: bool = False,
        flip: bool = False,
    ):
        if max_objects < 1 or max_objects > 255:
            raise ConfigError(f"{origin.name}: max_objects must lie between 1 and 255, got {max_objects}.")
        if depth_scale not in DEPTH_SCALES:
            raise ConfigError(
                f"{origin.name} has no depth_scale={depth_scale!r}; it takes {', '.join(DEPTH_SCALES)}."
                f"{nearest(depth_scale, DEPTH_SCALES)}"
            )
        native = origin.spec["video"].shape[1:3]
        if native[0] != native[1]:
            raise DataError(
                f"{origin!r}: its frames are {native[0]} x {native[1]} pixels, expected square ones."
            )
        for wanted, field in ((flow, "flow"), (depth, "depth")):
            if wanted and field not in origin.spec:
                raise DataError(
                    f"{origin!r} has no {field}; set data.options.{field}=false and train on another target, or "
                    "give a root with it."
                )
        self.origin: WindowSource = origin
        self.size = int(size or native[0] or 0)
        self.max_objects, self.flow, self.depth = max_objects, flow, depth
        self.depth_scale: DepthScale = DEPTH_SCALES[DEPTH_SCALES.index(depth_scale)]
        self.random_crop, self.flip = random_crop, flip
        self.name = origin.name
        self.provenance: Provenance = origin.provenance

    def __repr__(self) -> str:
        return f"ObjectClips({self.origin!r}, size={self.size}, max_objects={self.max_objects})"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        fields = clip_spec(self.size, self.max_objects, flow=self.flow, depth=self.depth)
        if self.depth:
            low = None if self.depth_scale == "log" else 0
            fields["depth"] = dataclasses.replace(
                fields["depth"], low=low, meaning=f"depth, {self.depth_scale}"
            )
        return fields

    @property
    def fingerprint(self) -> str:
        """Of the records: what is made of them is said by the options."""
        return self.origin.fingerprint

    def __len__(self) -> int:
        return len(self.origin)

    def __getitem__(self, index: int) -> Record:
        return self.made(self.origin[index])

    def frames(self, index: int) -> int:
        """Length of a clip."""
        return self.origin.frames(index)

    def window(self, index: int, start: int, length: int) -> Record:
        return self.made(self.origin.window(index, start, length))

    def augmented(self, index: int, start: int, length: int, rng: np.random.Generator) -> Record:
        """A window of a clip, cropped and mirrored at random as the options say."""
        record = self.origin.window(index, start, length)
        window = clip_ops.sample_window(rng, record["video"].shape[1:3]) if self.random_crop else None
        return self.made(record, window, mirrored=self.flip and bool(rng.integers(2)))

    def made(self, record: Record, window: Window | None = None, *, mirrored: bool = False) -> Record:
        """The fields of `spec` out of a record that is kept, or out of a `window` of its frames."""
        boxes = record["boxes"][:, : self.max_objects]
        clip: Clip = {
            "video": record["video"],
            "segmentations": np.where(record["mask"] > self.max_objects, np.uint8(0), record["mask"]),
            "boxes": np.pad(boxes, ((0, 0), (0, self.max_objects - boxes.shape[1]), (0, 0))),
        }
        if self.flow:
            clip["flow"] = rescaled(record["flow"], record["flow_range"])
        if self.depth:
            clip["depth"] = rescaled(record["depth"], record["depth_range"])
        if window is not None:
            clip = clip_ops.resized_crop(clip, window, self.size, self.size)
        clip = clip_ops.flip(clip_ops.resize(clip, self.size, self.size), columns=mirrored)
        mask, video = np.ascontiguousarray(clip["segmentations"]), clip["video"]
        out: Record = {
            "video": np.ascontiguousarray(video if video.dtype == np.uint8 else to_bytes(video)),
            "mask": mask,
            "boxes": clip["boxes"],
            "visible": (np.bincount(mask.ravel(), minlength=self.max_objects + 1)[1:] > 0).astype(np.uint8),
        }
        if self.flow:
            out["flow"] = clip_ops.flow_to_rgb(clip["flow"])
        if self.depth:
            out["depth"] = np.ascontiguousarray(clip_ops.scale_depth(clip["depth"], self.depth_scale))
        return out

    def close(self) -> None:
        self.origin.close()
