"""From continuous to discrete time: diagonal systems `dx/dt = Lambda x + B u` sampled with steps `dt`."""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


Method = Literal["zoh", "bilinear"]


class Diagonal(NamedTuple):
    """`x_t = a x_{t-1} + gain B u_t` as real and imaginary parts."""

    a_re: Float[Array, " state"]
    a_im: Float[Array, " state"]
    gain_re: Float[Array, " state"]
    gain_im: Float[Array, " state"]


def discretise(
    lambda_re: Float[Array, " state"],
    lambda_im: Float[Array, " state"],
    log_step: Float[Array, " state"],
    *,
    method: Method = "zoh",
    clip: bool = False,
    rescale: float = 1.0,
) -> Diagonal:
    """Sample in float32 with steps `dt = rescale exp(log_step)`.

    - "zoh", zero-order hold: `a = exp(Lambda dt)`, `gain = (a - 1) / Lambda`;
    - "bilinear": `a = (1 + Lambda dt / 2) / (1 - Lambda dt / 2)`, `gain = dt / (1 - Lambda dt / 2)`.

    `clip` keeps the real parts of Lambda below -1e-4, so that no state grows.
    Source: Smith et al., Simplified State Space Layers for Sequence Modeling, ICLR 2023, section 2.
    """
    re, im, step = (v.astype(jnp.float32) for v in (lambda_re, lambda_im, log_step))
    if clip:
        re = jnp.minimum(re, -1e-4)
    dt = jnp.exp(step) if rescale == 1 else rescale * jnp.exp(step)
    z_re, z_im = re * dt, im * dt
    if method == "bilinear":
        # 1 / (1 - z / 2) = conj(1 - z / 2) / |1 - z / 2|^2
        below_re, below_im = 1 - z_re / 2, -z_im / 2
        norm = jnp.square(below_re) + jnp.square(below_im)
        inverse_re, inverse_im = below_re / norm, -below_im / norm
        above_re, above_im = 1 + z_re / 2, z_im / 2
        return Diagonal(
            inverse_re * above_re - inverse_im * above_im,
            inverse_re * above_im + inverse_im * above_re,
            inverse_re * dt,
            inverse_im * dt,
        )
    growth = jnp.exp(z_re)
    a_re, a_im = growth * jnp.cos(z_im), growth * jnp.sin(z_im)
    # a - 1 without cancellation for short steps, then times conj(Lambda) / |Lambda|^2.
    less_re = jnp.expm1(z_re) * jnp.cos(z_im) - 2 * jnp.square(jnp.sin(z_im / 2))
    norm = jnp.square(re) + jnp.square(im)
    return Diagonal(a_re, a_im, (less_re * re + a_im * im) / norm, (a_im * re - less_re * im) / norm)
