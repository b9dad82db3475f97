"""PNG pictures of 8 and 16 bits. Pillow reads all but 16-bit colours, of which it would drop the low bytes."""

import io
import struct
import zlib

import numpy as np
from jaxtyping import UInt

from slotzoo.errors import DataError


_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by colour type


def decode_png(data: bytes, where: str) -> UInt[np.ndarray, "height width channel"]:
    """The pixels of a picture, uint8 or uint16. Anything else is a `DataError` that starts with `where`."""
    from PIL import Image

    try:
        width, height, depth, kind = _header(data)
        if depth == 16 and kind != 0:
            return _decode_16(data, height, width, _CHANNELS[kind])
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            pixels = np.asarray(image)
    except (OSError, ValueError, KeyError, IndexError, SyntaxError, zlib.error, struct.error) as error:
        raise DataError(f"{where}: not a PNG picture ({error}).") from error
    pixels = pixels.astype(np.uint16) if depth == 16 else pixels
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _header(data: bytes) -> tuple[int, int, int, int]:
    """Width, height, bits, colour type."""
    if data[:8] != _SIGNATURE or data[12:16] != b"IHDR":
        raise ValueError("it does not begin as one")
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    return width, height, depth, kind


def _chunks(data: bytes, name: bytes) -> bytes:
    """The joined content of the chunks of a name, checksums verified."""
    parts, position = [], 8
    while position + 12 <= len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        body = data[position + 4 : position + 8 + length]
        (crc,) = struct.unpack(">I", data[position + 8 + length : position + 12 + length])
        if zlib.crc32(body) != crc:
            raise ValueError(f"wrong checksum of chunk {body[:4]!r}")
        if body[:4] == name:
            parts.append(body[4:])
        position += 12 + length
    return b"".join(parts)


def _decode_16(data: bytes, height: int, width: int, channels: int) -> np.ndarray:
    if data[28]:
        raise ValueError("interlaced pictures of 16 bits are not read")
    step = 2 * channels
    rows = np.frombuffer(zlib.decompress(_chunks(data, b"IDAT")), np.uint8).reshape(height, 1 + width * step)
    out = np.zeros((height + 1, width, step), np.uint8)  # a row of zeros above the first
    for y in range(height):
        out[y + 1] = _unfiltered(int(rows[y, 0]), rows[y, 1:].reshape(width, step), out[y])
    return out[1:].reshape(height, width, channels, 2).view(">u2")[..., 0].astype(np.uint16)


def _unfiltered(kind: int, row: np.ndarray, above: np.ndarray) -> np.ndarray:
    """A row of pixels from what the encoder kept of it (PNG specification, section 9)."""
    if kind == 0:
        return row
    if kind == 1:
        return np.cumsum(row, axis=0, dtype=np.uint8)
    if kind == 2:
        return row + above
    if kind not in (3, 4):
        raise ValueError(f"a row is filtered by rule {kind}")
    # Each pixel needs the one to its left: plain integers are the fastest that Python has for this.
    out = np.zeros_like(row)
    for channel in range(row.shape[1]):
        left = corner = 0
        values = []
        for x, up in zip(row[:, channel].tolist(), above[:, channel].tolist(), strict=True):
            guess = (left + up) >> 1 if kind == 3 else _paeth(left, up, corner)
            left, corner = (x + guess) & 255, up
            values.append(left)
        out[:, channel] = values
    return out


def _paeth(left: int, up: int, corner: int) -> int:
    a, b, c = abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)
    return left if a <= b and a <= c else up if b <= c else corner


def encode_png(pixels: UInt[np.ndarray, "height width channel"]) -> bytes:
    """A picture of 1 or 3 channels, uint8 or uint16, as a PNG file."""
    height, width, channels = pixels.shape
    kind = {count: kind for kind, count in _CHANNELS.items()}[channels]
    step = channels * pixels.dtype.itemsize
    rows = (
        np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(">")))
        .view(np.uint8)
        .reshape(height, width, step)
    )
    kept = np.diff(rows, axis=1, prepend=np.zeros((height, 1, step), np.uint8))  # of the pixel to the left
    lines = np.concatenate([np.ones((height, 1), np.uint8), kept.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.dtype.itemsize, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b""))
    packed = [
        struct.pack(">I", len(x)) + name + x + struct.pack(">I", zlib.crc32(name + x)) for name, x in chunks
    ]
    return _SIGNATURE + b"".join(packed)
