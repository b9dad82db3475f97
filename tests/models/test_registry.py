"""The zoo's front door. The tests over all registered models apply to every system that registers itself."""

import dataclasses
import json
import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import slotzoo.models  # noqa: F401  (registers what it holds)
from slotzoo.errors import ConfigError
from slotzoo.models import registry


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    width: int = 4
    rate: float = 0.5
    depths: tuple[int, ...] = (1, 2)
    mode: Literal["sum", "mean"] = "sum"
    limit: int | None = None


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(registry, "_ENTRIES", {})
    card = registry.ModelCard("toy", "Toy", "none", "none", "Apache-2.0", 20, "none", {}, "A linear layer.")
    registry.register(
        "toy", ToyConfig(), lambda config, *, key: eqx.nn.Linear(config.width, 4, key=key), card, {"width": 1}
    )


def test_create_and_list(toy, key):
    assert registry.list_models() == ["toy"]
    assert registry.list_models("x*") == []
    assert registry.model_card("toy").parameters == 20
    model = registry.create_model("toy", key=key, **registry.tiny("toy"))
    assert isinstance(model, eqx.nn.Linear) and model.weight.shape == (4, 1)
    with pytest.raises(ValueError, match="already registered"):
        registry.register("toy", ToyConfig(), lambda config, *, key: model, registry.model_card("toy"))


def test_yaml_values_are_coerced(toy):
    config = registry.model_config("toy", depths=[3], rate=1, limit=None)
    assert config.depths == (3,) and config.rate == 1.0 and isinstance(config.rate, float)
    assert registry.model_config("toy", limit=2).limit == 2


@pytest.mark.parametrize(
    "name, overrides, message",
    [
        ("toyy", {}, r"no model named 'toyy'. Did you mean 'toy'\?"),
        ("toy", {"widht": 3}, r"no option 'widht'. Did you mean 'width'\?"),
        ("toy", {"width": 3.5}, r"option 'width': expected int, got 3.5 \(float\)"),
        ("toy", {"width": True}, r"option 'width': expected int, got True"),
        ("toy", {"mode": "summ"}, r"'summ' is none of 'sum', 'mean'. Did you mean 'sum'\?"),
        ("toy", {"depths": ["a"]}, r"option 'depths': expected int, got 'a'"),
        ("toy", {"depths": 3}, r"option 'depths': expected list, got 3"),
    ],
)
def test_mistakes_are_named(toy, name, overrides, message):
    with pytest.raises(ConfigError, match=message):
        registry.create_model(name, key=jax.random.key(0), **overrides)


@pytest.mark.parametrize("name", registry.list_models())
def test_published_size(name):
    """Built as shapes at paper scale, every model has the number of parameters that its card says.

    What keeps that number from being merely unchanged is elsewhere: checkpoints of the authors' code, where there are
    any, that fill every array (tests/parity, tests/weights), and sizes that were published (tests/nn).
    """
    card = registry.model_card(name)
    model = eqx.filter_eval_shape(lambda key: registry.create_model(name, key=key), jax.random.key(0))
    arrays = jax.tree.leaves(eqx.filter(model, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)))
    assert sum(math.prod(leaf.shape) for leaf in arrays) == card.parameters
    for field in ("title", "paper", "section", "licence", "source", "description"):
        assert getattr(card, field).strip(), f"the card of {name} has no {field}"


@pytest.mark.parametrize("name", registry.list_models())
def test_config_survives_json(name):
    config = registry.model_config(name)
    fields = json.loads(json.dumps(dataclasses.asdict(config)))
    assert registry.model_config(name, **fields) == config


# One example for the forward pass of each kind of model, and the array of its output to differentiate.
def _tokens(config, key):
    tokens = jax.random.randint(key, (3, config.height, config.width), 0, config.num_codes)
    codebook = jax.random.normal(key, (config.num_codes, config.code_dim))
    return lambda model: model(tokens, jnp.zeros(3, int), codebook).prediction


def _pixels(config, key):
    video = jax.random.uniform(key, (3, config.height, config.width, config.channels), minval=-1, maxval=1)
    return lambda model: model(video).prediction


def _image(config, key):
    image = jax.random.uniform(key, (config.resolution, config.resolution, 3), minval=-1, maxval=1)
    return lambda model: model(image)


def _objects(config, key):
    shape = (config.resolution, config.resolution, config.in_channels)
    image = jax.random.uniform(key, shape, minval=config.low, maxval=config.high)
    return lambda model: model.loss(image, key=key, step=0)[0]


def _slotssm(config, key):
    video = jax.random.uniform(key, (3, config.resolution, config.resolution, config.in_channels))
    side = config.out_resolution
    batch = {"video": video, "label": jnp.int32(1), "image": jnp.zeros((side, side, config.out_channels))}
    batch["depth"] = jnp.zeros((3, side, side, config.out_channels))
    return lambda model: model.loss(batch, key=key)[0]


def _set(config, key):
    image = jax.random.uniform(key, (config.resolution, config.resolution, config.in_channels))
    return lambda model: model(image, key=key).prediction


def _track(config, key):
    video = jax.random.uniform(key, (2, config.height, config.width, config.in_channels))
    batch = {"video": video, "boxes": jax.random.uniform(key, (2, config.num_slots - 1, 4))}
    batch |= {"flow": video, "depth": video[..., :1]}
    return lambda model: model.loss(batch)[0]


EXAMPLES = {
    "ConvS5TokensConfig": _tokens,
    "ConvS5PixelsConfig": _pixels,
    "S5PixelsConfig": _pixels,
    "S5TokensConfig": _tokens,
    "ConvLSTMPixelsConfig": _pixels,
    "ConvLSTMTokensConfig": _tokens,
    "TransformerPixelsConfig": _pixels,
    "TransformerTokensConfig": _tokens,
    "PerformerPixelsConfig": _pixels,
    "PerformerTokensConfig": _tokens,
    "TECOConfig": _tokens,
    "VQGANConfig": _image,
    "KLVAEConfig": _image,
    "SLATEConfig": _objects,
    "SlotAttentionConfig": _objects,
    "SlotAttentionSetConfig": _set,
    "GNMConfig": _objects,
    "SlotSSMConfig": _slotssm,
    "SAViConfig": _track,
    "STATMConfig": _track,
}


@pytest.fixture(scope="module")
def seen():
    """The tiny variants that were run already: those of two sizes may be one and the same."""
    return set()


@pytest.mark.parametrize("name", registry.list_models())
def test_tiny_forward_and_backward(name, key, compiled_quickly, seen):
    tiny = registry.tiny(name)
    config = registry.model_config(name, **tiny)
    assert config != registry.model_config(name), f"{name} was registered without a tiny variant"
    if config in seen:
        return
    seen.add(config)
    model = eqx.filter_jit(lambda key: registry.create_model(name, key=key, **tiny))(key)
    example = EXAMPLES[type(config).__name__](config, key)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(model):
        out = jax.tree.leaves(eqx.filter(example(model), eqx.is_inexact_array))
        return sum(jnp.mean(jnp.square(leaf)) for leaf in out)

    value, grads = loss(model)
    assert jnp.isfinite(value)
    for leaf in jax.tree.leaves(grads):
        assert jnp.isfinite(leaf).all()
