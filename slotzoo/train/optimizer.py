"""AdamW and RMSprop with the published schedules, learning rates per group of parameters, and clipping."""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float, Int, PyTree

from slotzoo.errors import ConfigError, nearest
from slotzoo.train.names import leaf_name, leaf_names


Schedule = Callable[[int | Int[Array, ""]], Float[Array, ""]]

OPTIMIZERS = ("adamw", "rmsprop")
SCHEDULES = ("warmup_cosine", "constant", "linear", "exponential")
CLIPPING = ("norm", "largest", "value")
# With `decay_all=False` no weight decay is applied to these leaves (case ignored), nor to vectors and scalars.
NO_DECAY = ("*bias", "*norm*", "*lambda*", "*log_step*", "*a_log*", "*dt_*", "*position*", "*embedding*")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The optimiser and its schedule. The defaults are those of the ConvSSM authors' code.

    - `optimizer`: `adamw` (Adam with `weight_decay=0`) or `rmsprop` (its average has the rate `b2`).
    - `steps`: updates of the whole run, the end of the cosine and of the linear schedule.
    - `schedule`: `warmup_cosine`, `constant`, `linear`, or `exponential` (times `decay_rate` every `decay_steps`
      updates); all warm up linearly over `warmup_steps`, from 0 or, with `warmup_offset=1`, from the first part.
    - `no_warmup`: leaf-path patterns of parameters that start at the full rate.
    - `clip_norm`: gradients are scaled so that their `clip_kind` is at most this: `norm` (their length) or
      `largest` (their largest entry); with `value` each entry is cut off instead.
    - `plateau_patience`: halve the rate when the loss, averaged over `plateau_every` updates, has not fallen so
      many times in a row.
    - `seed_schedule`: let the cosine reach 0 at `steps - warmup_steps` and stay there, as the authors do.
    - `decay_all`: weight decay on every parameter (the authors); False spares norms, biases, SSM parameters.
    - `rates`: leaf-path pattern -> factor on the learning rate, as in `{"*.log_step": 0.1, "critic.*": 2}`; the
      first pattern that fits a leaf counts, 0 freezes it.
    """

    learning_rate: float | int
    steps: int
    optimizer: str = "adamw"
    schedule: str = "warmup_cosine"
    warmup_steps: int = 5000
    warmup_offset: int = 0
    no_warmup: Sequence[str] = ()
    decay_rate: float | int = 0.5
    decay_steps: int | None = None
    seed_schedule: bool = False
    b1: float | int = 0.9
    b2: float | int = 0.95
    eps: float | int = 1e-8
    weight_decay: float | int = 1e-5
    decay_all: bool = True
    clip_norm: float | int | None = None
    clip_kind: str = "norm"
    plateau_patience: int | None = None
    plateau_every: int = 1000
    rates: Mapping[str, float | int] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for what, value, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("clip_kind", self.clip_kind, CLIPPING),
        ):
            if value not in known:
                raise ConfigError(
                    f"The {what} {value!r} does not exist; choose one of {', '.join(known)}.{nearest(value, known)}"
                )
        if self.schedule == "exponential" and (self.decay_steps or 0) < 1:
            raise ConfigError(
                "The exponential schedule needs decay_steps, the updates in which the rate falls to decay_rate."
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
    `s = (t - warmup_steps) / (end - warmup_steps)` clipped to [0, 1]. The exponential schedule multiplies the
    warm-up by `decay_rate ** (t / decay_steps)` from the first update on, as Slot Attention does.
    """
    return _schedule(config, config.warmup_steps)


def _schedule(config: OptimizerConfig, warmup: int) -> Schedule:
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
        rising = jnp.minimum((t + config.warmup_offset) / max(warmup, 1), 1.0)
        factor = jnp.where(t < warmup, rising, factor)
        if config.schedule == "exponential":
            factor = factor * config.decay_rate ** (t / (config.decay_steps or 1))
        return config.learning_rate * factor

    return schedule


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """AdamW: `p -= lr_t * rate * (m_hat / (sqrt(v_hat) + eps) + weight_decay * p)`, or RMSprop: `g / (sqrt(v) + eps)`
    in place of the quotient; gradients clipped before.

    `update` takes the loss as `value`; only a plateau rule looks at it. Source: Loshchilov and Hutter, Decoupled
    Weight Decay Regularization, 2019; Tieleman and Hinton, RMSprop, 2012.
    """
    if config.optimizer == "adamw":
        scale = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    else:
        scale = optax.scale_by_rms(decay=config.b2, eps=config.eps, eps_in_sqrt=False)
    parts = [scale, optax.add_decayed_weights(config.weight_decay, mask=None if config.decay_all else _decayed)]
    if config.no_warmup:
        parts.append(_scheduled_groups(config))
    else:
        schedule = learning_rate(config)
        parts.append(optax.scale_by_schedule(lambda count: -schedule(jnp.asarray(count))))
    if config.clip_norm is not None:
        parts.insert(0, _clipping(config.clip_kind, config.clip_norm))
    if config.rates:
        parts.append(scale_by_rates(config.rates))
    if config.plateau_patience is not None:
        parts.append(
            optax.contrib.reduce_on_plateau(
                factor=0.5, patience=config.plateau_patience, accumulation_size=config.plateau_every
            )
        )
    return _standard_promotion(optax.chain(*parts))


def plateau_factor(state: PyTree) -> Array | float:
    """What the plateau rule in the state of an optimiser multiplies the learning rate by; 1 where there is none."""
    is_plateau = lambda node: isinstance(node, optax.contrib.ReduceLROnPlateauState)
    found = [node.scale for node in jax.tree.leaves(state, is_leaf=is_plateau) if is_plateau(node)]
    return found[0] if found else 1.0


def _clipping(kind: str, limit: float | int) -> optax.GradientTransformation:
    """By the norm of all, by value, or by the largest of all. One factor for all is multiplied with, where
    `optax.clip_by_global_norm` divides: the compiler makes a product part of what reads it, a division a pass over
    every leaf.
    """
    if kind == "value":
        return optax.clip(limit)

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        del params
        if kind == "norm":
            size = optax.tree.norm(updates)
        else:
            size = jnp.max(jnp.stack([jnp.max(jnp.abs(g)) for g in jax.tree.leaves(updates)]))
        factor = jnp.minimum(1.0, limit / jnp.maximum(size, 1e-30))
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _scheduled_groups(config: OptimizerConfig) -> optax.GradientTransformation:
    """Times minus the learning rate, which does not warm up for leaves that fit `config.no_warmup`."""
    warming, full = learning_rate(config), _schedule(config, 0)

    def init(params: PyTree) -> Any:
        _check_patterns("no_warmup", config.no_warmup, params)
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        del params
        slow, fast = -warming(state.count), -full(state.count)
        scaled = jax.tree_util.tree_map_with_path(
            lambda path, g: g * (fast if _fits(leaf_name(path), config.no_warmup) else slow), updates
        )
        return scaled, optax.ScaleByScheduleState(count=state.count + 1)

    return optax.GradientTransformation(init, update)


def _check_patterns(option: str, patterns: Iterable[str], params: PyTree) -> None:
    names = leaf_names(params)
    for pattern in patterns:
        if not any(_fits(name, (pattern,)) for name in names):
            raise ConfigError(
                f"The pattern {pattern!r} of the optimiser's {option} fits no parameter; parameters are named "
                f"like {', '.join(names[:3])}.{nearest(pattern, names)}"
            )


def scale_by_rates(rates: Mapping[str, float | int]) -> optax.GradientTransformation:
    """Multiply each leaf's update by the factor of the first pattern that fits its dotted path, else by 1.

    Raises ConfigError at `init` for a pattern that fits no parameter.
    """

    def init(params: PyTree) -> Any:
        _check_patterns("rates", rates, params)
        return optax.EmptyState()

    def update(updates: PyTree, state: Any, params: PyTree = None) -> tuple[PyTree, Any]:
        def scale(path, leaf):
            name = leaf_name(path)
            factor = next((f for pattern, f in rates.items() if _fits(name, (pattern,))), 1.0)
            return leaf if factor == 1 else leaf * factor

        return jax.tree_util.tree_map_with_path(scale, updates), state

    return optax.GradientTransformation(init, update)


def _standard_promotion(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Optax mixes integer counters with floats, which strict dtype promotion refuses: allow it there only."""
    inner = optax.with_extra_args_support(optimizer)

    def init(params: PyTree) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return inner.init(params)

    def update(updates: PyTree, state: Any, params: PyTree = None, **values: Any) -> tuple[PyTree, Any]:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params, **values)

    return optax.GradientTransformationExtraArgs(init, update)


def _decayed(parameters: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf.ndim > 1 and not _fits(leaf_name(path), NO_DECAY), parameters
    )


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)
