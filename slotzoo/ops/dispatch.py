"""Which form of an op runs: the one that was named, or for "auto" the fastest that can run."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax import lax

from slotzoo.errors import ConfigError
from slotzoo.ops.device import compiling_for_gpu
from slotzoo.ops.sharding import per_device


Form = Callable[..., Any]


def choose(forms: Mapping[str, Form], implementation: str, *, cpu: str, other: str, kernel: bool) -> Form:
    """The form to call, on each device's part of its arguments.

    **Arguments**
    - `forms`: every form by the name of its implementation; the kernel is `"pallas"`.
    - `cpu`, `other`: which of them is fastest on a CPU, and elsewhere where there is no kernel.
    - `kernel`: whether the kernel is among them and can run on the arguments, if compiled for a GPU.
    """
    if implementation != "auto":
        return per_device(forms[implementation])
    if not compiling_for_gpu() or (cpu == other and not kernel):
        return per_device(forms[cpu if jax.default_backend() == "cpu" else other])
    choices = {"cpu": forms[cpu], "default": forms[other]}
    if kernel:
        choices["cuda"] = forms["pallas"]
    # Decided when the program is lowered: one compiled elsewhere for a GPU has the kernel in it.
    return per_device(lambda *args: lax.platform_dependent(*args, **choices))


def require_kernel(op: str, unfit: str | None, *, interpret: bool) -> None:
    """Raise `ConfigError` if the kernel of `op` was named but cannot run: `unfit` says why not, or None."""
    if unfit is None and not interpret and not compiling_for_gpu():
        unfit = f"the platform is {jax.default_backend()!r} and the kernel is written for NVIDIA GPUs"
    if unfit is not None:
        raise ConfigError(f"{op}(implementation='pallas') cannot run: {unfit}. 'auto' takes one that can.")
