"""The tolerances of the numerical tests, as formulas."""

import math

import jax.numpy as jnp
import numpy as np


EPS = {"float32": 5e-7, "bfloat16": 4e-3, "float64": 1e-14}


def tolerance(dtype, reduction: int = 1) -> float:
    """Relative tolerance of a result that sums `reduction` terms in `dtype`: eps * sqrt(reduction)."""
    return EPS[jnp.dtype(dtype).name] * math.sqrt(max(reduction, 1))


def assert_close(actual, expected, *, rtol: float, what: str = "array") -> None:
    """Assert max|actual - expected| <= rtol * max|expected|: relative to the tensor's largest entry."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    if actual.size == 0:
        return
    kind = np.complex128 if np.iscomplexobj(actual) or np.iscomplexobj(expected) else np.float64
    actual, expected = actual.astype(kind), expected.astype(kind)
    scale = max(float(np.abs(expected).max()), 1e-30)
    error = float(np.abs(actual - expected).max()) / scale
    assert error <= rtol, f"{what}: relative error {error:.3e} > {rtol:.1e} (scale {scale:.3e})"
