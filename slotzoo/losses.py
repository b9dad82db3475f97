"""Loss functions: pure, in float32, means over everything unless said otherwise."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


# Vector quantisation and adversarial training (VQ-VAE, 2017; VQ-GAN, 2021).


def codebook_loss(latents: Float[Array, "*grid dim"], rows: Float[Array, "*grid dim"]) -> Float[Array, ""]:
    """`mean |stop_gradient(latents) - rows|^2`: pulls the chosen rows of the table to what they stand for."""
    difference = jax.lax.stop_gradient(latents).astype(jnp.float32) - rows.astype(jnp.float32)
    return jnp.mean(jnp.square(difference))


def commitment_loss(latents: Float[Array, "*grid dim"], rows: Float[Array, "*grid dim"]) -> Float[Array, ""]:
    """`mean |latents - stop_gradient(rows)|^2`: keeps the encoder close to the rows it chose."""
    return codebook_loss(rows, latents)


def code_entropy_loss(distances: Float[Array, "*grid codes"], *, temperature: float) -> Float[Array, ""]:
    """`mean H(p) - H(mean p)` of the soft choice `p = softmax(-distances / temperature)`, in nats.

    Low when every vector is sure of its code and all codes are used equally (Chang et al., MaskGIT's tokenizer;
    Yu et al., 2023).
    """
    logits = -distances.reshape(-1, distances.shape[-1]).astype(jnp.float32) / temperature
    log_p = jax.nn.log_softmax(logits, axis=-1)
    p = jnp.exp(log_p)
    each = -jnp.mean(jnp.sum(p * log_p, axis=-1))
    average = jnp.mean(p, axis=0)
    return each + jnp.sum(jax.scipy.special.xlogy(average, average))


def unused_code_loss(
    latents: Float[Array, "*grid dim"],
    distances: Float[Array, "*grid codes"],
    table: Float[Array, "codes dim"],
    shares: Float[Array, " codes"],
) -> Float[Array, ""]:
    """`mean_k w_k mean |e_k - stop_gradient(nearest latent)|^2`, with `w_k` near 1 only for hardly used codes.

    Revives dead codes without any state: each one drifts to the batch's latent that is nearest to it. `shares`
    holds how often each code was chosen, `w_k = exp(-10 shares_k codes)`.
    """
    dim = latents.shape[-1]
    nearest = jnp.argmin(distances.reshape(-1, distances.shape[-1]), axis=0)
    targets = jax.lax.stop_gradient(latents.reshape(-1, dim)[nearest]).astype(jnp.float32)
    weights = jnp.exp(-10.0 * shares * shares.shape[0])
    return jnp.mean(weights * jnp.mean(jnp.square(table.astype(jnp.float32) - targets), axis=-1))


def hinge_discriminator_loss(real: Float[Array, "..."], fake: Float[Array, "..."]) -> Float[Array, ""]:
    """`(mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2` of a discriminator's scores."""
    real, fake = real.astype(jnp.float32), fake.astype(jnp.float32)
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))


def hinge_generator_loss(fake: Float[Array, "..."]) -> Float[Array, ""]:
    """`-mean fake`: what the generator minimises."""
    return -jnp.mean(fake.astype(jnp.float32))


# Video prediction (ConvS5, 2023).


def token_cross_entropy(
    logits: Float[Array, "*grid codes"], targets: Int[Array, "*grid"], *, smoothing: float = 0.0
) -> Float[Array, "*grid"]:
    """`-sum_k q_k log p_k` in nats at each place, `q = (1 - smoothing) onehot(target) + smoothing / codes`."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    likely = jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    return -((1 - smoothing) * likely + smoothing * log_p.mean(-1))


def pixel_loss(
    prediction: Float[Array, "*frames height width channel"],
    target: Float[Array, "*frames height width channel"],
    *,
    squared: float = 0.5,
) -> Float[Array, "*frames"]:
    """`squared * (p - t)^2 + (1 - squared) * |p - t|`, summed over width and channels, mean over height.

    That mixture of sum and mean is the one of the ConvSSM code, so that its learning rates carry over.
    """
    difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    each = squared * jnp.square(difference) + (1 - squared) * jnp.abs(difference)
    return each.sum((-2, -1)).mean(-1)


# Objects in videos (SAVi, 2022).


def reconstruction_loss(
    prediction: Float[Array, "*time height width channel"],
    target: Float[Array, "*time height width channel"],
    *,
    reduction: Literal["sum", "mean"] = "sum",
) -> Float[Array, ""]:
    """`sum (p - t)^2` of one clip; with `mean` its mean over times and places, still summed over channels.

    The sum is what SAVi and STATM train with: their gradients are long, and always clipped.
    """
    squares = jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32))
    return jnp.sum(squares) if reduction == "sum" else jnp.mean(jnp.sum(squares, axis=-1))


# Set prediction (Slot Attention, 2020; DETR, 2020).


def huber(x: Float[Array, "*shape"], delta: float = 1.0) -> Float[Array, "*shape"]:
    """`x^2 / 2` below `delta`, `delta (|x| - delta / 2)` above."""
    size = jnp.abs(x)
    return jnp.where(size < delta, 0.5 * jnp.square(x), delta * (size - 0.5 * delta))


def pairwise_huber(
    targets: Float[Array, "object feature"], predictions: Float[Array, "slot feature"]
) -> Float[Array, "object slot"]:
    """The Huber distance of every target to every prediction, mean over features."""
    difference = predictions[None, :, :].astype(jnp.float32) - targets[:, None, :].astype(jnp.float32)
    return jnp.mean(huber(difference), axis=-1)


def hungarian_loss(cost: Float[Array, "object slot"]) -> Float[Array, ""]:
    """The least sum of costs of a one-to-one assignment; the gradient is that of the assigned entries."""
    import optax  # here: models import this file, and ought to need no optimisers

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rows, columns = optax.assignment.hungarian_algorithm(jax.lax.stop_gradient(cost))
    return jnp.sum(cost[rows, columns])
