"""AdamW with the published schedules, learning rates per group of parameters, and selective weight decay."""

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from slotzoo.errors import ConfigError, nearest
from slotzoo.train.names import leaf_name, leaf_names


Schedule = Callable[[int | Int[Array, ""]], Float[Array, ""]]

SCHEDULES = ("warmup_cosine", "constant", "linear")
# With `decay_all=False` no weight decay is applied to these leaves (case ignored), nor to vectors and scalars.
NO_DECAY = ("*bias", "*norm*", "*lambda*", "*log_step*", "*a_log*", "*dt_*", "*position*", "*embedding*")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule. The defaults are those of the ConvSSM authors' code.

    - `steps`: updates of the whole run, the end of the cosine and of the linear schedule.
    - `schedule`: `warmup_cosine`, `constant` or `linear`; all warm up linearly from 0 over `warmup_steps`.
    - `seed_schedule`: let the cosine reach 0 at `steps - warmup_steps` and stay there, as the authors do.
    - `decay_all`: weight decay on every parameter (the authors); False spares norms, biases, SSM parameters.
    - `rates`: leaf-path pattern -> factor on the learning rate, as in `{"*.log_step": 0.1, "critic.*": 2}`; the
      first pattern that fits a leaf counts, 0 freezes it.
    """

    learning_rate: float | int
    steps: int
    schedule: str = "warmup_cosine"
    warmup_steps: int = 5000
    seed_schedule: bool = False
    b1: float | int = 0.9
    b2: float | int = 0.95
    eps: float | int = 1e-8
    weight_decay: float | int = 1e-5
    decay_all: bool = True
    clip_norm: float | int | None = None
    rates: Mapping[str, float | int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"The schedule {self.schedule!r} does not exist; choose one of {', '.join(SCHEDULES)}."
                f"{nearest(self.schedule, SCHEDULES)}"
            )
        if self.learning_rate < 0 or self.steps < 1 or self.warmup_steps < 0:
            raise ConfigError(
                "The optimiser needs learning_rate >= 0, steps >= 1 and warmup_steps >= 0; got "
                f"{self.learning_rate}, {self.steps} and {self.warmup_steps}."
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ConfigError(f"clip_norm is {self.clip_norm}; give a positive norm, or null for no clipping.")


def learning_rate(config: OptimizerConfig) -> Schedule:
    """Return `update index -> learning rate`; a function of an array, so that no step recompiles.

    Warm-up: `lr * t / warmup_steps`. Then `lr * (1 + cos(pi s)) / 2`, `lr` or `lr * (1 - s)` with
    `s = (t - warmup_steps) / (end - warmup_steps)` clipped to [0, 1].
    """
    warmup = config.warmup_steps
    end = config.steps - (warmup if config.seed_schedule else 0)
    span = max(end - warmup, 1)

    def schedule(step: int | Int[Array, ""]) -> Float[Array, ""]:
        t = jnp.asarray(step).astype(jnp.float32)
        s = jnp.clip((t - warmup) / span, 0.0, 1.0)
        if config.schedule == "warmup_cosine":
            factor = 0.5 * (1 + jnp.cos(jnp.pi * s))
        elif config.schedule == "linear":
            factor = 1 - s
        else:
            factor = jnp.ones_like(s)
        return config.learning_rate * jnp.where(t < warmup, t / max(warmup, 1), factor)

    return schedule


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW: `p -= lr_t * rate * (m_hat / (sqrt(v_hat) + eps) + weight_decay * p)`, gradients clipped by norm.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019.
    """
    schedule = learning_rate(config)
    decay_mask = None if config.decay_all else _decayed
    parts = [
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
        optax.scale_by_schedule(lambda count: -schedule(jnp.asarray(count))),
    ]
    if config.clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    if config.rates:
        parts.append(scale_by_rates(config.rates))
    return _standard_promotion(optax.chain(*parts))


def scale_by_rates(rates: Mapping[str, float | int]) -> optax.GradientTransformation:
    """Multiply each leaf's update by the factor of the first pattern that fits its dotted path, else by 1.

    Raises ConfigError at `init` for a pattern that fits no parameter.
    """

    def init(params: PyTree) -> Any:
        names = leaf_names(params)
        for pattern in rates:
            if not any(_fits(name, (pattern,)) for name in names):
                raise ConfigError(
                    f"The pattern {pattern!r} of the optimiser's rates fits no parameter; parameters are named "
                    f"like {', '.join(names[:3])}.{nearest(pattern, names)}"
                )
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        def scale(path, leaf):
            name = leaf_name(path)
            factor = next((f for pattern, f in rates.items() if _fits(name, (pattern,))), 1.0)
            return leaf if factor == 1 else leaf * factor

        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(init, update)


def _standard_promotion(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Optax mixes integer counters with floats, which strict dtype promotion refuses: allow it there only."""

    def init(params: PyTree) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.init(params)

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params)

    return optax.GradientTransformation(init, update)


def _decayed(parameters: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and not _fits(leaf_name(path), NO_DECAY), parameters
    )


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)
