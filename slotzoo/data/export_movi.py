"""Write ray-traced clips as TensorFlow Datasets would: `<root>/movi_a/64x64/1.0.0` with shards and descriptions."""

import json
import pathlib
from collections.abc import Iterator

import numpy as np

from slotzoo.data.movi_layout import CATEGORIES, COLORS, KUBASIC, MATERIALS, SHAPES, SIZES
from slotzoo.data.sources.folders import mark
from slotzoo.data.sources.tfds_shards import new_shards, write_shards
from slotzoo.data.synthetic.movi import MoviScenes
from slotzoo.data.tfds_features import Declared, Kind, encode, write_features
from slotzoo.data.tfrecord import build_example
from slotzoo.errors import DataError


_PICTURES: dict[str, Kind] = {
    "video": "Video",
    "normal": "Video",
    "object_coordinates": "Video",
    "segmentations": "Image",
    "depth": "Image",
}
_RAGGED = {"instances/bboxes": (4,), "instances/bbox_frames": ()}


def _classes(name: str) -> dict[str, tuple[str, ...]]:
    shapes: tuple[str, ...] = KUBASIC if name == "movi_b" else SHAPES
    return {
        "instances/shape_label": shapes,
        "instances/size_label": SIZES,
        "instances/color_label": COLORS,
        "instances/material_label": MATERIALS,
        "instances/category": CATEGORIES,
    }


def declare(clip: dict[str, np.ndarray], name: str) -> dict[str, Declared]:
    """What the features of a clip are to TFDS."""
    classes, found = _classes(name), {}
    for feature, value in clip.items():
        base, _, part = feature.rpartition("/")
        if base in _RAGGED:
            if part == "flat":
                kind: Kind = "BBoxFeature" if base == "instances/bboxes" else "Tensor"
                found[base] = Declared(kind, str(value.dtype), (None, None, *_RAGGED[base]), ragged=True)
            continue
        varying = feature.startswith(("instances/", "events/"))
        shape = (None, *value.shape[1:]) if varying else value.shape
        if feature in _PICTURES:
            found[feature] = Declared(_PICTURES[feature], str(value.dtype), shape)
        elif feature in classes:
            found[feature] = Declared("ClassLabel", "int64", shape, classes=len(classes[feature]))
        elif value.dtype.kind == "U":
            found[feature] = Declared("Text", "str", shape)
        else:
            found[feature] = Declared("Tensor", str(value.dtype), shape)
    return found


def export_movi(
    source: MoviScenes, root: str | pathlib.Path, split: str, *, per_shard: int = 100
) -> pathlib.Path:
    """Write a split: `train` as MOVi's `train`, `test` as the `validation` that results are measured on.

    **Raises** `DataError` where the folder has shards of the split that this export would leave beside its own.
    """
    splits = {"train": "train", "test": "validation"}
    if split not in splits:
        raise DataError(
            f"{source.name} is written as train and validation; give splits=[train,test], not {split}."
        )
    root = pathlib.Path(root)
    folder = root / source.name / f"{source.size}x{source.size}" / "1.0.0"
    paths = new_shards(folder, source.name, splits[split], -(-len(source) // per_shard))
    mark(source, folder)  # and not the root, where published sets may lie beside this one
    declared = declare(source.clip(0), source.name)
    write_features(folder / "features.json", declared)
    for feature, names in _classes(source.name).items():
        if feature in declared:
            (folder / f"{feature.replace('/', '-')}.labels.txt").write_text("\n".join(names) + "\n")
    lengths = write_shards(paths, len(source), lambda indices: _examples(source, declared, indices))
    info = folder / "dataset_info.json"
    others = json.loads(info.read_text())["splits"] if info.exists() else []
    described = {"name": splits[split], "shardLengths": [str(n) for n in lengths]}
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    description = {
        "name": source.name,
        "configName": f"{source.size}x{source.size}",
        "description": f"Embedded double of {source.name}: {source!r}",
        "fileFormat": "tfrecord",
        "version": "1.0.0",
        "splits": [
            *(other for other in others if other["name"] != described["name"]),
            {"filepathTemplate": template, **described},
        ],
    }
    info.write_text(json.dumps(description, indent=1))
    return root


def _examples(source: MoviScenes, declared: dict[str, Declared], indices: range) -> Iterator[bytes]:
    for index in indices:
        yield build_example(encode(source.clip(index), declared))
