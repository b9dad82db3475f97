"""A linear scan whose time axis is split over devices, with one exchange of carries."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.ops.linear_scan import Implementation, linear_scan
from slotzoo.ops.linear_scan.planes import Planes, add, join, multiply, split, state_dtype


def sequence_parallel_scan(
    a: Float[Array, "..."],
    u: Float[Array, "time *space channel"],
    x0: Float[Array, "*space channel"] | None = None,
    *,
    axis: str,
    reverse: bool = False,
    reset: Bool[Array, "time"] | Bool[Array, "time *space"] | None = None,
    planes: Planes = "real",
    implementation: Implementation = "auto",
) -> Float[Array, "time *space channel"]:
    """`linear_scan` with the time axis of `u` (and of what else has one) split over the mesh axis `axis`.

    Device d scans its own K steps from a zero state and gets the state e_d they end in; the decay of the whole
    stretch is A_d = a_K ... a_1. One all-gather of the pairs (A_d, e_d), which have no time axis, lets every
    device combine the stretches before its own, h_{d+1} = A_d h_d + e_d with h_0 = `x0`, and a second scan starts
    from the h_d it found. Arguments and result as in `linear_scan`; the mesh is the ambient one.

    **Raises** `ConfigError` if the ambient mesh has no such axis, `ShapeError` if the axis does not divide time.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if axis not in mesh.axis_names:
        raise ConfigError(
            f"sequence_parallel_scan(axis={axis!r}): the ambient mesh has the axes {mesh.axis_names}; "
            "set one with jax.set_mesh."
        )
    devices = mesh.shape[axis]
    if u.shape[0] % devices:
        raise ShapeError(
            f"{u.shape[0]} time steps cannot be split evenly over the {devices} devices of the axis {axis!r}."
        )
    # What is passed on from device to device is the state, float32 at least.
    dtype = state_dtype(u)
    x0 = jnp.zeros(u.shape[1:], dtype) if x0 is None else x0.astype(dtype)
    reset = jnp.zeros((u.shape[0],), bool) if reset is None else reset

    def stretch(a: Array, u: Array, x0: Array, reset: Array) -> Array:
        def scan(u: Array, x0: Array | None) -> Array:
            keywords = {"reverse": reverse, "reset": reset, "planes": planes}
            return linear_scan(a, u, x0, **keywords, implementation=implementation)

        last = 0 if reverse else -1
        end = scan(u.astype(dtype), None)[last]
        # The decay of the stretch is what the scan makes of a state of one when nothing enters. It has the
        # places that the decay and the resets tell apart, one if they tell none.
        places = [1] * (u.ndim - 2)
        if a.ndim > 1 or reset.ndim > 1:
            per_place = jnp.broadcast_shapes(a.shape[1:-1] or tuple(places), reset.shape[1:] or tuple(places))
            places = list(per_place)
        nothing = jnp.zeros((u.shape[0], *places, u.shape[-1]), dtype)
        decay = scan(nothing, _one(nothing[0], planes))[last]

        decays, ends = lax.all_gather((decay, end), axis)
        here = lax.axis_index(axis)
        state = x0
        entering = x0
        for step in range(devices):
            other = devices - 1 - step if reverse else step
            entering = jnp.where(here == other, state, entering)
            state = join(
                add(multiply(split(decays[other], planes), split(state, planes)), split(ends[other], planes))
            )
        return scan(u, entering)

    split_, whole = PartitionSpec(axis), PartitionSpec()
    in_specs = (whole if a.ndim == 1 else split_, split_, whole, split_)
    mapped = jax.shard_map(stretch, in_specs=in_specs, out_specs=split_, check_vma=False)
    return mapped(a, u, x0, reset)


def _one(like: Float[Array, "*space channel"], planes: Planes) -> Float[Array, "*space channel"]:
    """The number one in every channel: [1 | 0] for a complex state."""
    first, *rest = split(like, planes)
    return join((jnp.ones_like(first), *rest))
