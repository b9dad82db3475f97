"""SAVi and STATM as their authors' code computes them, on the parameters of ours.

What differs: transposed convolutions multiply the zeros between pixels; keys and values of the tokens are made frame
by frame. SAVi's recurrence is a scan. STATM's is a loop in Python over a list of the slots of all frames so far, which
is traced and compiled for every frame anew and projected to keys and values again at each; its frames are encoded
and decoded inside of that loop.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from slotzoo.models.savi import SAVi
from slotzoo.nn.conv import Conv, ConvTranspose
from slotzoo.nn.conv_stack import ConvStack
from slotzoo.nn.predictor import SlotPredictor
from slotzoo.nn.time_space import TimeSpacePredictor


def prediction(
    model: SAVi, video: Float[Array, "time height width channel"], boxes: Float[Array, "object 4"]
) -> dict[str, Float[Array, "time height width channel"]]:
    """The targets of a clip."""
    slots = model.init_state(boxes).slots
    if isinstance(model.predictor, SlotPredictor):
        return _scanned(model, model.predictor, video, slots)
    assert isinstance(model.predictor, TimeSpacePredictor)
    found, remembered = [], []
    for frame in video:
        slots = _corrected(model, encode(model, frame), slots)
        found.append(decode(model, slots))
        remembered.append(slots)
        slots = _block_2(model.predictor, slots, jnp.stack(remembered))
    return {name: jnp.stack([each[name] for each in found]) for name in found[0]}


def _scanned(model: SAVi, predictor: SlotPredictor, video: Array, slots: Array) -> dict[str, Array]:
    def frame(slots: Array, tokens: Array) -> tuple[Array, Array]:
        slots = _corrected(model, tokens, slots)
        return predictor.block(slots), slots

    tokens = jax.vmap(lambda x: encode(model, x))(video)
    _, corrected = jax.lax.scan(frame, slots, tokens)
    return jax.vmap(lambda x: decode(model, x))(corrected)


def encode(model: SAVi, frame: Float[Array, "height width channel"]) -> Float[Array, "token channel"]:
    """The tokens of one frame, for a backbone of convolutions."""
    backbone: Any = model.encoder.backbone
    x = model.encoder.position(_stack(backbone, frame[None]))[0]
    return x.reshape(-1, x.shape[-1])


def decode(model: SAVi, slots: Float[Array, "slot dim"]) -> dict[str, Float[Array, "height width channel"]]:
    """The targets of one frame: every slot's readings, mixed by the masks."""
    decoder = model.decoder
    x = jnp.broadcast_to(slots[:, None, None, :], (len(slots), *decoder.grid, decoder.dim))
    features = _stack(decoder.convs, decoder.position(x))
    masks = jax.nn.softmax(decoder.alpha(features), axis=0)
    return {name: jnp.sum(masks * readout(features), axis=0) for name, readout in decoder.readouts.items()}


def _corrected(model: SAVi, tokens: Array, slots: Array) -> Array:
    return model.corrector.refine(model.corrector.project(tokens), slots, iterations=model.config.iterations)[0]


def _block_2(predictor: TimeSpacePredictor, slots: Array, remembered: Float[Array, "time slot dim"]) -> Array:
    """The published block, with every frame's keys and values made anew."""
    first, second, last = predictor.norms
    time = jax.vmap(lambda query, memory: predictor.time(query[None], memory)[0], in_axes=(0, 1))
    y = first(slots + predictor.space(slots)) + second(slots + time(slots, remembered))
    return last(y + predictor.mlp(y))


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
