"""Average precision of predicted sets of objects, as Slot Attention reports it for CLEVR10."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


# Of the published table, in the units of CLEVR's scenes; the position is not looked at for the first.
THRESHOLDS = (float("inf"), 1.0, 0.5, 0.25, 0.125)
# CLEVR's coordinates -3 to 3 are stored as 0 to 1.
COORDINATE_RANGE = 6.0


def average_precision(
    predictions: Float[np.ndarray, "image slot feature"],
    targets: Float[np.ndarray, "image object feature"],
    thresholds: Sequence[float | int] = THRESHOLDS,
    *,
    attributes: Sequence[int] = (2, 2, 3, 8),
) -> Float[np.ndarray, " threshold"]:
    """Average precision per distance threshold; NaN without a single real object.

    Features are 3 coordinates in [0, 1], one group of values per attribute (their numbers are `attributes`), and a
    flag: the confidence of a prediction, 1 of a real target. All predictions of all images are ranked by
    confidence. One counts as found if its attributes (the largest value of each group) are those of a real target
    of its image and the nearest such target lies within the threshold and was not found before. Precision is made
    monotone before it is integrated over recall. Source: Locatello et al., 2020, section 4.2 and their code.
    """
    order = np.argsort(-predictions[..., -1].reshape(-1), kind="stable")
    nearest, distance = _nearest(predictions, targets, attributes)
    # One number per (image, target), in the order of confidence.
    image = np.repeat(np.arange(len(predictions)), predictions.shape[1])
    target = (image * targets.shape[1] + nearest.reshape(-1))[order]
    distance = distance.reshape(-1)[order]
    real = int(np.sum(targets[..., -1] > 0.5))
    return np.asarray([_precision(_found(target, distance <= limit, distance), real) for limit in thresholds])


def _nearest(
    predictions: Float[np.ndarray, "image slot feature"],
    targets: Float[np.ndarray, "image object feature"],
    attributes: Sequence[int],
) -> tuple[Int[np.ndarray, "image slot"], Float[np.ndarray, "image slot"]]:
    """The nearest real target with the same attributes as each prediction, and its distance (inf: there is none)."""
    difference = predictions[:, :, None, :3].astype(np.float64) - targets[:, None, :, :3]
    distance = np.linalg.norm(difference * COORDINATE_RANGE, axis=-1)
    fits = np.broadcast_to(targets[:, None, :, -1] > 0.5, distance.shape).copy()
    start = 3
    for size in attributes:
        ours = predictions[..., start : start + size].argmax(-1)
        fits &= ours[:, :, None] == targets[..., start : start + size].argmax(-1)[:, None, :]
        start += size
    distance = np.where(fits, distance, np.inf)
    return distance.argmin(-1), distance.min(-1)


def _found(
    target: Int[np.ndarray, " ranked"],
    near: Bool[np.ndarray, " ranked"],
    distance: Float[np.ndarray, " ranked"],
) -> Bool[np.ndarray, " ranked"]:
    """Whether each ranked prediction is the first near enough to its target."""
    found = np.zeros(len(target), bool)
    candidates = np.flatnonzero(near & np.isfinite(distance))
    _, first = np.unique(target[candidates], return_index=True)
    found[candidates[first]] = True
    return found


def _precision(found: Bool[np.ndarray, " ranked"], real: int) -> float:
    """Area under the curve of interpolated precision over recall."""
    if real == 0:
        return float("nan")
    hits = np.cumsum(found)
    recall = hits / real
    precision = hits / np.arange(1, len(found) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
