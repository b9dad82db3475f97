"""What the programs being traced are compiled for."""

import re
from typing import Any

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
    """The compute capability of the GPUs here, 0 where they are not NVIDIA's ("gfx942" is one of AMD's); None without
    any, when one compiles for another machine.
    """
    if jax.default_backend() != "gpu":
        return None
    found = [getattr(device, "compute_capability", None) for device in jax.local_devices()]
    return min(
        (float(c) if re.fullmatch(r"\d+\.\d+", c) else 0.0 for c in found if c is not None), default=None
    )


def mosaic_interpreter() -> Any:
    """What runs a Mosaic kernel on a CPU, for tests. Public from jax 0.11 on."""
    # Imported when first needed: it brings a compiler with it, which takes half a second.
    from jax.experimental.pallas import mosaic_gpu as plgpu

    public = getattr(plgpu, "InterpretGPUParams", None)
    if public is not None:
        return public()
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()
