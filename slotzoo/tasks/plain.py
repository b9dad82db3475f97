"""What tasks share that train a model as it is, by the mean of its own loss."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.ops import batch_map


class AbstractPlainTask:
    """A task (`slotzoo.train.protocols.Task`) that trains a model as it is: nothing is added, nothing taken off."""

    def module(self, model: eqx.Module, *, key: PRNGKeyArray) -> eqx.Module:
        """What the training state holds: the model."""
        del key
        return model

    def export(self, model: eqx.Module) -> eqx.Module:
        """What a finished run gives away: the model."""
        return model


def mean_loss(
    loss: Callable[[Any, PRNGKeyArray], tuple[Array, dict[str, Array]]], examples: Any, *, key: PRNGKeyArray
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The means over examples of `loss(example, key)` and of each of its terms, every example with its own key."""
    keys = jax.random.split(key, len(jax.tree.leaves(examples)[0]))
    each, terms = batch_map(loss)(examples, keys)
    return jnp.mean(each), {name: jnp.mean(value) for name, value in terms.items()}
