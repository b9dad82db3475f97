"""Multi-Object Datasets (Kabra et al., 2019): CLEVR with masks, Tetrominoes, Multi-dSprites.

Read as published (GZIP TFRecords with a string per byte) or as HDF5 with one data set per feature, which is
what the object-discovery code makes of them. Entity 0 is the background; masks are 0 or 255.
"""

import dataclasses
import logging
import pathlib
from typing import Any, Literal

import numpy as np

from slotzoo.data.gzip_records import GzipRecords, parse_bytes_example
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
from slotzoo.data.synthetic.sprites import sprite_count
from slotzoo.errors import DataError


log = logging.getLogger(__name__)
_HDF5 = (".h5", ".hdf5", ".hdf")


@dataclasses.dataclass(frozen=True)
class Layout:
    """A set's own numbers. `seed_ranges` are the splits of the object-discovery code, which lose a record each
    at 70,000 and 85,000 (60,000 and 75,000)."""

    name: str
    height: int
    width: int
    entities: int  # background included
    files: tuple[str, ...]
    ranges: dict[str, tuple[int, int]]
    seed_ranges: dict[str, tuple[int, int]]
    crop: Box | None = None
    method: Literal["bilinear", "nearest"] = "bilinear"
    entities_last: bool = False  # masks (height, width, entity, 1) in TFRecords


_SMALL = {"train": (0, 60_000), "val": (60_000, 75_000), "test": (75_000, 90_000)}
_SMALL_SEED = {"train": (0, 60_000), "val": (60_001, 75_000), "test": (75_001, 90_000)}
CLEVR_WITH_MASKS = Layout(
    "clevr_with_masks",
    240,
    320,
    11,
    ("clevr_with_masks*.h*5", "clevr_with_masks*.tfrecord*"),
    {"train": (0, 70_000), "val": (70_000, 85_000), "test": (85_000, 100_000)},
    {"train": (0, 70_000), "val": (70_001, 85_000), "test": (85_001, 100_000)},
    crop=(29, 64, 192, 192),
)
TETROMINOES = Layout(
    "tetrominoes",
    35,
    35,
    4,
    ("tetrominoes*.h*5", "tetrominoes*.tfrecord*"),
    _SMALL,
    _SMALL_SEED,
    method="nearest",
)


def multi_dsprites(variant: str) -> Layout:
    """The layout of a variant: colored_on_grayscale, colored_on_colored or binarized."""
    entities = sprite_count(variant) + 1
    files = tuple(f"multi_dsprites*{variant}*.{ending}" for ending in ("h*5", "tfrecord*"))
    return Layout(
        "multi_dsprites", 64, 64, entities, files, _SMALL, _SMALL_SEED, method="nearest", entities_last=True
    )


class MultiObjectFiles:
    """Records of one file, in either form."""

    def __init__(self, path: pathlib.Path, layout: Layout, cache: pathlib.Path | None):
        self.path, self.layout = path, layout
        self.table = Hdf5Table(path) if path.suffix in _HDF5 else None
        self.records = None if self.table is not None else GzipRecords(path)
        if self.table is not None:
            columns = self._hdf5_columns(cache)
        else:
            columns = self._scanned(cache)
        self.visibility: np.ndarray = columns["visibility"]
        if self.records is not None:
            self.records.count = len(self.visibility)

    def _hdf5_columns(self, cache: pathlib.Path | None) -> dict[str, np.ndarray]:
        table, layout = self.table, self.layout
        assert table is not None
        shape = table.shape("image")
        if shape[1:] != (layout.height, layout.width, 3):
            raise DataError(
                f"{self.path}: 'image' has shape {shape}, expected (records, {layout.height}, {layout.width}, 3); it "
                f"is not {layout.name}."
            )
        key = [layout.name, identity_of([self.path]), "visibility"]
        columns = remembered(cache, key, lambda: {"visibility": table.read("visibility")})
        if len(columns["visibility"]) != shape[0]:
            raise DataError(
                f"{self.path}: {shape[0]} images but {len(columns['visibility'])} visibility vectors; make the "
                "file again."
            )
        return columns

    def _scanned(self, cache: pathlib.Path | None) -> dict[str, np.ndarray]:
        """Visibility of every record that a split needs: the whole file is read once, and this is kept."""
        records, last = self.records, max(stop for _, stop in self.layout.ranges.values())
        assert records is not None
        found: list[np.ndarray] = []

        def look(number: int, data: bytes) -> None:
            features = parse_bytes_example(data, f"{self.path}, record {number}", ("visibility",))
            if features["visibility"].size != self.layout.entities:
                raise DataError(
                    f"{self.path}, record {number}: {features['visibility'].size} entities, {self.layout.name} has "
                    f"{self.layout.entities}; choose the variant that the file has."
                )
            found.append(features["visibility"])

        def make() -> dict[str, np.ndarray]:
            kept = "nowhere: data.cache is off" if cache is None else f"in {cache}"
            log.info("%s is read once to count its objects; the counts are kept %s", self.path, kept)
            records.scan(look, last)
            if not found:
                raise DataError(f"{self.path}: the file holds no records.")
            return {"visibility": np.stack(found)}

        return remembered(cache, [self.layout.name, identity_of([self.path]), "visibility", last], make)

    def __len__(self) -> int:
        return len(self.visibility)

    def where(self, row: int) -> str:
        return f"{self.path}, record {row}"

    def paths(self) -> list[pathlib.Path]:
        return [self.path]

    def features(self, row: int, *, mask: bool) -> dict[str, np.ndarray]:
        """`image` and `mask` (entity, height, width) as stored."""
        layout, wanted = self.layout, ("image", "mask") if mask else ("image",)
        if self.table is not None:
            found = {name: self.table.read(name, row) for name in wanted}
        else:
            assert self.records is not None
            found = parse_bytes_example(self.records[row], self.where(row), wanted)
            shapes: dict[str, tuple[int, ...]] = {
                "image": (layout.height, layout.width, 3),
                "mask": (layout.entities, layout.height, layout.width, 1),
            }
            if layout.entities_last:
                shapes["mask"] = (layout.height, layout.width, layout.entities, 1)
            for name, value in found.items():
                if value.size != np.prod(shapes[name]):
                    raise DataError(
                        f"{self.where(row)}: {name!r} has {value.size} bytes, expected {shapes[name]}; the file is not "
                        f"{layout.name}."
                    )
                found[name] = value.reshape(shapes[name])
        if mask:
            m = found["mask"]
            first = m.shape[0] == layout.entities and m.shape[1:3] == (layout.height, layout.width)
            found["mask"] = m[..., 0] if first else np.moveaxis(m[..., 0], 2, 0)
            if found["mask"].shape != (layout.entities, layout.height, layout.width):
                raise DataError(
                    f"{self.where(row)}: 'mask' has shape {m.shape}, expected ({layout.entities}, {layout.height}, "
                    f"{layout.width}, 1)."
                )
        return found

    def load(self, row: int, *, mask: bool) -> RawImage:
        found = self.features(row, mask=mask)
        visible = self.visibility[row][1:] > 0.5
        if not mask:
            return RawImage(found["image"])
        labels = np.zeros((self.layout.height, self.layout.width), np.uint8)
        # The largest label first: where masks overlap, the first entity has the pixel, as with argmax.
        for k in range(self.layout.entities - 1, 0, -1):
            np.copyto(labels, np.uint8(k), where=found["mask"][k] > 127)
        np.copyto(labels, np.uint8(0), where=found["mask"][0] > 127)
        order = np.flatnonzero(visible)
        if len(order) and order[-1] >= len(order):
            # Objects come before empty entities in the published files; where not, labels are closed up.
            close = np.zeros(self.layout.entities, np.uint8)
            close[order + 1] = np.arange(1, len(order) + 1)
            labels, visible = close[labels], np.arange(len(visible)) < len(order)
        return RawImage(found["image"], labels, visible)

    def close(self) -> None:
        for opened in (self.table, self.records):
            if opened is not None:
                opened.close()


def open_multi_object(
    layout: Layout,
    root: pathlib.Path,
    split: Split,
    *,
    size: int | None = None,
    max_objects: int | None = None,
    crop: str = "center",
    masks: bool = True,
    antialias: bool = False,
    seed_counting: bool = False,
    seed_splits: bool = False,
    cache: pathlib.Path | str | None = None,
) -> ImageSource:
    """One split of a set. `max_objects` counts objects without the background.

    `seed_counting=true` counts as the object-discovery code does for CLEVR: the background is an object too.
    `seed_splits=true` takes its splits. `crop="whole"` leaves CLEVR's pictures uncut.
    """
    name = layout.name
    checked_choice(name, "crop", crop, ("center", "whole"))
    path = find_file(root, layout.files, f"file of {name}")
    files = MultiObjectFiles(path, layout, None if cache is None else pathlib.Path(cache))
    ranges = layout.seed_ranges if seed_splits else layout.ranges
    rows = split_rows(name, root, len(files), split, ranges)
    counts = files.visibility.sum(axis=1).round().astype(np.int64) - (0 if seed_counting else 1)
    rows = keep_at_most(rows, counts, max_objects, name=name, root=root)
    objects = layout.entities - 1
    if max_objects is not None:
        objects = min(objects, max_objects - (1 if seed_counting else 0))
    method = "antialias" if antialias and layout.method == "bilinear" else layout.method
    view = View(layout.crop if crop == "center" else None, size, method)
    options: dict[str, Any] = {
        "size": size,
        "max_objects": max_objects,
        "crop": crop,
        "masks": masks,
        "antialias": antialias,
        "seed_counting": seed_counting,
        "seed_splits": seed_splits,
    }
    native = (layout.height, layout.width)
    return ImageSource(
        name, files, rows, view, native, objects if masks else None, root=root, split=split, options=options
    )


def open_multi_dsprites(
    root: pathlib.Path, split: Split, *, variant: str = "colored_on_grayscale", **options: Any
) -> ImageSource:
    """Multi-dSprites in one of its variants."""
    source = open_multi_object(multi_dsprites(variant), root, split, **options)
    source.options["variant"] = variant
    return source
