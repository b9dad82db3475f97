"""The image sets of the registry: published files and doubles under one name, with the same fields.

A record has `image` uint8 (height, width, 3) and, where the set has masks, `mask` uint8 (height, width), a label
map in which 0 is background, and `visible` uint8 (objects,): whether the object with label k + 1 is there.
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

from slotzoo.data.entries import Entry
from slotzoo.data.spec import Source
from slotzoo.data.synthetic.clevr import ClevrScenes, Variant
from slotzoo.data.synthetic.images import Scenes, Split, SyntheticImages
from slotzoo.data.synthetic.sprites import MultiDSprites, Tetrominoes
from slotzoo.errors import DataError


_SPLITS = ("train", "val", "test")
_DOUBLE = ("clips", "seed", "size")
_CLEVR = (*_DOUBLE, "max_objects", "min_objects")


def _double(
    name: str,
    scenes: Callable[..., Scenes],
    split: Split,
    *,
    clips: int = 2000,
    seed: int = 0,
    **options: Any,
) -> Source:
    return SyntheticImages(name, scenes(**options), split, clips=clips, seed=seed)


def _unread(name: str, root: pathlib.Path, split: Split, **options: Any) -> Source:
    raise DataError(f"data.root={root}: published files of {name} cannot be read yet; leave data.root out.")


def _clevrtex(*, variant: Variant = "full", **options: Any) -> ClevrScenes:
    return ClevrScenes(textured=variant, **options)


IMAGE_SETS: dict[str, Entry] = {
    "clevr": Entry(
        functools.partial(_unread, "clevr"),
        functools.partial(_double, "clevr", functools.partial(ClevrScenes, masks=False)),
        (*_CLEVR, "attributes"),
        "CLEVR v1: pictures and scene files, no masks; targets of set prediction with attributes=true",
        splits=_SPLITS,
    ),
    "clevr_with_masks": Entry(
        functools.partial(_unread, "clevr_with_masks"),
        functools.partial(_double, "clevr_with_masks", ClevrScenes),
        (*_CLEVR, "attributes"),
        "CLEVR with masks (Multi-Object Datasets)",
        splits=_SPLITS,
    ),
    "clevrtex": Entry(
        functools.partial(_unread, "clevrtex"),
        functools.partial(_double, "clevrtex", _clevrtex),
        (*_CLEVR, "variant"),
        "ClevrTex: textured scenes with masks, in the variants full, pbg, vbg, grassbg, camo and outd",
        splits=_SPLITS,
    ),
    "tetrominoes": Entry(
        functools.partial(_unread, "tetrominoes"),
        functools.partial(_double, "tetrominoes", Tetrominoes),
        _DOUBLE,
        "Tetrominoes (Multi-Object Datasets): three pieces on black, 35 x 35, with masks",
        splits=_SPLITS,
    ),
    "multi_dsprites": Entry(
        functools.partial(_unread, "multi_dsprites"),
        functools.partial(_double, "multi_dsprites", MultiDSprites),
        (*_DOUBLE, "variant"),
        "Multi-dSprites (Multi-Object Datasets): sprites over one another, 64 x 64, with masks",
        splits=_SPLITS,
    ),
}
