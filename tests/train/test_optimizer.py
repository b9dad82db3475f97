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


def test_exponential_schedule_warms_up_while_it_decays():
    rate = learning_rate(OptimizerConfig(0.4, 500, schedule="exponential", warmup_steps=10, decay_steps=100))
    expected = [0.4 * min(t / 10, 1) * 0.5 ** (t / 100) for t in (0, 3, 10, 100, 250)]
    np.testing.assert_allclose([rate(t) for t in (0, 3, 10, 100, 250)], expected, rtol=1e-6)
    with pytest.raises(ConfigError, match="needs decay_steps"):
        OptimizerConfig(0.4, 500, schedule="exponential")


def one_update(params, grads, **options):
    options = {"schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0} | options
    optimizer = make_optimizer(OptimizerConfig(0.1, 100, **options))
    return optimizer.update(grads, optimizer.init(params), params)[0]


def test_rmsprop_divides_by_the_root_of_the_average():
    grads = {"w": jnp.asarray([0.5, -2.0])}
    found = one_update(grads, grads, optimizer="rmsprop", b2=0.99, eps=1e-2)["w"]
    np.testing.assert_allclose(found, [-0.1 * g / (0.1 * abs(g) + 1e-2) for g in (0.5, -2.0)], rtol=1e-5)


@pytest.mark.parametrize(
    "kind, expected",
    [("norm", [0.6, -0.8]), ("largest", [0.75, -1.0]), ("value", [1.0, -1.0])],
)
def test_kinds_of_clipping(kind, expected):
    # Plain RMSprop without memory would hide the scale: eps so large that the update is the gradient over it.
    grads = {"w": jnp.asarray([3.0, -4.0])}
    options = dict(optimizer="rmsprop", b2=1.0, eps=1e3, clip_norm=1.0, clip_kind=kind)
    np.testing.assert_allclose(
        one_update(grads, grads, **options)["w"] * -1e4, expected, rtol=1e-5, err_msg=kind
    )


def test_some_parameters_do_not_warm_up():
    params = {"dvae": jnp.ones(2), "rest": jnp.ones(2)}
    options = dict(warmup_steps=10, warmup_offset=1, no_warmup=("dvae",), rates={"dvae": 3.0}, eps=1e-12)
    found = one_update(params, params, **options)
    np.testing.assert_allclose(found["dvae"], -0.3, rtol=1e-5)
    np.testing.assert_allclose(found["rest"], -0.01, rtol=1e-5)
    with pytest.raises(ConfigError, match="no_warmup fits no parameter"):
        one_update(params, params, no_warmup=("dave",))


def test_plateau_halves_the_rate():
    params = {"w": jnp.ones(2)}
    options = dict(schedule="constant", warmup_steps=0, weight_decay=0.0, plateau_patience=2, plateau_every=2)
    optimizer = make_optimizer(OptimizerConfig(0.1, 100, eps=1e-12, **options))
    state, sizes = optimizer.init(params), []
    for _ in range(7):
        updates, state = optimizer.update(params, state, params, value=jnp.float32(1.0))
        sizes.append(float(-updates["w"][0]))
    assert sizes[0] == pytest.approx(0.1, rel=1e-4) and sizes[-1] == pytest.approx(0.05, rel=1e-4)


def test_unknown_words_are_refused():
    with pytest.raises(ConfigError, match="Did you mean 'rmsprop'"):
        OptimizerConfig(0.1, 10, optimizer="rmsprob")
