"""One update: gradients of the task's loss, finite check, AdamW, average. One program, state donated."""

import fnmatch
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

from slotzoo.precision import Precision, policy
from slotzoo.prng import stream
from slotzoo.train.mesh import batch_sharding, replicated
from slotzoo.train.names import is_array, leaf_name
from slotzoo.train.optimizer import Schedule, plateau_factor
from slotzoo.train.protocols import Batch, Task
from slotzoo.train.sharding import state_shardings
from slotzoo.train.state import TrainState, trainable


# Leaves of the model that `precision="bfloat16"` does not cast: what discretises a state-space model (an
# eigenvalue near 1 is below bfloat16's resolution) and codebooks, whose nearest entry must not depend on it.
FLOAT32_LEAVES = ("*lambda*", "*log_step*", "*a_log*", "*dt_bias*", "*codebook*")

Metrics = dict[str, jax.Array]


class TrainStep:
    """`(state, frozen, batch, root_key) -> (state, metrics)`, compiled once; `state` is donated.

    `metrics` holds the task's terms, `loss`, `grad_norm`, `learning_rate` (if a schedule was given), and
    `finite` (1 or 0): after a loss or gradient that is not finite the state comes back as it was.
    """

    def __init__(self, update: Callable, mesh: Mesh, strategy: str):
        self._update = update
        self.mesh = mesh
        self.strategy = strategy
        self.traces = 0
        self._jitted = jax.jit(self._traced, static_argnums=(0, 1), donate_argnums=(2,))

    def _traced(self, state_static, frozen_static, state, frozen, batch, key):
        self.traces += 1  # runs when traced, not when executed: a test counts it
        full = eqx.combine(state, _thaw(state_static))
        new, metrics = self._update(full, eqx.combine(frozen, _thaw(frozen_static)), batch, key)
        new = eqx.filter(new, eqx.is_array)
        shardings = state_shardings(new, self.mesh, self.strategy)
        new = jax.tree.map(jax.lax.with_sharding_constraint, new, shardings)
        return new, jax.lax.with_sharding_constraint(metrics, replicated(self.mesh))

    def _arguments(self, state, frozen, batch, key):
        state, state_static = eqx.partition(state, is_array)
        frozen, frozen_static = eqx.partition(frozen, is_array)
        return _freeze(state_static), _freeze(frozen_static), state, frozen, dict(batch), key

    def __call__(
        self, state: TrainState, frozen: PyTree, batch: Batch, root_key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        arguments = self._arguments(state, frozen, batch, root_key)
        with jax.set_mesh(self.mesh):
            new, metrics = self._jitted(*arguments)
        return eqx.combine(new, _thaw(arguments[0])), metrics

    def compile(self, state: PyTree, frozen: PyTree, batch: Batch, root_key: Any) -> "CompiledStep":
        """Compile ahead, from arrays or `jax.ShapeDtypeStruct`s with shardings."""
        arguments = self._arguments(state, frozen, batch, root_key)
        with jax.set_mesh(self.mesh):
            compiled = self._jitted.lower(*arguments).compile()
        return CompiledStep(compiled, _thaw(arguments[0]), self.mesh)


class CompiledStep:
    """A `TrainStep` compiled for given shapes: other shapes are an error, never a silent recompilation."""

    def __init__(self, compiled: Any, static: PyTree, mesh: Mesh):
        self.compiled = compiled
        self._static = static
        self._mesh = mesh

    def __call__(
        self, state: TrainState, frozen: PyTree, batch: Batch, root_key: PRNGKeyArray
    ) -> tuple[TrainState, Metrics]:
        arrays, frozen = eqx.filter(state, eqx.is_array), eqx.filter(frozen, eqx.is_array)
        with jax.set_mesh(self._mesh):
            new, metrics = self.compiled(arrays, frozen, dict(batch), root_key)
        return eqx.combine(new, self._static), metrics


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    mesh: Mesh,
    strategy: str = "replicated",
    accumulate: int = 1,
    precision: Precision = "float32",
    ema_decay: float | int | None = None,
    remat: bool = False,
    learning_rate: Schedule | None = None,
) -> TrainStep:
    """Build the update of `task` under `optimizer`.

    - `accumulate`: microbatches per update, one after the other; their gradients are averaged.
    - `precision`: `bfloat16` casts the model (but `FLOAT32_LEAVES`) for the loss; parameters stay float32.
    - `ema_decay`: `ema += (1 - d) (parameters - ema)` with `d = min(ema_decay, (1 + t) / (10 + t))`.
    - `remat`: keep only matrix products, convolutions and named values for the backward pass. A model that
      recomputes layer by layer (its own `remat` field) saves more: compiled for an H200, a four-layer ConvS5 of
      2 x 32 frames needs 2.2 GB of scratch, 1.8 GB with this, 1.0 GB with its own.
    """

    def loss(parameters, rest, frozen, batch, key, step):
        model = eqx.combine(cast_parameters(parameters, precision), rest)
        value, terms = task.loss(model, frozen, batch, key=key, step=step)
        return value.astype(jnp.float32), {k: v.astype(jnp.float32) for k, v in terms.items()}

    if remat:
        loss = eqx.filter_checkpoint(loss, policy=_keep_products)

    def gradients(parameters, rest, frozen, batch, key, step):
        (value, terms), grads = jax.value_and_grad(loss, has_aux=True)(
            parameters, rest, frozen, batch, key, step
        )
        return value, terms, grads

    takes_values = optax.with_extra_args_support(optimizer)

    def update(state, frozen, batch, root_key):
        parameters = trainable(state.model)
        rest = eqx.filter(state.model, eqx.is_inexact_array, inverse=True)
        key = stream(root_key, "loss", state.step)
        batch = {name: jax.lax.with_sharding_constraint(x, batch_sharding(mesh)) for name, x in batch.items()}
        if accumulate == 1:
            value, terms, grads = gradients(parameters, rest, frozen, batch, key, state.step)
        else:
            value, terms, grads = _accumulated(
                lambda b, k: gradients(parameters, rest, frozen, b, k, state.step), batch, key, accumulate
            )
        grad_norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
        finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)

        updates, opt_state = takes_values.update(grads, state.opt_state, parameters, value=value)
        parameters = optax.apply_updates(parameters, updates)
        ema = None if ema_decay is None else _averaged(state.ema, parameters, state.step, ema_decay)
        new = TrainState(eqx.combine(parameters, rest), opt_state, ema, state.step + 1)
        new = _choose(finite, new, state)

        metrics = {**terms, "loss": value, "grad_norm": grad_norm, "finite": finite.astype(jnp.float32)}
        if learning_rate is not None:
            metrics["learning_rate"] = learning_rate(state.step) * plateau_factor(opt_state)
        return new, metrics

    return TrainStep(update, mesh, strategy)


def cast_parameters(model: PyTree, precision: Precision) -> PyTree:
    """`model` with its floating-point arrays in the compute dtype, but for those in `FLOAT32_LEAVES`."""
    if precision == "float32":
        return model
    cast = policy(precision).cast

    def leaf(path, x):
        name = leaf_name(path).lower()
        return x if any(fnmatch.fnmatchcase(name, pattern) for pattern in FLOAT32_LEAVES) else cast(x)

    return jax.tree_util.tree_map_with_path(leaf, model)


def _accumulated(gradients: Callable, batch: Batch, key: PRNGKeyArray, count: int):
    """Average loss, terms and gradients over `count` microbatches, one at a time."""

    def split(x):
        # Microbatch i takes the examples i, i + count, ...: each device splits its own shard, nothing moves.
        return jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)

    parts = {name: split(x) for name, x in batch.items()}
    shapes = jax.eval_shape(gradients, {name: x[0] for name, x in parts.items()}, key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def one(total, inputs):
        index, part = inputs
        result = gradients(part, jax.random.fold_in(key, index))
        return jax.tree.map(lambda a, b: a + b / count, total, result), None

    total, _ = jax.lax.scan(one, zeros, (jnp.arange(count), parts))
    return total


def _averaged(ema: PyTree, parameters: PyTree, step: jax.Array, decay: float) -> PyTree:
    t = step.astype(jnp.float32)
    rate = 1 - jnp.minimum(decay, (1 + t) / (10 + t))
    return jax.tree.map(lambda e, p: e + rate * (p - e), ema, parameters)


def _choose(condition: jax.Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o) if eqx.is_array(n) else n, new, old)


def _keep_products(primitive, *_, **parameters) -> bool:
    named = primitive.name == "name"
    return named or primitive.name in ("dot_general", "product", "conv_general_dilated", "convolution")


def _freeze(static: PyTree) -> Any:
    """A hashable form of what is not an array, so that it can key the compilation."""
    leaves, structure = jax.tree.flatten(static)
    return tuple(leaves), structure


def _thaw(frozen: Any) -> PyTree:
    leaves, structure = frozen
    return jax.tree.unflatten(structure, leaves)
