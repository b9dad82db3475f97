"""ConvS5: the three ways to run it agree, training draws do what they say, mistakes get one sentence."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.losses import pixel_loss, token_cross_entropy
from slotzoo.models import ConvS5Pixels, ConvS5PixelsConfig, ConvS5Tokens, ConvS5TokensConfig, create_model
from slotzoo.models.video_core import Draws
from tests.tolerance import assert_close


pytestmark = pytest.mark.usefixtures("compiled_quickly")

SMALL = dict(
    height=4,
    width=4,
    encoder_depths=(8,),
    decoder_depths=(8,),
    norm_groups=4,
    layers=2,
    d_model=8,
    ssm_size=8,
    ssm_groups=4,
    use_actions=True,
    num_actions=3,
    action_dim=2,
)
LENGTH = 6


def tokens_model(key, **options) -> ConvS5Tokens:
    return ConvS5Tokens(ConvS5TokensConfig(**SMALL, num_codes=5, code_dim=3, **options), key=key)


@pytest.fixture(scope="module")
def clip():
    keys = jax.random.split(jax.random.key(1), 3)
    tokens = jax.random.randint(keys[0], (LENGTH, 4, 4), 0, 5)
    actions = jax.random.randint(keys[1], (LENGTH,), 0, 3)
    return tokens, actions, jax.random.normal(keys[2], (5, 3))


@pytest.mark.parametrize("scan_layers", [False, True])
def test_parallel_equals_steps(clip, key, scan_layers):
    tokens, actions, codebook = clip
    model = tokens_model(key, scan_layers=scan_layers, remat=scan_layers)
    out = eqx.filter_jit(model)(tokens, actions, codebook)
    assert out.prediction.shape == (LENGTH - 1, 4, 4, 5)
    np.testing.assert_array_equal(out.frames, np.arange(1, LENGTH))

    @eqx.filter_jit
    def steps(model):
        prepared = model.core.prepare()

        def body(state, inputs):
            out = model.step(*inputs, codebook, state, prepared=prepared)
            return out.state, out.prediction

        return jax.lax.scan(body, model.init_state(), (tokens[:-1], actions[1:]))

    state, logits = steps(model)
    assert_close(logits, out.prediction, rtol=1e-5, what="logits")
    assert_close(state, out.state, rtol=1e-5, what="state")

    # In two pieces, with the state carried over.
    first = model(tokens[:3], actions[:3], codebook)
    second = model(tokens[2:], actions[2:], codebook, first.state)
    joined = jnp.concatenate([first.prediction, second.prediction])
    assert_close(joined, out.prediction, rtol=1e-5, what="two pieces")


@pytest.mark.parametrize("implementation", ["auto", "parallel", "per_frame"])
def test_observing_is_the_state_of_a_call(clip, key, implementation, monkeypatch):
    # So that "auto" takes this clip for a long one.
    monkeypatch.setattr("slotzoo.models.video_core.LONG_CLIP", 1)
    tokens, actions, codebook = clip
    model = tokens_model(key)

    @jax.jit
    def observe(frames, actions):
        core = model.core
        return core.observe(frames, actions, core.init_state(), core.prepare(), implementation=implementation)

    state = observe(codebook[tokens[:-1]], actions[1:])
    assert_close(state, model(tokens, actions, codebook).state, rtol=1e-5, what="state")


def test_generate_follows_the_likeliest(clip, key):
    tokens, actions, codebook = clip
    model = tokens_model(key)
    generate = eqx.filter_jit(
        lambda model, temperature, key, **options: model.generate(
            tokens[:2], actions, codebook, LENGTH, key=key, temperature=temperature, **options
        )
    )
    greedy = generate(model, 0.0, key)
    np.testing.assert_array_equal(greedy[:2], tokens[:2])
    # Every generated frame is the likeliest one given those before it.
    logits = model(greedy, actions, codebook).prediction
    np.testing.assert_array_equal(greedy[2:], logits[1:].argmax(-1))
    sampled = generate(model, 1.0, key)
    assert (np.asarray(sampled) != np.asarray(generate(model, 1.0, jax.random.key(5)))).any()
    assert sampled.dtype == tokens.dtype and 0 <= int(sampled.min()) and int(sampled.max()) < 5


def test_open_loop_generation_matches_training(clip, key):
    tokens, actions, codebook = clip
    model = tokens_model(key, causal_masking=True, open_loop_context=3, action_dropout=0.5)
    drawn = Draws(jnp.asarray(False), jnp.arange(LENGTH - 1))
    hidden = model(tokens, actions, codebook, draws=drawn)
    generated = model.generate(tokens[:3], actions, codebook, LENGTH, key=key, temperature=0.0)
    np.testing.assert_array_equal(generated[3:], hidden.prediction[2:].argmax(-1))
    # Frames from the context's end on are not seen, and only predictions after it count.
    changed = model(tokens.at[3:].set(0), actions, codebook, draws=drawn)
    np.testing.assert_array_equal(changed.prediction, hidden.prediction)
    np.testing.assert_allclose(hidden.weights, [0, 0, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    # Without actions every frame is seen and counts.
    free = model(tokens, actions, codebook, draws=Draws(jnp.asarray(True), jnp.arange(LENGTH - 1)))
    np.testing.assert_array_equal(free.prediction, model(tokens, None, codebook).prediction)
    np.testing.assert_allclose(free.weights, np.full(5, 0.2), rtol=1e-6)


def test_drop_loss_predicts_the_drawn_frames(clip, key):
    tokens, actions, codebook = clip
    model = tokens_model(key, drop_loss=0.5)
    draws = model.draw(LENGTH, key=key)
    assert draws.frames.shape == (2,) and len(set(np.asarray(draws.frames).tolist())) == 2
    out = model(tokens, actions, codebook, draws=draws)
    full = model(tokens, actions, codebook)
    assert_close(out.prediction, full.prediction[draws.frames], rtol=1e-5)
    np.testing.assert_array_equal(out.frames, draws.frames + 1)
    assert float(out.weights.sum()) == pytest.approx(1)


def test_batch_permutation(clip, key):
    tokens, actions, codebook = clip
    model = tokens_model(key)
    batch = jnp.stack([tokens, jnp.flip(tokens, 0), (tokens + 1) % 5])
    run = eqx.filter_jit(lambda model, batch: jax.vmap(lambda t: model(t, actions, codebook).prediction)(batch))
    order = jnp.asarray([2, 0, 1])
    assert_close(run(model, batch[order]), run(model, batch)[order], rtol=1e-6)


def test_pixels_learn_and_generate(key):
    config = ConvS5PixelsConfig(**{**SMALL, "use_actions": False}, channels=2)
    model = ConvS5Pixels(config, key=key)
    video = jax.random.uniform(key, (LENGTH, 4, 4, 2), minval=-1, maxval=1)

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def loss(model):
        out = model(video)
        return jnp.sum(out.weights * pixel_loss(out.prediction, video[out.frames], squared=config.loss_weight))

    before, grads = loss(model)
    model = eqx.apply_updates(model, jax.tree.map(lambda g: -1e-2 * g, grads))
    after, _ = loss(model)
    assert float(after) < float(before)
    generated = model.generate(video[:1], None, 3)
    np.testing.assert_array_equal(generated[:1], video[:1])
    assert_close(generated[1], model(generated).prediction[0], rtol=1e-5)
    assert float(jnp.abs(generated).max()) <= 1


def test_bfloat16_stays_close(clip, key):
    tokens, actions, codebook = clip
    model = tokens_model(key)
    cast = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if eqx.is_inexact_array(x) else x, model)
    out = cast(tokens, actions, codebook)
    assert out.prediction.dtype == jnp.bfloat16 and out.state.dtype == jnp.float32
    assert_close(out.prediction, model(tokens, actions, codebook).prediction, rtol=0.1)


def test_cross_entropy_and_smoothing():
    logits = jax.random.normal(jax.random.key(0), (3, 5))
    targets = jnp.asarray([0, 4, 2])
    labels = 0.9 * jax.nn.one_hot(targets, 5) + 0.1 / 5
    expected = -(labels * jax.nn.log_softmax(logits)).sum(-1)
    assert_close(token_cross_entropy(logits, targets, smoothing=0.1), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((6, 4, 5), r"VideoTokens was built for tokens of shape \(time, 4, 4\).*got \(6, 4, 5\)\.$"),
        ((2, 6, 4, 4), r"got \(2, 6, 4, 4\)\. It takes one example"),
    ],
)
def test_shape_errors_are_sentences(clip, key, shape, message):
    _, actions, codebook = clip
    with pytest.raises(ShapeError, match=message):
        tokens_model(key)(jnp.zeros(shape, int), actions, codebook)


def test_more_mistakes(clip, key):
    tokens, actions, codebook = clip
    model = tokens_model(key)
    with pytest.raises(ShapeError, match=r"built for codebook of shape \(5, 3\)"):
        model(tokens, actions, codebook[:, :2])
    with pytest.raises(ShapeError, match=r"built for actions of shape \(6\)"):
        model(tokens, actions[:3], codebook)
    with pytest.raises(ShapeError, match="must exceed the 6 context frames"):
        model.generate(tokens, None, codebook, 6, key=key)
    with pytest.raises(ShapeError, match="one action per frame, 9"):
        model.generate(tokens, actions, codebook, 9, key=key)
    masked = tokens_model(key, causal_masking=True, open_loop_context=9)
    with pytest.raises(ShapeError, match="must be longer than open_loop_context = 9"):
        masked(tokens, actions, codebook, draws=masked.draw(LENGTH, key=key))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"encoder_depths": (32, 40)}, "must have the same length"),
        ({"encoder_depths": (40,), "decoder_depths": (40,)}, "multiples of norm_groups = 32"),
        (
            {"height": 7, "encoder_depths": (32, 32), "decoder_depths": (32, 32)},
            "height = 7 cannot be halved 1",
        ),
        ({"d_model": 48}, "d_model = 48 must be a multiple of ssm_groups"),
        ({"ssm_size": 10, "ssm_blocks": 3}, "ssm_size = 10 must be a multiple of twice"),
        ({"drop_loss": 1.0}, r"drop_loss = 1.0 must lie in \[0, 1\)"),
    ],
)
def test_config_mistakes(key, options, message):
    with pytest.raises(ConfigError, match=message):
        create_model("convs5_dmlab", key=key, **options)
