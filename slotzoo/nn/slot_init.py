"""Where slots begin in the first frame of a video: learned, drawn, or told by boxes, points or segments."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn.initializers import glorot_uniform
from jaxtyping import Array, Float, Int, PRNGKeyArray

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.nn.conv_stack import ConvStack
from slotzoo.nn.mlp import DeepMLP
from slotzoo.nn.position import PositionTable


class LearnedSlots(eqx.Module):
    """A vector of its own for every slot, standard normal at first."""

    table: Float[Array, "slot dim"]

    def __init__(self, num_slots: int, dim: int, *, key: PRNGKeyArray):
        self.table = jax.random.normal(key, (num_slots, dim))

    def __call__(self) -> Float[Array, "slot dim"]:
        return self.table


class GaussianSlots(eqx.Module):
    """`noise`, or with learned moments `mean + exp(log_scale) noise`, the same for all slots.

    The learned ones are those of STATM without conditions.
    """

    mean: Float[Array, " dim"] | None
    log_scale: Float[Array, " dim"] | None
    num_slots: int = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(self, num_slots: int, dim: int, *, learned: bool, key: PRNGKeyArray):
        keys = jax.random.split(key)
        # Glorot-uniform for an array of (1, 1, dim).
        self.mean, self.log_scale = (
            glorot_uniform()(k, (1, dim), jnp.float32)[0] if learned else None for k in keys
        )
        self.num_slots, self.dim = num_slots, dim

    def draw(self, key: PRNGKeyArray) -> Float[Array, "{self.num_slots} {self.dim}"]:
        """Standard normal noise."""
        return jax.random.normal(key, (self.num_slots, self.dim))

    def __call__(self, noise: Float[Array, "slot {self.dim}"]) -> Float[Array, "slot {self.dim}"]:
        if self.mean is None or self.log_scale is None:
            return noise
        return self.mean[None] + jnp.exp(self.log_scale)[None] * noise.astype(self.mean.dtype)


class CoordinateSlots(eqx.Module):
    """`MLP(coordinates)` for every object, and before them a slot of the background, of made-up coordinates.

    Coordinates are boxes `(y_low, x_low, y_high, x_high)` or centres `(y, x)`, from 0 to 1. An object that is
    absent has a box of zeros, and so begins as a copy of the background.
    """

    embed: DeepMLP
    coordinates: int = eqx.field(static=True)
    background: float | None = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        *,
        coordinates: Literal[2, 4],
        width: int,
        background: float | None = 0.0,
        key: PRNGKeyArray,
    ):
        """`background`: every coordinate of the background's; None for no slot of it."""
        self.embed = DeepMLP(coordinates, width, dim, key=key)
        self.coordinates, self.background = coordinates, background

    def __call__(self, coordinates: Float[Array, "object coordinate"]) -> Float[Array, "slot dim"]:
        """Boxes, or centres; of boxes the centres are taken where the module was made for centres."""
        if coordinates.shape[-1] not in (4, self.coordinates):
            raise ShapeError(
                f"slots of coordinates: made for {self.coordinates} per object, got {coordinates.shape[-1]}."
            )
        given = coordinates.astype(self.embed.layers[0].weight.dtype)
        if self.background is not None:
            given = jnp.concatenate([jnp.full((1, given.shape[-1]), self.background, given.dtype), given])
        return self.embed(box_centers(given) if given.shape[-1] > self.coordinates else given)


class SegmentSlots(eqx.Module):
    """`MLP(flatten(convolutions(segment)))` for each of `num_slots` segments of a label map, 0 the first."""

    convs: ConvStack
    position: PositionTable
    embed: DeepMLP
    num_slots: int = eqx.field(static=True)
    zero_background: bool = eqx.field(static=True)

    def __init__(
        self,
        num_slots: int,
        dim: int,
        *,
        size: tuple[int, int],
        widths: tuple[int, ...],
        strides: tuple[int, ...],
        kernel: int = 3,
        width: int,
        zero_background: bool = False,
        key: PRNGKeyArray,
    ):
        """`size`: of the label maps. `zero_background`: of the background's segment nothing is shown."""
        if len(widths) != len(strides):
            raise ConfigError(
                f"slots of segments: widths={widths} and strides={strides} must name the same layers."
            )
        convs_key, position_key, embed_key = jax.random.split(key, 3)
        self.convs = ConvStack(1, widths, kernel=kernel, strides=strides, key=convs_key)
        grid = reduced(size, strides)
        self.position = PositionTable(widths[-1], grid, key=position_key)
        self.embed = DeepMLP(widths[-1] * grid[0] * grid[1], width, dim, key=embed_key)
        self.num_slots, self.zero_background = num_slots, zero_background

    def __call__(self, segments: Int[Array, "height width"]) -> Float[Array, "slot dim"]:
        """Labels from `num_slots` on are in no slot."""
        dtype = self.embed.layers[0].weight.dtype
        maps = jax.nn.one_hot(segments, self.num_slots, axis=0, dtype=dtype)
        if self.zero_background:
            maps = maps.at[0].set(0)
        features = self.position(self.convs(maps[..., None]))
        return self.embed(features.reshape(self.num_slots, -1))


def box_centers(boxes: Float[Array, "*batch 4"]) -> Float[Array, "*batch 2"]:
    """`((y_low + y_high) / 2, (x_low + x_high) / 2)`."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def reduced(size: tuple[int, int], strides: tuple[int, ...]) -> tuple[int, int]:
    """What convolutions with "SAME" padding leave of a map."""
    height, width = size
    for stride in strides:
        height, width = -(-height // stride), -(-width // stride)
    return height, width
