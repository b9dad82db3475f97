import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from slotzoo.errors import ConfigError
from slotzoo.train import OptimizerConfig, learning_rate, make_optimizer


def test_cosine_reaches_its_marks():
    rate = learning_rate(OptimizerConfig(0.1, steps=100, warmup_steps=10))
    np.testing.assert_allclose(
        [rate(t) for t in (0, 5, 10, 55, 100, 200)], [0, 0.05, 0.1, 0.05, 0, 0], atol=1e-8
    )


def test_seed_schedule_equals_optax_as_the_authors_call_it():
    rate = learning_rate(OptimizerConfig(0.1, steps=60, warmup_steps=10, seed_schedule=True))
    theirs = optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 60 - 10)
    np.testing.assert_allclose([rate(t) for t in range(60)], [theirs(t) for t in range(60)], atol=1e-7)


@pytest.mark.parametrize("name, end", [("constant", 0.1), ("linear", 0.0)])
def test_other_schedules(name, end):
    rate = learning_rate(OptimizerConfig(0.1, steps=20, schedule=name, warmup_steps=0))
    np.testing.assert_allclose([rate(0), rate(20)], [0.1, end], atol=1e-8)


def test_adamw_equals_optax():
    config = OptimizerConfig(0.1, steps=10, schedule="constant", warmup_steps=0, weight_decay=0.1)
    ours, theirs = make_optimizer(config), optax.adamw(0.1, 0.9, 0.95, 1e-8, weight_decay=0.1)
    params = {"weight": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}
    grads = jax.tree.map(jnp.cos, params)
    a, _ = ours.update(grads, ours.init(params), params)
    with jax.numpy_dtype_promotion("standard"):
        b, _ = theirs.update(grads, theirs.init(params), params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


def test_groups_and_selective_decay():
    config = OptimizerConfig(
        0.1,
        steps=10,
        schedule="constant",
        warmup_steps=0,
        weight_decay=0.5,
        decay_all=False,
        rates={"*.log_step": 0.5, "frozen.*": 0},
    )
    ones = jnp.ones((2, 2))
    params = {
        "ssm": {"log_step": ones},
        "conv": {"weight": ones, "bias": jnp.ones(2)},
        "frozen": {"weight": ones},
    }
    optimizer = make_optimizer(config)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["ssm"]["log_step"], -0.05 * ones, rtol=1e-5)
    np.testing.assert_allclose(updates["conv"]["bias"], -0.1 * jnp.ones(2), rtol=1e-5)
    np.testing.assert_allclose(updates["conv"]["weight"], -0.15 * ones, rtol=1e-5)
    np.testing.assert_allclose(updates["frozen"]["weight"], 0 * ones)


def test_clipping():
    config = OptimizerConfig(0.1, steps=10, schedule="constant", warmup_steps=0, clip_norm=1.0)
    optimizer = make_optimizer(config)
    params = {"weight": jnp.zeros(4)}
    _, state = optimizer.update({"weight": jnp.full(4, 50.0)}, optimizer.init(params), params)
    np.testing.assert_allclose(optax.tree.get(state, "mu")["weight"], 0.1 * jnp.full(4, 0.5), rtol=1e-5)


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"'warmup_cosin'.*Did you mean 'warmup_cosine'\?"):
        OptimizerConfig(0.1, steps=10, schedule="warmup_cosin")
    with pytest.raises(ConfigError, match="clip_norm is -1"):
        OptimizerConfig(0.1, steps=10, clip_norm=-1.0)
    with pytest.raises(ConfigError, match="steps >= 1"):
        OptimizerConfig(0.1, steps=0)
    optimizer = make_optimizer(OptimizerConfig(0.1, steps=10, rates={"log_stp": 0.1}))
    with pytest.raises(ConfigError, match=r"'log_stp'.*fits no parameter.*Did you mean 'log_step'\?"):
        optimizer.init({"log_step": jnp.ones(2)})
