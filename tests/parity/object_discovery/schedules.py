"""Learning rates of Slot Attention and SLATE."""

import jax
import jax.numpy as jnp

from slotzoo.train.optimizer import OptimizerConfig, learning_rate
from tests.parity.harness import Case, checks


@checks("schedules*.npz")
def check_learning_rates(case: Case) -> None:
    c, steps = case.config, jnp.asarray(case.inputs["steps"], jnp.int32)
    total = c["total_steps"]
    both = OptimizerConfig(
        1.0,
        total,
        schedule="exponential",
        warmup_steps=round(c["warmup_steps_pct"] * total),
        decay_rate=c["gamma"],
        decay_steps=round(c["decay_steps_pct"] * total),
    )
    case.compare(jax.vmap(learning_rate(both))(steps), "warm_and_decay", rtol=1e-6)
    rise = OptimizerConfig(1.0, total, schedule="constant", warmup_steps=c["lr_warmup_steps"], warmup_offset=1)
    case.compare(jax.vmap(learning_rate(rise))(steps), "linear_warmup", rtol=1e-6)
