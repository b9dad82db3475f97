"""The cases that every implementation of the selective scan is tested on, and the answers, computed independently."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np


SHARED = ("A", "D", "delta_bias")  # what a batch has in common, besides constant B and C


@dataclasses.dataclass(frozen=True)
class Case:
    """`groups` of B and C: 0 for arrays without that axis. `constant` names those that do not vary with time."""

    name: str
    time: int = 5
    channels: int = 6
    states: int = 3
    groups: int = 0
    constant: str = ""
    complex: bool = False
    options: tuple[str, ...] = ()
    softplus: bool = False
    initial: bool = False
    batch: int | None = None
    dtype: str = "float32"
    extreme: bool = False

    def arguments(self) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
        """The differentiable arguments by name, and the cotangents of y and of the last state."""
        rng = np.random.default_rng(len(self.name) + self.time)
        lead = () if self.batch is None else (self.batch,)
        moving = (*lead, self.time, self.channels)

        def normal(*shape):
            real = rng.normal(size=shape)
            return real + 1j * rng.normal(size=shape) if self.complex else real

        def matrix(name):
            shape = (self.groups, self.states) if self.groups else (self.states,)
            return normal(1, *shape) if name in self.constant else normal(*lead, self.time, *shape)

        rates = -np.exp(rng.uniform(-2, 1, (self.channels, self.states)))
        delta = np.exp(rng.uniform(-4, 0, moving))
        if self.extreme:
            rates[:, :2] = [-1e4, -1e-8]
            delta[..., 1::3, :] = 30.0
            delta[..., 2::5, :] = 1e-7
        if self.complex:
            rates = rates + 1j * rng.uniform(0, 6, rates.shape)
        arrays = {"u": rng.normal(size=moving), "delta": delta, "A": rates, "B": matrix("B"), "C": matrix("C")}
        extra = {"D": (self.channels,), "z": moving, "delta_bias": (self.channels,)}
        arrays |= {name: rng.normal(size=extra[name]) for name in self.options}
        if self.initial:
            arrays["initial_state"] = normal(*lead, self.channels, self.states)
        kind = jnp.complex64 if self.complex else jnp.float32
        dtypes = {"A": kind, "initial_state": kind, "D": jnp.float32, "delta_bias": jnp.float32}
        if self.complex:
            dtypes |= {"B": kind, "C": kind}
        arguments = {name: jnp.asarray(x, dtypes.get(name, self.dtype)) for name, x in arrays.items()}
        gy = jnp.asarray(rng.normal(size=moving), self.dtype)
        return arguments, gy, jnp.asarray(normal(*lead, self.channels, self.states), kind)

    def shared(self, name: str) -> bool:
        """Whether the examples of a batch have this argument in common."""
        return name in SHARED or name in self.constant


CASES = [
    Case(
        "all options, groups, a batch",
        time=70,
        groups=2,
        options=("D", "z", "delta_bias"),
        softplus=True,
        initial=True,
        batch=2,
    ),
    Case("complex, constant B of each channel", time=19, groups=6, constant="B", complex=True, initial=True),
    Case("complex, groups, gate", time=7, groups=3, constant="C", complex=True, options=("z",), batch=2),
    Case("one step", time=1, options=("D",)),
    Case("bfloat16, extreme decay", time=33, dtype="bfloat16", extreme=True, initial=True),
]
# What the kernel can run: real rates, channels in tiles of 128.
KERNEL_CASES = [
    Case(
        "a batch, odd length, all options",
        time=9,
        channels=128,
        states=4,
        options=("D", "z", "delta_bias"),
        softplus=True,
        initial=True,
        batch=2,
        extreme=True,
    ),
    Case(
        "bfloat16, two groups, states in two parts",
        time=3,
        channels=256,
        states=20,
        groups=2,
        dtype="bfloat16",
    ),
]


@functools.cache
def answer(case: Case) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """y, the last state and all cotangents by the definition, one step after the other, in double precision."""
    arguments, gy, gh = case.arguments()
    values = {name: _double(x) for name, x in arguments.items()}
    gy, gh = _double(gy), _double(gh)
    if case.batch is None:
        return _answer(case, values, gy, gh)
    found = []
    for i in range(case.batch):
        one = {name: x if case.shared(name) else x[i] for name, x in values.items()}
        found.append(_answer(case, one, gy[i], gh[i]))
    y, state, grads = zip(*found, strict=True)
    total = {
        name: (np.sum if case.shared(name) else np.stack)([grad[name] for grad in grads], axis=0)
        for name in values
    }
    return np.stack(y), np.stack(state), total


def _double(x: jax.Array) -> np.ndarray:
    if jnp.iscomplexobj(x):
        return np.asarray(x, np.complex128)
    return np.asarray(x.astype(jnp.float32), np.float64)


def _answer(case: Case, values: dict, gy: np.ndarray, gh: np.ndarray):
    u, raw, rates = values["u"], values["delta"], values["A"]
    raw = raw + values.get("delta_bias", 0.0)
    delta = np.logaddexp(raw, 0.0) if case.softplus else raw
    full = {name: _full(case, values[name]) for name in "BC"}
    skip, gate = values.get("D", np.zeros(case.channels)), values.get("z")

    state = values.get("initial_state", np.zeros_like(rates))
    before, after = np.zeros((2, case.time, *rates.shape), rates.dtype)
    decay = np.exp(delta[..., None] * rates)
    for t in range(case.time):
        before[t] = state
        state = after[t] = decay[t] * state + (delta[t] * u[t])[:, None] * full["B"][t]
    inner = (after * full["C"]).sum(-1)
    twice = 2 if case.complex else 1
    inner = twice * inner.real + skip * u
    sigmoid = 1.0 if gate is None else 1 / (1 + np.exp(-gate))
    y = inner if gate is None else inner * gate * sigmoid

    grads = {}
    if gate is not None:
        grads["z"] = gy * inner * sigmoid * (1 + gate * (1 - sigmoid))
        gy = gy * gate * sigmoid
    grads["D"] = (gy * u).sum(0)
    du, ddelta, da = gy * skip, np.zeros_like(delta), np.zeros_like(rates)
    db, dc = np.zeros_like(full["B"]), np.zeros_like(full["C"])
    carry = gh
    for t in reversed(range(case.time)):
        g = carry + twice * gy[t][:, None] * full["C"][t]
        dc[t] = twice * gy[t][:, None] * after[t]
        db[t] = g * (delta[t] * u[t])[:, None]
        entered = (g * full["B"][t]).sum(-1).real
        exponent = g * decay[t] * before[t]
        du[t] += entered * delta[t]
        ddelta[t] = entered * u[t] + (exponent * rates).sum(-1).real
        da += exponent * delta[t][:, None]
        carry = g * decay[t]
    if case.softplus:
        ddelta = ddelta / (1 + np.exp(-raw))
    grads |= {"u": du, "delta": ddelta, "A": da, "initial_state": carry, "delta_bias": ddelta.sum(0)}
    grads |= {"B": _shared(case, "B", db), "C": _shared(case, "C", dc)}
    return y, state, {name: grads[name] for name in values}


def _full(case: Case, m: np.ndarray) -> np.ndarray:
    """B or C for each step and channel."""
    m = m[:, None] if m.ndim == 2 else m
    m = np.repeat(m, case.channels // m.shape[1], axis=1)
    return np.broadcast_to(m, (case.time, *m.shape[1:]))


def _shared(case: Case, name: str, grad: np.ndarray) -> np.ndarray:
    """The cotangent of B or C from that of each step and channel."""
    groups = case.groups or 1
    grad = grad.reshape(case.time, groups, -1, case.states).sum(2)
    if name in case.constant:
        grad = grad.sum(0, keepdims=True)
    return grad if case.groups else grad[:, 0]


def run(case: Case, scan):
    """What `scan` makes of the case: y, the last state and the cotangents, from one compiled program."""
    arguments, gy, gh = case.arguments()

    def apply(arguments):
        def one(arguments):
            rest = dict(arguments)
            first = [rest.pop(name) for name in ("u", "delta", "A", "B", "C")]
            return tuple(scan(*first, **rest, delta_softplus=case.softplus))

        if case.batch is None:
            return one(arguments)
        return jax.vmap(one, in_axes=({k: None if case.shared(k) else 0 for k in arguments},))(arguments)

    def program(arguments, gy, gh):
        (y, state), pullback = jax.vjp(apply, arguments)
        return y, state, pullback((gy, gh))[0]

    return jax.jit(program)(arguments, gy, gh)
