"""What training changes: the model, the optimiser's state, the averaged parameters and the step."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from slotzoo.train.names import is_array, leaf_name


class TrainState(eqx.Module):
    """The state of a run. No random key is in it: keys are derived from the run's seed and `step`."""

    model: PyTree
    opt_state: PyTree
    ema: PyTree  # the averaged floating-point arrays of the model, None elsewhere; None altogether without EMA
    step: Int[Array, ""]

    def averaged(self) -> PyTree:
        """The model to evaluate: with the averaged parameters where there are any."""
        return self.model if self.ema is None else eqx.combine(self.ema, self.model)


def trainable(model: PyTree) -> PyTree:
    """The floating-point arrays of `model`, with None in place of everything else."""
    return eqx.filter(model, eqx.is_inexact_array)


def init_state(
    model: Callable[[PRNGKeyArray], PyTree],
    optimizer: optax.GradientTransformation,
    *,
    key: PRNGKeyArray,
    ema: bool = False,
) -> TrainState:
    """Build the state at step 0 from `model(key)`. Also runs under `eqx.filter_eval_shape`."""
    # A numpy array would count as static, be hashed with the program, and be missing from checkpoints.
    built = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, model(key))
    parameters = trainable(built)
    # A copy, because the step donates its input: one buffer must not be given away twice.
    averaged = jax.tree.map(jnp.copy, parameters) if ema else None
    return TrainState(built, optimizer.init(parameters), averaged, jnp.zeros((), jnp.int32))


def begun_from(state: TrainState, initial: Mapping[str, Any]) -> TrainState:
    """`state` with the arrays of `initial` in the place of the model's own, by dotted names, where these live.

    Shapes and dtypes have to be those of the model; the averaged parameters begin with the same values.
    """

    def leaf(path: tuple, own: Any) -> Any:
        new = initial.get(leaf_name(path)) if is_array(own) else None
        # A copy: what came from the host may share its memory, and the step gives the state's away.
        return own if new is None else jnp.copy(jax.device_put(np.asarray(new), own.sharding))

    model = jax.tree_util.tree_map_with_path(leaf, state.model)
    averaged = None if state.ema is None else jax.tree.map(jnp.copy, trainable(model))
    return TrainState(model, state.opt_state, averaged, state.step)
