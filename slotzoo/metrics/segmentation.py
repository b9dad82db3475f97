"""How well masks agree with true objects: ARI, covering, matched IoU, on device, for one image or one video.

Everything is computed from the contingency table `n[t, p]`, the number of points with true label t and predicted
label p. Points may be pixels of one frame or of a whole clip: with a leading time axis a label must mean the same
object in every frame to score. Functions take ONE example; batch them with `jax.vmap`. True label 0 is the
background.

Where a score is not defined (no point at all, no true object where objects are asked for) it is NaN: leave it out
of means (`slotzoo.metrics.segmentation.mean_of_defined`), as counting it as 0 or 1 would bend them.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Shaped


class SegmentationScores(NamedTuple):
    """Scores of one example, each 0 to 1 (ARI may be slightly negative) or NaN where it is not defined."""

    ari: Float[Array, ""]  # of all points
    fg_ari: Float[Array, ""]  # of the points on true objects
    covering: Float[Array, ""]  # mean over true objects of the best IoU (which is also called mBO)
    weighted_covering: Float[Array, ""]  # the same, weighted by area, the background being one of them
    miou: Float[Array, ""]  # mean over true objects of the IoU of one-to-one matched segments
    dice: Float[Array, ""]  # the same of 2 |t and p| / (|t| + |p|)
    count_accuracy: Float[Array, ""]  # 1 if there are as many segments as true ones, the background being one


def segmentation_scores(
    true: Int[Array, "*space"],
    predicted: Int[Array, "*space"],
    *,
    true_count: int,
    predicted_count: int,
    valid: Bool[Array, "*space"] | None = None,
) -> SegmentationScores:
    """All scores of label maps with labels 0 to `true_count - 1` (0: background) and 0 to `predicted_count - 1`."""
    table = contingency(true, predicted, true_count=true_count, predicted_count=predicted_count, valid=valid)
    return SegmentationScores(
        adjusted_rand_index(table),
        adjusted_rand_index(table[1:]),
        mean_best_overlap(table),
        segmentation_covering(table, weighted=True),
        mean_iou(table, foreground=True),
        mean_iou(table, foreground=True, measure="dice"),
        count_accuracy(table),
    )


def contingency(
    true: Int[Array, "*space"],
    predicted: Int[Array, "*space"],
    *,
    true_count: int,
    predicted_count: int,
    valid: Bool[Array, "*space"] | None = None,
) -> Float[Array, "{true_count} {predicted_count}"]:
    """`n[t, p]`: how many points have the true label t and the predicted label p.

    Points where `valid` is False, and those with a label outside of the ranges, are not counted. Exact below 2^24
    points (a clip of 64 frames of 512 x 512).
    """
    rows = jax.nn.one_hot(true.reshape(-1), true_count, dtype=jnp.float32)
    columns = jax.nn.one_hot(predicted.reshape(-1), predicted_count, dtype=jnp.float32)
    if valid is not None:
        rows = rows * valid.reshape(-1, 1).astype(jnp.float32)
    return jnp.einsum("nt,np->tp", rows, columns, precision="highest")


def adjusted_rand_index(
    table: Float[Array, "true predicted"], *, count_scale: int = 1, empty: float = float("nan")
) -> Float[Array, ""]:
    """`2 (tp tn - fn fp) / ((tp + fn)(fn + tn) + (tp + fp)(fp + tn))` over pairs of points.

    tp: pairs together in both partitions, fp: only in the predicted one, fn: only in the true one, tn: in
    neither. Rows `table[1:]` give FG-ARI. 1 where both are one cluster (and wherever the partitions are equal),
    `empty` without points (1 in SAVi's evaluation). `count_scale=255` gives what the published evaluations of images
    report, whose masks are 0 or 255: every point counts 255 times, so that few points agree with themselves.
    Source: Hubert and Arabie, 1985.
    """
    counts = table * count_scale
    points = jnp.sum(counts)
    squares = lambda x: jnp.sum(jnp.square(x))
    both, rows, columns = squares(counts), squares(jnp.sum(counts, 1)), squares(jnp.sum(counts, 0))
    pairs = jnp.square(points)
    # Shares of all pairs, so that products of pair counts stay in range.
    tp, fn, fp = (both - points) / pairs, (rows - both) / pairs, (columns - both) / pairs
    tn = (pairs - rows - columns + both) / pairs
    index = 2 * (tp * tn - fn * fp) / ((tp + fn) * (fn + tn) + (tp + fp) * (fp + tn))
    same = (fn <= 0) & (fp <= 0)
    return jnp.where(points > 0, jnp.where(same, 1.0, index), empty)


def intersection_over_union(table: Float[Array, "true predicted"]) -> Float[Array, "true predicted"]:
    """`|t and p| / |t or p|` of every pair of segments; 0 where both are empty."""
    union = jnp.sum(table, 1)[:, None] + jnp.sum(table, 0)[None, :] - table
    return table / jnp.maximum(union, 1.0)


def dice_coefficients(table: Float[Array, "true predicted"]) -> Float[Array, "true predicted"]:
    """`2 |t and p| / (|t| + |p|)` of every pair of segments; 0 where both are empty.

    Half of it is what GNM's authors take for the IoU (equal masks give 0.5).
    """
    return 2 * table / jnp.maximum(jnp.sum(table, 1)[:, None] + jnp.sum(table, 0)[None, :], 1.0)


def assignment(score: Float[Array, "true predicted"]) -> Int[Array, " true"]:
    """The predicted segment for each true one (-1 without one): one-to-one, best sum of scores.

    Source: Kuhn, The Hungarian method, 1955.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        rows, columns = optax.assignment.hungarian_algorithm(-score)
    return jnp.full(len(score), -1, jnp.int32).at[rows].set(columns.astype(jnp.int32))


def score_of(score: Float[Array, "true predicted"], partner: Int[Array, " true"]) -> Float[Array, " true"]:
    """The score of each true segment with its partner, 0 where that is -1."""
    found = jnp.take_along_axis(score, jnp.maximum(partner, 0)[:, None], axis=1)[:, 0]
    return jnp.where(partner >= 0, found, 0.0)


def matched(score: Float[Array, "true predicted"]) -> Float[Array, " true"]:
    """The score of each true segment with the predicted one assigned to it (0 without one), see `assignment`."""
    return score_of(score, assignment(score))


def segmentation_covering(
    table: Float[Array, "true predicted"], *, weighted: bool = False, foreground: bool = False
) -> Float[Array, ""]:
    """Mean over true segments of the best IoU that a predicted one has with it; `weighted` by their areas.

    With `foreground` true objects alone count (label 0 does not); unweighted this is mBO, the mean best overlap.
    Source: Arbelaez et al., TPAMI 2011; Engelcke et al., GENESIS, 2020.
    """
    area = jnp.sum(table, 1)
    real = area > 0
    if foreground:
        real = real.at[0].set(False)
    best = jnp.max(intersection_over_union(table), 1)
    return _mean_over(best, real, area if weighted else None)


def mean_best_overlap(table: Float[Array, "true predicted"]) -> Float[Array, ""]:
    """Mean over true objects of the best IoU with a predicted segment; two objects may share one."""
    return segmentation_covering(table, foreground=True)


def mean_iou(
    table: Float[Array, "true predicted"],
    *,
    foreground: bool = False,
    over: Literal["true", "either"] = "true",
    measure: Literal["iou", "dice", "half dice"] = "iou",
) -> Float[Array, ""]:
    """Mean IoU of segments matched one to one (`foreground`: of true objects alone).

    The mean is over true segments; with `over="either"` over as many as the larger of the two numbers of
    segments, so that segments without a partner count as 0. `half dice` is the flawed measure of GNM's code.
    """
    score = intersection_over_union(table) if measure == "iou" else dice_coefficients(table)
    each = matched(score * (0.5 if measure == "half dice" else 1.0))
    real = jnp.sum(table, 1) > 0
    segments = jnp.sum(jnp.sum(table, 0) > 0)
    if foreground:
        segments = segments - (real[0] & (each[0] > 0)).astype(
            segments.dtype
        )  # which stands for the background
        real = real.at[0].set(False)
    total = jnp.sum(jnp.where(real, each, 0.0))
    count = jnp.sum(real)
    if over == "either":
        count = jnp.maximum(count, segments)
    return jnp.where(count > 0, total / jnp.maximum(count, 1).astype(jnp.float32), jnp.nan)


def count_accuracy(table: Float[Array, "true predicted"]) -> Float[Array, ""]:
    """1 if as many predicted as true segments have points, else 0; NaN without points."""
    same = jnp.sum(jnp.sum(table, 0) > 0) == jnp.sum(jnp.sum(table, 1) > 0)
    return jnp.where(jnp.sum(table) > 0, same.astype(jnp.float32), jnp.nan)


def mask_cosine_distance(
    true: Float[Array, "true *space"], predicted: Float[Array, "predicted *space"]
) -> Float[Array, "true predicted"]:
    """`1 - <t, p> / (|t| |p|)` of every pair of masks; 1 where one of them is empty."""
    rows, columns = true.reshape(len(true), -1), predicted.reshape(len(predicted), -1)
    norms = jnp.linalg.norm(rows, axis=1)[:, None] * jnp.linalg.norm(columns, axis=1)[None, :]
    return 1 - jnp.einsum("tn,pn->tp", rows, columns, precision="highest") / jnp.maximum(norms, 1e-12)


def labels_of_masks(masks: Shaped[Array, "slot *space"], *, quantised: bool = False) -> Int[Array, "*space"]:
    """The slot with the largest mask, the first of equal ones.

    `quantised` rounds soft masks down to 1/255 first, as the published evaluation of Slot Attention in torch does.
    """
    return jnp.argmax(jnp.floor(masks * 255) if quantised else masks, axis=0).astype(jnp.int32)


def mean_of_defined(values: Float[np.ndarray, "..."]) -> float:
    """The mean of what is not NaN; NaN if nothing is."""
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _mean_over(
    values: Float[Array, " true"], real: Bool[Array, " true"], weights: Float[Array, " true"] | None = None
) -> Float[Array, ""]:
    weights = real.astype(jnp.float32) * (1.0 if weights is None else weights)
    total = jnp.sum(weights)
    return jnp.where(total > 0, jnp.sum(weights * values) / jnp.maximum(total, 1e-12), jnp.nan)
