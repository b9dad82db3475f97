"""SLATE's checkpoints as its authors name them; the port's names are covered by the recorded checkpoint."""

import dataclasses

import equinox as eqx
import jax
import numpy as np
import pytest

from slotzoo.errors import WeightsError
from slotzoo.models.slate import SLATE, SLATEConfig
from slotzoo.weights.convert.object_discovery_slate import config, parameters, rules
from slotzoo.weights.convert.rules import from_seed, to_seed
from slotzoo.weights.leaves import named_leaves
from tests.arrays import random_module


CONFIG = SLATEConfig(
    resolution=8,
    num_slots=3,
    slot_size=6,
    mlp_hidden_size=10,
    vocab_size=5,
    d_model=8,
    num_dec_blocks=2,
    num_heads=4,
    gradient="explicit",
    dvae_width=4,
)


def authors_names(blocks: int) -> list[str]:
    pair = lambda name: [f"{name}.weight", f"{name}.bias"]
    names = ["positional_encoder.pe", "dictionary.dictionary.weight", "slot_proj.weight", "out.weight"]
    for part, numbers, last in (("encoder", range(7), 7), ("decoder", (0, 1, 2, 3, 4, 6, 7, 8, 9), 11)):
        for i in numbers:
            names += [f"dvae.{part}.{i}.m.weight", *pair(f"dvae.{part}.{i}")]
        names += pair(f"dvae.{part}.{last}")
    names += [f"slot_attn.{name}" for name in ("slot_mu", "slot_log_sigma")]
    names += [n for part in ("layer_norm", "mlp.0", "mlp.2") for n in pair(f"slot_attn.{part}")]
    inner = "slot_attn.slot_attention"
    names += [
        n
        for part in ("norm_inputs", "norm_slots", "norm_mlp", "mlp.0", "mlp.2")
        for n in pair(f"{inner}.{part}")
    ]
    names += [f"{inner}.project_{letter}.weight" for letter in "qkv"]
    names += [f"{inner}.gru.{kind}_{side}" for kind in ("weight", "bias") for side in ("ih", "hh")]
    for i in range(blocks):
        block = f"tf_dec.blocks.{i}"
        for part in ("self_attn", "encoder_decoder_attn"):
            names += [*pair(f"{block}.{part}_layer_norm"), *(f"{block}.{part}.proj_{x}.weight" for x in "qkvo")]
        names += [n for part in ("ffn_layer_norm", "ffn.0", "ffn.2") for n in pair(f"{block}.{part}")]
    return [*names, *pair("tf_dec.layer_norm")]


@pytest.fixture(scope="module")
def model():
    return random_module(lambda: SLATE(CONFIG, key=jax.random.key(0)))


@pytest.fixture
def state(model):
    names = authors_names(CONFIG.num_dec_blocks)
    state = to_seed(model, names, rules(dict.fromkeys(names, np.zeros(0))))
    masks = {f"tf_dec.blocks.{i}.self_attn_mask": np.triu(np.ones((4, 4), bool), 1) for i in range(2)}
    return state | masks


def test_authors_checkpoint(model, state):
    """Every parameter arrives, in layouts of PyTorch; sizes are read off the arrays."""
    assert state["dvae.encoder.0.m.weight"].shape == (4, 3, 4, 4)
    assert state["slot_attn.slot_attention.gru.weight_ih"].shape == (18, 6)
    assert state["positional_encoder.pe"].shape == (1, 5, 8) and state["slot_attn.slot_mu"].shape == (1, 1, 6)
    # What the arrays do not show is the default of the authors' command line.
    assert config({}, state) == CONFIG
    changed = dataclasses.replace(CONFIG, num_slots=5, num_iterations=7, dropout=0.0)
    assert config({"num_slots": 5, "num_iterations": 7, "dropout": 0.0}, state) == changed
    abstract = eqx.filter_eval_shape(lambda: SLATE(CONFIG, key=jax.random.key(0)))
    loaded = named_leaves(from_seed(parameters(state), abstract, rules(state)))
    for name, leaf in named_leaves(model).items():
        np.testing.assert_array_equal(loaded[name], leaf, err_msg=name)


def test_other_checkpoints_are_refused(state):
    with pytest.raises(WeightsError, match=r"no SLATE: 'out\.weight' is missing"):
        config({}, {name: array for name, array in state.items() if name != "out.weight"})
    with pytest.raises(WeightsError, match="no SLATE of square images: 5 tokens, 2 blocks"):
        config({}, state | {"positional_encoder.pe": np.zeros((1, 6, 8))})
