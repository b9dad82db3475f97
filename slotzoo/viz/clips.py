"""Videos that a user brings: read from a file or a folder of pictures, cropped and scaled to what a model takes."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Integer, UInt8
from PIL import Image, ImageSequence

from slotzoo.errors import DataError
from slotzoo.viz.photos import SUFFIXES, eight_bits, find_pictures


class Clip(NamedTuple):
    """A clip as a model takes it, and the size that it had."""

    video: UInt8[np.ndarray, "time size size 3"]
    height: int
    width: int


def read_clip(path: Path, size: int, *, frames: int | None = None) -> Clip:
    """The frames of a video file, a GIF, or a folder of pictures, at most `frames` of them.

    Pictures come in the order of their names, numbers by their size: 2.png before 10.png. Each frame is cropped to its
    middle square and scaled to `size`. **Raises** `DataError` for what is no video, or is one whose frames differ in
    size.
    """
    if not path.exists():
        raise DataError(f"video={path}: no such file or folder.")
    pictures: Any
    if path.is_dir():
        pictures = _opened(find_pictures(path, "video"))
    elif path.suffix.lower() in SUFFIXES:
        pictures = _pillow(path)
    else:
        pictures = _decoded(path)
    kept, shapes = [], set()
    try:
        for picture in pictures:
            shapes.add(picture.size)
            kept.append(_square(eight_bits(picture, "RGB", getattr(picture, "format", None)), size))
            if len(kept) == frames:
                break
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"video={path}: frame {len(kept)} cannot be read ({error}).") from error
    if not kept:
        raise DataError(f"video={path}: holds no frame.")
    if len(shapes) > 1:
        raise DataError(f"video={path}: its frames differ in size: {', '.join(map(str, sorted(shapes)))}.")
    ((width, height),) = shapes
    return Clip(np.stack(kept), height, width)


def _opened(files: list[Path]) -> Any:
    for file in files:
        with Image.open(file) as picture:
            yield picture


def _pillow(path: Path) -> Any:
    try:
        with Image.open(path) as file:
            yield from ImageSequence.Iterator(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"video={path}: cannot be read as a picture that moves ({error}).") from error


def _decoded(path: Path) -> Any:
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise DataError("Reading video files needs PyAV: install slotzoo[video], or give a GIF.") from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"video={path}: holds no video.")
            for frame in container.decode(video=0):
                yield frame.to_image()
    except FFmpegError as error:
        raise DataError(f"video={path}: cannot be decoded ({error}).") from error


def _square(picture: Image.Image, size: int) -> UInt8[np.ndarray, "size size 3"]:
    left, top, side = _middle(picture.height, picture.width)
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR), np.uint8)


def _middle(height: int, width: int) -> tuple[int, int, int]:
    side = min(height, width)
    return (width - side) // 2, (height - side) // 2, side


def cropped_boxes(boxes: Float[np.ndarray, "..."], height: int, width: int) -> Float[np.ndarray, "object 4"]:
    """Boxes (ymin, xmin, ymax, xmax) of a frame, in pixels or from 0 to 1, as shares of its middle square.

    They are in pixels where one number is above 1. **Raises** `DataError` for a box that is none, or lies outside.
    """
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes) or not np.isfinite(boxes).all():
        raise DataError(
            f"boxes: a list of [ymin, xmin, ymax, xmax] is needed, got an array of shape {boxes.shape}."
        )
    if (boxes <= 1).all():
        boxes = boxes * np.asarray([height, width, height, width])
    left, top, side = _middle(height, width)
    inside = np.clip((boxes - np.asarray([top, left, top, left])) / side, 0, 1)
    for number, (low_y, low_x, high_y, high_x) in enumerate(inside):
        if high_y <= low_y or high_x <= low_x:
            raise DataError(
                f"boxes: box {number}, {boxes[number].round(1).tolist()} in pixels, is empty or outside of the middle "
                f"square of the frames of {height} x {width} pixels, which is all that the model sees."
            )
    return inside.astype(np.float32)


def read_boxes(given: Any) -> Float[np.ndarray, "..."]:
    """Boxes from a list of lists, or from the path of a .json or .npy file that holds one.

    **Raises** `DataError` where there is no such file or it holds something else.
    """
    import json

    if isinstance(given, str | Path):
        path = Path(given).expanduser()
        try:
            given = np.load(path, allow_pickle=False) if path.suffix == ".npy" else json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"boxes={path}: cannot be read as .json or .npy ({error}).") from error
    try:
        return np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"boxes: a list of [ymin, xmin, ymax, xmax] is needed, got {given!r}.") from error


def read_segments(
    path: Path, size: int, *, height: int, width: int, num_slots: int
) -> Integer[np.ndarray, "size size"]:
    """A label map (a grey or palette picture, 0 the background), cropped and scaled as the frames are.

    **Raises** `DataError` for a file that is no picture, one in colours, one of another size than the frames'
    (`height` x `width` pixels), and labels for which a model of `num_slots` slots has no slot.
    """
    wanted = f"it has to hold 0 for the background and 1, 2, ..., {num_slots - 1} for the objects"
    try:
        with Image.open(path) as file:
            # Of a palette its numbers are the labels; grey may be stored in colours or beside transparency.
            as_stored = file.mode in ("1", "L", "P", "I", "F") or file.mode.startswith("I;16")
            labels = np.asarray(file if as_stored else file.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"segments={path}: cannot be read as a picture of labels ({error}).") from error
    if labels.ndim == 3:
        if (labels != labels[..., :1]).any():
            raise DataError(
                f"segments={path}: is a picture in colours; save it in grey or with a palette: {wanted}."
            )
        labels = labels[..., 0]
    if labels.shape != (height, width):
        raise DataError(
            f"segments={path}: is of {labels.shape[0]} x {labels.shape[1]} pixels (height x width) and the frames are "
            f"of {height} x {width}; give the labels of the first frame at its own size."
        )
    found = np.unique(labels)
    if not np.isin(found, np.arange(num_slots)).all():
        shown = ", ".join(f"{label:g}" for label in found[:8]) + (", ..." if len(found) > 8 else "")
        raise DataError(
            f"segments={path}: has the labels {shown}; for the {num_slots} slots of the model {wanted}."
        )
    left, top, side = _middle(height, width)
    square = Image.fromarray(labels.astype(np.int32)).crop((left, top, left + side, top + side))
    return np.asarray(square.resize((size, size), Image.Resampling.NEAREST), np.int32)
