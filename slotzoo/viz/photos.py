"""Pictures that a user brings: found in a folder, cropped and scaled to what a model takes."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from slotzoo.errors import DataError
from slotzoo.files import natural


SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def find_pictures(top: Path, what: str = "images") -> list[Path]:
    """The pictures of a folder and of those in it, sorted (frame_2 before frame_10); or the one that is named.

    **Raises** `DataError` where there is none, with the key `what` under which the user gave it.
    """
    if top.is_file():
        return [top]
    if not top.is_dir():
        raise DataError(f"{what}={top}: no such folder or file.")
    found = [path for path in top.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not found:
        raise DataError(f"{what}={top}: holds no picture ({', '.join(SUFFIXES)}).")
    return sorted(found, key=lambda path: [natural(part) for part in path.relative_to(top).parts])


def read_picture(path: Path, size: int, channels: int) -> tuple[UInt8[np.ndarray, "size size channel"], bool]:
    """A picture, upright, cropped to its middle square and scaled to `size`, and whether that changed it.

    **Raises** `DataError` for a file that is no picture.
    """
    try:
        with Image.open(path) as file:
            # Cameras store how they were held beside the pixels.
            picture = eight_bits(ImageOps.exif_transpose(file), "L" if channels == 1 else "RGB", file.format)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as a picture ({error}).") from error
    side = min(picture.size)
    changed = picture.size != (size, size)
    if changed:
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        picture = square.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(picture, np.uint8).reshape(size, size, channels), changed


def eight_bits(picture: Image.Image, mode: str, file_format: str | None) -> Image.Image:
    """A picture as `mode` ("L" or "RGB"), which has 8 bits per channel; grey of 16 bits is scaled, not clipped.

    `file_format` is that of the file it came from: some versions of Pillow open 16-bit PNG files with the mode "I".
    **Raises** `ValueError` for 32-bit integers and floats, which say nowhere what is white.
    """
    if picture.mode.startswith("I;16") or (picture.mode == "I" and file_format == "PNG"):
        grey = np.rint(np.asarray(picture) / 257).astype(np.uint8)  # 257 = 65535 / 255
        return Image.fromarray(grey).convert(mode)
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"its mode is {picture.mode}, 32 bits per point, of which it is not known what is white; save it with 8 or "
            "16 bits"
        )
    return picture.convert(mode)
