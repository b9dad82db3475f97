"""The cases that every implementation of a linear scan is tested on, and the answers, computed independently."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np


SPACE = (2, 2)
CHANNEL = {"real": 32, "complex": 64}  # 4 rows of 32: the smallest tile that the kernel works on


@dataclasses.dataclass(frozen=True)
class Case:
    """`decay` is the shape of `a` between time and channel; None for a constant decay."""

    name: str
    planes: str = "complex"
    decay: tuple[int, ...] | None = None
    time: int = 5
    batch: int | None = None
    reverse: bool = False
    reset: str | None = None
    initial: bool = True
    dtype: str = "float32"
    extreme: bool = False

    def arguments(self) -> tuple[dict, np.ndarray, np.ndarray | None]:
        """The differentiable arguments (a, u, x0), the cotangent of the result, and the reset mask."""
        rng = np.random.default_rng(len(self.name) + self.time)
        channel = CHANNEL[self.planes]
        width = channel // (2 if self.planes == "complex" else 1)
        lead = () if self.decay is None else (self.time, *self.decay)
        size = np.exp(rng.uniform(-2, 0, (*lead, width)))
        if self.extreme:
            size[..., :6] = [0.0, 1e-30, 1e-10, 1 - 1e-7, 1.0, 1e-45]
        if self.planes == "complex":
            angle = rng.uniform(0, 2 * np.pi, size.shape)
            a = np.concatenate([size * np.cos(angle), size * np.sin(angle)], axis=-1)
        else:
            a = size * rng.choice([-1, 1], size.shape)
        batch = () if self.batch is None else (self.batch,)
        u = rng.normal(size=(*batch, self.time, *SPACE, channel))
        gy = rng.normal(size=u.shape)
        arguments = {"a": jnp.asarray(a, jnp.float32), "u": jnp.asarray(u, self.dtype)}
        if self.initial:
            arguments["x0"] = jnp.asarray(rng.normal(size=(*batch, *SPACE, channel)), jnp.float32)
        shape = {None: None, "step": (self.time,), "place": (self.time, *SPACE)}[self.reset]
        reset = None if shape is None else jnp.asarray(rng.uniform(size=shape) < 0.4)
        return arguments, jnp.asarray(gy, self.dtype), reset


CASES = [
    Case("constant complex", time=7),
    Case("constant real, one step", planes="real", time=1),
    Case("shared by places, reverse", decay=(1, 1), reverse=True),
    Case("one per place, no initial state", planes="real", decay=SPACE, time=4, initial=False),
    Case("shared along one axis of space", decay=(1, 2), time=3),
    Case("reset per step", reset="step", time=6),
    Case("reset per place, reverse", reset="place", reverse=True),
    Case("bfloat16 constant, reverse", dtype="bfloat16", reverse=True),
    Case("bfloat16 one per place", planes="real", decay=SPACE, dtype="bfloat16"),
    Case("extreme decay", extreme=True, time=33),
    Case("batch of three", batch=3),
    Case("batch, varying, reverse", decay=(1, 1), batch=2, reverse=True, time=3),
]


@functools.cache
def answer(case: Case) -> tuple[np.ndarray, dict]:
    """The states and the cotangents in float64 and complex128, by the definition, one step after the other."""
    arguments, gy, reset = case.arguments()
    values = {name: np.asarray(value.astype(jnp.float32), np.float64) for name, value in arguments.items()}
    gy = np.asarray(gy.astype(jnp.float32), np.float64)
    if case.batch is None:
        return _answer(case, values, gy, reset)
    found = [
        _answer(case, {n: v if n == "a" else v[b] for n, v in values.items()}, gy[b], reset)
        for b in range(case.batch)
    ]
    grads = {name: np.stack([grad[name] for _, grad in found]) for name in values}
    return np.stack([x for x, _ in found]), {**grads, "a": grads["a"].sum(axis=0)}


def _answer(case: Case, values: dict, gy: np.ndarray, reset) -> tuple[np.ndarray, dict]:
    def number(v):
        half = v.shape[-1] // 2
        return v[..., :half] + 1j * v[..., half:] if case.planes == "complex" else v

    def halves(v):
        return np.concatenate([v.real, v.imag], axis=-1) if case.planes == "complex" else v

    u, gy = number(values["u"]), number(gy)
    a = number(values["a"])
    full = np.broadcast_to(a, u.shape).copy()
    if reset is not None:
        full[
            np.broadcast_to(np.asarray(reset).reshape(reset.shape + (1,) * (u.ndim - reset.ndim)), u.shape)
        ] = 0
    order = range(case.time)[::-1] if case.reverse else range(case.time)
    state = number(values["x0"]) if case.initial else np.zeros_like(u[0])
    x, entering = np.zeros_like(u), np.zeros_like(u)
    for t in order:
        entering[t] = state
        state = x[t] = full[t] * state + u[t]

    # By the chain rule, a real loss sum(re(conj(gy) x)) has d/da = sum over uses of g conj(entering).
    carry = np.zeros_like(u[0])
    du, da = np.zeros_like(u), np.zeros_like(u)
    for t in reversed(order):
        du[t] = gy[t] + carry
        da[t] = du[t] * np.conj(entering[t]) * (1 if reset is None else (full[t] != 0) | (a_at(a, t) == 0))
        carry = np.conj(full[t]) * du[t]
    if a.ndim == 1:
        da = da.reshape(-1, da.shape[-1]).sum(axis=0)
    else:
        axes = tuple(i for i in range(1, a.ndim - 1) if a.shape[i] == 1)
        da = da.sum(axis=axes, keepdims=True)
    grads = {"a": halves(da), "u": halves(du)}
    if case.initial:
        grads["x0"] = halves(carry)
    return halves(x), grads


def a_at(a: np.ndarray, t: int) -> np.ndarray:
    return a if a.ndim == 1 else a[t]


def run(case: Case, scan):
    """What `scan` makes of the case: the states and the cotangents, from one compiled program."""
    arguments, gy, reset = case.arguments()

    def apply(arguments):
        def one(a, u, x0):
            return scan(a, u, x0, reverse=case.reverse, reset=reset, planes=case.planes)

        args = (arguments["a"], arguments["u"], arguments.get("x0"))
        if case.batch is None:
            return one(*args)
        return jax.vmap(one, in_axes=(None, 0, 0 if case.initial else None))(*args)

    def program(arguments, gy):
        x, pullback = jax.vjp(apply, arguments)
        return x, pullback(gy)[0]

    return jax.jit(program)(arguments, gy)
