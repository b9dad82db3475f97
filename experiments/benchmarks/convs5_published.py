"""The network around a temporal core, and the layers of ConvS5, as the authors' code computes them.

The same functions of the same parameters as ours, plainly written: one convolution of the compiler per convolution,
statistics of groups on the reshaped map, complex64 kernels and states, `jax.lax.associative_scan` under plain
differentiation. What the benchmarks compare with.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from slotzoo.models.convs5 import ConvS5Pixels
from slotzoo.models.temporal import RecurrentTemporal
from slotzoo.nn.conv_ssm import ConvSSM
from slotzoo.nn.norm import GroupNorm, LayerNorm
from slotzoo.nn.resnet import ResNetBlock, ResNetDecoder, ResNetEncoder


Array = jax.Array


def published_conv(x: Array, kernel: Array, bias: Array | None = None) -> Array:
    """One frame `height width in`."""
    kernel = kernel.astype(x.dtype)
    y = lax.conv_general_dilated(x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))[0]
    return y if bias is None else y + bias.astype(x.dtype)[None, None]


def published_group_norm(norm: GroupNorm, x: Array) -> Array:
    """Grouped statistics as mean and mean square, on the reshaped frame."""
    grouped = x.reshape(*x.shape[:2], norm.groups, -1).astype(jnp.float32)
    mean = grouped.mean((0, 1, 3), keepdims=True)
    square = jnp.square(grouped).mean((0, 1, 3), keepdims=True)
    variance = jnp.maximum(square - jnp.square(mean), 0.0)
    scale = norm.scale.astype(jnp.float32).reshape(1, 1, norm.groups, -1)
    bias = norm.bias.astype(jnp.float32).reshape(1, 1, norm.groups, -1)
    y = (grouped - mean) * (lax.rsqrt(variance + norm.eps) * scale) + bias
    return y.reshape(x.shape).astype(x.dtype)


def published_layer_norm(norm: LayerNorm, x: Array) -> Array:
    y = x.astype(jnp.float32)
    mean = y.mean(-1, keepdims=True)
    variance = jnp.maximum(jnp.square(y).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
    scale, bias = (v.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,)) for v in (norm.scale, norm.bias))
    return ((y - mean) * (lax.rsqrt(variance + norm.eps) * scale) + bias).astype(x.dtype)


def published_block(block: ResNetBlock, x: Array) -> Array:
    skip = x if block.skip is None else published_conv(x, block.skip.weight)
    h = jax.nn.elu(published_group_norm(block.norm_1, x))
    h = published_conv(h, block.conv_1.weight, block.conv_1.bias)
    h = jax.nn.elu(published_group_norm(block.norm_2, h))
    return skip + 0.1 * published_conv(h, block.conv_2.weight, block.conv_2.bias)


def published_encoder(encoder: ResNetEncoder, x: Array) -> Array:
    x = published_conv(x, encoder.conv.weight, encoder.conv.bias)
    for i, block in enumerate(encoder.blocks):
        if i in encoder.pool_before:
            zero = np.zeros((), x.dtype)
            x = lax.reduce_window(x, zero, lax.add, (2, 2, 1), (2, 2, 1), "VALID") / 4
        x = published_block(block, x)
    return x


def published_decoder(decoder: ResNetDecoder, x: Array) -> Array:
    x = published_conv(x, decoder.conv.weight, decoder.conv.bias)
    for i, block in enumerate(decoder.blocks):
        if i in decoder.upsample_before:
            x = jax.image.resize(x, (2 * x.shape[0], 2 * x.shape[1], x.shape[2]), "nearest")
        x = published_block(block, x)
    x = published_layer_norm(decoder.norm, x)
    assert decoder.head.bias is not None
    return jnp.tanh(x @ decoder.head.weight + decoder.head.bias[None, None])


def published_kernels(ssm: ConvSSM) -> tuple[Array, Array, Array]:
    """Decay, B and C, complex."""
    half = ssm.planes // 2
    re = jnp.minimum(ssm.lambda_re, -1e-4) if ssm.clip_eigenvalues else ssm.lambda_re
    eigenvalues = lax.complex(re, ssm.lambda_im)
    decay = jnp.exp(eigenvalues * jnp.exp(ssm.log_step))
    b = lax.complex(ssm.b[..., :half], ssm.b[..., half:]) * ((decay - 1) / eigenvalues)[None, None, None]
    return decay, b, lax.complex(ssm.c[..., :half, :], ssm.c[..., half:, :])


def published_head(ssm: ConvSSM, y: Array) -> Array:
    """The `resnet` output block for one frame."""
    h = y
    for norm, conv in zip(ssm.head.norms, ssm.head.convs, strict=True):
        assert isinstance(norm, GroupNorm)
        h = published_conv(jax.nn.gelu(published_group_norm(norm, h)), conv.weight, conv.bias)
    return jax.nn.gelu(y + h)


def published_layer(ssm: ConvSSM, us: Array) -> Array:
    """`time batch height width channel`, from the zero state."""
    decay, b, c = published_kernels(ssm)
    frames = lambda fn: jax.vmap(jax.vmap(fn))
    bu = frames(lambda u: published_conv(u.astype(jnp.complex64), b))(us)
    decays = jnp.broadcast_to(decay, (len(us), len(decay)))

    def combine(first, second):
        (a_i, b_i), (a_j, b_j) = first, second
        return a_j * a_i, a_j[:, None, None, None] * b_i + b_j

    _, xs = lax.associative_scan(combine, (decays, bu))
    ys = frames(lambda x: 2 * published_conv(x, c).real)(xs)
    return frames(functools.partial(published_head, ssm))(ys)


def layers_of(model: ConvS5Pixels) -> RecurrentTemporal:
    """The temporal core."""
    assert isinstance(model.core.temporal, RecurrentTemporal)
    return model.core.temporal


def published_inputs(model: ConvS5Pixels, frames: Array) -> Array:
    """`batch time height width channel` -> what the layers take; no actions."""
    core = model.core
    features = jax.vmap(jax.vmap(functools.partial(published_encoder, core.encoder)))(frames)
    embedded = jnp.broadcast_to(layers_of(model).actions.embedding.table[0], (*features.shape[:-1], 1))
    conv = layers_of(model).input_conv
    assert conv is not None
    joined = jnp.concatenate([features, embedded.astype(features.dtype)], -1)
    return jax.vmap(jax.vmap(lambda x: published_conv(x, conv.weight, conv.bias)))(joined)


def published_forward(model: ConvS5Pixels, video: Array) -> Array:
    """Predictions of all frames after the first."""
    us = jnp.swapaxes(published_inputs(model, video[:, :-1]), 0, 1)
    for layer in layers_of(model).sequence.layers:
        assert layer.norm is not None and isinstance(layer.ssm, ConvSSM)
        us = published_layer_norm(layer.norm, us + published_layer(layer.ssm, us))
    decode = functools.partial(published_decoder, model.core.decoder)
    return jax.vmap(jax.vmap(decode))(jnp.swapaxes(us, 0, 1))


def published_step(model: ConvS5Pixels, frame: Array, states: list[Array]) -> tuple[Array, list[Array]]:
    """One frame `batch height width channel` and complex states `batch height width state`."""
    u = published_inputs(model, frame[:, None])[:, 0]
    new = []
    for layer, state in zip(layers_of(model).sequence.layers, states, strict=True):
        assert layer.norm is not None and isinstance(layer.ssm, ConvSSM)
        decay, b, c = published_kernels(layer.ssm)
        drive = jax.vmap(lambda u, b=b: published_conv(u.astype(jnp.complex64), b))(u)
        state = decay[None, None, None] * state + drive
        new.append(state)
        y = jax.vmap(lambda x, c=c: 2 * published_conv(x, c).real)(state)
        y = jax.vmap(functools.partial(published_head, layer.ssm))(y)
        u = published_layer_norm(layer.norm, u + y)
    return jax.vmap(functools.partial(published_decoder, model.core.decoder))(u), new
