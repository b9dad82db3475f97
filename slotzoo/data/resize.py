"""Resampling of pictures, in the conventions that published numbers depend on.

`bilinear`: pixel centres at half integers (torch's `align_corners=False`), without antialias unless asked: what
torchvision did to tensors up to 0.16. `nearest`: source index floor(i * scale), torch's and TensorFlow 1's
legacy rule; `jax.image.resize` samples centres instead and differs. Pillow's own resampling, which antialiases
and rounds to bytes between its two passes, is in `resize_pillow`.
"""

import functools
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8


@functools.lru_cache(maxsize=64)
def _taps(old: int, new: int, antialias: bool) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """What a new pixel is summed from: pairs of source indices (new,) and weights (new,) that add up to 1.

    The filter is a triangle, as wide as the reduction with antialias and two pixels without.
    """
    scale = old / new
    reach = max(scale, 1.0) if antialias else 1.0
    centre = (np.arange(new) + 0.5) * scale - 0.5
    if not antialias:
        centre = np.clip(centre, 0, old - 1)
    first = np.ceil(centre - reach).astype(np.int64)
    index = first[:, None] + np.arange(int(2 * reach) + 1)[None, :]
    weights = np.maximum(0, 1 - np.abs(index - centre[:, None]) / reach)
    weights = np.where((index >= 0) & (index < old), weights, 0)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    index = np.clip(index, 0, old - 1)
    return tuple((index[:, k], weights[:, k]) for k in range(index.shape[1]) if weights[:, k].any())


def resize_bilinear(
    image: np.ndarray, size: tuple[int, int], *, antialias: bool = False
) -> Float32[np.ndarray, "*time height width channel"]:
    """`image` (..., height, width, channel), any number type, at another size; float32 on the scale of the input."""
    # Sums, not products of matrices: BLAS would start threads that wait for each other on a busy machine.
    *time, height, width, channels = image.shape
    by_rows = np.zeros((*time, size[0], width, channels), np.float32)
    for index, weight in _taps(height, size[0], antialias):
        by_rows += image[..., index, :, :] * weight[:, None, None]
    out = np.zeros((*time, *size, channels), np.float32)
    for index, weight in _taps(width, size[1], antialias):
        out += by_rows[..., index, :] * weight[:, None]
    return out


@functools.lru_cache(maxsize=64)
def _nearest(old: int, new: int) -> np.ndarray:
    # In float32, as torch computes it.
    scale = np.float32(old) / np.float32(new)
    index = np.floor(np.arange(new, dtype=np.float32) * scale).astype(np.int64)
    return np.minimum(index, old - 1)


def resize_nearest(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The first two axes resampled at floor(i * old / new)."""
    if image.shape[:2] == tuple(size):
        return image
    return image[_nearest(image.shape[0], size[0])[:, None], _nearest(image.shape[1], size[1])[None, :]]


def resize_pillow(
    image: UInt8[np.ndarray, "..."], size: tuple[int, int], method: Literal["bilinear", "nearest"]
) -> np.ndarray:
    """`image` uint8 (height, width) or (height, width, 3) through Pillow."""
    from PIL import Image

    filters = {"bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), filters[method]))


def to_bytes(image: np.ndarray) -> UInt8[np.ndarray, "..."]:
    """Round a picture in 0..255 to bytes."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
