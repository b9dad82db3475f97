"""Learning rates, temperatures and weights of Slot Attention and SLATE."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp

from slotzoo.models.slate import SLATE, SLATEConfig
from slotzoo.models.slot_attention import ramp
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


@checks("schedules*.npz")
def check_annealed_weights(case: Case) -> None:
    c, steps = case.config, jnp.asarray(case.inputs["steps"], jnp.int32)
    assert c["s0"] == 0
    tau = SLATEConfig(tau_start=c["start"], tau_final=c["final"], tau_steps=c["s1"])
    found = jax.vmap(lambda step: SLATE.temperature(SimpleNamespace(config=tau), step))(steps)
    case.compare(found, "cosine_anneal", rtol=1e-6)
    weights = jax.vmap(lambda step: ramp(step, c["max"], (c["r0"], c["r1"])))(steps)
    case.compare(weights, "ramp_up", rtol=1e-5)
