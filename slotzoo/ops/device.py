"""What the programs being traced are compiled for."""

import jax


def compiling_for_gpu() -> bool:
    """Whether programs go to a GPU: one that is here, or one that the ambient mesh describes.

    Where neither is so, `"auto"` does not look at kernels at all: tracing one costs as much as compiling the rest
    of a small program. To compile for a GPU on a machine without one, trace under
    `jax.sharding.use_abstract_mesh` with a mesh that has an abstract device.
    """
    described = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    platform = jax.default_backend() if described is None else described.platform
    return platform in ("gpu", "cuda")


def oldest_capability() -> float | None:
    """The compute capability of the GPUs here; None without any, when one compiles for another machine."""
    if jax.default_backend() != "gpu":
        return None
    found = [getattr(device, "compute_capability", None) for device in jax.local_devices()]
    return min((float(c) for c in found if c is not None), default=None)
