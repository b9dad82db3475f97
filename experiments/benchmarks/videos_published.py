"""SAVi and STATM as their authors' code computes them, on the parameters of ours.

What differs: transposed convolutions multiply the zeros between pixels; keys and values of the tokens are made frame
by frame; every gate, head and target has a product of its own. SAVi's recurrence is a scan. STATM's is a loop in
Python over a list of the slots of all frames so far, which is traced and compiled for every frame anew and projected
to keys and values again at each. In both, frames are encoded before and decoded after the recurrence, all at once.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from slotzoo.models.savi import SAVi
from slotzoo.nn.attention import MultiHeadAttention
from slotzoo.nn.conv import Conv, ConvTranspose
from slotzoo.nn.conv_stack import ConvStack
from slotzoo.nn.gru import GRUCell
from slotzoo.nn.mlp import DeepMLP
from slotzoo.nn.norm import LayerNorm
from slotzoo.nn.position import PositionTable
from slotzoo.nn.predictor import SlotPredictor
from slotzoo.nn.time_space import TimeSpacePredictor


def prediction(
    model: SAVi,
    video: Float[Array, "time height width channel"],
    boxes: Float[Array, "object 4"],
    *,
    unrolled: bool = False,
) -> dict[str, Float[Array, "time height width channel"]]:
    """The targets of a clip. `unrolled`: everything, encoder and decoder too, in a loop in Python over the frames, as
    neither code has it.
    """
    slots, predictor = model.init_state(boxes).slots, model.predictor
    if unrolled:
        found, remembered = [], []
        for frame in video:
            remembered.append(_corrected(model, encode(model, frame), slots))
            found.append(decode(model, remembered[-1]))
            slots = _predicted(predictor, remembered[-1], remembered)
        return {name: jnp.stack([each[name] for each in found]) for name in found[0]}
    tokens = jax.vmap(lambda x: encode(model, x))(video)
    if isinstance(predictor, SlotPredictor):

        def step(slots: Array, tokens: Array) -> tuple[Array, Array]:
            slots = _corrected(model, tokens, slots)
            return _predicted(predictor, slots, [slots]), slots

        _, corrected = jax.lax.scan(step, slots, tokens)
    else:
        remembered = []
        for seen in tokens:
            remembered.append(_corrected(model, seen, slots))
            slots = _predicted(predictor, remembered[-1], remembered)
        corrected = jnp.stack(remembered)
    return jax.vmap(lambda x: decode(model, x))(corrected)


def encode(model: SAVi, frame: Float[Array, "height width channel"]) -> Float[Array, "token channel"]:
    """The tokens of one frame, for a backbone of convolutions."""
    backbone: Any = model.encoder.backbone
    position = model.encoder.position
    x = _placed(position, _stack(backbone, frame[None])[0])
    if position.transform is not None:
        x = _perceptron(position.transform, x)
    return x.reshape(-1, x.shape[-1])


def decode(model: SAVi, slots: Float[Array, "slot dim"]) -> dict[str, Float[Array, "height width channel"]]:
    """The targets of one frame: every slot's readings, mixed by the masks."""
    decoder = model.decoder
    x = jnp.broadcast_to(slots[:, None, None, :], (len(slots), *decoder.grid, decoder.dim))
    features = _stack(decoder.convs, _placed(decoder.position, x))
    masks = jax.nn.softmax(decoder.alpha(features), axis=0)
    return {name: jnp.sum(masks * readout(features), axis=0) for name, readout in decoder.readouts.items()}


def _corrected(model: SAVi, tokens: Array, slots: Array) -> Array:
    corrector = model.corrector
    tokens = _normalised(corrector.norm_inputs, tokens)
    key, value = corrector.key(tokens), corrector.value(tokens)
    for _ in range(model.config.iterations):
        query = corrector.query(_normalised(corrector.norm_slots, slots)) / math.sqrt(key.shape[-1])
        shares = jax.nn.softmax(jnp.einsum("qd,kd->qk", query, key), axis=0)
        shares = shares / (jnp.sum(shares, axis=1, keepdims=True) + corrector.epsilon)
        slots = _gated(corrector.gru, jnp.einsum("qk,kd->qd", shares, value), slots)
    return slots


def _predicted(predictor: Any, slots: Array, remembered: list[Array]) -> Array:
    """The published block between slots, or between slots and all that they were."""
    if isinstance(predictor, SlotPredictor):
        block = predictor.block
        y = _normalised(block.norms[0], _attended(block.attention, slots, slots) + slots)
        return _normalised(block.norms[1], _perceptron(block.mlp, y) + y)
    assert isinstance(predictor, TimeSpacePredictor)
    first, second, last = predictor.norms
    space = _normalised(first, _attended(predictor.space, slots, slots) + slots)
    back = lambda query, memory: _attended(predictor.time, query[None], memory)[0]
    time = jax.vmap(back, in_axes=(0, 1))(slots, jnp.stack(remembered)) + slots
    y = _normalised(second, time) + space
    return _normalised(last, _perceptron(predictor.mlp, y) + y)


def _attended(layer: MultiHeadAttention, x: Array, context: Array) -> Array:
    split = lambda y: y.reshape(len(y), layer.heads, layer.head_dim)
    query, key, value = split(layer.query(x)), split(layer.key(context)), split(layer.value(context))
    logits = jnp.einsum("qhd,khd->hqk", query / math.sqrt(layer.head_dim), key)
    y = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(logits, axis=-1), value)
    return layer.out(y.reshape(len(x), -1))


def _gated(cell: GRUCell, x: Array, state: Array) -> Array:
    """Six products, of which the last has a bias of its own."""
    reset_in, update_in, new_in = (
        x @ weight + bias[None]
        for weight, bias in zip(
            jnp.split(cell.weight_input, 3, axis=1), jnp.split(cell.bias_input, 3), strict=True
        )
    )
    reset, update, new = (state @ weight for weight in jnp.split(cell.weight_hidden, 3, axis=1))
    reset, update = jax.nn.sigmoid(reset_in + reset), jax.nn.sigmoid(update_in + update)
    new = jnp.tanh(new_in + reset * (new + cell.bias_hidden[None]))
    return (1 - update) * new + update * state


def _normalised(norm: LayerNorm, x: Array) -> Array:
    mean = x.mean(-1, keepdims=True)
    variance = jnp.maximum(jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean), 0.0)
    like = lambda vector: vector.reshape((1,) * (x.ndim - 1) + (-1,))
    return (x - mean) * (jax.lax.rsqrt(variance + norm.eps) * like(norm.scale)) + like(norm.bias)


def _perceptron(mlp: DeepMLP, x: Array) -> Array:
    x = x if mlp.norm is None else _normalised(mlp.norm, x)
    first, last = mlp.layers
    return last(jax.nn.relu(first(x)))


def _placed(position: PositionTable, x: Array) -> Array:
    assert position.dense is not None
    places = position.dense(jax.lax.stop_gradient(position.table))
    return x + places.reshape((1,) * (x.ndim - places.ndim) + places.shape)


def _stack(stack: ConvStack, x: Array) -> Array:
    for layer in stack.layers:
        x = jax.nn.relu(_convolved(layer, x))
    return x


def _convolved(layer: Conv | ConvTranspose, x: Array) -> Array:
    stride, side = layer.stride, layer.weight.shape[0]
    padding: Any = "SAME"
    dilation, strides = (1, 1), (stride, stride)
    if isinstance(layer, ConvTranspose):
        total = side + stride - 2
        padding = [(total - total // 2, total // 2)] * 2
        dilation, strides = (stride, stride), (1, 1)
    y = jax.lax.conv_general_dilated(
        x, layer.weight, strides, padding, lhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y if layer.bias is None else y + layer.bias.reshape(1, 1, 1, -1)
