"""How well segments follow the objects of a video: region and contour of tracks, and all scores of one clip.

A track is one label through the whole clip. Functions take ONE clip; batch them with `jax.vmap`. What is not
defined is NaN, as in `slotzoo.metrics.segmentation`.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from slotzoo.metrics.segmentation import (
    adjusted_rand_index,
    assignment,
    contingency,
    intersection_over_union,
    score_of,
)


# Of the diagonal of a frame: how far two contours may lie apart and still agree (Perazzi et al., DAVIS, 2016).
CONTOUR_TOLERANCE = 0.008


class TrackScores(NamedTuple):
    """Scores of one clip, each 0 to 1 (ARI may be slightly negative) or NaN where it is not defined."""

    ari: Float[Array, ""]  # of all points of the clip
    fg_ari: Float[Array, ""]  # of the points on true objects
    miou: Float[Array, ""]  # mean over true objects of the IoU of one-to-one matched tracks
    hinted_miou: Float[Array, ""]  # the same of the slot that was given the object: NaN where none was given
    region: Float[Array, ""]  # J: mean over objects and frames of the IoU of the object's partner
    contour: Float[Array, ""]  # F: mean over objects and frames of the F-measure of the contours
    region_and_contour: Float[Array, ""]  # J&F: the mean of both


def track_scores(
    true: Int[Array, "time height width"],
    predicted: Int[Array, "time height width"],
    *,
    true_count: int,
    predicted_count: int,
    valid: Bool[Array, " time"] | None = None,
    partner: Int[Array, " {true_count}"] | None = None,
    empty: float = float("nan"),
) -> TrackScores:
    """All scores of label maps with labels 0 to `true_count - 1` (0: background) and 0 to `predicted_count - 1`.

    `partner` names the slot that was given each object (-1: none): region and contour then look at that slot;
    otherwise at the one that matches the object best over the whole clip. Objects without a slot count as 0 in the
    frames where they are seen and as 1 where not, as in DAVIS.
    Frames where `valid` is False do not count. `empty` is the (FG-)ARI of a clip without points, 1 in the
    evaluation of SAVi and STATM.
    """
    everywhere = None if valid is None else jnp.broadcast_to(valid[:, None, None], true.shape)
    table = contingency(
        true, predicted, true_count=true_count, predicted_count=predicted_count, valid=everywhere
    )
    overlap = intersection_over_union(table)
    objects = (jnp.sum(table, 1) > 0).at[0].set(False)
    best = assignment(overlap)
    hinted_miou = jnp.float32(jnp.nan)
    if partner is not None:
        hinted_miou = _mean(score_of(overlap, partner), objects & (partner >= 0))
    followed = best if partner is None else partner
    counted = jnp.ones(len(true), bool) if valid is None else valid

    def one(label: Array) -> tuple[Array, Array]:
        # Label -1 is nowhere, so an object without a partner has an empty track.
        truth, found = true == label, predicted == followed[label]
        return _mean(region_similarity(truth, found), counted), _mean(contour_accuracy(truth, found), counted)

    region, contour = jax.lax.map(one, jnp.arange(true_count))
    region, contour = _mean(region, objects), _mean(contour, objects)
    return TrackScores(
        adjusted_rand_index(table, empty=empty),
        adjusted_rand_index(table[1:], empty=empty),
        _mean(score_of(overlap, best), objects),
        hinted_miou,
        region,
        contour,
        0.5 * (region + contour),
    )


def region_similarity(
    true: Bool[Array, "*time height width"], predicted: Bool[Array, "*time height width"]
) -> Float[Array, "*time"]:
    """J: `|t and p| / |t or p|` of the masks of one object in each frame, 1 where both are empty.

    Source: Perazzi et al., DAVIS, CVPR 2016, section 4.
    """
    both = jnp.sum((true & predicted).astype(jnp.float32), (-2, -1))
    either = jnp.sum((true | predicted).astype(jnp.float32), (-2, -1))
    return jnp.where(either > 0, both / jnp.maximum(either, 1.0), 1.0)


def contour_accuracy(
    true: Bool[Array, "*time height width"],
    predicted: Bool[Array, "*time height width"],
    *,
    tolerance: float = CONTOUR_TOLERANCE,
) -> Float[Array, "*time"]:
    """F: `2 P R / (P + R)` of the contours of one object in each frame, 1 where both are empty.

    A point of one contour is right if the other one passes within `tolerance` diagonals of the frame (rounded up to
    whole pixels; a number of 1 or more is in pixels). Source: Martin et al., TPAMI 2004; Perazzi et al., DAVIS,
    CVPR 2016, section 4.
    """
    *_, height, width = true.shape
    reach = math.ceil(tolerance if tolerance >= 1 else tolerance * math.hypot(height, width))
    ours, theirs = contour_of(predicted), contour_of(true)
    right = jnp.sum((ours & _dilated(theirs, reach)).astype(jnp.float32), (-2, -1))
    found = jnp.sum((theirs & _dilated(ours, reach)).astype(jnp.float32), (-2, -1))
    count, true_count = (jnp.sum(x.astype(jnp.float32), (-2, -1)) for x in (ours, theirs))
    precision = jnp.where(count > 0, right / jnp.maximum(count, 1.0), 1.0)
    recall = jnp.where(true_count > 0, found / jnp.maximum(true_count, 1.0), 1.0)
    # One of two contours missing: what is there is all wrong, what is missing was all missed.
    precision = jnp.where((count > 0) & (true_count == 0), 0.0, precision)
    recall = jnp.where((count == 0) & (true_count > 0), 0.0, recall)
    total = precision + recall
    return jnp.where(total > 0, 2 * precision * recall / jnp.maximum(total, 1e-12), 0.0)


def contour_of(mask: Bool[Array, "*time height width"]) -> Bool[Array, "*time height width"]:
    """Points that differ from their right, lower or lower right neighbour; a border of the frame is no contour."""
    # Beyond the border the mask goes on as it ends.
    padded = jnp.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(0, 1), (0, 1)], mode="edge")
    right, below, across = padded[..., :-1, 1:], padded[..., 1:, :-1], padded[..., 1:, 1:]
    return (mask != right) | (mask != below) | (mask != across)


def _dilated(mask: Bool[Array, "*time height width"], reach: int) -> Bool[Array, "*time height width"]:
    """Points within `reach` pixels of the mask."""
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = jnp.asarray(rows**2 + columns**2 <= reach**2, jnp.float32)[:, :, None, None]
    x = mask.reshape(-1, *mask.shape[-2:], 1).astype(jnp.float32)
    spread = jax.lax.conv_general_dilated(
        x, disk, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    return (spread > 0.5).reshape(mask.shape)


def _mean(values: Float[Array, " count"], weights: Bool[Array, " count"]) -> Float[Array, ""]:
    share = weights.astype(jnp.float32)
    total = jnp.sum(share)
    return jnp.where(total > 0, jnp.sum(jnp.where(weights, values, 0.0)) / jnp.maximum(total, 1.0), jnp.nan)
