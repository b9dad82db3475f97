"""AdamW and the learning-rate schedule."""

import jax
import jax.numpy as jnp
import optax

from slotzoo.train.optimizer import OptimizerConfig, learning_rate, make_optimizer
from tests.parity.harness import Case, checks
from tests.tolerance import assert_close


SCHEDULES = {"cosine": "warmup_cosine", "constant": "constant"}


@checks("optimizer*.npz")
def check_optimizer(case: Case) -> None:
    c = case.config
    config = OptimizerConfig(
        learning_rate=c["lr"],
        steps=c["total_steps"],
        schedule=SCHEDULES[c["lr_schedule"]],
        warmup_steps=c["warmup_steps"],
        weight_decay=c["weight_decay"],
        seed_schedule=True,
    )
    expected = case.outputs["schedule"]
    case.compare(jax.vmap(learning_rate(config))(jnp.arange(len(expected))), "schedule", rtol=1e-5)

    params = {name: jnp.asarray(x) for name, x in case.params.items()}
    grads = {name.removeprefix("grads/"): jnp.asarray(x) for name, x in case.inputs.items()}
    optimizer = make_optimizer(config)

    def update(carry, grads):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    _, path = jax.jit(lambda p, g: jax.lax.scan(update, (p, optimizer.init(p)), g))(params, grads)
    for name in params:
        assert_close(path[name], case.outputs[f"params/{name}"], rtol=1e-5, what=f"{case.path.name}: {name}")
