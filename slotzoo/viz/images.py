"""Arrays to pictures: value ranges, enlargement, labels, PNG files."""

import io
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from slotzoo.errors import ShapeError
from slotzoo.files import write_bytes


# Okabe and Ito's colours that a reader with any colour vision tells apart.
CONTEXT = (0, 114, 178)
PREDICTED = (213, 94, 0)
PAPER = (255, 255, 255)
INK = (34, 34, 34)
# The shortest side, in pixels, at which a frame can be looked at.
COMFORTABLE = 96


def to_uint8(
    images: Shaped[np.ndarray, "*shape"], *, value_range: tuple[int | float, int | float] = (0.0, 1.0)
) -> UInt8[np.ndarray, "*shape"]:
    """Round images of `value_range` to 0..255; uint8 images are returned as they are.

    Values outside of the range are clipped and NaN becomes 0, so that a picture of a broken model can be drawn.
    """
    if images.dtype == np.uint8:
        return images
    low, high = value_range
    scaled = (np.asarray(images, np.float32) - low) * (255.0 / (high - low))
    return np.rint(np.clip(np.nan_to_num(scaled), 0, 255)).astype(np.uint8)


def comfortable_scale(height: int, width: int, *, comfortable: int = COMFORTABLE) -> int:
    """The whole factor that enlarges a small frame to about `comfortable` pixels."""
    return max(1, round(comfortable / min(height, width)))


def enlarge(images: UInt8[np.ndarray, "*batch height width 3"], factor: int) -> UInt8[np.ndarray, "..."]:
    """Repeat every pixel `factor` times in both directions: no blur hides the model's own resolution."""
    return images.repeat(factor, axis=-3).repeat(factor, axis=-2)


def as_rgb(images: Shaped[np.ndarray, "*batch height width channel"]) -> Shaped[np.ndarray, "..."]:
    """Grey images (one channel) to three equal channels; colour images as they are."""
    channels = images.shape[-1]
    if channels == 1:
        return images.repeat(3, axis=-1)
    if channels != 3:
        raise ShapeError(f"pictures have 1 or 3 channels, got {channels} (shape {images.shape})")
    return images


def bordered(
    image: UInt8[np.ndarray, "height width 3"], colour: tuple[int, int, int], thickness: int = 2
) -> UInt8[np.ndarray, "..."]:
    """Surround an image by a coloured line."""
    height, width, _ = image.shape
    canvas = np.empty((height + 2 * thickness, width + 2 * thickness, 3), np.uint8)
    canvas[:] = np.asarray(colour, np.uint8)
    canvas[thickness:-thickness, thickness:-thickness] = image
    return canvas


def image_grid(
    images: Shaped[np.ndarray, "entry height width channel"],
    *,
    columns: int | None = None,
    gap: int = 2,
    value_range: tuple[int | float, int | float] = (0.0, 1.0),
    scale: int | None = None,
) -> UInt8[np.ndarray, "grid_height grid_width 3"]:
    """Lay images out in rows of `columns` (default: about square) on white."""
    images = to_uint8(as_rgb(images), value_range=value_range)
    count, height, width, _ = images.shape
    scale = scale or comfortable_scale(height, width)
    images = enlarge(images, scale)
    height, width = height * scale, width * scale
    columns = columns or max(1, int(np.ceil(np.sqrt(count))))
    rows = max(1, -(-count // columns))
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas


def write_text(
    canvas: UInt8[np.ndarray, "height width 3"],
    text: str,
    *,
    left: int,
    top: int,
    size: int = 12,
    colour: tuple[int, int, int] = INK,
) -> UInt8[np.ndarray, "height width 3"]:
    """A copy of the canvas with a line of text whose upper left corner is (left, top)."""
    picture = Image.fromarray(canvas)
    ImageDraw.Draw(picture).text((left, top), text, fill=colour, font=font(size))
    return np.array(picture)


def text_width(text: str, size: int = 12) -> int:
    """Pixels that a line of text takes."""
    return int(np.ceil(font(size).getlength(text)))


def png_bytes(image: Shaped[np.ndarray, "height width channel"]) -> bytes:
    """Encode an image (uint8, or float in [0, 1]) as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(as_rgb(image))).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def write_png(path: str | Path, image: Shaped[np.ndarray, "height width channel"]) -> Path:
    """Write an image (uint8, or float in [0, 1]) as PNG; a reader never sees half a file."""
    return write_bytes(path, png_bytes(image))


@lru_cache(maxsize=8)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    # Pillow brings a font of its own, so pictures look the same on every machine.
    return ImageFont.load_default(size)
