"""SLATE as object-discovery-pytorch and as its authors (singhgautam/slate) name and lay out its parameters."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from slotzoo.errors import WeightsError
from slotzoo.models.slate import SLATEConfig
from slotzoo.weights.convert.rules import Rule, under
from slotzoo.weights.convert.torch_rules import (
    BATCHED_TABLE,
    SLATE_SLOT_ENCODER,
    SLOT_ATTENTION,
    VECTOR,
    layer,
    norm,
)


def _block(seed: str, ours: str) -> tuple[Rule, ...]:
    """A convolution without bias, and the norm whose parameters stand beside it."""
    return (*norm(seed, f"{ours}.norm"), *layer(rf"{seed}\.m", f"{ours}.conv"))


def _attention(seed: str, ours: str) -> tuple[Rule, ...]:
    names = {"q": "query", "k": "key", "v": "value", "o": "out"}
    rules = [rule for k, name in names.items() for rule in layer(rf"{seed}\.proj_{k}", f"{ours}.{name}")]
    return (*norm(f"{seed}_layer_norm", f"{ours}_norm"), *rules)


_FEED_FORWARD = (
    *norm("ffn_layer_norm", "ffn_norm"),
    *layer(r"ffn\.0", "ffn.inner"),
    *layer(r"ffn\.2", "ffn.outer"),
)
_BLOCKS = r"blocks\.(\d+)\."
TRANSFORMER_ENCODER = (
    *under(_BLOCKS, "blocks.{}.", (*_attention("attn", "attention"), *_FEED_FORWARD)),
    *norm("layer_norm", "norm"),
)
TRANSFORMER_DECODER = (
    *under(
        _BLOCKS,
        "blocks.{}.",
        (
            *_attention("self_attn", "self_attention"),
            *_attention("encoder_decoder_attn", "cross_attention"),
            *_FEED_FORWARD,
        ),
    ),
    *norm("layer_norm", "norm"),
)
DVAE = (
    *layer(r"encoder\.7", "encoder.out"),
    *_block(r"encoder\.(\d)", "encoder.blocks.{}"),
    *layer(r"decoder\.11", "decoder.out"),
    *_block(r"decoder\.0", "decoder.first"),
    *(rule for i in range(4) for rule in _block(rf"decoder\.{1 + i}", f"decoder.upsamplers.0.blocks.{i}")),
    *(rule for i in range(4) for rule in _block(rf"decoder\.{6 + i}", f"decoder.upsamplers.1.blocks.{i}")),
)


def _slate(slots: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return (
        *under(r"dvae\.", "dvae.", DVAE),
        Rule(r"positional_encoder\.pe", "position", BATCHED_TABLE),
        Rule(r"dictionary\.dictionary\.weight", "dictionary", VECTOR),
        *under(r"slot_attn\.", "slot_attention.", slots),
        *layer("slot_proj", "slot_proj"),
        *under(r"tf_dec\.", "decoder.", TRANSFORMER_DECODER),
        *layer("out", "out"),
    )


SLATE = _slate(SLOT_ATTENTION)
SLATE_AUTHORS = _slate(SLATE_SLOT_ENCODER)


def parameters(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The trained parameters of a state dict: without the causal masks, which the seeds store beside them."""
    return {name: array for name, array in state.items() if not name.endswith("self_attn_mask")}


def rules(state: Mapping[str, np.ndarray]) -> tuple[Rule, ...]:
    """The table for a state dict: the authors nest the slot attention, the port does not."""
    nested = any(name.startswith("slot_attn.slot_attention.") for name in state)
    return SLATE_AUTHORS if nested else SLATE


def config(hyper: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> SLATEConfig:
    """The configuration of a checkpoint: sizes from its arrays, what these do not show from `hyper_parameters`.

    The authors' checkpoints have no hyper-parameters; their command line's defaults stand in for what is missing.
    """
    try:
        places, d_model = state["positional_encoder.pe"].shape[-2:]
        blocks = [int(m.group(1)) for name in state if (m := re.match(r"tf_dec\.blocks\.(\d+)\.", name))]
        nested = rules(state) is SLATE_AUTHORS
        prefix = "slot_attn.slot_attention." if nested else "slot_attn."
        slot_size, mlp_hidden = state[f"{prefix}mlp.2.weight"].shape
        vocab, _ = state["out.weight"].shape
        channels, width = state["dvae.decoder.11.weight"].shape[:2]
    except (KeyError, ValueError) as error:
        raise WeightsError(f"the checkpoint is no SLATE: {error} is missing or has another shape.") from error
    side = round((places - 1) ** 0.5)
    depth = max(blocks, default=-1) + 1
    if side**2 != places - 1 or not blocks:
        raise WeightsError(f"the checkpoint is no SLATE of square images: {places - 1} tokens, {depth} blocks.")
    given: dict[str, Any] = {
        name: kind(hyper[name])
        for name, kind in (
            *(("num_slots", int), ("num_iterations", int), ("num_heads", int), ("num_slot_heads", int)),
            *(
                ("dropout", float),
                ("tau_start", float),
                ("tau_final", float),
                ("tau_steps", int),
                ("hard", bool),
            ),
        )
        if hyper.get(name) is not None
    }
    defaults: dict[str, Any] = dict(num_slots=3, num_heads=4) if nested else {}
    return SLATEConfig(
        **(defaults | given),
        resolution=4 * side,
        slot_size=slot_size,
        mlp_hidden_size=mlp_hidden,
        vocab_size=vocab,
        d_model=d_model,
        num_dec_blocks=depth,
        in_channels=channels,
        gradient="explicit" if nested else "implicit",
        dvae_width=width,
    )
