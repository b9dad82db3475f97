"""S5, ConvLSTM, Transformer and Performer as cores of the video models: a call, steps and rollouts agree."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.models import (
    ConvLSTMPixelsConfig,
    ConvS5PixelsConfig,
    PerformerPixelsConfig,
    S5PixelsConfig,
    TransformerPixelsConfig,
    TransformerTokensConfig,
    VideoPixels,
    VideoTokens,
)
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
    use_actions=True,
    num_actions=3,
    action_dim=2,
    scan_layers=False,
)
# Four tokens per frame, so that a frame's tokens see each other and the mask is no plain triangle.
SQUARES = dict(patch=2, feature_dim=6)
ATTENTION = dict(heads=2, mlp_dim=12)
CONFIGS = {
    "s5": S5PixelsConfig(**SMALL, **SQUARES, ssm_size=8),
    "convlstm": ConvLSTMPixelsConfig(**SMALL),
    "transformer": TransformerPixelsConfig(**SMALL, **SQUARES, **ATTENTION),
    "performer": PerformerPixelsConfig(**SMALL, **SQUARES, **ATTENTION, favor_features=16),
    "performer_relu": PerformerPixelsConfig(**SMALL, **SQUARES, **ATTENTION, favor_kernel="relu"),
}
CONVS5 = ConvS5PixelsConfig(**SMALL, ssm_size=8, ssm_groups=4)  # its calls and steps: test_convs5.py
LENGTH = 6


@pytest.fixture(scope="module")
def clip():
    keys = jax.random.split(jax.random.key(1), 2)
    video = jax.random.uniform(keys[0], (LENGTH, 4, 4, 1), minval=-1, maxval=1)
    return video, jax.random.randint(keys[1], (LENGTH,), 0, 3)


@pytest.mark.parametrize("name", CONFIGS)
def test_call_steps_and_rollouts_agree(clip, key, name):
    video, actions = clip
    model = VideoPixels(CONFIGS[name], key=key)

    @eqx.filter_jit
    def forms(model):
        prepared = model.core.prepare()

        def body(state, now):
            out = model.step(*now, state, prepared=prepared)
            return out.state, out.prediction

        state = model.init_state(LENGTH)
        _, stepped = jax.lax.scan(body, state, (video[:-1], actions[1:]))
        # In two pieces, with the state carried over; then a rollout and what is predicted along it.
        first = model(video[:3], actions[:3], state)
        second = model(video[2:], actions[2:], first.state)
        joined = jnp.concatenate([first.prediction, second.prediction])
        rolled = model.generate(video[:3], actions, LENGTH)
        return model(video, actions).prediction, stepped, joined, rolled, model(rolled, actions).prediction

    whole, stepped, joined, rolled, along = forms(model)
    assert whole.shape == (LENGTH - 1, 4, 4, 1)
    # Softmax features are exponentials: rounding of their exponents counts for more.
    rtol = 1e-4 if name == "performer" else 1e-5
    assert_close(stepped, whole, rtol=rtol, what="steps")
    assert_close(joined, whole, rtol=rtol, what="two pieces")
    np.testing.assert_array_equal(rolled[:3], video[:3])
    assert_close(rolled[3:], along[2:], rtol=rtol, what="rollout")


def test_the_past_counts_and_the_future_does_not(clip, key):
    video, actions = clip
    for name in ("convlstm", "transformer"):
        model = VideoPixels(CONFIGS[name], key=key)
        run = eqx.filter_jit(lambda model, video: model(video, actions).prediction)
        out, late, early = (run(model, v) for v in (video, video.at[3].add(0.5), video.at[0].add(0.5)))
        np.testing.assert_array_equal(out[:3], late[:3])
        assert (out[3:] != late[3:]).any() and (out[4] != early[4]).any()


@pytest.mark.parametrize("context", [2, 5])
def test_a_window_slides_as_the_authors_do(clip, key, context):
    """Beyond the window, a frame is predicted as if the clip had begun `window - 1` frames before it."""
    video, actions = clip
    config = TransformerPixelsConfig(**SMALL, **SQUARES, **ATTENTION, window=4)
    model = VideoPixels(config, key=key)
    run = lambda model: jax.vmap(lambda v: model.generate(v, actions, LENGTH))(video[None, :context])
    rolled = eqx.filter_jit(run)(model)[0]
    predict = eqx.filter_jit(lambda model, video, actions: model(video, actions).prediction[-1])
    for i in range(context, LENGTH):
        start = max(0, i - 3)
        expected = predict(model, rolled[start : i + 1], actions[start : i + 1])
        assert_close(rolled[i], expected, rtol=1e-5, what=f"frame {i}")


@pytest.mark.parametrize("name", ["convs5", "s5", "convlstm", "performer"])
def test_memory_of_a_rollout_does_not_grow(key, name):
    model = VideoPixels({"convs5": CONVS5, **CONFIGS}[name], key=key)
    frame = jnp.zeros((1, 4, 4, 1))
    sizes = []
    for length in (101, 1300):
        rollout = jax.jit(lambda frame, n=length: model.generate(frame, None, n))
        sizes.append(rollout.lower(frame).compile().memory_analysis().temp_size_in_bytes)
    # Actions and frames pass in and out, 20 numbers a step at most; nothing else is kept.
    assert sizes[1] - sizes[0] <= 4 * 3 * 20 * 1200


def test_tokens_generate_with_a_cache(key):
    sizes = {**SMALL, "use_actions": False}
    config = TransformerTokensConfig(**sizes, **SQUARES, **ATTENTION, num_codes=5, code_dim=3)
    model = VideoTokens(config, key=key)
    tokens = jax.random.randint(key, (LENGTH, 4, 4), 0, 5)
    codebook = jax.random.normal(key, (5, 3))

    @eqx.filter_jit
    def run(model):
        greedy = model.generate(tokens[:2], None, codebook, LENGTH, key=key, temperature=0.0)
        return greedy, model(greedy, None, codebook).prediction

    greedy, logits = run(model)
    np.testing.assert_array_equal(greedy[2:], logits[1:].argmax(-1))


def test_mistakes_are_sentences(key):
    with pytest.raises(ShapeError, match=r"say init_state\(length\)"):
        VideoPixels(CONFIGS["transformer"], key=key).init_state()
    with pytest.raises(ConfigError, match="patch = 3 does not divide the feature map of 4 x 4"):
        S5PixelsConfig(**SMALL, patch=3)
    with pytest.raises(ConfigError, match="d_model = 8 cannot be split into heads = 3"):
        TransformerPixelsConfig(**SMALL, patch=2, heads=3)
    with pytest.raises(ConfigError, match="window = 1 leaves no frame"):
        TransformerPixelsConfig(**SMALL, patch=2, heads=2, window=1)
    with pytest.raises(ConfigError, match="a Performer remembers all frames"):
        PerformerPixelsConfig(**SMALL, patch=2, heads=2, window=4)
    with pytest.raises(ConfigError, match="patch = 0 must be at least 1"):
        S5PixelsConfig(**SMALL, patch=0)
    with pytest.raises(ConfigError, match=r"encoder_depths = \(\) must have one entry per resolution"):
        ConvLSTMPixelsConfig(**{**SMALL, "encoder_depths": ()})
    with pytest.raises(ConfigError, match="dt_min = 0.5 and dt_max = 0.1 must be positive, and in this order"):
        S5PixelsConfig(**SMALL, patch=2, dt_min=0.5)
