"""Image sets published as HDF5 arrays: 3D Shapes, RAVENS and BoxWorld."""

import itertools
import pathlib
from typing import Any

import numpy as np

from slotzoo.data.index_cache import identity_of, remembered
from slotzoo.data.sources.hdf5 import Hdf5Table
from slotzoo.data.sources.images import (
    Box,
    ImageSource,
    RawImage,
    Split,
    View,
    checked_choice,
    find_file,
    keep_at_most,
    split_rows,
)
from slotzoo.data.spec import FieldSpec
from slotzoo.data.synthetic.rooms import labels_field
from slotzoo.errors import DataError


Cache = pathlib.Path | str | None
_SHAPES3D = {"train": (0, 400_000), "val": (400_000, 430_000), "test": (430_000, 460_000)}
_SHAPES3D_SEED = {"train": (0, 400_000), "val": (400_001, 430_000), "test": (430_001, 460_000)}
_RAVENS_LABELS = 11
_BOXWORLD_LABELS = 9
_BOXWORLD = {"train": (0, 200_000), "val": (200_000, 2**62), "test": (200_000, 2**62)}


class ArrayFiles:
    """The rows of one file after another. `extra` maps further data sets to the fields they become."""

    def __init__(
        self,
        paths: list[pathlib.Path],
        image: str,
        mask: str | None = None,
        extra: dict[str, str] | None = None,
    ):
        self.tables = [Hdf5Table(path) for path in paths]
        self.image, self.mask, self.extra = image, mask, extra or {}
        lengths = []
        for table in self.tables:
            shape = table.shape(image)
            if len(shape) != 4 or shape[3] != 3:
                raise DataError(
                    f"{table.path}: {image!r} has shape {shape}, expected (records, height, width, 3)."
                )
            lengths.append(shape[0])
        self.ends = list(itertools.accumulate(lengths))

    def __len__(self) -> int:
        return self.ends[-1]

    def native(self) -> tuple[int, int]:
        """Height and width of the first file's images."""
        _, height, width, _ = self.tables[0].shape(self.image)
        return height, width

    def _place(self, row: int) -> tuple[Hdf5Table, int]:
        table = next(i for i, end in enumerate(self.ends) if row < end)
        return self.tables[table], row - (self.ends[table - 1] if table else 0)

    def where(self, row: int) -> str:
        table, within = self._place(row)
        return f"{table.path}, record {within}"

    def paths(self) -> list[pathlib.Path]:
        return [table.path for table in self.tables]

    def column(self, name: str, cache: Cache) -> np.ndarray:
        """A small data set of all files, put together."""
        make = lambda: {"values": np.concatenate([table.read(name).ravel() for table in self.tables])}
        return remembered(cache, [name, identity_of(self.paths())], make)["values"]

    def load(self, row: int, *, mask: bool) -> RawImage:
        table, within = self._place(row)
        labels = None
        if mask and self.mask is not None:
            labels = table.read(self.mask, within).astype(np.uint8)
        extra = {field: table.read(name, within).astype(np.float32) for name, field in self.extra.items()}
        return RawImage(table.read(self.image, within), labels, None, extra)

    def close(self) -> None:
        for table in self.tables:
            table.close()


def open_shapes3d(
    root: pathlib.Path,
    split: Split,
    *,
    size: int | None = None,
    seed_splits: bool = False,
    antialias: bool = False,
    cache: Cache = None,
) -> ImageSource:
    """3D Shapes (Burgess and Kim, 2018): `images`, `labels` of six factors, 64 x 64 pixels."""
    path = find_file(root, ("3dshapes*.h*5", "shapes3d*.h*5"), "file of 3D Shapes")
    files = ArrayFiles([path], "images", extra={"labels": "labels"})
    if files.native() != (64, 64):
        raise DataError(f"{path}: images of {files.native()} pixels, those of 3D Shapes have 64 x 64.")
    ranges = _SHAPES3D_SEED if seed_splits else _SHAPES3D
    rows = split_rows("shapes3d", root, len(files), split, ranges)
    view = View(None, size, "antialias" if antialias else "bilinear")
    options = {"size": size, "seed_splits": seed_splits, "antialias": antialias}
    extra: dict[str, FieldSpec] = {"labels": labels_field()}
    return ImageSource(
        "shapes3d", files, rows, view, (64, 64), None, root=root, split=split, options=options, extra=extra
    )


# Rows 232 to 470, columns 50 to 590 of the front view: the table without the robot; and the middle 480 x 500.
_RAVENS_CROPS: dict[str, Box | None] = {
    "table": (232, 50, 238, 540),
    "center": (0, 70, 480, 500),
    "whole": None,
}


def open_ravens(
    root: pathlib.Path,
    split: Split,
    *,
    size: int | None = None,
    max_objects: int | None = None,
    crop: str = "table",
    masks: bool = True,
    antialias: bool = False,
    cache: Cache = None,
) -> ImageSource:
    """RAVENS: `ravens_*_{train,test}.h5` with `color`, `segm` (label maps) and `num_objects_on_table`, which has one
    number for every three views of a scene.

    `crop="table"` keeps the first view of each scene only, which is the one that it is made for. The set has two
    splits: `val` is the test files too.
    """
    checked_choice("ravens", "crop", crop, tuple(_RAVENS_CROPS))
    files_of = "train" if split == "train" else "test"
    folder = root.parent if root.is_file() else root
    paths = [root] if root.is_file() else sorted(folder.glob(f"ravens_*_{files_of}.h*5"))
    if not paths:
        find_file(root, (f"ravens_*_{files_of}.h5",), "file of RAVENS")
    files = ArrayFiles(paths, "color", "segm")
    scenes = files.column("num_objects_on_table", cache)
    if 3 * len(scenes) != len(files):
        raise DataError(
            f"{paths[0]}: {len(files)} images for {len(scenes)} scenes; a scene of RAVENS has three views."
        )
    rows = np.arange(len(files))
    if crop == "table":
        rows = rows[::3]
    rows = keep_at_most(rows, np.repeat(scenes, 3), max_objects, name="ravens", root=root)
    view = View(_RAVENS_CROPS[crop], size, "antialias" if antialias else "bilinear")
    options: dict[str, Any] = {"size": size, "max_objects": max_objects, "crop": crop, "masks": masks}
    options["antialias"] = antialias
    objects = _RAVENS_LABELS if masks else None
    return ImageSource(
        "ravens", files, rows, view, files.native(), objects, root=root, split=split, options=options
    )


def open_boxworld(
    root: pathlib.Path,
    split: Split,
    *,
    size: int | None = None,
    max_objects: int | None = None,
    masks: bool = True,
    grouped: bool = False,
    cache: Cache = None,
) -> ImageSource:
    """BoxWorld of the object-discovery code: `image`, `segmentation_mask` (label maps), `num_objects`.

    With `grouped` the two boxes of a pair count as one object. The first 200,000 images are for training; `val`
    and `test` are both the rest.
    """
    path = find_file(root, ("box_world*.h*5", "boxworld*.h*5"), "file of BoxWorld")
    files = ArrayFiles([path], "image", "segmentation_mask")
    rows = split_rows("boxworld", root, len(files), split, _BOXWORLD)
    counts = files.column("num_objects", cache)
    most = max_objects if max_objects is None or not grouped else 2 * max_objects
    rows = keep_at_most(rows, counts, most, name="boxworld", root=root)
    options = {"size": size, "max_objects": max_objects, "masks": masks, "grouped": grouped}
    objects = min(_BOXWORLD_LABELS, most or _BOXWORLD_LABELS) if masks else None
    view = View(None, size, "nearest")
    return ImageSource(
        "boxworld", files, rows, view, files.native(), objects, root=root, split=split, options=options
    )
