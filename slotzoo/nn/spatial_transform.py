"""Bilinear crops and pastes of axis-aligned boxes (Jaderberg et al., Spatial Transformer Networks, 2015).

Coordinates run from -1 to 1 between the outer edges of the first and the last pixel; outside all is zero. A box has
half its size in units of half the image, `scale`, and its centre `shift`, both in the order (x, y).

Without rotation, bilinear sampling is separable: rows and columns are two small matrices with at most two entries
in a row each, so that a paste is two matrix products. On a CPU that is many times as fast as a gather of four
neighbours, whose gradient scatters.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from slotzoo.ops.turned import turned


_TINY = 1e-15


def paste_weights(
    out_size: int, in_size: int, scale: Float[Array, "*batch"], shift: Float[Array, "*batch"]
) -> Float[Array, "*batch {out_size} {in_size}"]:
    """Along one axis: which pixels of a glimpse each pixel of the image shows, `max(0, 1 - |position - pixel|)`.

    `position = ((u - shift) / scale + 1) in_size / 2 - 1/2` where `u` is the centre of the image's pixel.
    """
    u = _centres(out_size).reshape((1,) * scale.ndim + (-1,))
    return _hat((u - shift[..., None]) / (scale[..., None] + _TINY), in_size)


def crop_weights(
    out_size: int, in_size: int, scale: Float[Array, "*batch"], shift: Float[Array, "*batch"]
) -> Float[Array, "*batch {out_size} {in_size}"]:
    """Along one axis: which pixels of the image each pixel of a glimpse shows."""
    u = _centres(out_size).reshape((1,) * scale.ndim + (-1,))
    return _hat(scale[..., None] * u + shift[..., None], in_size)


def paste(
    glimpse: Float[Array, "cell channel rows columns"], box: Float[Array, "cell 4"], *, height: int, width: int
) -> Float[Array, "cell channel {height} {width}"]:
    """Each glimpse drawn into an empty image at its box (scale_x, scale_y, shift_x, shift_y)."""
    rows, columns = _both(paste_weights, (height, width), glimpse.shape[-2:], box)
    return _product(rows, columns, glimpse)


def paste_scales(
    box: Float[Array, "cell 4"], glimpse: tuple[int, ...], *, height: int, width: int
) -> tuple[Float[Array, "cell {height} rows"], Float[Array, "cell {width} columns"]]:
    """The two matrices of every `paste` of glimpses of some size, for `resampled_lines`."""
    return _both(paste_weights, (height, width), glimpse, box)


def crop(
    image: Float[Array, "channel rows columns"], box: Float[Array, "cell 4"], *, height: int, width: int
) -> Float[Array, "cell channel {height} {width}"]:
    """What each box (scale_x, scale_y, shift_x, shift_y) shows of an image, resized bilinearly."""
    rows, columns = _both(crop_weights, (height, width), image.shape[-2:], box)
    return _product(rows, columns, jnp.broadcast_to(image, (box.shape[0], *image.shape)))


def _both(weights, out: tuple[int, int], inner: tuple[int, ...], box: Array) -> tuple[Array, Array]:
    box = box.astype(jnp.float32)
    rows = weights(out[0], inner[0], box[:, 1], box[:, 3])
    columns = weights(out[1], inner[1], box[:, 0], box[:, 2])
    return rows, columns


def _product(rows: Array, columns: Array, x: Array) -> Array:
    lines = resampled_lines(rows, columns, jnp.swapaxes(x, 1, 2))
    return jnp.swapaxes(lines, 1, 2)


@jax.custom_vjp
def resampled_lines(
    rows: Float[Array, "cell height row"],
    columns: Float[Array, "cell width column"],
    x: Float[Array, "cell row channel column"],
) -> Float[Array, "cell height channel width"]:
    """`y_n = rows_n x_n columns_n^T` of every channel. As channels stand between the axes of space, both steps, and
    their gradients, are one product for a cell, in the order that XLA's CPU compiler has a fast program for.
    """
    return _lines_forward(rows, columns, x)[0]


def _lines_forward(rows: Array, columns: Array, x: Array):
    rows, columns = rows.astype(x.dtype), columns.astype(x.dtype)
    n, row, channel, column = x.shape
    across = jnp.einsum("nij,nwj->niw", x.reshape(n, row * channel, column), columns).reshape(n, row, -1)
    y = jnp.einsum("nhi,nic->nhc", rows, across)
    return y.reshape(n, rows.shape[1], channel, -1), (rows, columns, x, across)


def _lines_backward(kept, gradient: Array):
    rows, columns, x, across = kept
    n, row, channel, column = x.shape
    gradient = gradient.reshape(n, rows.shape[1], -1)
    d_rows = jnp.einsum("nhc,nic->nhi", gradient, across)
    d_across = jnp.einsum("nih,nhc->nic", turned(rows), gradient).reshape(n, row * channel, -1)
    d_x = jnp.einsum("niw,nwj->nij", d_across, columns).reshape(x.shape)
    d_columns = jnp.einsum("nji,niw->njw", turned(x.reshape(n, row * channel, column)), d_across)
    return d_rows, jnp.swapaxes(d_columns, 1, 2), d_x


resampled_lines.defvjp(_lines_forward, _lines_backward)


def _centres(size: int) -> Array:
    return (2 * jnp.arange(size, dtype=jnp.float32) + 1) / size - 1


def _hat(position: Array, size: int) -> Array:
    """Weights of `size` pixels at positions in [-1, 1]."""
    pixel = ((position + 1) * size - 1) / 2
    distance = pixel[..., None] - jnp.arange(size, dtype=jnp.float32).reshape((1,) * pixel.ndim + (-1,))
    return jax.nn.relu(1 - jnp.abs(distance))
