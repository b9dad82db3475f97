"""Sampling from the video models as their authors do it: one dispatch per frame, from a loop in Python.

The program of a frame is theirs, on our parameters. `convs5_published` has the encoder, the decoder and ConvS5, whose
kernels are discretised anew for every frame; here are the other cores:

    ConvLSTM      one convolution of [input, h] for the four gates
    S5            the map as one vector by a strided convolution, back by a transposed one; complex64 matrices,
                  discretised anew for every frame
    Transformer   there is no cache: all frames that there is room for go through projection, layers and back
                  projection, of which one is read; a mask as a bias of -1e10
    Performer     the same with FAVOR+ attention, whose sums over the past are loops over the tokens. The authors name
                  it and ship its attention alone; random features that are drawn once, their faster option, are taken

Beside the dispatch the loop does what theirs does: it takes the frame's actions from the array of all, takes the frame
out of what comes back and, for a Transformer, writes its encoding into the array of all. Theirs is a `pmap` with a
progress bar; here it is a `jit` without one, which is faster. States are not donated.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from experiments.benchmarks.convs5_published import (
    published_conv,
    published_decoder,
    published_encoder,
    published_head,
    published_kernels,
    published_layer_norm,
)
from slotzoo.models.temporal import RecurrentTemporal, TransformerTemporal
from slotzoo.models.video import VideoPixels
from slotzoo.nn.attention import MultiHeadAttention
from slotzoo.nn.conv_lstm import ConvLSTM
from slotzoo.nn.conv_ssm import ConvSSM
from slotzoo.nn.favor import STABILISER, FavorAttention, projection
from slotzoo.nn.linear import Linear
from slotzoo.nn.patches import PatchProject
from slotzoo.nn.s5 import S5
from slotzoo.nn.transformer import Transformer, TransformerLayer


Array = jax.Array


@dataclasses.dataclass
class Sampler:
    """A jitted program of one frame, called from Python for `frames` frames after the first.

    Its arguments are those of the frame: parameters, key, what is fed back, the actions of all frames and, for a
    recurrent core, its states.
    """

    step: Any
    frames: int
    recurrent: bool

    def lower(self, *args: Any) -> "Sampler":
        parameters, key, fed, actions, states = args
        now = (actions[:, :1], states) if self.recurrent else (actions, jnp.int32(0))
        return dataclasses.replace(self, step=self.step.lower(parameters, key, fed, *now))

    def compile(self) -> "Sampler":
        return dataclasses.replace(self, step=self.step.compile())

    def memory_analysis(self) -> Any:
        return self.step.memory_analysis()

    def __call__(self, parameters: Any, key: Array, fed: Array, actions: Array, states: Any) -> Array:
        """`batch frames height width channel`."""
        frames, length = [], actions.shape[1]
        for i in range(1, self.frames + 1):
            if self.recurrent:
                frame, fed, states, key = self.step(parameters, key, fed, actions[:, i : i + 1], states)
                frames.append(frame[:, 0])
            else:
                frame, encoded, key = self.step(parameters, key, fed, actions[:, :length], jnp.int32(i))
                fed = fed.at[:, i].set(encoded)
                frames.append(frame)
        return jnp.stack(frames, 1)


def published(model: VideoPixels, first: Array, length: int, frames: int) -> tuple[Sampler, tuple[Any, ...]]:
    """The first `frames` of `length` frames after `first`, `batch height width channel`; actions unknown."""
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    temporal, batch = model.core.temporal, len(first)
    # The kernel of a transposed convolution is stored turned over; it was not meant to be turned in the program.
    turned = None if temporal.expand is None else temporal.expand.weight[::-1, ::-1]
    actions = jnp.zeros((batch, length + 1), jnp.int32)
    recurrent = isinstance(temporal, RecurrentTemporal)
    frame_of = recurrent_frame if recurrent else attending_frame

    def step(arrays: Any, key: Array, *rest: Any):
        parameters, turned = arrays
        following, _ = jax.random.split(key)
        return *frame_of(eqx.combine(parameters, static), turned, *rest), following

    key = jax.random.PRNGKey(0)
    if recurrent:
        states = [
            initial(layer.ssm, batch, *temporal.init_state().shape[1:3]) for layer in temporal.sequence.layers
        ]
        return Sampler(jax.jit(step), frames, True), (
            (parameters, turned),
            key,
            first[:, None],
            actions,
            states,
        )
    encoded = jax.vmap(lambda frame: published_encoder(model.core.encoder, frame))(first)
    fed = jnp.zeros((batch, length + 1, *encoded.shape[1:])).at[:, 0].set(encoded)
    return Sampler(jax.jit(step), frames, False), ((parameters, turned), key, fed, actions, None)


def recurrent_frame(
    model: VideoPixels, turned: Array | None, fed: Array, actions: Array, states: list[Any]
) -> tuple[Array, Array, list[Any]]:
    """`batch 1 height width channel` -> the next frame, what is fed next (the same), the next states."""
    temporal = model.core.temporal
    assert isinstance(temporal, RecurrentTemporal)
    inputs = with_actions(
        model, jax.vmap(lambda x: published_encoder(model.core.encoder, x))(fed[:, 0]), actions[:, 0]
    )
    if temporal.input_conv is not None:
        weight, bias = temporal.input_conv.weight, temporal.input_conv.bias
        u = jax.vmap(lambda x: published_conv(x, weight, bias))(inputs)
    else:
        assert temporal.project is not None
        u = projected(temporal.project, inputs)
    new = []
    for layer, state in zip(temporal.sequence.layers, states, strict=True):
        assert layer.norm is not None
        y, state = LAYERS[type(layer.ssm)](layer.ssm, u, state)
        u = published_layer_norm(layer.norm, u + y)
        new.append(state)
    features = u if turned is None else expanded(turned, u)
    frame = jax.vmap(lambda x: published_decoder(model.core.decoder, x))(features)[:, None]
    return frame, frame, new


def attending_frame(
    model: VideoPixels, turned: Array, fed: Array, actions: Array, now: Array
) -> tuple[Array, Array]:
    """Encodings of all frames, those from `now` on to come -> frame `now` and its encoding."""
    temporal = model.core.temporal
    assert isinstance(temporal, TransformerTemporal)
    inputs = jax.vmap(lambda x, a: with_actions(model, x, a), 1, 1)(fed[:, :-1], actions[:, 1:])
    tokens = jax.vmap(lambda x: projected(temporal.project, x), 1, 1)(inputs)
    start = jnp.tile(temporal.start[None, None], (len(tokens), 1, 1, 1, 1))
    tokens = jnp.concatenate([start, tokens], 1)
    out = transformed(temporal.net, tokens.reshape(len(tokens), -1, tokens.shape[-1]), tokens.shape[1])
    features = jax.vmap(lambda x: expanded(turned, x), 1, 1)(out.reshape(tokens.shape)[:, 1:])
    frame = jax.vmap(lambda x: published_decoder(model.core.decoder, x))(features[:, now - 1])
    return frame, jax.vmap(lambda x: published_encoder(model.core.encoder, x))(frame)


def with_actions(model: VideoPixels, encoded: Array, actions: Array) -> Array:
    """`batch height width channel` and `batch`."""
    embedded = model.core.temporal.actions.embedding.table[actions][:, None, None]
    return jnp.concatenate([encoded, jnp.tile(embedded, (1, *encoded.shape[1:3], 1))], -1)


def projected(project: PatchProject, x: Array) -> Array:
    """`batch height width channel` -> squares."""
    stride = project.weight.shape[:2]
    return lax.conv_general_dilated(
        x, project.weight, stride, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def expanded(turned: Array, x: Array) -> Array:
    """And back, by the transposed convolution."""
    return lax.conv_transpose(x, turned, turned.shape[:2], "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def initial(ssm: Any, batch: int, height: int, width: int) -> Any:
    """The zero state of a layer."""
    places = (batch, height, width)
    if isinstance(ssm, ConvLSTM):
        return (jnp.zeros((*places, ssm.channels)), jnp.zeros((*places, ssm.channels)))
    return jnp.zeros((*places, ssm.planes // 2), jnp.complex64)


def conv_s5(ssm: ConvSSM, u: Array, state: Array) -> tuple[Array, Array]:
    """One frame of a ConvS5 layer, `batch height width channel`."""
    decay, b, c = published_kernels(ssm)
    drive = jax.vmap(lambda u: published_conv(u.astype(jnp.complex64), b))(u)
    state = decay[None, None, None] * state + drive
    y = jax.vmap(lambda x: 2 * published_conv(x, c).real)(state)
    return jax.vmap(lambda y: published_head(ssm, y))(y), state


def conv_lstm(lstm: ConvLSTM, u: Array, state: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
    """One frame of a ConvLSTM layer."""
    c, h = state
    both = jnp.concatenate([u, h], -1)
    i, f, o, g = jnp.split(jax.vmap(lambda x: published_conv(x, lstm.kernel))(both), 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    h = jax.nn.sigmoid(o) * jnp.tanh(c)
    return h, (c, h)


def s5(ssm: S5, u: Array, state: Array) -> tuple[Array, Array]:
    """One frame of an S5 layer, `batch 1 1 channel`."""
    half = ssm.planes // 2
    re = jnp.minimum(ssm.lambda_re, -1e-4) if ssm.clip_eigenvalues else ssm.lambda_re
    eigenvalues = lax.complex(re, ssm.lambda_im)
    decay = jnp.exp(eigenvalues * jnp.exp(ssm.log_step))
    b = lax.complex(ssm.b[:, :half], ssm.b[:, half:]) * ((decay - 1) / eigenvalues)[None]
    c = lax.complex(ssm.c[0, :half], ssm.c[0, half:])
    assert ssm.out2 is not None
    state = decay[None, None, None] * state + u.astype(jnp.complex64) @ b
    y = 2 * (state @ c).real + ssm.d[None, None, None] * u
    y = jax.nn.gelu(y)
    return y * jax.nn.sigmoid(dense(ssm.out2, y)), state


LAYERS: dict[type, Callable[..., tuple[Array, Any]]] = {ConvSSM: conv_s5, ConvLSTM: conv_lstm, S5: s5}


def dense(linear: Linear, x: Array) -> Array:
    assert linear.bias is not None
    return x @ linear.weight + linear.bias.reshape((1,) * (x.ndim - 1) + (-1,))


def transformed(net: Transformer, x: Array, frames: int) -> Array:
    """`batch token channel` of `frames` frames."""
    x = dense(net.project_in, x)
    rates = 1 / 10000 ** (jnp.arange(0.0, net.dim, 2.0) / net.dim)
    angles = jnp.outer(jnp.arange(x.shape[1], dtype=x.dtype), rates)
    x = x + jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)[None]
    mask = jnp.tril(jnp.ones((frames, frames), bool))
    for axis in range(2):
        mask = mask.repeat(x.shape[1] // frames, axis=axis)
    for layer in net.layers:
        x = transformer_layer(layer, x, mask)
    return published_layer_norm(net.norm, jax.nn.gelu(dense(net.project_out, x)))


def transformer_layer(layer: TransformerLayer, x: Array, mask: Array) -> Array:
    attention = layer.attention
    h = published_layer_norm(layer.norm_1, x)
    q, k, v = (
        dense(linear, h).reshape(*h.shape[:2], attention.heads, -1)
        for linear in (attention.query, attention.key, attention.value)
    )
    if isinstance(attention, MultiHeadAttention):
        y = attended(q, k, v, mask)
    else:
        y = favor(attention, q, k, v)
    x = x + dense(attention.out, y.reshape(h.shape))
    h = dense(layer.wi, published_layer_norm(layer.norm_2, x))
    return x + dense(layer.wo, jax.nn.sigmoid(1.702 * h) * h)


def attended(q: Array, k: Array, v: Array, mask: Array) -> Array:
    """`batch token head channel`."""
    bias = jnp.where(mask, 0.0, -1e10)[None, None]
    logits = jnp.einsum("bqhd,bkhd->bhqk", q / jnp.sqrt(q.shape[-1]), k)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits + bias), v)


def favor(attention: FavorAttention, q: Array, k: Array, v: Array) -> Array:
    """Causal attention by positive random features, the sums one token after the other."""
    with jax.ensure_compile_time_eval():
        options = attention.options
        weights = projection(options.features, q.shape[-1], key=jax.random.key(options.seed))

    def features(x: Array, axes: tuple[int, ...]) -> Array:
        x = x.swapaxes(1, 2)
        dots = jnp.einsum("bhtd,md->bhtm", x * x.shape[-1] ** -0.25, weights)
        half = jnp.square(x).sum(-1, keepdims=True) / 2 * x.shape[-1] ** -0.5
        return len(weights) ** -0.5 * (jnp.exp(dots - half - dots.max(axes, keepdims=True)) + STABILISER)

    # Those of the keys are scaled by the largest of all tokens, those of a frame to come included.
    by_token = lambda x: jnp.moveaxis(x, 2, 0)
    q, k, v = by_token(features(q, (-1,))), by_token(features(k, (-2, -1))), jnp.moveaxis(v, 1, 0)

    def numerator(total: Array, now: tuple[Array, Array, Array]):
        q, k, v = now
        total = total + jnp.einsum("bhm,bhd->bhmd", k, v)
        return total, jnp.einsum("bhm,bhmd->bhd", q, total)

    def denominator(total: Array, now: tuple[Array, Array]):
        q, k = now
        total = total + k
        return total, jnp.einsum("bhm,bhm->bh", q, total)

    values = lax.scan(numerator, jnp.zeros((*k.shape[1:], v.shape[-1])), (q, k, v))[1]
    sums = lax.scan(denominator, jnp.zeros(k.shape[1:]), (q, k))[1]
    sums = sums + 2 * STABILISER * (jnp.abs(sums) <= STABILISER)
    return jnp.moveaxis(values * (1 / sums)[..., None], 0, 1)
