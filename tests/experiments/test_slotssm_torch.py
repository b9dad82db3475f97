"""The twin of SlotSSM in PyTorch, where torch is installed."""

import math

import equinox as eqx
import jax
import pytest

from experiments.benchmarks import slotssm_step, slotssm_torch
from slotzoo.models.slotssm import SlotSSM
from slotzoo.models.slotssm_config import SlotSSMConfig


torch = pytest.importorskip("torch", reason="the networks to compare with are PyTorch's")


@pytest.mark.parametrize("name", slotssm_step.MIXERS)
def test_the_twin_has_as_many_parameters(name):
    config = SlotSSMConfig(**slotssm_step.SIZES["tiny"], **slotssm_step.MIXERS[name])
    ours = jax.eval_shape(lambda: eqx.filter(SlotSSM(config, key=jax.random.key(0)), eqx.is_array))
    parts, _ = slotssm_torch.network(config)
    assert sum(p.numel() for p in parts.parameters()) == sum(x.size for x in jax.tree.leaves(ours))


@pytest.mark.parametrize("name", slotssm_step.MIXERS)
def test_the_twin_trains(name):
    sizes = dict(resolution=16, out_resolution=16, encoder_dim=32, token_dim=32, dim=32, decoder_dim=32)
    sizes |= dict(blocks=1, encoder_layers=1, decoder_layers=1, ssm_head_dim=16)
    config = SlotSSMConfig(**{**sizes, **slotssm_step.MIXERS[name], "ssm_state": 4})
    slotssm_torch.step(config, 2, 3)()
    parts, loss = slotssm_torch.network(config)
    value = loss(torch.rand(2, 3, 3, 16, 16))
    value.backward()
    assert math.isfinite(float(value.detach()))
    assert all(p.grad is not None for p in parts.parameters())
