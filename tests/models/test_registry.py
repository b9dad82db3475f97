"""The zoo's front door. The tests over all registered models apply to every system that registers itself."""

import dataclasses
from typing import Literal

import equinox as eqx
import jax
import pytest

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
