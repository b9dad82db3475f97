"""Slot Attention as a whole: slots and iterations per call, gradients, memory, losses, mistakes in a sentence."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.models.registry import create_model, model_config, tiny
from slotzoo.models.set_prediction import SlotAttentionSet, SlotAttentionSetConfig
from slotzoo.models.slot_attention import (
    SlotAttentionAutoencoder,
    SlotDraws,
    area_loss,
    ramp,
    separation_loss,
)
from slotzoo.ops import batch_map
from slotzoo.precision import policy


pytestmark = pytest.mark.usefixtures("compiled_quickly")

NAME = "slot_attention_tetrominoes"
SMALL = dataclasses.replace(
    model_config(NAME, **tiny(NAME)),
    resolution=13,
    encoder_widths=(4, 4),
    encoder_strides=(1, 2),
    slot_dim=4,
    mlp_dim=8,
    decoder_grid=7,
    decoder_widths=(4,),
    decoder_strides=(2,),
)


@pytest.fixture(scope="module")
def model():
    return SlotAttentionAutoencoder(SMALL, key=jax.random.key(0))


@pytest.fixture(scope="module")
def image():
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (13, 13, 3)), jnp.float32)


def test_more_slots_and_iterations_than_in_training(model, image):
    explain = eqx.filter_jit(lambda n, i: model.explain(image, slots=n, iterations=i, key=jax.random.key(1)))
    few, many, long = explain(None, None), explain(6, None), explain(None, 7)
    assert few.masks.shape == (4, 13, 13) and many.masks.shape == (6, 13, 13)
    assert many.extra["attention"].shape == (6, 7, 7)
    assert np.abs(few.slots - long.slots).max() > 1e-3
    for out in (few, many, long):
        np.testing.assert_allclose(out.masks.sum(0), 1.0, rtol=1e-5)
        np.testing.assert_allclose(out.extra["attention"].sum(0), 1.0, rtol=1e-5)
        mixed = (out.masks[..., None] * out.pictures).sum(0)
        np.testing.assert_allclose(out.reconstruction, mixed, atol=1e-5)


def test_order_of_slots_is_nothing_but_order(model, image):
    noise = model.draw(jax.random.key(2)).slots
    order = np.array([2, 0, 3, 1])
    run = eqx.filter_jit(lambda noise: model(image, draws=SlotDraws(noise)))
    out, permuted = run(noise), run(noise[order])
    np.testing.assert_allclose(permuted.slots, out.slots[order], atol=1e-5)
    np.testing.assert_allclose(permuted.masks, out.masks[order], atol=1e-5)
    np.testing.assert_allclose(permuted.reconstruction, out.reconstruction, atol=1e-5)


def test_learned_slots_need_no_draws(image):
    config = dataclasses.replace(SMALL, init="learned", gradient="explicit")
    model = SlotAttentionAutoencoder(config, key=jax.random.key(0))
    assert model.draw(jax.random.key(0)).slots is None
    grads = eqx.filter_jit(eqx.filter_grad(lambda m: m.loss(image, step=0)[0]))(model)
    assert np.abs(grads.slot_attention.table).max() > 0
    with pytest.raises(ShapeError, match="5 slots were asked for and 4 are learned"):
        model.explain(image, slots=5)


def gradient_program(config, batch):
    """The compiled gradient of a batch's loss."""
    model = eqx.filter_eval_shape(lambda: SlotAttentionAutoencoder(config, key=jax.random.key(0)))
    images = jax.ShapeDtypeStruct((batch, config.resolution, config.resolution, 3), jnp.float32)

    def loss(model, images):
        keys = jax.random.split(jax.random.key(0), batch)
        return batch_map(lambda image, key: model.loss(image, step=0, key=key)[0])(images, keys).mean()

    return jax.jit(jax.grad(loss)).lower(model, images).compile()


def test_decoding_slot_by_slot_is_the_same(model, image):
    config = dataclasses.replace(SMALL, decoder_remat=True)
    slotwise = SlotAttentionAutoencoder(config, key=jax.random.key(0))
    value = eqx.filter_jit(eqx.filter_value_and_grad(lambda m: m.loss(image, step=0, key=jax.random.key(1))[0]))
    (a, grads_a), (b, grads_b) = value(model), value(slotwise)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    for x, y in zip(jax.tree.leaves(grads_a), jax.tree.leaves(grads_b), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-6)


def test_decoding_slot_by_slot_halves_the_memory_of_a_step():
    """At 64 pixels and 7 slots, with few channels: the decoder's maps are most of what a step keeps."""
    config = dataclasses.replace(
        model_config("slot_attention_clevr6"),
        resolution=64,
        decoder_grid=4,
        encoder_widths=(8,) * 4,
        decoder_widths=(8,) * 5,
        slot_dim=8,
        mlp_dim=8,
    )
    needed = [
        gradient_program(dataclasses.replace(config, decoder_remat=remat), 2)
        .memory_analysis()
        .temp_size_in_bytes
        for remat in (False, True)
    ]
    assert needed[1] <= 0.5 * needed[0]


def test_auxiliary_losses():
    masks = jax.nn.one_hot(jnp.arange(16).reshape(4, 4) // 8, 2, axis=0)
    for kind in ("max", "entropy"):
        np.testing.assert_allclose(separation_loss(masks, kind), 0.0, atol=1e-6)
        assert separation_loss(jnp.full((2, 4, 4), 0.5), kind) > 0.4
    # Two objects of 4 pixels each; of all pixels in one slot, the empty one is as far off as can be.
    np.testing.assert_allclose(area_loss(masks, 4), 0.0, atol=1e-6)
    np.testing.assert_allclose(area_loss(jax.nn.one_hot(jnp.zeros((4, 4), int), 2, axis=0), 4), 0.5)
    steps = [float(ramp(step, 0.1, (10, 20))) for step in (0, 10, 15, 20, 99)]
    np.testing.assert_allclose(steps, [0, 0, 0.05, 0.1, 0.1], atol=1e-7)
    assert float(ramp(0, 0.1, (0, 0))) == np.float32(0.1)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (dict(decoder_grid=4), r"enlarge decoder_grid=4 to 8 pixels, but resolution=13; set decoder_grid=7"),
        (dict(encoder_strides=(1,)), r"must name the same layers"),
        (dict(num_slots=0), r"every size must be at least 1"),
        (dict(kernel=4), r"kernel=4 must be odd"),
        (dict(separation_ramp=(5, 1)), r"separation_ramp is two steps in order"),
        (dict(decoder_widths=(4, 4)), r"must name the same layers"),
    ],
)
def test_wrong_sizes_are_one_sentence(overrides, message):
    with pytest.raises(ConfigError, match=message):
        SlotAttentionAutoencoder(dataclasses.replace(SMALL, **overrides), key=jax.random.key(0))


@pytest.mark.parametrize("overrides", [dict(features=0), dict(encoder_strides=(1,)), dict(kernel=4)])
def test_the_model_of_sets_checks_its_own_sizes_and_the_shared_ones(overrides):
    with pytest.raises(ConfigError, match="set prediction: .*(at least 1|the same layers|must be odd)"):
        SlotAttentionSet(SlotAttentionSetConfig(**overrides), key=jax.random.key(0))


def test_wrong_images_are_one_sentence(model):
    with pytest.raises(ShapeError, match=r"built for image of shape \(13, 13, 3\).*got \(16, 16, 3\)"):
        model(jnp.zeros((16, 16, 3)), key=jax.random.key(0))
    with pytest.raises(ShapeError, match=r"It takes one example"):
        model(jnp.zeros((2, 13, 13, 3)), key=jax.random.key(0))
    with pytest.raises(ConfigError, match="need `noise`, or `key` and `num_slots`"):
        model(jnp.zeros((13, 13, 3)))
    with pytest.raises(ConfigError, match="5 slots were asked for, the noise is for 4"):
        model(jnp.zeros((13, 13, 3)), draws=model.draw(jax.random.key(0)), slots=5)


def test_bfloat16(model, image):
    """All of the networks compute in half precision, on float32 images; masks and loss are float32."""
    half, draws = policy("bfloat16").cast(model), model.draw(jax.random.key(3))
    shapes = jax.eval_shape(
        lambda m: (m.encoder(image), m(image, draws=draws), m.loss(image, draws=draws, step=0)), half
    )
    features, out, (loss, _) = shapes
    assert features.dtype == out.slots.dtype == out.reconstruction.dtype == jnp.bfloat16
    assert out.masks.dtype == out.extra["attention"].dtype == loss.dtype == jnp.float32
    value = eqx.filter_jit(lambda m: m.loss(image, draws=draws, step=0)[0])
    np.testing.assert_allclose(value(half), value(model), rtol=0.1)


def test_sets_have_as_many_predictions_as_slots():
    name = "slot_attention_set_prediction"
    model = eqx.filter_eval_shape(lambda key: create_model(name, key=key, **tiny(name)), jax.random.key(0))
    image = jax.ShapeDtypeStruct((32, 32, 3), jnp.float32)
    out = eqx.filter_eval_shape(lambda m, x: m(x, key=jax.random.key(0), slots=7, iterations=5), model, image)
    assert out.prediction.shape == (7, 19) and out.attention.shape == (7, 16, 16)
