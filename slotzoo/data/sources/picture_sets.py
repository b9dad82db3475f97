"""Image sets published as folders of PNG files: CLEVR, Sketchy and ClevrTex."""

import concurrent.futures
import json
import pathlib
import re
from typing import Any

import numpy as np

from slotzoo.data.index_cache import identity_of, remembered
from slotzoo.data.sources.folders import contents
from slotzoo.data.sources.images import (
    ImageSource,
    RawImage,
    Split,
    View,
    checked_choice,
    keep_at_most,
)
from slotzoo.data.spec import FieldSpec
from slotzoo.data.synthetic.clevr import COLORS, MATERIALS, SHAPES, SIZES, VARIANTS, target_field, targets
from slotzoo.errors import DataError


Cache = pathlib.Path | str | None
_CLEVR_CROP = (29, 64, 192, 192)
_SHARE = 0.8  # of the shorter side: what the centre crop of 192 of 240 rows keeps
_TEXTURED_LABELS = 10


def read_picture(path: pathlib.Path, where: str, *, labels: bool = False) -> np.ndarray:
    """A PNG as uint8 (height, width, 3), or a palette or grey one's numbers (height, width) with `labels`."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            if not labels:
                return np.asarray(picture.convert("RGB"))
            if picture.mode not in ("P", "L"):
                raise DataError(f"{where}: a label map has mode P or L, this one has {picture.mode}.")
            return np.asarray(picture).astype(np.uint8)
    except FileNotFoundError as error:
        raise DataError(f"{where}: no such file; fetch it again or use on_error=skip.") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"{where}: cannot be read ({str(error).splitlines()[0]}); fetch the file again or use on_error=skip."
        ) from error


def picture_size(path: pathlib.Path) -> tuple[int, int]:
    """Height and width, from the header."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); fetch it again.") from error


class PictureFiles:
    """Pictures by path, each with a label map or with a row of an array beside it."""

    def __init__(
        self,
        images: list[pathlib.Path],
        masks: list[pathlib.Path] | None = None,
        extra: dict[str, np.ndarray] | None = None,
        identity: list[pathlib.Path] | None = None,
    ):
        self.images, self.masks, self.extra = images, masks, extra or {}
        self._identity = images if identity is None else identity

    def __len__(self) -> int:
        return len(self.images)

    def where(self, row: int) -> str:
        return str(self.images[row])

    def paths(self) -> list[pathlib.Path]:
        return self._identity

    def load(self, row: int, *, mask: bool) -> RawImage:
        image = read_picture(self.images[row], self.where(row))
        labels = None
        if mask and self.masks is not None:
            labels = read_picture(self.masks[row], str(self.masks[row]), labels=True)
        return RawImage(image, labels, None, {name: values[row] for name, values in self.extra.items()})

    def close(self) -> None:
        """Nothing is held open."""


def _centre(native: tuple[int, int], share: float) -> tuple[int, int, int, int]:
    side = int(share * min(native))
    # Half to even, as torchvision's CenterCrop rounds.
    return round((native[0] - side) / 2), round((native[1] - side) / 2), side, side


def _json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; fetch the data set again.") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]}); fetch it again.") from error


def _scene_columns(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Names of the pictures, objects in each, and their targets (10 rows), from a scenes file."""
    names, counts, rows = [], [], []
    try:
        for scene in _json(path)["scenes"]:
            objects = scene["objects"]
            names.append(scene["image_filename"])
            counts.append(len(objects))
            rows.append(_targets(objects))
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not a scenes file of CLEVR (no {error}).") from error
    if not names:
        raise DataError(f"{path}: no scenes in it.")
    return {"names": np.asarray(names), "counts": np.asarray(counts), "targets": np.stack(rows)}


def _targets(objects: list[dict[str, Any]]) -> np.ndarray:
    """Rows of set prediction; zeros where a scene does not describe its objects in CLEVR's words."""
    kinds = (("size", SIZES), ("material", MATERIALS), ("shape", SHAPES), ("color", COLORS))
    described = all(
        "3d_coords" in each and all(each.get(name) in words for name, words in kinds) for each in objects
    )
    if not objects or not described:
        return targets(np.zeros((0, 3)), tuple(np.zeros(0, np.int64) for _ in kinds), 10)
    place = np.asarray([each["3d_coords"] for each in objects], np.float64)
    found = tuple(np.asarray([words.index(each[name]) for each in objects]) for name, words in kinds)
    return targets(place, found, 10)


def open_clevr(
    root: pathlib.Path,
    split: Split,
    *,
    size: int | None = None,
    max_objects: int | None = None,
    crop: str = "center",
    attributes: bool = False,
    antialias: bool = False,
    cache: Cache = None,
) -> ImageSource:
    """CLEVR v1: `images/<split>/*.png` and `scenes/CLEVR_<split>_scenes.json`, without masks.

    The test scenes are not published, so `test` is the val folder too. `crop`: `center` the middle square, 0.8 of
    the height; `whole` all of it, which set prediction squeezes into a square; `seed` the rows 29 to 221 and columns
    64 to 256 that fit the smaller pictures of CLEVR with masks. `attributes` adds `targets` (objects, 19).
    """
    checked_choice("clevr", "crop", crop, ("center", "whole", "seed"))
    folder = "train" if split == "train" else "val"
    scenes = root / "scenes" / f"CLEVR_{folder}_scenes.json"
    if not scenes.is_file():
        raise DataError(
            f"data.root={root} has no scenes/CLEVR_{folder}_scenes.json: {_what(root)}; give the folder CLEVR_v1.0."
        )
    key = ["clevr", identity_of([scenes])]
    columns = remembered(cache, key, lambda: _scene_columns(scenes))
    images = [root / "images" / folder / pathlib.PurePath(str(name)).name for name in columns["names"]]
    rows = keep_at_most(np.arange(len(images)), columns["counts"], max_objects, name="clevr", root=root)
    extra: dict[str, FieldSpec] = {}
    values: dict[str, np.ndarray] = {}
    if attributes:
        if not columns["targets"][rows].any():
            raise DataError(f"{scenes}: its objects have no attributes; open the set without attributes.")
        objects = max_objects or 10
        padded = columns["targets"][:, : min(objects, 10)]
        extra, values = {"targets": target_field(padded.shape[1])}, {"targets": padded}
    native = picture_size(images[int(rows[0])])
    boxes = {"center": _centre(native, _SHARE), "whole": None, "seed": _CLEVR_CROP}
    view = View(boxes[crop], size, "antialias" if antialias else "bilinear")
    options = {"size": size, "max_objects": max_objects, "crop": crop, "attributes": attributes}
    options["antialias"] = antialias
    files = PictureFiles(images, None, values, [scenes])
    return ImageSource(
        "clevr", files, rows, view, native, None, root=root, split=split, options=options, extra=extra
    )


def _what(root: pathlib.Path) -> str:
    return contents(root) if root.is_dir() else "it is a file"


def open_sketchy(
    root: pathlib.Path,
    split: Split,
    *,
    size: int | None = None,
    antialias: bool = False,
    cache: Cache = None,
) -> ImageSource:
    """Sketchy as the object-discovery code prepares it: `processed/{train,valid}/ep*/ep*.png`, no masks.

    Two splits: `val` and `test` are both the folder `valid`.
    """
    folder = "train" if split == "train" else "valid"
    top = root / "processed" if (root / "processed").is_dir() else root
    images = sorted((top / folder).glob("ep*/ep*.png"))
    if not images:
        held = top / folder if (top / folder).is_dir() else root
        raise DataError(f"data.root={root} has no processed/{folder}/ep*/ep*.png: {_what(held)}.")
    native = picture_size(images[0])
    view = View(None, size, "antialias" if antialias else "bilinear")
    options = {"size": size, "antialias": antialias}
    files = PictureFiles(images)
    rows = np.arange(len(images))
    return ImageSource("sketchy", files, rows, view, native, None, root=root, split=split, options=options)


def _textured(folder: pathlib.Path, variant: str) -> list[pathlib.Path]:
    """Pictures in the order of their numbers, which is not that of their folders: 10 comes before 2 there."""
    name = re.compile(rf"CLEVRTEX_{variant}_(\d+)\.png")
    found = ((name.fullmatch(path.name), path) for path in folder.rglob(f"CLEVRTEX_{variant}_*.png"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def _object_counts(descriptions: list[pathlib.Path]) -> np.ndarray:
    """Number of objects of every scene, from the JSON files; many are read at once."""

    def count(path: pathlib.Path) -> int:
        try:
            return len(_json(path)["objects"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}: not the description of a ClevrTex scene (no {error}).") from error

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return np.asarray(list(pool.map(count, descriptions)))


def open_clevrtex(
    root: pathlib.Path,
    split: Split,
    *,
    variant: str = "full",
    size: int | None = None,
    max_objects: int | None = None,
    crop: str = "center",
    masks: bool = True,
    cache: Cache = None,
) -> ImageSource:
    """ClevrTex (Karazija et al., 2021): `<root>/clevrtex_<variant>/**/CLEVRTEX_<variant>_NNNNNN{.png,_flat.png,.json}`.

    In the order of the numbers the first tenth is the test split, the second the validation split; `outd` is not
    split. Resized by Pillow, as the authors of the set do.
    """
    checked_choice("clevrtex", "variant", variant, VARIANTS)
    checked_choice("clevrtex", "crop", crop, ("center", "whole"))
    folder = root / f"clevrtex_{variant}"
    folder = folder if folder.is_dir() else root
    paths = _textured(folder, variant) if folder.is_dir() else []
    if not paths:
        raise DataError(
            f"data.root={root} has no pictures CLEVRTEX_{variant}_NNNNNN.png: {_what(root)}; give the folder that has "
            f"clevrtex_{variant}, or choose another variant."
        )
    images = _split_of(paths, split, variant)
    if not images:
        raise DataError(f"data.root={root}: {len(paths)} pictures are too few for a {split} split.")
    rows = np.arange(len(images))
    if max_objects is not None:
        beside = [path.with_suffix(".json") for path in images]
        key = ["clevrtex", variant, split, identity_of(beside)]
        counts = remembered(cache, key, lambda: {"counts": _object_counts(beside)})["counts"]
        rows = keep_at_most(rows, counts, max_objects, name="clevrtex", root=root)
    flat = [path.with_name(f"{path.stem}_flat.png") for path in images]
    native = picture_size(images[int(rows[0])])
    view = View(_centre(native, _SHARE) if crop == "center" else None, size, "pillow")
    options = {"variant": variant, "size": size, "max_objects": max_objects, "crop": crop, "masks": masks}
    objects = min(_TEXTURED_LABELS, max_objects or _TEXTURED_LABELS) if masks else None
    return ImageSource(
        "clevrtex",
        PictureFiles(images, flat),
        rows,
        view,
        native,
        objects,
        root=root,
        split=split,
        options=options,
    )


def _split_of(paths: list[pathlib.Path], split: Split, variant: str) -> list[pathlib.Path]:
    if variant == "outd":
        return paths
    first, second = int(0.1 * len(paths)), int(0.2 * len(paths))
    ranges = {"test": (0, first), "val": (first, second), "train": (second, len(paths))}
    start, stop = ranges[split]
    return paths[start:stop]
