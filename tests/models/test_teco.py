"""TECO: the ways to run it agree with every core, its loss scores what it says, latents are drawn as asked."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.models import TECO, TECOConfig, create_model
from slotzoo.models.maskgit import MaskGIT, Sampling, hidden_share
from slotzoo.models.teco_outputs import TECODraws
from tests.arrays import random_module
from tests.tolerance import assert_close


pytestmark = pytest.mark.usefixtures("compiled_quickly")

SMALL: dict[str, Any] = dict(
    height=4,
    width=4,
    encoder_depths=(8, 8),
    encoder_blocks=1,
    decoder_depths=(8, 8),
    decoder_blocks=1,
    norm_groups=4,
    use_actions=True,
    num_actions=3,
    action_dim=2,
    layers=1,
    d_model=8,
    ssm_size=8,
    ssm_groups=4,
    num_codes=5,
    code_dim=3,
    embedding_dim=6,
    latent_codes=7,
    latent_code_dim=4,
    patch=2,
    heads=2,
    mlp_dim=8,
    prior_vocab_dim=6,
    prior_dim=8,
    prior_mlp_dim=8,
    prior_heads=2,
    prior_layers=1,
    scan_layers=False,
)
LENGTH = 6
ONE_PASS = Sampling(draft=1, revise=1, rounds=0)


def model_of(**options) -> TECO:
    return random_module(lambda: TECO(TECOConfig(**SMALL | options), key=jax.random.key(0)))


@pytest.fixture(scope="module")
def clip():
    keys = jax.random.split(jax.random.key(1), 3)
    tokens = jax.random.randint(keys[0], (LENGTH, 4, 4), 0, 5)
    actions = jax.random.randint(keys[1], (LENGTH,), 0, 3)
    return tokens, actions, jax.random.normal(keys[2], (5, 3))


@pytest.mark.parametrize("core", ["convs5", "s5", "transformer"])
def test_parallel_equals_steps(clip, core):
    tokens, actions, codebook = clip
    # Two by two latents: four tokens a frame for patch = 1.
    model = model_of(temporal=core, patch=1)

    @eqx.filter_jit
    def run(model):
        prepared = model.prepare()

        def body(state, now):
            out = model.step(*now, codebook, state, prepared=prepared)
            return out.state, out.prediction

        state = model.init_state(LENGTH)
        last, steps = jax.lax.scan(body, state, (tokens[:-1], actions[1:]))
        # In two pieces, with the state carried over.
        first = model(tokens[:3], actions[:3], codebook, state)
        second = model(tokens[2:], actions[2:], codebook, first.state)
        pieces = jnp.concatenate([first.prediction, second.prediction])
        return model(tokens, actions, codebook), steps, last, pieces, second.state

    out, steps, last, pieces, after = run(model)
    assert out.prediction.shape == (LENGTH - 1, 4, 4, 5)
    np.testing.assert_array_equal(out.frames, np.arange(1, LENGTH))
    assert_close(steps, out.prediction, rtol=1e-5, what="steps")
    assert_close(pieces, out.prediction, rtol=1e-5, what="two pieces")
    for one, other in zip(jax.tree.leaves(last), jax.tree.leaves(after), strict=True):
        assert_close(one, other, rtol=1e-5, what="state")


def test_generation_goes_on_from_what_it_was_given(clip):
    tokens, actions, codebook = clip
    model = model_of(temporal="s5", patch=2, causal_masking=True, open_loop_context=3)
    draws = TECODraws(jnp.asarray(False), jnp.arange(LENGTH - 1), jnp.zeros((LENGTH - 1, 2, 2), bool))

    @eqx.filter_jit
    def run(model):
        likeliest: dict[str, Any] = dict(temperature=0.0, sampling=ONE_PASS, key=jax.random.key(2))
        generate = lambda **options: model.generate(tokens[:3], actions, codebook, LENGTH, **options)
        seen = model(tokens[:4], actions[:4], codebook)
        blind = model(tokens.at[3:].set(0), actions, codebook, draws=draws)
        drawn = generate(key=jax.random.key(3), open_loop=False)
        return generate(open_loop=False, **likeliest), seen, generate(**likeliest), blind, drawn

    greedy, seen, open_loop, blind, drawn = run(model)
    np.testing.assert_array_equal(greedy[:3], tokens[:3])
    np.testing.assert_array_equal(greedy[3], seen.prediction[2].argmax(-1))
    # Open loop: as in training, the core sees nothing behind the context, whatever is generated.
    np.testing.assert_array_equal(open_loop[3:], blind.prediction[2:].argmax(-1))
    np.testing.assert_allclose(blind.weights, [0, 0, 1 / 3, 1 / 3, 1 / 3], rtol=1e-6)
    assert drawn.dtype == tokens.dtype and 0 <= int(drawn.min()) and int(drawn.max()) < 5


def test_loss_scores_what_it_says_and_teaches(clip):
    tokens, actions, codebook = clip
    model = model_of(causal_masking=True, open_loop_context=3)
    hidden = jnp.ones((LENGTH - 1, 2, 2), bool)
    draws = TECODraws(jnp.asarray(False), jnp.arange(LENGTH - 1), hidden)

    def scored(frames, dropped):
        options: dict[str, Any] = dict(causal_masking=True, open_loop_context=3, prior_frames=frames)
        other = eqx.filter_eval_shape(lambda: TECO(TECOConfig(**SMALL, **options), key=jax.random.key(0)))
        return other.scored(draws._replace(drop_actions=jnp.asarray(dropped)), LENGTH - 1).any((1, 2))

    late, every = np.arange(LENGTH - 1) >= 2, np.ones(LENGTH - 1, bool)
    for frames, with_actions, without in (("late", late, late), ("all", every, every), ("task", late, every)):
        np.testing.assert_array_equal(scored(frames, False), with_actions, err_msg=frames)
        np.testing.assert_array_equal(scored(frames, True), without, err_msg=frames)

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model):
        return model.loss(tokens, actions, codebook, draws=draws)

    (before, terms), grads = loss(model)
    assert set(terms) == {"reconstruction", "prior", "commitment", "codebook", "perplexity"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        # The bias of a key shifts all logits of a query alike; a normed row has no gradient along itself.
        assert np.isfinite(leaf).all() and (np.abs(leaf).max() > 0 or ".key.bias" in name), name
    (after, _), _ = loss(eqx.apply_updates(model, jax.tree.map(lambda g: -1e-4 * g, grads)))
    assert float(after) < float(before)


def test_training_draws():
    model = model_of(drop_loss=0.5, action_dropout=0.5)
    draws = jax.jit(jax.vmap(lambda key: model.draw(LENGTH + 4, key=key)))(
        jax.random.split(jax.random.key(0), 400)
    )
    frames, hidden = np.asarray(draws.frames), np.asarray(draws.hidden)
    assert frames.shape == (400, 4) and hidden.shape == (400, 4, 2, 2)
    assert all(len(set(row)) == 4 for row in frames.tolist()) and frames.max() == 8
    assert hidden.any((2, 3)).all() and not hidden.all()
    assert 0.4 < np.mean(draws.drop_actions) < 0.6
    # The authors draw with replacement and one place too far, where the last prediction is read again.
    model = model_of(drop_loss=0.5, authors_frames=True)
    draw = jax.jit(jax.vmap(lambda key: model.draw(LENGTH + 4, key=key).frames))
    theirs = draw(jax.random.split(jax.random.key(0), 100))
    assert int(theirs.max()) == 9 and any(len(set(row)) < 4 for row in theirs.tolist())


def test_sampling_asks_for_every_place_once_a_round():
    prior = random_module(
        lambda: MaskGIT(9, 2, (3, 4), vocab_dim=4, dim=4, mlp_dim=4, heads=1, layers=1, key=jax.random.key(0))
    )
    condition = jax.random.normal(jax.random.key(3), (3, 4, 2))
    place = jnp.zeros((3, 4), bool).at[0, 0].set(True)

    @jax.jit
    def run(keys):
        logits = prior(jnp.full((3, 4), -1), condition, jnp.ones((3, 4), bool))
        one = prior.sample(condition, ONE_PASS, key=keys[0], temperature=0.0)
        many = jax.vmap(lambda key: prior.sample(condition, Sampling(5, 7, 2), key=key))(keys)
        clips = jnp.stack([one, one.at[0, 0].set((one[0, 0] + 1) % 9), one.at[1, 1].set((one[1, 1] + 1) % 9)])
        return logits, one, many, jax.vmap(lambda codes: prior(codes, condition, place))(clips)

    logits, one, many, (seen, hidden_changed, visible_changed) = run(jax.random.split(jax.random.key(1), 20))
    np.testing.assert_array_equal(one, logits.argmax(-1))
    # Five passes over twelve places, then revision: no place is left without a code.
    assert int(many.min()) >= 0 and int(many.max()) < 9 and len(np.unique(many)) > 3
    # What is visible tells; what is hidden does not.
    np.testing.assert_array_equal(hidden_changed, seen)
    assert not np.array_equal(visible_changed, seen)


def test_schedules_fall_from_all_to_nearly_nothing():
    ratios = jnp.linspace(0.001, 0.999, 50)
    for schedule in ("cosine", "uniform", "pow0.5", "pow3", "log", "exp"):
        share = np.asarray(hidden_share(ratios, schedule, 16))
        assert (np.diff(share) <= 0).all() and share[0] > 0.93 and share[-1] < 0.07, schedule


@pytest.mark.parametrize(
    "options, message",
    [
        ({"patch": 3, "temporal": "s5"}, "patch = 3 does not divide the latent map of 8 x 8"),
        ({"prior_dim": 30}, "prior_dim = 30 cannot be split into prior_heads = 8"),
        ({"prior_schedule": "cosin"}, "no schedule 'cosin'"),
        ({"draft": 0}, "draft = 0 must be at least 1"),
        ({"temporal": "convs4"}, "'convs4' is none of"),
    ],
)
def test_config_mistakes(key, options, message):
    with pytest.raises(ConfigError, match=message):
        create_model("teco_convs5_dmlab", key=key, **options)


def test_shape_mistakes(clip, key):
    tokens, actions, codebook = clip
    model = model_of(causal_masking=True, open_loop_context=9)
    with pytest.raises(ShapeError, match=r"TECO was built for tokens of shape \(time, 4, 4\)"):
        model(tokens[:, :3], actions, codebook)
    with pytest.raises(ShapeError, match="must exceed the 6 context frames"):
        model.generate(tokens, None, codebook, 6, key=key)
    draws = TECODraws(jnp.asarray(False), jnp.arange(5), jnp.ones((5, 2, 2), bool))
    with pytest.raises(ShapeError, match="must be longer than open_loop_context = 9"):
        model.loss(tokens, actions, codebook, draws=draws)


def test_memory_of_a_rollout_does_not_grow():
    model = model_of(use_actions=False)
    context, codebook = jnp.zeros((1, 4, 4), jnp.int32), jnp.ones((5, 3))
    sizes = []
    for length in (101, 1300):
        roll = lambda context, n=length: model.generate(
            context, None, codebook, n, key=jax.random.key(0), sampling=ONE_PASS
        )
        sizes.append(jax.jit(roll).lower(context).compile().memory_analysis().temp_size_in_bytes)
    # The 16 codes of a frame pass in and out, and the key of a step; nothing else is kept.
    assert sizes[1] - sizes[0] <= 4 * 3 * 20 * 1200
