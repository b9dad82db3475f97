"""A stack of convolutions with a ReLU after each: the backbone of SAVi's smaller encoders and of its decoders."""

from typing import Literal

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.nn.conv import Conv, ConvTranspose
from slotzoo.nn.linear import Linear
from slotzoo.nn.norm import GroupNorm, LayerNorm


Norm = Literal["instance", "group", "layer"]


class ConvStack(eqx.Module):
    """`relu(norm(conv(x)))`, once for each of `widths`, the last one included; "SAME" padding as Flax has it.

    With a norm the convolutions have no bias. Source: Kipf et al., ICLR 2022, appendix.
    """

    layers: tuple[Conv | ConvTranspose, ...]
    norms: tuple[LayerNorm | GroupNorm, ...]
    output: Linear | None
    in_channels: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    discard_norm: bool = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, ...],
        *,
        kernel: int = 5,
        strides: tuple[int, ...],
        transposed: tuple[bool, ...] | None = None,
        norm: Norm | None = None,
        discard_norm: bool = False,
        out_size: int | None = None,
        key: PRNGKeyArray,
    ):
        """`transposed` says which layers enlarge by their stride (none unless given); `out_size` adds a linear layer.

        `discard_norm`: the norms have parameters and do nothing, as the authors' code has it for "group" and "layer".
        """
        transposed = (False,) * len(widths) if transposed is None else transposed
        if not widths or not len(widths) == len(strides) == len(transposed):
            raise ConfigError(
                f"convolutions: widths={widths}, strides={strides} and transposed={transposed} must name the same "
                "layers, at least one."
            )
        out_key, *keys = jax.random.split(key, 1 + len(widths))
        self.layers = tuple(
            (ConvTranspose if enlarge else Conv)(a, b, kernel, stride=stride, bias=norm is None, key=k)
            for a, b, stride, enlarge, k in zip(
                (in_channels, *widths[:-1]), widths, strides, transposed, keys, strict=True
            )
        )
        makers = {
            "instance": lambda n: GroupNorm(n, n),
            "group": lambda n: GroupNorm(32, n),
            "layer": LayerNorm,
        }
        self.norms = () if norm is None else tuple(makers[norm](width) for width in widths)
        self.output = None if out_size is None else Linear(widths[-1], out_size, key=out_key)
        self.in_channels, self.discard_norm = in_channels, discard_norm
        self.out_channels = widths[-1] if out_size is None else out_size

    def __call__(
        self, x: Float[Array, "*batch height width {self.in_channels}"]
    ) -> Float[Array, "*batch height_out width_out {self.out_channels}"]:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if self.norms and not self.discard_norm:
                x = self.norms[i](x)
            x = jax.nn.relu(x)
        return x if self.output is None else self.output(x)
