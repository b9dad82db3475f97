"""How GNM draws a scene: glimpses pasted at their boxes, the nearer before the farther, over a background."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from slotzoo.nn.spatial_transform import paste, paste_scales, resampled_lines
from slotzoo.ops.device import compiling_for_gpu


_TINY = 1e-15
FRAME = 42  # pixels of the template of a box
BORDER = 3


class Glimpses(NamedTuple):
    """What every cell shows, before it is placed."""

    picture: Float[Array, "cell channel rows columns"]  # [0, 1]
    alpha: Float[Array, "cell 1 rows columns"]  # opacity, [0, 1]


class Curriculum(NamedTuple):
    """While `active`, objects cannot hide: the background has a fixed share and gets no gradient from alpha."""

    active: Bool[Array, ""]
    alpha: float


class Rendering(NamedTuple):
    """A composed image. Everything but `image` is unused, and not computed, in a training step."""

    image: Float[Array, "height width channel"]
    foreground: Float[Array, "height width channel"]
    alpha: Float[Array, "height width 1"]  # share of the foreground
    shares: Float[Array, "cell height width"]  # share of every cell; they sum to `alpha`
    masks: Float[Array, "cell height width"]  # pasted alpha, whatever else lies before it
    pictures: Float[Array, "cell height width channel"]  # pasted glimpses


def compose(
    glimpses: Glimpses,
    presence: Float[Array, " cell"],
    box: Float[Array, "cell 4"],
    depth: Float[Array, " cell"],
    background: Float[Array, "height width channel"],
    *,
    curriculum: Curriculum | None = None,
) -> Rendering:
    """`y = sum_n w_n a_n o_n + (1 - sum_n a_n) background`, nearer objects with a larger weight `w_n`.

    `a_n` is the opacity of cell n (its alpha times its presence) and `w_n ~ a_n sigmoid(-depth_n)`, normalised
    over cells at every pixel. Opacity and picture of a cell are pasted at once; what depends on presence and
    depth alone is a factor per cell and needs no paste. The gradient passes the clip of the summed opacities.
    """
    height, width, _ = background.shape
    if curriculum is not None:
        presence = jnp.where(curriculum.active, jnp.minimum(presence, 0.99), presence)
    alpha = glimpses.alpha.astype(jnp.float32)
    stacked = jnp.concatenate([glimpses.picture.astype(jnp.float32) * alpha, alpha], 1)
    lines = jnp.swapaxes(stacked * presence[:, None, None, None], 1, 2)
    scales = paste_scales(box, stacked.shape[-2:], height=height, width=width)
    nearness = jax.nn.sigmoid(-depth)
    foreground, total = _mixed(*scales, lines, nearness)
    foreground, total = jnp.swapaxes(foreground, 1, 2), _clipped(total)
    if curriculum is not None:
        total = jnp.where(curriculum.active, curriculum.alpha, total)
    total = total[..., None]
    image = foreground + (1 - total) * background
    opacity = resampled_lines(*scales, lines[:, :, -1:])[:, :, 0]
    weight = opacity * nearness[:, None, None]
    weight = weight / (weight.sum(0, keepdims=True) + _TINY)
    pictures = paste(glimpses.picture.astype(jnp.float32), box, height=height, width=width)
    return Rendering(
        image, foreground, total, weight * total[None, ..., 0], opacity, pictures.transpose(0, 2, 3, 1)
    )


def add(
    glimpses: Glimpses, presence: Float[Array, " cell"], box: Float[Array, "cell 4"], *, height: int, width: int
) -> Rendering:
    """`y = sum_n presence_n o_n` on black: strokes that may cross (MNIST). Depth and background play no role."""
    light = glimpses.picture.astype(jnp.float32) * glimpses.alpha.astype(jnp.float32)
    light = paste(light, box, height=height, width=width).transpose(0, 2, 3, 1)
    lit = light * presence[:, None, None, None]
    image = lit.sum(0)
    masks = paste(glimpses.alpha.astype(jnp.float32), box, height=height, width=width)[:, 0]
    brightness = lit.mean(-1)
    total = brightness.sum(0)
    shares = brightness / jnp.maximum(total, 1.0)[None]
    alpha = jnp.ones((height, width, 1))
    return Rendering(image, image, alpha, shares, masks * presence[:, None, None], light)


def box_frames(
    presence: Float[Array, " cell"], box: Float[Array, "cell 4"], *, height: int, width: int
) -> Float[Array, "height width 3"]:
    """The outline of every box, green where its object is present and red where not, on black, in [0, 1]."""
    inside = jnp.zeros((FRAME - 2 * BORDER, FRAME - 2 * BORDER))
    template = jnp.pad(inside, BORDER, constant_values=1.0)
    frames = paste(jnp.broadcast_to(template, (box.shape[0], 1, FRAME, FRAME)), box, height=height, width=width)
    colour = jnp.stack([1 - presence, presence, jnp.zeros_like(presence)], -1)
    return jnp.clip(jnp.einsum("nhw,nk->hwk", frames[:, 0], colour), 0.0, 1.0)


def corners(box: Float[Array, "*cell 4"], *, height: int, width: int) -> Float[Array, "*cell 4"]:
    """Boxes as (top, left, bottom, right) in pixels, which may lie outside of the image."""
    scale_x, scale_y, x, y = jnp.moveaxis(box, -1, 0)
    edges = [y - scale_y, x - scale_x, y + scale_y, x + scale_x]
    sizes = (height, width, height, width)
    return jnp.stack([(edge + 1) / 2 * size for edge, size in zip(edges, sizes, strict=True)], -1)


@jax.custom_vjp
def _mixed(
    rows: Float[Array, "cell height row"],
    columns: Float[Array, "cell width column"],
    lines: Float[Array, "cell row channel_alpha column"],
    nearness: Float[Array, " cell"],
) -> tuple[Float[Array, "height channel width"], Float[Array, "height width"]]:
    """`sum_n w_n o_n` with `w_n ~ nearness_n a_n`, normalised over cells, and `sum_n a_n`: `o_n` and `a_n` are the
    first channels and the last of glimpses, pasted by `resampled_lines`.

    The pasted glimpses, as many images as there are cells, are not kept for the gradient but made again. With four
    images of 128 pixels and 16 cells, gradients included, a CPU takes a third of the time of all at once, and 26 MB
    in place of 91.
    """
    return _mixed_forward(rows, columns, lines, nearness)[0]


def _mixed_forward(rows: Array, columns: Array, lines: Array, nearness: Array):
    def add(sums, some):
        colour, total, norm = sums
        *cells, nearness = some
        pasted = resampled_lines(*cells)
        for n in range(len(pasted)):  # as sums over an axis the products would be stored
            opacity = pasted[n, :, -1]
            near = opacity * nearness[n]
            colour, total, norm = colour + pasted[n, :, :-1] * near[:, None], total + opacity, norm + near
        return (colour, total, norm), None

    plane = jnp.zeros((rows.shape[1], columns.shape[1]), lines.dtype)
    colour = jnp.zeros((rows.shape[1], lines.shape[2] - 1, columns.shape[1]), lines.dtype)
    args = (rows, columns, lines, nearness)
    (colour, total, norm), _ = jax.lax.scan(add, (colour, plane, plane + _TINY), _chunks(args))
    foreground = colour / norm[:, None]
    return (foreground, total), (args, norm, foreground)


def _mixed_backward(kept, cotangents):
    args, norm, foreground = kept
    d_foreground, d_total = cotangents
    scaled = d_foreground / norm[:, None]
    d_norm = -(scaled * foreground).sum(1)
    padded = jnp.pad(scaled, ((0, 0), (0, 1), (0, 0)))

    def one(some):
        *cells, nearness = some
        pasted, pull = jax.vjp(resampled_lines, *cells)
        products = (pasted[:, :, c] * scaled[None, :, c] for c in range(scaled.shape[1]))
        d_near = sum(products, d_norm[None])
        opacity, at = pasted[:, :, -1], nearness[:, None, None]
        last = jnp.arange(pasted.shape[2]) == pasted.shape[2] - 1
        d_opacity, d_colour = at * d_near + d_total[None], (opacity * at)[:, :, None] * padded[None]
        d_pasted = jnp.where(last[None, None, :, None], d_opacity[:, :, None], d_colour)
        return *pull(d_pasted), (opacity * d_near).sum((1, 2))

    parts = jax.lax.map(one, _chunks(args))
    return jax.tree.map(lambda part, whole: part.reshape(whole.shape), parts, args)


def _chunks(args: tuple[Array, ...]) -> tuple[Array, ...]:
    """Groups of cells to be worked on one after the other: all at once on a GPU, else single ones. On a CPU the pasted
    glimpses of four examples' cells then stay in its caches.
    """
    size = len(args[0]) if compiling_for_gpu() else 1
    return tuple(x.reshape(len(x) // size, size, *x.shape[1:]) for x in args)


_mixed.defvjp(_mixed_forward, _mixed_backward)


def _clipped(x: Array) -> Array:
    """Clipped to (0, 1); the gradient is that of the identity."""
    return x + jax.lax.stop_gradient(jnp.clip(x, _TINY, 1 - _TINY) - x)
