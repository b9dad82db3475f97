"""Scores of tracks: against independent implementations, and the corner cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skimage.morphology
from sklearn.metrics import adjusted_rand_score

from slotzoo.metrics.tracking import contour_accuracy, contour_of, region_similarity, track_scores


pytestmark = pytest.mark.usefixtures("compiled_quickly")


def clip(rng, frames=3, side=12, labels=4):
    """Squares that move, and the same with noise."""
    true = np.zeros((frames, side, side), np.int32)
    for label in range(1, labels):
        top, left = rng.integers(0, side - 5, 2)
        for time in range(frames):
            true[time, top : top + 4, left + time : left + 4 + time] = label
    noisy = np.where(rng.random(true.shape) < 0.1, rng.integers(0, labels, true.shape), true)
    return true, noisy.astype(np.int32)


@pytest.fixture(scope="module")
def scores():
    return jax.jit(track_scores, static_argnames=("true_count", "predicted_count", "empty"))


def test_scores_are_those_of_the_whole_clip(scores):
    true, predicted = clip(np.random.default_rng(0))
    swapped = np.asarray([2, 0, 3, 1])[predicted]
    found = scores(jnp.asarray(true), jnp.asarray(swapped, jnp.int32), true_count=4, predicted_count=4)
    assert found.ari == pytest.approx(adjusted_rand_score(true.ravel(), predicted.ravel()), abs=1e-5)
    objects = true > 0
    assert found.fg_ari == pytest.approx(adjusted_rand_score(true[objects], predicted[objects]), abs=1e-5)
    over_union = [
        ((true == k) & (predicted == k)).sum() / ((true == k) | (predicted == k)).sum() for k in (1, 2, 3)
    ]
    assert found.miou == pytest.approx(np.mean(over_union), rel=1e-5)
    assert np.isnan(found.hinted_miou)
    # Named partners give the same; slots that were given another object do not.
    right = scores(
        jnp.asarray(true),
        jnp.asarray(swapped, jnp.int32),
        true_count=4,
        predicted_count=4,
        partner=jnp.asarray([2, 0, 3, 1]),
    )
    assert right.hinted_miou == pytest.approx(found.miou) and right.region == pytest.approx(found.region)
    wrong = scores(
        jnp.asarray(true),
        jnp.asarray(swapped, jnp.int32),
        true_count=4,
        predicted_count=4,
        partner=jnp.asarray([2, 0, -1, 3]),
    )
    assert wrong.hinted_miou < 0.7 and wrong.region < right.region and wrong.fg_ari == right.fg_ari
    assert right.region_and_contour == pytest.approx((right.region + right.contour) / 2)


def test_frames_that_are_padding_do_not_count(scores):
    true, predicted = (jnp.asarray(x) for x in clip(np.random.default_rng(1)))
    whole = scores(true[:2], predicted[:2], true_count=4, predicted_count=4)
    valid = jnp.asarray([True, True, False])
    padded = scores(true, predicted, true_count=4, predicted_count=4, valid=valid)
    np.testing.assert_allclose(np.asarray(padded), np.asarray(whole), rtol=1e-6)


def test_identity_matters_over_time(scores):
    """The same segments in every frame, but two labels are exchanged half way."""
    true = np.zeros((4, 8, 8), np.int32)
    true[:, :4, :4], true[:, 4:, 4:] = 1, 2
    exchanged = np.where(np.arange(4)[:, None, None] < 2, true, np.asarray([0, 2, 1])[true]).astype(np.int32)
    found = scores(jnp.asarray(true), jnp.asarray(exchanged), true_count=3, predicted_count=3)
    same = scores(jnp.asarray(true), jnp.asarray(true), true_count=3, predicted_count=3)
    np.testing.assert_allclose(np.nan_to_num(np.asarray(same), nan=1.0), 1.0, rtol=1e-6)
    assert found.fg_ari < 0.01 and found.miou == pytest.approx(1 / 3) and found.region == pytest.approx(0.5)


def test_a_clip_without_objects(scores):
    nothing = jnp.zeros((2, 6, 6), jnp.int32)
    found = scores(nothing, nothing, true_count=3, predicted_count=2)
    assert found.ari == 1.0 and np.isnan([found.fg_ari, found.miou, found.region]).all()
    assert scores(nothing, nothing, true_count=3, predicted_count=2, empty=1.0).fg_ari == 1.0


def contour_by_hand(mask):
    """The contour as DAVIS's code makes it of neighbours."""
    east, south, both = (np.zeros_like(mask) for _ in range(3))
    east[:, :-1], south[:-1], both[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edge = (mask ^ east) | (mask ^ south) | (mask ^ both)
    edge[-1], edge[:, -1] = mask[-1] ^ east[-1], mask[:, -1] ^ south[:, -1]
    edge[-1, -1] = 0
    return edge


@pytest.mark.parametrize("side", [12, 130])
def test_contours(side):
    rng = np.random.default_rng(side)
    true, predicted = (np.zeros((2, side, side), bool) for _ in range(2))
    for time in range(2):
        for mask in (true, predicted):
            top, left = rng.integers(0, side // 3, 2)
            mask[time, top : top + side // 2, left : left + side // 2] = True
    reach = int(np.ceil(0.008 * np.hypot(side, side)))
    expected = []
    for t, p in zip(true, predicted, strict=True):
        theirs, ours = contour_by_hand(t), contour_by_hand(p)
        wide = lambda x: skimage.morphology.dilation(x, skimage.morphology.disk(reach))
        precision, recall = (ours & wide(theirs)).sum() / ours.sum(), (theirs & wide(ours)).sum() / theirs.sum()
        expected.append(2 * precision * recall / max(precision + recall, 1e-12))
    np.testing.assert_allclose(contour_accuracy(jnp.asarray(true), jnp.asarray(predicted)), expected, rtol=1e-6)
    assert (np.asarray(contour_of(jnp.asarray(true))) == [contour_by_hand(t) for t in true]).all()


def test_empty_masks():
    full = jnp.zeros((3, 8, 8), bool).at[:2, 2:5, 2:5].set(True)
    other = jnp.zeros((3, 8, 8), bool).at[0, 2:5, 2:5].set(True)
    np.testing.assert_allclose(region_similarity(full, other), [1, 0, 1])
    np.testing.assert_allclose(contour_accuracy(full, other), [1, 0, 1])
    np.testing.assert_allclose(contour_accuracy(other, full), [1, 0, 1])
