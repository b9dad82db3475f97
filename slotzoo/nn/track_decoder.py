"""The decoder of SAVi: every slot painted over the whole frame, several targets read off, mixed by the masks."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.nn.conv_stack import ConvStack
from slotzoo.nn.linear import Linear
from slotzoo.nn.position import PositionTable


class TrackDecoder(eqx.Module):
    """`target = sum_s softmax_s(alpha_s) (W f_s + b)` for each target, with features f of the slots.

    A slot is repeated over a grid of places, positions are added, and (transposed) convolutions enlarge it. Mixing
    the features before a linear readout ("early fusion", SAVi++) or the readings after it (SAVi) is the same, for the
    masks sum to 1; here alpha and all readings are one product over the features.

    Sources: Watters et al., Spatial Broadcast Decoder, 2019; Kipf et al., ICLR 2022; Elsayed et al., NeurIPS 2022.
    """

    position: PositionTable
    convs: ConvStack
    alpha: Linear
    readouts: dict[str, Linear]
    dim: int = eqx.field(static=True)
    grid: tuple[int, int] = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        targets: dict[str, int],
        *,
        grid: tuple[int, int],
        widths: tuple[int, ...],
        strides: tuple[int, ...],
        transposed: tuple[bool, ...] | None = None,
        kernel: int = 5,
        key: PRNGKeyArray,
    ):
        """`targets`: channels of each. `transposed`: which layers enlarge; those with a stride, unless given."""
        if not targets:
            raise ConfigError("decoder: there must be at least one target.")
        position_key, convs_key, alpha_key, readout_key = jax.random.split(key, 4)
        self.position = PositionTable(dim, grid, key=position_key)
        transposed = tuple(stride > 1 for stride in strides) if transposed is None else transposed
        self.convs = ConvStack(
            dim, widths, kernel=kernel, strides=strides, transposed=transposed, key=convs_key
        )
        self.alpha = Linear(widths[-1], 1, key=alpha_key)
        keys = jax.random.split(readout_key, len(targets))
        self.readouts = {
            name: Linear(widths[-1], channels, key=k)
            for (name, channels), k in zip(targets.items(), keys, strict=True)
        }
        self.dim, self.grid = dim, grid

    @property
    def factor(self) -> int:
        """How many times larger than the grid the frames are."""
        return math.prod(layer.stride for layer in self.convs.layers)

    def __call__(
        self, slots: Float[Array, "slot {self.dim}"], painted: int | None = None
    ) -> tuple[dict[str, Float[Array, "height width channel"]], Float[Array, "slot height width"]]:
        """The targets of one frame, and the masks (float32).

        Where all slots from `painted` on are copies of the first, they need not be painted to be mixed in.
        """
        painted = len(slots) if painted is None else min(painted, len(slots))
        readings, alpha = self._read(slots[:painted])
        if painted < len(slots):
            whose = np.where(np.arange(len(slots)) < painted, np.arange(len(slots)), 0)
            readings, alpha = readings[whose], alpha[whose]
        masks = jax.nn.softmax(alpha.astype(jnp.float32), axis=0)
        mixed = (masks[..., None] * readings.astype(jnp.float32)).sum(0)
        return self._split(mixed.astype(readings.dtype)), masks

    def pictures(
        self, slots: Float[Array, "slot {self.dim}"]
    ) -> dict[str, Float[Array, "slot height width channel"]]:
        """What each slot paints of each target, before its mask."""
        return self._split(self._read(slots)[0])

    def _read(self, slots: Array) -> tuple[Array, Array]:
        """All targets of every slot side by side, and alpha."""
        x = jnp.broadcast_to(slots[:, None, None, :], (len(slots), *self.grid, self.dim))
        features = self.convs(self.position(x))
        layers = [*self.readouts.values(), self.alpha]
        weight = jnp.concatenate([layer.weight for layer in layers], axis=1)
        biases = [layer.bias for layer in layers if layer.bias is not None]
        y = features @ weight.astype(features.dtype)
        y = y + jnp.concatenate(biases).astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
        return y[..., :-1], y[..., -1]

    def _split(self, readings: Array) -> dict[str, Array]:
        found, start = {}, 0
        for name, layer in self.readouts.items():
            found[name] = readings[..., start : start + layer.out_size]
            start += layer.out_size
        return found
