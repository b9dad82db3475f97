"""Published image sets as sources: which records, cropped and resized how. What a file looks like inside is
the business of an `ImageFiles`."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from slotzoo.data.index_cache import identity_of
from slotzoo.data.resize import resize_bilinear, resize_nearest, resize_pillow, to_bytes
from slotzoo.data.sources.folders import contents, provenance_of
from slotzoo.data.spec import FieldSpec, Provenance, Record, check_record
from slotzoo.data.synthetic.images import image_fields
from slotzoo.errors import ConfigError, DataError


Split = Literal["train", "val", "test"]
Box = tuple[int, int, int, int]  # top, left, height, width


class RawImage(NamedTuple):
    """One record as published: `mask` a label map, `visible` (entities,) without the background."""

    image: UInt8[np.ndarray, "height width 3"]
    mask: UInt8[np.ndarray, "height width"] | None = None
    visible: np.ndarray | None = None
    extra: Record = {}


@runtime_checkable
class ImageFiles(Protocol):
    """Random access to the records of a published set."""

    def __len__(self) -> int: ...

    def load(self, row: int, *, mask: bool) -> RawImage:
        """Raise `DataError` naming the file and the row when it cannot be read."""
        ...

    def where(self, row: int) -> str: ...

    def paths(self) -> list[pathlib.Path]:
        """The files that the content depends on."""
        ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class View:
    """What is made of a picture: `crop`, then a square of `size` pixels (None: as it is).

    `method`: bilinear without antialias, or with it; nearest for picture and mask; Pillow's antialiased one.
    Masks are always resampled by nearest neighbours, in the convention that goes with the method.
    """

    crop: Box | None = None
    size: int | None = None
    method: Literal["bilinear", "antialias", "nearest", "pillow"] = "bilinear"

    def __post_init__(self):
        if self.size is not None and self.size < 1:
            raise ConfigError(f"Images need a size of at least 1 pixel, got {self.size}.")

    def _cut(self, x: np.ndarray) -> np.ndarray:
        if self.crop is None:
            return x
        top, left, height, width = self.crop
        return x[top : top + height, left : left + width]

    def pixels(self, image: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "height width 3"]:
        """The picture in 0..255, not rounded to bytes: what the seeds feed to their models, but for the scale."""
        image = self._cut(image)
        if self.size is None or image.shape[:2] == (self.size, self.size):
            return image.astype(np.float32)
        to = (self.size, self.size)
        if self.method == "pillow":
            return resize_pillow(np.ascontiguousarray(image), to, "bilinear").astype(np.float32)
        if self.method == "nearest":
            return resize_nearest(image, to).astype(np.float32)
        return resize_bilinear(image, to, antialias=self.method == "antialias")

    def image(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "height width 3"]:
        return to_bytes(self.pixels(image))

    def mask(self, mask: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "height width"]:
        mask = self._cut(mask)
        if self.size is None or mask.shape == (self.size, self.size):
            return np.ascontiguousarray(mask)
        if self.method == "pillow":
            return resize_pillow(np.ascontiguousarray(mask), (self.size, self.size), "nearest")
        return np.ascontiguousarray(resize_nearest(mask, (self.size, self.size)))

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what comes out."""
        if self.size is not None:
            return self.size, self.size
        return (height, width) if self.crop is None else (self.crop[2], self.crop[3])


class ImageSource:
    """The records `rows` of `files`, seen through `view`. `native` is the height and width of the files' pictures.

    `objects` is the highest label of the masks, None for a set without; `extra` the fields that the files have
    beside. `options` says how it was opened: prepared copies are compared with it.
    """

    def __init__(
        self,
        name: str,
        files: ImageFiles,
        rows: np.ndarray,
        view: View,
        native: tuple[int, int],
        objects: int | None,
        *,
        root: pathlib.Path,
        split: str,
        options: dict[str, Any],
        extra: dict[str, FieldSpec] | None = None,
    ):
        if not len(rows):
            raise DataError(f"data.root={root}: {name} has no {split} images under {options}.")
        if view.crop is not None:
            top, left, height, width = view.crop
            if top + height > native[0] or left + width > native[1]:
                raise DataError(
                    f"{files.where(int(rows[0]))}: images of {native[0]} x {native[1]} are too small for the crop of "
                    f"{height} x {width} at row {top}, column {left}; choose another crop."
                )
        self.name, self.files, self.rows, self.view = name, files, rows, view
        self.native, self.objects, self.split, self.options = native, objects, split, options
        self.provenance: Provenance = provenance_of(root if root.is_dir() else root.parent)
        self._extra = extra or {}

    def __repr__(self) -> str:
        return f"ImageSource({self.name!r}, {self.split!r}, images={len(self)})"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        height, width = self.view.shape(*self.native)
        return {**image_fields(height, width, self.objects), **self._extra}

    @functools.cached_property
    def _fingerprint(self) -> str:
        # Without the folder and the time of change: a copy of the files has the same content.
        files = [[pathlib.PurePath(path).name, size] for path, size, _ in identity_of(self.files.paths())]
        text = json.dumps([self.name, self.split, files, repr(self.view), self.options, len(self.rows)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def fingerprint(self) -> str:
        """Of the names and sizes of the files, and of the options."""
        return self._fingerprint

    def __len__(self) -> int:
        return len(self.rows)

    def raw(self, index: int) -> RawImage:
        """The record as published, checked against the size of the first one."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        row = int(self.rows[index])
        found = self.files.load(row, mask=self.objects is not None)
        for what, array in (("image", found.image), ("mask", found.mask)):
            if array is not None and array.shape[:2] != self.native:
                raise DataError(
                    f"{self.files.where(row)}: the {what} is {' x '.join(map(str, array.shape[:2]))}, those of this "
                    f"set are {self.native[0]} x {self.native[1]}; fetch it again or use on_error=skip."
                )
        return found

    def __getitem__(self, index: int) -> Record:
        found = self.raw(index)
        record: Record = {"image": self.view.image(found.image), **found.extra}
        where = f"{self.files.where(int(self.rows[index]))} (image {index})"
        if self.objects is not None:
            if found.mask is None:
                raise DataError(f"{where}: no mask; open the set with masks=false to read the images alone.")
            mask = self.view.mask(found.mask)
            if mask.max() > self.objects:
                # Fewer objects than the set's labels were asked for: those that there are, numbered from 1.
                mask = np.unique(np.append(mask, np.uint8(0)), return_inverse=True)[1][:-1].reshape(mask.shape)
            record["mask"] = mask = mask.astype(np.uint8)
            visible = found.visible
            if visible is None:  # the set does not say: what is left of its labels in the picture
                visible = np.bincount(mask.ravel(), minlength=self.objects + 1)[1:] > 0
            record["visible"] = visible[: self.objects].astype(np.uint8)
        check_record(record, self.spec, where)
        return record

    def close(self) -> None:
        self.files.close()


def checked_choice(name: str, option: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ConfigError(f"Data set {name!r} has no {option}={value}; it takes {', '.join(known)}.")
    return value


def find_file(root: pathlib.Path, patterns: tuple[str, ...], what: str) -> pathlib.Path:
    """`root` itself, or the first file in it that matches the earliest of the patterns."""
    if root.is_file():
        return root
    for pattern in patterns:
        found = sorted(path for path in root.glob(pattern) if path.name[0] != ".")
        if found:
            return found[0]
    raise DataError(
        f"data.root={root} holds no {what}: {contents(root)}; expected {' or '.join(patterns)}, or "
        "<split>/manifest.json (prepared)."
    )


def split_rows(
    name: str, root: pathlib.Path, count: int, split: str, ranges: dict[str, tuple[int, int]]
) -> np.ndarray:
    """Row numbers of a split that is a range of a file with `count` records."""
    start, stop = ranges[split]
    rows = np.arange(start, min(stop, count))
    if not len(rows):
        raise DataError(
            f"data.root={root}: the {split} split of {name} begins at record {start}, the file has {count}."
        )
    return rows


def keep_at_most(
    rows: np.ndarray, counts: np.ndarray, most: int | None, *, name: str, root: pathlib.Path
) -> np.ndarray:
    """The rows with at most `most` objects, by the counts of all rows."""
    if most is None:
        return rows
    if most < 1:
        raise ConfigError(f"max_objects of {name} must be at least 1, got {most}.")
    kept = rows[counts[rows] <= most]
    if not len(kept):
        raise DataError(
            f"data.root={root}: no image of {name} has at most {most} objects; the fewest are {counts[rows].min()}."
        )
    return kept
