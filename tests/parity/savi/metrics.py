"""ARI and FG-ARI of clips with the authors' corner cases; losses, clipping and the schedule of the learning rate."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slotzoo.losses import reconstruction_loss
from slotzoo.metrics.segmentation import adjusted_rand_index, contingency
from slotzoo.train.optimizer import OptimizerConfig, learning_rate
from tests.parity.harness import Case, checks
from tests.tolerance import assert_close


@checks("metrics_ari*.npz")
def check_ari(case: Case) -> None:
    config = case.config

    def scores(true, predicted, padding):
        table = contingency(
            true,
            predicted,
            true_count=config["num_instances_true"],
            predicted_count=config["num_instances_pred"],
            valid=padding > 0,
        )
        return adjusted_rand_index(table, empty=1.0), adjusted_rand_index(table[1:], empty=1.0)

    scores = jax.jit(jax.vmap(scores))
    names = sorted({name.split("/")[0] for name in case.inputs if "/" in name})
    assert names
    counted = case.inputs["mask"]
    for name in names:
        fields = ("true", "pred", "padding_mask")
        found = scores(*(jnp.asarray(case.inputs[f"{name}/{field}"]) for field in fields))
        for score, values in zip(("ari", "fg_ari"), map(np.asarray, found), strict=True):
            case.compare(values, f"{name}/{score}", rtol=1e-5)
            case.compare(values[counted].mean(), f"{name}/collection_{score}", rtol=1e-5)


@checks("losses_clip_schedule*.npz", unchecked={"out/aux/*_weight": "1 whatever the weight"})
def check_training(case: Case) -> None:
    config = case.config
    total = 0.0
    for name, options in config["losses"].items():
        key = options["key"]
        one = lambda p, t, o=options: reconstruction_loss(p, t, reduction=o.get("reduction_type", "sum"))
        values = jax.vmap(one)(
            jnp.asarray(case.inputs[f"preds/{key}"]), jnp.asarray(case.inputs[f"targets/{key}"])
        )
        value = np.asarray(values).mean()
        case.compare(value, f"aux/{name}_value", rtol=1e-5)
        total += options.get("weight", 1.0) * value
    case.compare(np.float32(total), "loss", rtol=1e-5)

    rate = learning_rate(
        OptimizerConfig(
            learning_rate=config["peak"], steps=config["decay_steps"], warmup_steps=config["warmup"]
        )
    )
    steps = case.inputs["steps"]
    assert_close(jax.vmap(rate)(jnp.asarray(steps, jnp.int32)), case.outputs["lr"], rtol=1e-5, what="rates")
    check_clipping(case)


def check_clipping(case: Case) -> None:
    """Ours is `g min(1, max / |g|)`; theirs adds 1e-6 to the norm, which is all that may be between them."""
    grads = {name: jnp.asarray(value) for name, value in case.group("in/grads").items()}
    norm = float(optax.tree.norm(grads))
    for limit in case.config["max_norms"]:
        clipped: Any = optax.clip_by_global_norm(limit).update(grads, optax.EmptyState())[0]
        for name, value in clipped.items():
            expected = case.outputs[f"clip_{limit}/{name}"]
            assert_close(value, expected, rtol=1e-5 + 1e-6 / norm, what=f"clipped to {limit}: {name}")
