"""Measures that compare what a trained network sees: LPIPS of images, FVD of videos (extra `metrics`)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from slotzoo.metrics.frechet import (
    FeatureSums as FeatureSums,
    frechet_distance as frechet_distance,
    frechet_from_features as frechet_from_features,
)
from slotzoo.metrics.i3d import I3D as I3D, i3d_logits as i3d_logits, load_i3d as load_i3d
from slotzoo.metrics.lpips import LPIPS as LPIPS, load_lpips as load_lpips, lpips_batch as lpips_batch


def fvd(
    predictions: Float[Array | np.ndarray, "clip time height width 3"],
    truth: Float[Array | np.ndarray, "other time height width 3"],
    *,
    i3d: I3D | None = None,
) -> float:
    """Frechet video distance of two sets of clips in [0, 1] (Unterthiner et al. 2018): 0 for equal sets.

    The seeds feed whole clips, the context frames included. The value depends on the number of clips (256 in
    the published tables): compare only values of equally many. Raises ShapeError for clips of less than nine
    frames and for fewer than two clips.
    """
    i3d = i3d or load_i3d()
    sums = [FeatureSums.of(np.asarray(i3d_logits(i3d, jnp.asarray(v)))) for v in (predictions, truth)]
    return frechet_distance(*sums)
