"""The image sets of the registry: published files and doubles under one name, with the same fields.

A record has `image` uint8 (height, width, 3), of `mnist4` (height, width, 1), and, where the set has masks, `mask`
uint8 (height, width), a label map in which 0 is background, and `visible` uint8 (objects,): whether the object with
label k + 1 is there.
"""

import functools
from collections.abc import Callable
from typing import Any

from slotzoo.data.entries import Entry
from slotzoo.data.sources.array_sets import open_boxworld, open_ravens, open_shapes3d
from slotzoo.data.sources.multi_object import (
    CLEVR_WITH_MASKS,
    TETROMINOES,
    open_multi_dsprites,
    open_multi_object,
)
from slotzoo.data.sources.picture_sets import open_clevr, open_clevrtex, open_sketchy
from slotzoo.data.spec import Source
from slotzoo.data.synthetic.clevr import ClevrScenes
from slotzoo.data.synthetic.digit_canvases import DigitCanvases, open_mnist4
from slotzoo.data.synthetic.images import Scenes, Split, SyntheticImages
from slotzoo.data.synthetic.rooms import Rooms
from slotzoo.data.synthetic.sprites import BoxWorld, MultiDSprites, Tetrominoes
from slotzoo.data.synthetic.tables import TableScenes


_DOUBLE = ("clips", "seed", "size")
_TABLE = (*_DOUBLE, "max_objects", "min_objects")
_CLEVR = (*_TABLE, "crop")
_DRAWN = ("max_objects", "min_objects", "crop", "attributes", "variant")  # what a picture shows


def _double(
    name: str,
    scenes: Callable[..., Scenes],
    split: Split,
    *,
    clips: int = 2000,
    seed: int = 0,
    **options: Any,
) -> Source:
    given = {option: value for option, value in options.items() if value is not None}  # None: the default
    drawn = scenes(**given)
    source = SyntheticImages(name, drawn, split, clips=clips, seed=seed)
    source.options |= {option: getattr(drawn, option) for option in _DRAWN if hasattr(drawn, option)}
    return source


def _clevrtex(*, variant: str = "full", **options: Any) -> ClevrScenes:
    return ClevrScenes(textured=variant, **options)


def _sketchy(**options: Any) -> TableScenes:
    return TableScenes(masks=False, max_objects=4, min_objects=1, **options)


_VIEW = ("cache", "size", "antialias")
_COUNTED = ("cache", "size", "max_objects", "masks")
_MULTI = (*_COUNTED, "crop", "antialias", "seed_counting", "seed_splits")


def _entry(
    name: str,
    reader: Callable[..., Source],
    scenes: Callable[..., Scenes],
    options: tuple[str, ...],
    reader_options: tuple[str, ...],
    title: str,
) -> Entry:
    double = functools.partial(_double, name, scenes)
    return Entry(reader, double, options, title, reader_options, ("train", "val", "test"))


_ENTRIES = (
    (
        "clevr",
        open_clevr,
        functools.partial(ClevrScenes, masks=False),
        (*_CLEVR, "attributes"),
        (*_VIEW, "max_objects", "crop", "attributes"),
        "CLEVR v1: pictures and scene files, no masks; targets of set prediction with attributes=true",
    ),
    (
        "clevr_with_masks",
        functools.partial(open_multi_object, CLEVR_WITH_MASKS),
        ClevrScenes,
        _CLEVR,
        _MULTI,
        "CLEVR with masks (Multi-Object Datasets)",
    ),
    (
        "clevrtex",
        open_clevrtex,
        _clevrtex,
        (*_CLEVR, "variant"),
        (*_COUNTED, "crop", "variant"),
        "ClevrTex: textured scenes with masks, in the variants full, pbg, vbg, grassbg, camo and outd",
    ),
    (
        "tetrominoes",
        functools.partial(open_multi_object, TETROMINOES),
        Tetrominoes,
        _DOUBLE,
        _MULTI,
        "Tetrominoes (Multi-Object Datasets): three pieces on black, 35 x 35, with masks",
    ),
    (
        "multi_dsprites",
        open_multi_dsprites,
        MultiDSprites,
        (*_DOUBLE, "variant"),
        (*_MULTI, "variant"),
        "Multi-dSprites (Multi-Object Datasets): sprites over one another, 64 x 64, with masks",
    ),
    (
        "shapes3d",
        open_shapes3d,
        Rooms,
        _DOUBLE,
        (*_VIEW, "seed_splits"),
        "3D Shapes: one object in a room, 64 x 64, with its six factors",
    ),
    (
        "ravens",
        open_ravens,
        TableScenes,
        _TABLE,
        (*_COUNTED, "crop", "antialias"),
        "RAVENS: a robot's table, with masks",
    ),
    ("sketchy", open_sketchy, _sketchy, _DOUBLE, _VIEW, "Sketchy: a robot's view, 128 x 128, no masks"),
    (
        "boxworld",
        open_boxworld,
        BoxWorld,
        (*_DOUBLE, "max_objects"),
        (*_COUNTED, "grouped"),
        "BoxWorld of the object-discovery code: keys and locks on a grid, with masks",
    ),
    (
        "mnist4",
        open_mnist4,
        DigitCanvases,
        _DOUBLE,
        (*_DOUBLE, "cache"),
        "MNIST-4: four grey digits on black, with masks; drawn as needed, from MNIST's own digits in data.root",
    ),
)
IMAGE_SETS: dict[str, Entry] = {entry[0]: _entry(*entry) for entry in _ENTRIES}
