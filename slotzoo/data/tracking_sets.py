"""The video sets of the registry in which objects move: MOVi-A to E and CLEVRER, published and ray-traced.

Fields of MOVi and their ranges: `slotzoo.data.object_clips`. CLEVRER has `video` uint8 (time, size, size, 3) alone.
"""

import functools
from typing import Any

from slotzoo.data.entries import Entry
from slotzoo.data.movi_layout import LAYOUTS, Kind
from slotzoo.data.object_clips import ObjectClips
from slotzoo.data.sources.clevrer import ClevrerFiles
from slotzoo.data.sources.movi import MoviFiles
from slotzoo.data.spec import WindowSource
from slotzoo.data.synthetic.clevrer import ClevrerDouble
from slotzoo.data.synthetic.movi import MoviScenes


_DOUBLE = ("length", "size", "clips", "seed", "max_objects", "min_objects", "object_scale")
_VIEW = ("size", "max_objects", "flow", "depth", "depth_scale", "random_crop", "flip")
_TITLES = {
    "movi_a": "MOVi-A: plain solids on a grey floor",
    "movi_b": "MOVi-B: more shapes, any colour, seen from anywhere",
    "movi_c": "MOVi-C: scanned objects before photographed backgrounds",
    "movi_d": "MOVi-D: as C, up to 23 objects, few of which move",
    "movi_e": "MOVi-E: as D, and the camera moves",
}


def _clips(name: Kind, source: WindowSource, *, max_objects: int | None = None, **options: Any) -> ObjectClips:
    most = LAYOUTS[name].objects[1] if max_objects is None else max_objects
    return ObjectClips(source, max_objects=most, **options)


def _movi(name: Kind) -> Entry:
    return Entry(
        functools.partial(MoviFiles, name),
        functools.partial(MoviScenes, name),
        _DOUBLE,
        _TITLES[name],
        reader_options=("config", "test_split"),
        splits=("train", "val", "test"),
        view=functools.partial(_clips, name),
        view_options=_VIEW,
    )


TRACKING_SETS: dict[str, Entry] = {
    **{layout.name: _movi(layout.name) for layout in LAYOUTS.values()},
    "clevrer": Entry(
        ClevrerFiles,
        ClevrerDouble,
        ("length", "size", "clips", "seed"),
        "CLEVRER: videos of collisions, 128 frames",
        reader_options=("length", "size", "short"),
        splits=("train", "val", "test"),
    ),
}
