import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from slotzoo.errors import ConfigError
from slotzoo.train import OptimizerConfig, init_state, learning_rate, make_optimizer
from slotzoo.train.mesh import batch_sharding, check_batch_size, make_mesh, shard_batch
from slotzoo.train.sharding import abstract, init_sharded, leaf_sharding, place
from slotzoo.train.step import make_train_step
from tests.tolerance import assert_close, tolerance
from tests.train.small import Batches, Linear, Regression


CONFIG = OptimizerConfig(0.05, steps=100, schedule="constant", warmup_steps=2)
KEY = jax.random.key(7)


def run(
    steps=3, *, mesh=None, strategy="replicated", task=None, size=(8, 4), ema=None, config=CONFIG, **options
):
    mesh = mesh or make_mesh()
    optimizer = make_optimizer(config)

    def build(key):
        return init_state(lambda k: Linear(*size, key=k), optimizer, key=key, ema=ema is not None)

    state = init_sharded(build, KEY, mesh=mesh, strategy=strategy)
    step = make_train_step(
        task or Regression(),
        optimizer,
        mesh=mesh,
        strategy=strategy,
        ema_decay=ema,
        learning_rate=learning_rate(config),
        **options,
    )
    data, history = Batches(), []
    for _ in range(steps):
        state, metrics = step(state, None, shard_batch(mesh, next(data)), KEY)
        history.append({k: float(v) for k, v in metrics.items()})
    return state, history, step


def one_device_mesh():
    return jax.sharding.Mesh(
        np.asarray(jax.devices()[:1]).reshape(1, 1),
        ("data", "model"),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
    )


def test_learns_compiles_once_and_reports():
    state, history, step = run(20)
    assert step.traces == 1
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert set(history[0]) == {"loss", "error", "bias", "grad_norm", "finite", "learning_rate"}
    np.testing.assert_allclose([h["learning_rate"] for h in history[:4]], [0, 0.025, 0.05, 0.05], rtol=1e-6)
    assert int(state.step) == 20 and state.model.activation is jnp.tanh


def test_the_rate_that_is_reported_falls_on_a_plateau():
    config = OptimizerConfig(
        0.05, steps=100, schedule="constant", warmup_steps=0, plateau_patience=1, plateau_every=1
    )
    rate, best, expected = 0.05, np.inf, []
    _, history, _ = run(12, config=config)
    for loss in (h["loss"] for h in history):
        rate, best = (rate, loss) if loss < (1 - 1e-4) * best else (rate / 2, best)
        expected.append(rate)
    assert rate < 0.05
    np.testing.assert_allclose([h["learning_rate"] for h in history], expected, rtol=1e-6)


def test_devices_and_strategies_agree(monkeypatch):
    monkeypatch.setattr("slotzoo.train.sharding.FSDP_MINIMUM", 1)
    expected, history, _ = run(mesh=one_device_mesh())
    for strategy, model, weight in (
        ("replicated", 1, PartitionSpec()),
        ("fsdp", 1, PartitionSpec("data")),
        ("fsdp", 2, PartitionSpec("model", "data")),
    ):
        state, other, _ = run(strategy=strategy, mesh=make_mesh(model=model))
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(state), strict=True):
            if eqx.is_array(a):
                assert_close(b, a, rtol=tolerance("float32", 100), what=strategy)
        assert_close(other[-1]["loss"], history[-1]["loss"], rtol=1e-5)
        assert state.model.weight.sharding.spec == state.opt_state[0].mu.weight.sharding.spec == weight


def test_accumulation_equals_one_batch():
    quiet = Regression(noise=0.0)
    whole, a, _ = run(task=quiet)
    parts, b, step = run(task=quiet, accumulate=2)
    assert step.traces == 1
    assert_close(parts.model.weight, whole.model.weight, rtol=tolerance("float32", 100))
    assert_close(b[-1]["grad_norm"], a[-1]["grad_norm"], rtol=1e-5)


def test_remat_changes_nothing():
    a, b = run()[0], run(remat=True)[0]
    assert_close(b.model.weight, a.model.weight, rtol=tolerance("float32", 10))


def test_bfloat16_computes_low_and_keeps_high():
    seen = []

    class Watch(Regression):
        def loss(self, model, frozen, batch, *, key, step):
            seen.append(model.weight.dtype)
            return super().loss(model, frozen, batch, key=key, step=step)

    state, history, _ = run(task=Watch(), precision="bfloat16")
    assert seen[0] == jnp.bfloat16 and state.model.weight.dtype == jnp.float32
    assert_close(history[-1]["loss"], run()[1][-1]["loss"], rtol=0.05)


def test_average_follows_the_parameters():
    state, _, _ = run(3, ema=0.99)
    assert state.averaged().weight.shape == state.model.weight.shape
    assert not np.array_equal(state.averaged().weight, state.model.weight)
    assert state.averaged().activation is jnp.tanh


def test_a_step_that_is_not_finite_changes_nothing():
    before, _, _ = run(2)
    after, history, _ = run(3, task=Regression(poison=2))
    assert [h["finite"] for h in history] == [1, 1, 0]
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b),
        *(eqx.filter(s, eqx.is_array) for s in (before, after)),
    )


def test_state_is_donated_and_replicated_step_gathers_nothing():
    mesh, optimizer = make_mesh(), make_optimizer(CONFIG)
    state = init_sharded(
        lambda k: init_state(lambda q: Linear(key=q), optimizer, key=k), KEY, mesh=mesh, strategy="replicated"
    )
    step = make_train_step(Regression(noise=0.0), optimizer, mesh=mesh)
    batch = shard_batch(mesh, next(Batches()))
    compiled = step.compile(abstract(state, mesh, "replicated"), None, batch, KEY)
    assert compiled.compiled.memory_analysis().alias_size_in_bytes > 0
    assert " all-gather" not in compiled.compiled.as_text()
    old = state.model.weight
    state, _ = compiled(state, None, batch, KEY)
    state, _ = compiled(state, None, batch, KEY)  # its output has the shardings of its input
    assert old.is_deleted() and int(state.step) == 2


def test_frozen_is_an_argument():
    mesh, optimizer = make_mesh(), make_optimizer(CONFIG)
    state = init_state(lambda q: Linear(key=q), optimizer, key=KEY)
    state = place(state, mesh, "replicated")
    frozen = place({"scale": np.float32(2.0), "name": "twice"}, mesh, "replicated")
    step = make_train_step(Regression(), optimizer, mesh=mesh)
    _, metrics = step(state, frozen, shard_batch(mesh, next(Batches())), KEY)
    assert np.isfinite(metrics["loss"])


def test_batches_are_spread_and_names_left_out():
    batch = shard_batch(
        make_mesh(), {"x": np.zeros((8, 3)), "odd": np.zeros((3, 2)), "name": np.array(["a"] * 8)}
    )
    assert batch["x"].sharding.spec == PartitionSpec("data")
    assert batch["odd"].sharding.spec == PartitionSpec() and "name" not in batch


def test_fsdp_splits_the_largest_fitting_axis(monkeypatch):
    mesh = make_mesh()
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    assert leaf_sharding(struct(8), mesh, "fsdp").spec == PartitionSpec()
    monkeypatch.setattr("slotzoo.train.sharding.FSDP_MINIMUM", 1)
    assert leaf_sharding(struct(8, 64, 12), mesh, "fsdp").spec == PartitionSpec(None, "data")
    assert leaf_sharding(struct(3, 5), mesh, "fsdp").spec == PartitionSpec()


def test_devices_along_model_split_the_state_and_its_products():
    """Each holds half of a layer's parameters and computes half of what it gives to its examples."""
    layer, x = jax.ShapeDtypeStruct((64, 256), jnp.float32), jax.ShapeDtypeStruct((8, 64), jnp.float32)
    counted = {}
    for model in (1, 2, 4):
        mesh = make_mesh(model=model)
        held = leaf_sharding(layer, mesh, "replicated")
        assert held.shard_shape(layer.shape) == (64, 256 // model)
        product = jax.jit(jnp.dot, in_shardings=(batch_sharding(mesh), held)).lower(x, layer).compile()
        counted[model] = (product.cost_analysis() or {})["flops"]
    assert (
        leaf_sharding(jax.ShapeDtypeStruct((64,), jnp.float32), make_mesh(model=2), "fsdp").spec
        == PartitionSpec()
    )
    # A device of a mesh of (data, model) = (4, 1) multiplies 2 examples by the whole, of (1, 4) all 8 by a quarter.
    assert counted[1] == counted[2] == counted[4] == 2 * 2 * 64 * 256


def test_meshes_and_batches_are_checked():
    mesh = make_mesh()
    assert check_batch_size(8, mesh) == 8
    with pytest.raises(
        ConfigError, match="batch of 6 cannot be split over 4 devices along `data`; take 4 or 8"
    ):
        check_batch_size(6, mesh)
    with pytest.raises(ConfigError, match="times 2 microbatches; take 8"):
        check_batch_size(4, mesh, accumulate=2)
    with pytest.raises(ConfigError, match="data=3 by model=1 does not fit 4 devices"):
        make_mesh(data=3)
    with pytest.raises(ConfigError, match=r"mesh\.model=3 does not divide the number of devices, 4"):
        make_mesh(model=3)
    with pytest.raises(ConfigError, match="'fdsp' does not exist.*Did you mean 'fsdp'"):
        init_sharded(lambda k: {}, KEY, mesh=mesh, strategy="fdsp")
    assert make_mesh(model=2).shape == {"data": 2, "model": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "local_device_count", lambda: 1)  # four processes
        with pytest.raises(ConfigError, match=r"mesh\.model=2 does not divide the 1 devices of a process"):
            make_mesh(model=2)
