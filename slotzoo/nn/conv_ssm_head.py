"""What a convolutional state-space layer does with the map it read from its state: the C/D block of ConvS5."""

from typing import Literal

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.activations import Activation, activation
from slotzoo.nn.conv import Conv
from slotzoo.nn.linear import Linear
from slotzoo.nn.norm import GroupNorm, LayerNorm


Head = Literal["resnet", "standard", "half_glu", "none"]


class SqueezeExcite(eqx.Module):
    """`x * sigmoid(expand(relu(reduce(mean over space of x))))`, at least 4 channels wide inside."""

    reduce: Linear
    expand: Linear

    def __init__(self, channels: int, *, key: PRNGKeyArray):
        reduce_key, expand_key = jax.random.split(key)
        hidden = max(channels // 16, 4)
        self.reduce = Linear(channels, hidden, key=reduce_key)
        self.expand = Linear(hidden, channels, key=expand_key)

    def __call__(
        self, x: Float[Array, "*batch height width channel"]
    ) -> Float[Array, "*batch height width channel"]:
        gate = self.expand(jax.nn.relu(self.reduce(x.mean((-3, -2), keepdims=True))))
        return x * jax.nn.sigmoid(gate)


class OutputBlock(eqx.Module):
    """From the read-out `y` (and, for `standard`, the input `u`) of a layer to its output, frame by frame.

    - `resnet`: `act(y + conv(act(norm(conv(act(norm(y)))))))`; there is no path from `u`.
    - `standard`: `act(norm(y + conv(u)))`.
    - `half_glu`: `h * sigmoid(dense(h))` with `h = act(layer_norm(y))`.
    - `none`: `y`; what the seed's `diag_resnet` comes to.

    Norms are group norms. `squeeze_excite` scales the last convolution of `resnet`, the output of `standard`.
    """

    norms: tuple[GroupNorm | LayerNorm, ...]
    convs: tuple[Conv, ...]
    gate: Linear | None
    squeeze_excite: SqueezeExcite | None
    kind: Head = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)

    def __init__(
        self,
        kind: Head,
        channels: int,
        kernel_size: int,
        activation: Activation,
        *,
        groups: int,
        squeeze_excite: bool,
        key: PRNGKeyArray,
    ):
        excite_key, *keys = jax.random.split(key, 3)
        number = {"resnet": 2, "standard": 1, "half_glu": 0, "none": 0}[kind]
        self.norms = tuple(GroupNorm(groups, channels) for _ in range(number))
        self.convs = tuple(Conv(channels, channels, kernel_size, key=k) for k in keys[:number])
        self.gate = None
        if kind == "half_glu":
            self.norms = (LayerNorm(channels),)
            dense = Linear(channels, channels, key=keys[0])
            init = jax.nn.initializers.variance_scaling(0.2, "fan_in", "truncated_normal")
            self.gate = eqx.tree_at(lambda linear: linear.weight, dense, init(keys[0], dense.weight.shape))
        self.squeeze_excite = SqueezeExcite(channels, key=excite_key) if squeeze_excite and number else None
        self.kind, self.activation = kind, activation

    def __call__(
        self, y: Float[Array, "*batch height width channel"], u: Float[Array, "*batch height width channel"]
    ) -> Float[Array, "*batch height width channel"]:
        act = activation(self.activation)
        match self.kind:
            case "resnet":
                h = y
                for norm, conv in zip(self.norms, self.convs, strict=True):
                    h = conv(norm(h, activation=self.activation))
                return act(y + self._excited(h))
            case "standard":
                return self._excited(self.norms[0](y + self.convs[0](u), activation=self.activation))
            case "half_glu":
                assert self.gate is not None
                h = self.norms[0](y, activation=self.activation)
                return h * jax.nn.sigmoid(self.gate(h))
            case _:
                return y

    def _excited(self, h: Array) -> Array:
        return h if self.squeeze_excite is None else self.squeeze_excite(h)
