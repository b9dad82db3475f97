"""What a `features.json` of TensorFlow Datasets declares, and how its values lie in a `tf.train.Example`.

Names of nested features are joined by "/". A `Sequence` adds an axis; one without a length inside another is ragged,
kept as `NAME/flat` and `NAME/row_lengths`. Pictures are PNG bytes, one entry a frame; everything else is a flat list.
"""

import json
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from slotzoo.data.png import decode_png, encode_png
from slotzoo.data.tfrecord import Features
from slotzoo.errors import DataError


Kind = Literal["Tensor", "ClassLabel", "BBoxFeature", "Text", "Image", "Video"]
_DTYPES: dict[Kind, str] = {
    "Tensor": "float32",
    "ClassLabel": "int64",
    "BBoxFeature": "float32",
    "Text": "str",
    "Image": "uint8",
    "Video": "uint8",
}
_RAGGED = ("ragged_flat_values", "ragged_row_lengths_0")


class Declared(NamedTuple):
    """One feature: `shape` with all its axes, None where the length varies; `ragged` if its first two do.

    `kind` is TFDS's class of it, or of what a sequence holds; `classes` counts those of a label.
    """

    kind: Kind
    dtype: str
    shape: tuple[int | None, ...]
    ragged: bool = False
    classes: int = 0

    @property
    def picture(self) -> bool:
        return self.kind in ("Image", "Video")

    def keys(self, name: str) -> list[str]:
        """The keys under which it lies in an Example."""
        return [f"{name}/{part}" for part in _RAGGED] if self.ragged else [name]


def read_features(path: pathlib.Path) -> dict[str, Declared]:
    """The features that a `features.json` declares, of TFDS from 4.4 on. Raises `DataError`."""
    found: dict[str, Declared] = {}
    try:
        _collect(json.loads(path.read_text()), (), (), found)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; TFDS writes it beside the shards, fetch the folder again."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(f"{path}: cannot be used ({type(error).__name__}: {error}).") from error
    return found


def _collect(
    node: dict[str, Any], name: tuple[str, ...], outer: tuple[int | None, ...], found: dict[str, Declared]
) -> None:
    kind, body = _body(node)
    if kind == "FeaturesDict":
        for key, child in (body["features"] if "features" in body else body).items():
            _collect(child, (*name, key), outer, found)
        return
    if kind == "Sequence":
        length = body.get("length")
        size = None if length is None or int(length) < 0 else int(length)
        _collect(body["feature"], name, (*outer, size), found)
        return
    known: dict[str, Kind] = {"Scalar": "Tensor", **{kind: kind for kind in _DTYPES}}
    if kind not in known:
        raise ValueError(f"feature {'/'.join(name)!r} is of the kind {kind}, which is not read")
    leaf = known[kind]
    if leaf in ("Image", "Video") and (body.get("encodingFormat") or "png").lower() != "png":
        raise ValueError(f"feature {'/'.join(name)!r} is kept as {body['encodingFormat']}, only png is read")
    if leaf == "Tensor" and body.get("encoding", "none").lower() != "none":
        raise ValueError(
            f"feature {'/'.join(name)!r} is kept in the encoding {body['encoding']}, which is not read"
        )
    own = (4,) if leaf == "BBoxFeature" else _shape(body.get("shape"))
    varying = [i for i, size in enumerate(outer) if size is None]
    dtype = str(body.get("dtype") or _DTYPES[leaf])
    classes = int(body.get("numClasses") or 0)
    found["/".join(name)] = Declared(leaf, dtype, (*outer, *own), varying == [0, 1], classes)


def _body(node: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind of a feature and what is said of it, in the layouts of old and new TFDS."""
    if "pythonClassName" in node:
        body = [value for key, value in node.items() if key != "pythonClassName"]
        return node["pythonClassName"].rpartition(".")[2], body[0] if body else {}
    content = node["content"]
    content = json.loads(content) if isinstance(content, str) and content else content
    return node["type"].rpartition(".")[2], content or {}


def _shape(declared: Any) -> tuple[int | None, ...]:
    sizes = declared.get("dimensions", []) if isinstance(declared, dict) else declared or []
    return tuple(None if size is None or int(size) < 0 else int(size) for size in sizes)


def decode(
    example: Features,
    declared: Mapping[str, Declared],
    names: Collection[str],
    where: str,
    frames: Mapping[str, slice] | None = None,
) -> dict[str, np.ndarray]:
    """The features `names` of an Example as arrays; of those in `frames` only some entries of the first axis."""
    out: dict[str, np.ndarray] = {}
    for name in names:
        kind = declared[name]
        values = [_entry(example, key, kind, where) for key in kind.keys(name)]
        some = (frames or {}).get(name, slice(None))
        if kind.ragged:
            flat, lengths = np.asarray(values[0], kind.dtype), np.asarray(values[1], np.int64)
            out[f"{name}/flat"] = _shaped(flat, (None, *kind.shape[2:]), name, where)
            out[f"{name}/row_lengths"] = lengths
        elif kind.picture:
            out[name] = _pictures(values[0], kind, some, f"{where}: {name!r}")
        elif kind.kind == "Text":
            text = [entry.decode("utf-8", "replace") for entry in values[0]]
            out[name] = np.asarray(text if kind.shape else text[0])
        else:
            out[name] = _shaped(np.asarray(values[0], kind.dtype), kind.shape, name, where)[
                some if kind.shape else ()
            ]
    return out


def _entry(example: Features, key: str, kind: Declared, where: str) -> Any:
    value = example.get(key)
    if isinstance(value, list) and not value and not (kind.picture or kind.kind == "Text"):
        return value  # a list of nothing does not say of what
    wanted = kind.picture or kind.kind == "Text"
    if value is None or isinstance(value, list) != wanted or (wanted and not kind.shape and not len(value)):
        what = "pictures" if kind.picture else "text" if wanted else "numbers"
        raise DataError(f"{where}: no feature {key!r} with {what}; found {', '.join(example) or 'nothing'}.")
    return value


def _shaped(flat: np.ndarray, shape: tuple[int | None, ...], name: str, where: str) -> np.ndarray:
    known = 1
    for size in shape:
        known *= 1 if size is None else size
    unknown = sum(size is None for size in shape)
    if unknown > 1 or not known or flat.size % known or (not unknown and flat.size != known):
        wanted = " x ".join("any" if size is None else str(size) for size in shape) or "1"
        raise DataError(f"{where}: {name!r} has {flat.size} values, features.json declares {wanted}.")
    return flat.reshape([flat.size // known if size is None else size for size in shape])


def _pictures(entries: list[bytes], kind: Declared, some: slice, where: str) -> np.ndarray:
    *outer, height, width, channels = kind.shape
    if len(outer) != 1 or (outer[0] is not None and len(entries) != outer[0]):
        raise DataError(f"{where} has {len(entries)} pictures, features.json declares {outer}.")
    pictures = []
    for number in range(len(entries))[some]:
        picture = decode_png(entries[number], f"{where}, picture {number}")
        fits = all(
            want in (None, got) for want, got in zip((height, width, channels), picture.shape, strict=True)
        )
        if not fits or picture.dtype != np.dtype(kind.dtype):
            raise DataError(
                f"{where}, picture {number} is {' x '.join(map(str, picture.shape))} {picture.dtype}, features.json "
                f"declares {height} x {width} x {channels} {kind.dtype}."
            )
        pictures.append(picture)
    return np.stack(pictures)


def encode(arrays: Mapping[str, np.ndarray], declared: Mapping[str, Declared]) -> Features:
    """The entries of an Example that `decode` turns into `arrays`."""
    out: Features = {}
    for name, kind in declared.items():
        if kind.ragged:
            for key, part in zip(kind.keys(name), ("flat", "row_lengths"), strict=True):
                out[key] = arrays[f"{name}/{part}"]
        elif kind.picture:
            out[name] = [encode_png(picture) for picture in arrays[name]]
        elif kind.kind == "Text":
            out[name] = [str(text).encode() for text in np.atleast_1d(arrays[name])]
        else:
            value = arrays[name]
            out[name] = value.astype(np.int64) if value.dtype == np.bool_ else value
    return out


def write_features(path: pathlib.Path, declared: Mapping[str, Declared]) -> None:
    """A `features.json` as TFDS 4.9 writes it; dictionaries whose features all vary in length become sequences."""
    tree: dict[str, Any] = {}
    for name, kind in declared.items():
        *folders, leaf = name.split("/")
        here = tree
        for folder in folders:
            here = here.setdefault(folder, {})
        here[leaf] = kind
    path.write_text(json.dumps(_tree(tree), indent=1))


def _class(kind: str) -> str:
    modules = {
        "FeaturesDict": "features_dict", "Sequence": "sequence_feature", "Tensor": "tensor_feature",
        "Text": "text_feature", "Image": "image_feature", "Video": "video_feature",
        "ClassLabel": "class_label_feature", "BBoxFeature": "bounding_boxes",
    }  # fmt: skip
    return f"tensorflow_datasets.core.features.{modules[kind]}.{kind}"


def _tree(node: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a dictionary of features, or of a sequence of them where all of them vary in length together."""
    leaves = [child for child in node.values() if isinstance(child, Declared)]
    together = bool(leaves) and len(leaves) == len(node) and all(c.shape and c.shape[0] is None for c in leaves)
    features = {
        name: _tree(child) if isinstance(child, dict) else _leaf(child, int(together))
        for name, child in node.items()
    }
    made = {"pythonClassName": _class("FeaturesDict"), "featuresDict": {"features": features}}
    return _sequence(made, None) if together else made


def _sequence(inner: dict[str, Any], length: int | None) -> dict[str, Any]:
    return {
        "pythonClassName": _class("Sequence"),
        "sequence": {"feature": inner, "length": str(-1 if length is None else length)},
    }


def _leaf(declared: Declared, skipped: int) -> dict[str, Any]:
    """The JSON of one feature, without the first `skipped` axes, which the dictionary around it has."""
    shape = declared.shape[skipped:]
    # Pictures and boxes have the axes of one; of numbers, what is ragged within a sequence is another sequence.
    inner = {"Image": 3, "Video": 4, "BBoxFeature": 1, "Text": 0, "ClassLabel": 0}.get(declared.kind)
    outer = len(shape) - inner if inner is not None else int(declared.ragged)
    if declared.kind == "Tensor" and shape and len(shape) == 4 and not skipped:
        outer = 1  # frames of numbers
    dimensions = {"dimensions": [str(-1 if n is None else n) for n in shape[outer:]]} if shape[outer:] else {}
    key, body = {
        "Image": ("image", {"shape": dimensions, "dtype": declared.dtype}),
        "Video": ("video", {"shape": dimensions, "dtype": declared.dtype, "encodingFormat": "png"}),
        "Text": ("text", {}),
        "ClassLabel": ("classLabel", {"numClasses": str(declared.classes)}),
        "BBoxFeature": (
            "boundingBox",
            {"shape": dimensions, "dtype": declared.dtype, "bboxFormat": "REL_YXYX"},
        ),
        "Tensor": ("tensor", {"shape": dimensions, "dtype": declared.dtype, "encoding": "none"}),
    }[declared.kind]
    made: dict[str, Any] = {"pythonClassName": _class(declared.kind), key: body}
    for length in reversed(shape[:outer]):
        made = _sequence(made, length)
    return made
