import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import pytest

from slotzoo.errors import CheckpointError, ConfigError
from slotzoo.train import initialize, make_mesh
from slotzoo.train.names import from_named, leaf_names, named_arrays
from slotzoo.train.plan import StepPlan, plan_step
from slotzoo.train.sharding import leaf_sharding
from slotzoo.train.step import cast_parameters


def test_plan_counts_and_warns():
    compiled = jax.jit(lambda a: a @ a).lower(jnp.ones((64, 64))).compile()
    plan = plan_step(compiled)
    assert plan.flops == pytest.approx(2 * 64**3, rel=0.1) and plan.arguments == 4 * 64**2
    assert plan.total >= 2 * plan.arguments and math.isfinite(plan.seconds) and plan.seconds > 0
    big = StepPlan(8 * 10**9, 10**9, 9 * 10**9, 4 * 10**9, 1e12, 1e9, 0.5, "small GPU")
    assert "needs 9 GB of 4 GB on each device" in big.sentence() and "500 ms on small GPU" in big.sentence()
    assert big.sentence().endswith("take a smaller batch, train.accumulate, or train.remat=true.")


def test_processes_are_given_whole_or_not_at_all():
    initialize()  # a single process: nothing happens
    assert not jax.distributed.is_initialized()
    with pytest.raises(ConfigError, match="missing: processes, process_id"):
        initialize(coordinator="localhost:1234")
    with pytest.raises(ConfigError, match=r"process_id is 2; it has to lie in 0..1"):
        initialize(coordinator="localhost:1234", processes=2, process_id=2)


@hypothesis.given(st.lists(st.integers(1, 12), max_size=4))
def test_fsdp_only_splits_what_divides(shape):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slotzoo.train.sharding.FSDP_MINIMUM", 1)
        sharding = leaf_sharding(jax.ShapeDtypeStruct(tuple(shape), jnp.float32), make_mesh(), "fsdp")
    split = [size for size, name in zip(shape, sharding.spec, strict=False) if name == "data"]
    fitting = [size for size in shape if size % 4 == 0]
    assert split == ([max(fitting)] if fitting else [])


def test_names_are_dotted_and_unique():
    tree = {"layers": [{"weight": jnp.ones(2), "act": jnp.tanh}], "step": jnp.zeros(())}
    assert leaf_names(tree) == ["layers.0.act", "layers.0.weight", "step"]
    named = named_arrays(tree)
    assert list(named) == ["layers.0.weight", "step"]
    again = from_named(tree, {name: x + 1 for name, x in named.items()})
    assert again["layers"][0]["act"] is jnp.tanh and float(again["step"]) == 1
    with pytest.raises(CheckpointError, match="same dotted name"):
        named_arrays({"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}})


def test_bfloat16_spares_what_discretises_a_state_space_model():
    model = {"ssm": {"lambda_re": jnp.ones(2), "log_step": jnp.ones(2), "kernel": jnp.ones(2)}, "count": 3}
    cast = cast_parameters(model, "bfloat16")
    assert cast["ssm"]["lambda_re"].dtype == cast["ssm"]["log_step"].dtype == jnp.float32
    assert cast["ssm"]["kernel"].dtype == jnp.bfloat16 and cast["count"] == 3
