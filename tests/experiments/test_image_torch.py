import math

import pytest

from experiments.benchmarks import image_torch
from slotzoo.models.registry import model_card, model_config


torch = pytest.importorskip("torch", reason="the networks to compare with are PyTorch's")
NAMES = {"slot_attention": "slot_attention_clevr6", "slate": "slate_clevr6", "gnm": "gnm_clevr6"}
SMALL = {
    "slot_attention": dict(resolution=16, decoder_grid=1),
    "slate": dict(resolution=16, vocab_size=8),
    "gnm": dict(features=8, encoder_filters=(4, 4, 4, 4, 4, 4, 4, 4, 8)),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_twin_has_as_many_parameters(name):
    parts, _ = image_torch.network(name, model_config(NAMES[name]))
    assert sum(p.numel() for p in parts.parameters()) == model_card(NAMES[name]).parameters


@pytest.mark.parametrize("name", ["slot_attention", "slate"])
def test_keys_and_values_are_made_once(name):
    config = model_config(NAMES[name], **SMALL[name])
    parts, loss = image_torch.network(name, config)
    calls = []
    for part in ("key", "value", "query"):
        parts["slots"][part].register_forward_hook(lambda *_, part=part: calls.append(part))
    loss(torch.rand(2, 3, config.resolution, config.resolution))
    assert calls == ["key", "value", *["query"] * (config.num_iterations + 1)]


@pytest.mark.parametrize("name", NAMES)
def test_the_twin_trains(name):
    config = model_config(NAMES[name], **SMALL[name])
    image_torch.step(name, config, 2)()
    parts, loss = image_torch.network(name, config)
    value = loss(torch.rand(2, 3, config.resolution, config.resolution))
    value.backward()
    assert math.isfinite(float(value.detach()))
    # The initial slots are on the other side of the steps without a gradient.
    without = [] if name == "gnm" else ["slots.initial.weight"]
    assert [name for name, p in parts.named_parameters() if p.grad is None] == without
