"""Segmentation scores against scikit-learn, and where they are not defined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, f1_score, jaccard_score

from slotzoo.metrics.segmentation import (
    adjusted_rand_index,
    contingency,
    count_accuracy,
    labels_of_masks,
    mean_best_overlap,
    mean_iou,
    mean_of_defined,
    segmentation_covering,
    segmentation_scores,
)


pytestmark = pytest.mark.usefixtures("compiled_quickly")

COUNT = 5
table_of = jax.jit(lambda t, p: contingency(t, p, true_count=COUNT, predicted_count=COUNT))
scores_of = jax.jit(lambda t, p: segmentation_scores(t, p, true_count=COUNT, predicted_count=COUNT))


def labels(*values) -> jax.Array:
    return jnp.asarray(values, jnp.int32)


@given(st.integers(0, 2**32 - 1), st.integers(1, COUNT), st.integers(1, COUNT))
def test_equals_scikit_learn(seed, true_count, predicted_count):
    rng = np.random.default_rng(seed)
    true, predicted = rng.integers(true_count, size=60), rng.integers(predicted_count, size=60)
    predicted = np.where(rng.random(60) < 0.5, true % predicted_count, predicted)
    found = scores_of(labels(*true), labels(*predicted))
    np.testing.assert_allclose(found.ari, adjusted_rand_score(true, predicted), atol=1e-5)
    objects = true > 0
    if not objects.any():
        assert np.isnan(found.fg_ari) and np.isnan(found.miou)
        return
    expected = adjusted_rand_score(true[objects], predicted[objects])
    np.testing.assert_allclose(found.fg_ari, expected, atol=1e-5)
    iou = np.asarray(
        [
            [jaccard_score(true == t, predicted == p, zero_division=0) for p in range(COUNT)]
            for t in range(COUNT)
        ]
    )
    rows, columns = linear_sum_assignment(-iou)
    real = [t for t in range(1, COUNT) if (true == t).any()]
    np.testing.assert_allclose(
        found.miou, np.mean([iou[rows == t, columns[rows == t]] for t in real]), atol=1e-6
    )
    np.testing.assert_allclose(found.covering, np.mean([iou[t].max() for t in real]), atol=1e-6)
    dice = np.asarray(
        [[f1_score(true == t, predicted == p, zero_division=0) for p in range(COUNT)] for t in range(COUNT)]
    )
    rows, columns = linear_sum_assignment(-dice)
    expected = np.mean([dice[rows == t, columns[rows == t]] for t in real])
    np.testing.assert_allclose(found.dice, expected, atol=1e-6)
    expected = np.mean([iou[t].max() for t in true])  # each point counts once, those of the background, too
    np.testing.assert_allclose(found.weighted_covering, expected, atol=1e-6)


def test_names_of_segments_do_not_matter():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(COUNT, size=(2, 80))
    renamed = rng.permutation(COUNT)[predicted]
    a, b = scores_of(labels(*true), labels(*predicted)), scores_of(labels(*true), labels(*renamed))
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_video_is_scored_by_identity():
    """Two frames, right one by one, but the two objects change names between them."""
    frame = np.asarray([[0, 1], [2, 2]])
    true, same = np.stack([frame, frame]), np.stack([frame, np.asarray([0, 2, 1])[frame]])
    one = scores_of(jnp.asarray(frame, jnp.int32), jnp.asarray(same[1], jnp.int32))
    both = scores_of(jnp.asarray(true, jnp.int32), jnp.asarray(same, jnp.int32))
    assert one.fg_ari == 1.0 and both.fg_ari < 0.5


@pytest.mark.parametrize(
    "true, predicted, ari, fg_ari",
    [
        ((0, 0, 0), (3, 3, 3), 1.0, np.nan),  # one cluster each, no object
        ((1, 1, 1), (2, 2, 2), 1.0, 1.0),  # one object found
        ((0, 0, 0), (0, 1, 2), 0.0, np.nan),  # no object
        ((1, 2, 3), (0, 0, 0), 0.0, 0.0),  # one segment for everything
        ((0, 1, 2), (2, 1, 0), 1.0, 1.0),  # a point each
        ((0, 0, 1), (4, 4, 2), 1.0, 1.0),  # one point of an object
    ],
)
def test_corner_cases(true, predicted, ari, fg_ari):
    found = scores_of(labels(*true), labels(*predicted))
    np.testing.assert_allclose([found.ari, found.fg_ari], [ari, fg_ari])


def test_without_points_nothing_is_defined():
    empty = jnp.zeros((COUNT, COUNT))
    for score in (adjusted_rand_index, segmentation_covering, mean_best_overlap, mean_iou, count_accuracy):
        assert np.isnan(score(empty)), score
    assert np.isnan(mean_of_defined(np.asarray([np.nan])))
    assert mean_of_defined(np.asarray([np.nan, 1.0, 0.5])) == 0.75


def test_points_can_be_left_out():
    valid = jnp.asarray([True, True, False, False])
    table = contingency(labels(0, 1, 1, 7), labels(1, 2, 0, 0), true_count=2, predicted_count=3, valid=valid)
    np.testing.assert_array_equal(table, [[0, 1, 0], [0, 0, 1]])


def test_equal_masks_have_iou_one_and_the_published_slip_a_half():
    table = table_of(labels(0, 1, 1, 2), labels(2, 0, 0, 1))
    assert mean_iou(table) == mean_iou(table, measure="dice") == 1.0
    assert mean_iou(table, measure="half dice") == 0.5
    assert count_accuracy(table) == 1.0


def test_surplus_segments_count_when_asked():
    table = table_of(labels(0, 0, 1, 1), labels(0, 3, 1, 1))
    np.testing.assert_allclose([mean_iou(table), mean_iou(table, over="either")], [0.75, 0.5])


def test_quantised_masks_tie_to_the_first():
    masks = jnp.asarray([[0.5, 0.2], [0.501, 0.8]])
    np.testing.assert_array_equal(labels_of_masks(masks), [1, 1])
    np.testing.assert_array_equal(labels_of_masks(masks, quantised=True), [0, 1])
