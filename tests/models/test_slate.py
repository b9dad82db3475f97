"""SLATE: two separate halves, generation with a cache is generation, slots are a set, mistakes are sentences."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.models.slate import SLATE, SLATEConfig
from slotzoo.precision import policy
from tests.arrays import random_module
from tests.tolerance import assert_close


pytestmark = pytest.mark.usefixtures("compiled_quickly")

CONFIG = SLATEConfig(
    resolution=12,
    num_slots=3,
    slot_size=8,
    mlp_hidden_size=8,
    vocab_size=5,
    d_model=8,
    num_dec_blocks=2,
    num_heads=2,
    tau_steps=100,
    dvae_width=4,
)


@pytest.fixture(scope="module")
def model():
    return random_module(lambda: SLATE(CONFIG, key=jax.random.key(0)))


@pytest.fixture(scope="module")
def image():
    return jax.random.uniform(jax.random.key(1), (12, 12, 3))


def recomputed(model, slots):
    """Greedy generation that runs the whole prefix for every token."""
    context = model.slot_proj(slots)
    codes = []
    for place in range(CONFIG.side**2):
        embedded = model.embed(jnp.asarray(codes + [0] * (CONFIG.side**2 - place), jnp.int32))
        logits = model.out(model.decoder(embedded[:-1], context))
        codes.append(int(jnp.argmax(logits[place])))
    return codes


def test_generation_equals_recomputation(model):
    for seed in range(3):
        slots = jax.random.normal(jax.random.key(seed), (4, 8))
        greedy = eqx.filter_jit(model.generate)(slots)
        assert greedy.tolist() == recomputed(model, slots)
        one = eqx.filter_jit(lambda s: model.generate(s, key=jax.random.key(5), temperature=0.7, top_k=1))(
            slots
        )
        np.testing.assert_array_equal(one, greedy)


def test_sampling_follows_the_temperature(model):
    """The first code is drawn from softmax(logits / temperature), cut to the likeliest."""
    slots = jax.random.normal(jax.random.key(0), (4, 8))
    logits = model.out(model.decoder(model.embed(jnp.zeros(9, jnp.int32))[:-1], model.slot_proj(slots)))[0]
    keys = jax.random.split(jax.random.key(2), 3000)
    for temperature, top_k in ((2.0, None), (0.5, 2)):
        draw = lambda key, t=temperature, k=top_k: model.generate(slots, key=key, temperature=t, top_k=k)[0]
        share = np.bincount(eqx.filter_jit(jax.vmap(draw))(keys), minlength=5) / len(keys)
        kept = logits if top_k is None else jnp.where(logits >= jnp.sort(logits)[-top_k], logits, -jnp.inf)
        np.testing.assert_allclose(share, jax.nn.softmax(kept / temperature), atol=0.04)


def test_two_halves(model, image):
    """The dVAE learns from the squared error alone, everything else from the cross-entropy alone."""
    draws = model.draw(jax.random.key(3))

    @eqx.filter_jit
    def grads(model, weights):
        def loss(model):
            terms = model.loss(image, draws=draws, step=0)[1]
            return weights[0] * terms["mse"] + weights[1] * terms["cross_entropy"]

        return eqx.filter_grad(loss)(model)

    size = lambda tree: sum(float(jnp.abs(x).sum()) for x in jax.tree.leaves(tree))
    for name in ("mse", "cross_entropy"):
        found = grads(model, jnp.asarray([name == "mse", name != "mse"], float))
        rest = [getattr(found, f) for f in ("dictionary", "position", "slot_attention", "decoder", "out")]
        assert (size(found.dvae) > 0) == (name == "mse")
        assert all((size(part) > 0) == (name == "cross_entropy") for part in rest)


def test_schedule_and_dropout(model, image):
    for step, expected in ((0, 1.0), (50, 0.55), (100, 0.1), (10**6, 0.1)):
        np.testing.assert_allclose(model.temperature(jnp.asarray(step)), expected, rtol=1e-5)
    draws = model.draw(jax.random.key(3))
    traces = []

    @eqx.filter_jit
    def loss(step, key):
        traces.append(step)
        return model.loss(image, draws=draws, key=key, step=step)[0]

    still = [float(loss(jnp.asarray(step), None)) for step in (0, 0, 60)]
    assert still[0] == still[1] != still[2] and len(traces) == 1
    assert float(loss(jnp.asarray(0), jax.random.key(0))) != float(loss(jnp.asarray(0), jax.random.key(1)))


def test_bfloat16(model, image):
    """With parameters in half precision the same loss of a float32 image, roughly, and float32 terms."""
    half, draws = policy("bfloat16").cast(model), model.draw(jax.random.key(3))
    loss = eqx.filter_jit(lambda model: model.loss(image, draws=draws, step=0))
    (value, terms), (expected, _) = loss(half), loss(model)
    np.testing.assert_allclose(value, expected, rtol=0.1)
    assert value.dtype == terms["mse"].dtype == jnp.float32
    dtypes = jax.eval_shape(lambda m: m(image, draws=draws), half)
    assert dtypes.logits.dtype == dtypes.reconstruction.dtype == dtypes.slots.dtype == jnp.bfloat16
    assert jax.eval_shape(lambda m: m.explain(image, key=jax.random.key(0)), half).masks.dtype == jnp.float32


def test_slots_are_a_set(model, image):
    noise = jax.random.normal(jax.random.key(4), (5, 8))
    explain = eqx.filter_jit(lambda noise: model.explain(image, draws=noise, iterations=2))
    out, turned = explain(noise), explain(noise[::-1])
    assert_close(turned.slots, out.slots[::-1], rtol=1e-5)
    assert_close(turned.masks, out.masks[::-1], rtol=1e-5)
    np.testing.assert_array_equal(turned.extra["generated"], out.extra["generated"])
    np.testing.assert_allclose(out.masks.sum(0), np.ones((12, 12)), rtol=1e-5)
    assert out.pictures.shape == (5, 12, 12, 3)
    assert out.reconstruction.min() >= 0 and out.reconstruction.max() <= 1
    shown = image[None] * out.masks[..., None] + 1 - out.masks[..., None]
    assert_close(out.pictures, shown, rtol=1e-6)
    # Whole codes through the decoder's first layer as one-hot vectors, and as a look-up.
    hot = jax.nn.one_hot(out.extra["codes"].reshape(3, 3), 5)
    assert_close(jnp.clip(model.dvae.decode(hot), 0, 1), out.extra["dvae"], rtol=1e-5)


def test_slots_and_iterations_at_call_time(model, image):
    shape = lambda **options: jax.eval_shape(lambda: model.explain(image, key=jax.random.key(0), **options))
    assert shape().masks.shape == (3, 12, 12)
    assert shape(slots=7, iterations=5).slots.shape == (7, 8)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (
            lambda m, x: m.explain(x[:8], key=jax.random.key(0)),
            ShapeError,
            r"shape \(12, 12, 3\).*got \(8, 12, 3\)",
        ),
        (lambda m, x: m.explain(x[None], key=jax.random.key(0)), ShapeError, "one example: batch it"),
        (lambda m, x: m.explain(x), ConfigError, "give it a key, or draws"),
        (lambda m, x: m.loss(x, step=0), ConfigError, "give it a key, or draws"),
        (
            lambda m, x: m.explain(x, draws=jnp.zeros((4, 8)), slots=5),
            ConfigError,
            "5 slots, its draws are for 4",
        ),
        (lambda m, x: m.generate(jnp.zeros((3, 8)), top_k=9), ConfigError, "between 1 and vocab_size=5"),
    ],
)
def test_mistakes(model, image, call, error, message):
    with pytest.raises(error, match=message):
        call(model, image)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"resolution": 30}, "resolution=30 is not a multiple of 4"),
        ({"num_heads": 3}, "d_model=8 cannot be split into num_heads=3"),
        ({"num_slot_heads": 3}, "slot_size=8 cannot be split into num_slot_heads=3"),
        ({"vocab_size": 0}, "at least 1"),
        ({"tau_final": 0.0}, "must be positive"),
        ({"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
    ],
)
def test_impossible_configurations(options, message):
    with pytest.raises(ConfigError, match=message):
        SLATE(dataclasses.replace(CONFIG, **options), key=jax.random.key(0))
