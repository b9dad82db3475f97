"""Selective scan and state-space dual against Mamba's reference functions and the float64 loops beside them."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.ops import selective_scan, selective_step, ssd, ssd_step
from tests.parity.harness import Case, checks
from tests.tolerance import assert_close


# The seed is itself within 5e-7 of its float64 loops, relative to the largest entry.
RTOL = 1e-5


def weighted(out: jax.Array) -> jax.Array:
    """The recorded loss of one output: a complex one enters with its real plus its imaginary part."""
    flat = out.ravel()
    flat = flat.real + flat.imag if jnp.iscomplexobj(flat) else flat
    weights = np.cos(0.37 * np.arange(flat.size)) / math.sqrt(flat.size)
    return (flat * jnp.asarray(weights, flat.dtype)).sum()


def compare(case: Case, run: Callable, inputs: dict, names: tuple[str, ...], native: Callable) -> list:
    """Outputs, and gradients of the recorded loss, of `run` over a dict of the seed's arrays.

    Returns what `run` gives besides the outputs named.
    """

    def loss(inputs):
        found = run(inputs)
        outs = dict(zip(names, found, strict=False))
        return sum(weighted(outs[name]) for name in case.meta["loss_over"]), (outs, found[len(names) :])

    (value, (outs, rest)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(inputs)
    case.compare(value, "loss", rtol=RTOL)
    precise = case.group("out64")
    for name in names:
        case.compare(outs[name], name, rtol=RTOL)
        if name in precise:
            assert_close(outs[name], precise[name], rtol=RTOL, what=f"{case.path.name}: {name} in float64")
    case.compare_grads({f"input:{name}": native(name, grad) for name, grad in grads.items()}, rtol=RTOL)
    return rest


def scan_arguments(inputs: dict, batch: bool = True) -> dict:
    """The seed's arrays (time last, re and im interleaved in it) as ours: time first, complex numbers."""
    lead = 1 if batch else 0
    is_complex = jnp.iscomplexobj(inputs["A"])

    def moving(name):
        x = inputs[name]
        if x.ndim == 2 + lead - 1 and name in "BC" and x.shape == inputs["A"].shape:
            return x[None]  # constant: (channel, state)
        if name in "BC" and is_complex:
            pairs = x.reshape(*x.shape[:-1], -1, 2)
            x = jax.lax.complex(pairs[..., 0], pairs[..., 1])
        return jnp.moveaxis(x, -1, lead)

    return {k: moving(k) if k in ("u", "delta", "B", "C", "z") else v for k, v in inputs.items()}


def batched(name: str, x: jax.Array) -> int | None:
    return 0 if name in ("u", "delta", "z") or (name in "BC" and x.shape[0] != 1) else None


@checks("selective_scan_*.npz")
def check_selective_scan(case: Case) -> None:
    inputs = {name: jnp.asarray(x) for name, x in case.inputs.items()}
    constant = {name for name in "BC" if inputs[name].shape == inputs["A"].shape}
    half = case.config["length"] // 2

    def run(inputs):
        args = scan_arguments(inputs)
        axes = {k: None if k in ("A", "D", "delta_bias") or k in constant else 0 for k in args}

        def one(args, state, part):
            cut = lambda k, v: v[part] if k in ("u", "delta", "z") or (k in "BC" and k not in constant) else v
            args = {k: cut(k, v) for k, v in args.items()}
            softplus = case.config["delta_softplus"]
            order = [args.pop(k) for k in ("u", "delta", "A", "B", "C")]
            return selective_scan(*order, **args, delta_softplus=softplus, initial_state=state)

        whole = lambda args: one(args, None, slice(None))
        first = lambda args: one(args, None, slice(None, half)).state
        second = lambda args: one(args, first(args), slice(half, None))
        y, state = jax.vmap(whole, in_axes=(axes,))(args)
        outs = [jnp.moveaxis(y, 1, -1), state]
        if half:
            # Stopped half way and continued, it ends where the whole ends.
            outs.append(jax.vmap(first, in_axes=(axes,))(args))
            continued = jax.vmap(second, in_axes=(axes,))(args)
            outs += [jnp.moveaxis(continued.y, 1, -1), continued.state]
        return outs

    # torch's gradient of a complex input is the conjugate of JAX's.
    native = lambda name, grad: jnp.conj(grad)
    rest = compare(case, run, inputs, ("y", "last_state"), native)
    if half:
        middle, y, last = rest
        if "state_at_half" in case.outputs:
            case.compare(middle, "state_at_half", rtol=RTOL)
        assert_close(y, case.outputs["y"][..., half:], rtol=RTOL, what="y of the second half")
        case.compare(last, "last_state", rtol=RTOL)


@checks("ssd_*.npz", "selective_state_update*.npz")
def check_recorded_function(case: Case) -> None:
    """By the function that the case was recorded of."""
    kinds = {
        "mamba_chunk_scan": check_ssd,
        "ssd_minimal": check_ssd_minimal,
        "selective_state_update": check_steps,
    }
    (check,) = [check for name, check in kinds.items() if case.meta["cls"].startswith(name)]
    check(case)


def check_ssd(case: Case) -> None:
    inputs = {name: jnp.asarray(x) for name, x in case.inputs.items()}
    low, high = (float(v) for v in case.config["dt_limit"])

    def run_in(chunk):
        def one(x, dt, B, C, z, initial_states, rest):
            return ssd(
                x,
                dt,
                rest["A"],
                B,
                C,
                D=rest.get("D"),
                z=z,
                dt_bias=rest.get("dt_bias"),
                dt_softplus=case.config["dt_softplus"],
                dt_limit=(low, high),
                initial_state=initial_states,
                chunk=chunk,
            )

        def run(inputs):
            moving = [inputs.get(k) for k in ("x", "dt", "B", "C", "z", "initial_states")]
            axes = tuple(None if v is None else 0 for v in moving)
            return jax.vmap(one, in_axes=(*axes, None))(*moving, inputs)

        return run

    native = lambda name, grad: grad
    for chunk in (case.config["chunk_size"], None):
        compare(case, run_in(chunk), inputs, ("y", "final_state"), native)


def check_ssd_minimal(case: Case) -> None:
    """X is dt x and A is dt A already: with dt = A and rates of 1 the decay is right, with x = X / A the input."""
    inputs = {name: jnp.asarray(x) for name, x in case.inputs.items()}

    def one(x, log_decay, b, c, state):
        entered = x / log_decay[..., None]
        # dt is negative here, so its default limits do not fit.
        return ssd(
            entered,
            log_decay,
            jnp.ones(x.shape[1]),
            b,
            c,
            dt_limit=(-math.inf, math.inf),
            initial_state=state[0],
            chunk=case.config["block_len"],
        )

    def run(inputs):
        return jax.vmap(one)(*(inputs[k] for k in ("X", "A", "B", "C", "initial_states")))

    compare(case, run, inputs, ("y", "final_state"), lambda name, grad: grad)


def check_steps(case: Case) -> None:
    inputs = {name: jnp.asarray(x) for name, x in case.inputs.items()}
    heads = "nheads" in case.config
    shared = {k: inputs[k] for k in ("A", "D", "dt_bias")}

    def one(state, x, dt, B, C, z):
        if heads:
            options = {"dt_bias": shared["dt_bias"], "dt_softplus": True}
            return ssd_step(x, dt, shared["A"], B, C, state, D=shared["D"], z=z, **options)
        options = {"delta_bias": shared["dt_bias"], "delta_softplus": True}
        return selective_step(x, dt, shared["A"], B, C, state, D=shared["D"], z=z, **options)

    def step(state, now):
        y, state = jax.vmap(one, in_axes=(0, 0, 0, 0, 0, 0 if "z" in inputs else None))(state, *now)
        return state, (y, state)

    moving = [inputs.get(k) for k in ("x", "dt", "B", "C", "z")]
    _, (y, states) = jax.jit(lambda s, m: jax.lax.scan(step, s, m))(inputs["state0"], moving)
    case.compare(y, "y", rtol=RTOL)
    case.compare(states, "state", rtol=RTOL)
    assert np.isfinite(np.asarray(states)).all()
