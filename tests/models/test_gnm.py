"""GNM: schedules without recompiling, masks that add up, variations of a scene, the bound, mistakes."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, ShapeError, WeightsError
from slotzoo.models.gnm import GNM
from slotzoo.models.gnm_config import GNMConfig, annealed
from slotzoo.models.gnm_latents import (
    LocalDistribution,
    LocalNoise,
    Normal,
    bernoulli_kl,
    boxes,
    relaxed_log_prob,
    sample_local,
)
from slotzoo.models.gnm_render import corners
from slotzoo.nn.spatial_transform import crop, paste
from slotzoo.precision import policy
from slotzoo.weights.convert import object_discovery_gnm
from tests.arrays import random_module
from tests.tolerance import assert_close


pytestmark = pytest.mark.usefixtures("compiled_quickly")

CONFIG = GNMConfig(
    resolution=8,
    cells=2,
    draws=2,
    global_dim=3,
    what_dim=4,
    background_dim=2,
    features=4,
    encoder_filters=(4, 4),
    encoder_kernels=(4, 4),
    encoder_strides=(2, 2),
    encoder_groups=(1, 1),
    what_filters=(4,),
    what_kernels=(1, 3),
    what_upscales=(2, 2),
    what_groups=(1,),
    background_filters=(4,),
    background_kernels=(1, 3),
    background_upscales=(8, 1),
    background_groups=(1,),
    head_filters=(4,),
    head_kernels=(1,),
    head_groups=(1,),
    encoder_hidden=4,
    decoder_hidden=4,
    posterior_widths=(4,),
    prior_widths=(4,),
    global_decoder_widths=(4,),
    background_widths=(4,),
    background_prior_widths=(4,),
)
DIGITS = dataclasses.replace(CONFIG, in_channels=1, overlap=False, background=False, curriculum_steps=())


@pytest.fixture(scope="module")
def model():
    return random_module(lambda: GNM(CONFIG, key=jax.random.key(0)))


@pytest.fixture(scope="module")
def image():
    return jax.random.uniform(jax.random.key(1), (8, 8, 3))


def test_bfloat16(model, image):
    """Networks compute in half precision, on float32 images; latents, recurrences, loss and terms are float32."""
    half = policy("bfloat16").cast(model)
    shapes = jax.eval_shape(
        lambda m: jax.grad(lambda m: m.loss(image, key=jax.random.key(0), step=0)[0])(m), half
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.bfloat16)}
    assert jax.eval_shape(lambda m: m.encode(image), half).dtype == jnp.bfloat16
    loss, terms = jax.eval_shape(lambda m: m.loss(image, key=jax.random.key(0), step=0), half)
    assert {x.dtype for x in (loss, *terms.values())} == {jnp.dtype(jnp.float32)}
    made = jax.eval_shape(lambda m: m.generate(key=jax.random.key(0), sample=True), half)
    assert made.rendering.image.dtype == made.scene.z.dtype == jnp.float32


def test_schedules_need_one_program(model, image):
    draws = model.draw(jax.random.key(2))
    traces = []

    @eqx.filter_jit
    def loss(model, step):
        traces.append(step)
        return model.loss(image, draws=draws, step=step)

    terms = {step: loss(model, jnp.int32(step))[1] for step in (0, 1, 499, 500, 30_000)}
    assert len(traces) == 1
    assert terms[0]["kl_global"] == 0 and terms[1]["kl_global"] > 0
    # The curriculum begins after step 0 and is over at step 500.
    changes = [
        abs(float(terms[a]["log_likelihood"] - terms[b]["log_likelihood"])) for a, b in ((0, 1), (499, 500))
    ]
    assert min(changes) > 1e-3 and terms[0]["log_likelihood"] == terms[500]["log_likelihood"]


def test_schedule_is_linear_between_its_steps():
    values = [float(annealed((2.0, 1.0, 10.0, 20.0), jnp.int32(step))) for step in (0, 10, 15, 20, 99)]
    assert values == [2.0, 2.0, 1.5, 1.0, 1.0]
    assert annealed((2.0, 1.0, 10.0, 0.0), jnp.int32(99)) == 2.0


@pytest.mark.parametrize("config", [CONFIG, DIGITS], ids=["overlap", "digits"])
def test_explanation(config, image):
    model = random_module(lambda: GNM(config, key=jax.random.key(0)))
    explain = eqx.filter_jit(lambda model: model.explain(image[..., : config.in_channels]))
    for bias, count in ((9.0, 4), (-9.0, 0)):  # all cells hold an object, or none
        out = explain(eqx.tree_at(lambda m: m.heads.presence.bias, model, jnp.array([bias])))
        assert out.masks.shape == (5, 8, 8) and out.pictures.shape == (5, 8, 8, config.in_channels)
        assert_close(out.masks.sum(0), np.ones((8, 8)), rtol=1e-5)
        assert float(out.masks.min()) > -1e-5
        assert out.extra["count"] == count and bool(np.asarray(out.masks[1:]).any()) == (count > 0)


def test_generation_follows_the_given_draws(model):
    generate = eqx.filter_jit(lambda key, known=None: model.generate(key=key, known=known))
    one = generate(jax.random.key(0))
    again = generate(jax.random.key(7), one.scene.z)
    assert_close(again.rendering.image, one.rendering.image, rtol=1e-6)
    varied = generate(jax.random.key(7), one.scene.z[:1])
    np.testing.assert_array_equal(varied.scene.z[0], one.scene.z[0])
    assert float(jnp.abs(varied.scene.z[1] - one.scene.z[1]).max()) > 1e-3


def test_more_samples_tighten_the_bound(model, image):
    bound = eqx.filter_jit(lambda key, samples: model.log_likelihood(image, key=key, samples=samples))
    keys = jax.random.split(jax.random.key(3), 8)
    few, many = (np.mean([bound(key, samples) for key in keys]) for samples in (1, 16))
    assert np.isfinite(few) and many > few


def test_relaxed_weights_average_to_one():
    """`E_q[p / q] = 1` of the relaxed presence, over evenly spread uniform numbers."""
    u = (jnp.arange(4000.0) + 0.5) / 4000
    q, p, temperature = jnp.full_like(u, 0.5), jnp.full_like(u, -0.2), jnp.float32(0.7)
    x = jax.nn.sigmoid((jnp.log(u) - jnp.log1p(-u) + q) / temperature)
    ratio = jnp.exp(relaxed_log_prob(x, p, temperature) - relaxed_log_prob(x, q, temperature))
    assert_close(ratio.mean(), 1.0, rtol=1e-2)
    # It is the density that jax.scipy's logistic distribution has, of the logit times the temperature.
    logits = temperature * (jnp.log(x) - jnp.log1p(-x))
    expected = jax.scipy.stats.logistic.logpdf(logits, loc=p) + jnp.log(temperature)
    assert_close(relaxed_log_prob(x, p, temperature), expected, rtol=1e-5)


@pytest.mark.parametrize("q, p", [(8.8, 8.0), (8.0, 8.8), (3.0, 2.0)])
def test_relaxed_weights_of_sure_presences(q, p):
    """They average to one where most of what is drawn is clipped, as well as the few numbers just below 1 allow."""
    u = ((jnp.arange(150.0 * 150) + 0.5) / 150**2).reshape(150, 150, 1)
    temperature = jnp.float32(0.5)
    logits = lambda value: jnp.full(u.shape, value)
    none = Normal(jnp.zeros((*u.shape[:2], 4)), jnp.ones((*u.shape[:2], 4)))
    drawn = sample_local(
        LocalDistribution(logits(q), none, none, none),
        LocalNoise(u, none.mean, none.mean, none.mean),
        temperature,
    )
    log_prob = lambda value: relaxed_log_prob(drawn.presence, logits(value), temperature)
    assert_close(jnp.exp(log_prob(p) - log_prob(q)).mean(), 1.0, rtol=4e-2)


def test_divergence_of_sure_presences():
    q = jnp.array([0.0, 30.0, -30.0, 90.0])
    p = jnp.array([0.0, -30.0, 30.0, 90.0])
    exact, grads = bernoulli_kl(q, p), jax.vmap(jax.grad(bernoulli_kl))(q, p)
    assert_close(exact, [0.0, 30.0, 30.0, 0.0], rtol=1e-5)
    assert jnp.isfinite(grads).all()
    # The authors' rounding cannot tell a probability near 1 from 1.
    assert abs(float(bernoulli_kl(q[2], p[2], probabilities=True)) - 30.0) > 1


def test_paste_and_crop_are_inverse():
    """A glimpse that is pasted to whole pixels comes back; the whole image is the box (1, 1, 0, 0)."""
    glimpse = jax.random.uniform(jax.random.key(0), (2, 3, 4, 4))
    box = jnp.array([[0.5, 0.5, -0.5, 0.5], [1.0, 1.0, 0.0, 0.0]])
    large = paste(glimpse, box, height=8, width=8)
    assert_close(large[0, :, 4:, :4], glimpse[0], rtol=1e-6)
    assert not large[0, :, :4].any()
    assert_close(crop(large[0], box[:1], height=4, width=4)[0], glimpse[0], rtol=1e-6)
    assert_close(corners(box, height=8, width=8), [[4, 0, 8, 4], [0, 0, 8, 8]], rtol=1e-6)


def test_boxes_stay_near_their_cells():
    where = 50.0 * jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 4)), jnp.float32)
    found = boxes(where.at[..., :2].set(0.0))
    centre = (found[..., 2:] + 1) / 2 * 4
    places = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1) + 0.5
    assert np.abs(centre - places).max() <= 1 + 1e-5
    assert_close(found[..., :2], np.full((4, 4, 2), 0.5), rtol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"resolution": 16}, "map of 4 pixels a side, but cells=2"),
        ({"features": 5}, "ends with 4 filters but features=5"),
        ({"background_upscales": (4, 1)}, "image of 4 pixels a side, but resolution=8"),
        ({"what_groups": (3,)}, "4 what_filters cannot be split into groups=3"),
        ({"head_kernels": (1, 1)}, "one entry per layer; got 1, 2"),
        ({"temperature": (1.0, 0.5)}, "temperature wants"),
        ({"temperature": (1.0, 0.5, 9.0, 4.0)}, "ends at step 4.0, before its first step 9.0"),
        ({"sigma": 0.0}, "sigma=0.0 must be positive"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ConfigError, match=message):
        GNM(dataclasses.replace(CONFIG, **change), key=jax.random.key(0))


def test_mistakes_are_sentences(model, image):
    with pytest.raises(ShapeError, match=r"built for image of shape \(8, 8, 3\)"):
        model(image[:4])
    with pytest.raises(ConfigError, match="give it a key, or draws"):
        model.loss(image, step=0)
    with pytest.raises(ConfigError, match="give it a key, or draws"):
        model.generate()
    with pytest.raises(ConfigError, match="makes 2 draws of 3 numbers"):
        model.generate(key=jax.random.key(0), known=jnp.zeros((3, 3)))
    with pytest.raises(ConfigError, match="4 cells and no iterations"):
        model.explain(image, slots=7)
    with pytest.raises(WeightsError, match="do not describe a GNM"):
        object_discovery_gnm.config({"arch": {}})
    with pytest.raises(WeightsError, match="no hyper-parameters, which tell the sizes of a GNM"):
        object_discovery_gnm.config({})
