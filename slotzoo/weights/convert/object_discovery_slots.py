"""Slot Attention's autoencoder as object-discovery-pytorch names and lays out its parameters."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from slotzoo.errors import WeightsError
from slotzoo.models.slot_attention import SlotAttentionConfig
from slotzoo.weights.convert.rules import Layout, Rule, under
from slotzoo.weights.convert.torch_rules import SLOT_ATTENTION, VECTOR, layer


# A transposed convolution (in, out, height, width), as the convolution that it is the transpose of:
# turned over in both sides, (height, width, in, out).
TRANSPOSED = Layout(
    lambda kernel, shape: kernel.transpose(2, 3, 0, 1)[::-1, ::-1],
    lambda kernel: kernel[::-1, ::-1].transpose(2, 3, 0, 1),
)


def _transposed(seed: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(rf"{seed}\.weight", f"{ours}.weight", TRANSPOSED),
        Rule(rf"{seed}\.bias", f"{ours}.bias", VECTOR),
    )


def parameters(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The trained parameters of a state dict: without the grids of pixel positions."""
    return {name: array for name, array in state.items() if not name.endswith("_pos_embedding.grid")}


def rules(state: Mapping[str, np.ndarray]) -> tuple[Rule, ...]:
    """The table for a state dict; how many layers double the size decides what the last one is called."""
    ups = _upsampling_layers(state)
    return (
        *layer(r"encoder\.(\d+)\.0", "encoder.layers.{}"),
        *layer(r"encoder_pos_embedding\.dense", "encoder.position.dense"),
        *layer(r"encoder_out_layer\.0", "encoder.first"),
        *layer(r"encoder_out_layer\.2", "encoder.second"),
        *under(r"slot_attention\.", "slot_attention.", SLOT_ATTENTION),
        *layer(r"decoder_pos_embedding\.dense", "decoder.position.dense"),
        *_transposed(rf"decoder\.{ups}\.2", "decoder.last"),
        *_transposed(r"decoder\.(\d+)\.0", "decoder.layers.{}"),
    )


def config(hyper: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> SlotAttentionConfig:
    """The configuration of a checkpoint: sizes from its arrays, what these do not show from `hyper_parameters`.

    **Raises** `WeightsError` for arrays that are no such model, and for pictures that are not square.
    """
    try:
        ups = _upsampling_layers(state)
        count = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("encoder."))
        encoder = [state[f"encoder.{i}.0.weight"].shape for i in range(count)]
        decoder = [state[f"decoder.{i}.0.weight"].shape[1] for i in range(ups + 1)]
        slot_dim, mlp_dim = state["slot_attention.mlp.2.weight"].shape
        height, width = state["encoder_pos_embedding.grid"].shape[1:3]
        grid, grid_width = state["decoder_pos_embedding.grid"].shape[1:3]
    except (KeyError, ValueError, IndexError) as error:
        raise WeightsError(f"the checkpoint is no Slot Attention autoencoder: {error!r}.") from error
    if height != width or grid != grid_width:
        raise WeightsError(
            f"the checkpoint is for pictures of {height} x {width} pixels, which are not square."
        )
    separation = hyper.get("use_separation_loss") or "none"
    return SlotAttentionConfig(
        resolution=height,
        in_channels=encoder[0][1],
        num_slots=int(hyper.get("num_slots", 7)),
        num_iterations=int(hyper.get("num_iterations", 3)),
        slot_dim=slot_dim,
        mlp_dim=mlp_dim,
        encoder_widths=tuple(shape[0] for shape in encoder),
        encoder_strides=(1,) * count,
        kernel=encoder[0][-1],
        decoder_grid=grid,
        decoder_widths=tuple(decoder),
        decoder_strides=(2,) * ups + (1,),
        separation=separation,
        area=bool(hyper.get("use_area_loss", False)),
        **_weight(hyper, "separation"),
        **_weight(hyper, "area"),
    )


def _weight(hyper: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The weight of an auxiliary loss: a fixed one, or one that grows between two steps."""
    if hyper.get(f"{name}_tau") is not None:
        return {f"{name}_weight": float(hyper[f"{name}_tau"]), f"{name}_ramp": (0, 0)}
    if hyper.get(f"{name}_tau_max_val") is None:
        return {}
    steps = tuple(int(hyper[f"{name}_tau_{end}"]) for end in ("start", "end"))
    return {f"{name}_weight": float(hyper[f"{name}_tau_max_val"]), f"{name}_ramp": steps}


def _upsampling_layers(state: Mapping[str, np.ndarray]) -> int:
    """How many layers double the size; the two after them stand together under the next number."""
    numbers = [int(name.split(".")[1]) for name in state if name.startswith("decoder.")]
    if not numbers:
        raise WeightsError("the checkpoint is no Slot Attention autoencoder: it has no decoder.")
    return max(numbers)
