"""Segmentation scores, set matching and average precision of several code bases."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.losses import hungarian_loss, pairwise_huber
from slotzoo.metrics.detection import average_precision
from slotzoo.metrics.segmentation import (
    adjusted_rand_index,
    contingency,
    dice_coefficients,
    labels_of_masks,
    mask_cosine_distance,
    matched,
    mean_iou,
    segmentation_covering,
)
from tests.parity.harness import Case, checks, fixture_root, load_case
from tests.tolerance import assert_close


def tables(case: Case, predicted) -> np.ndarray:
    true = jnp.asarray(case.inputs["true_labels"], jnp.int32)
    count = case.inputs["true_masks"].shape[1]

    def table(t, p):
        return contingency(t, p, true_count=count, predicted_count=case.inputs["pred_masks"].shape[1])

    return jax.jit(jax.vmap(table))(true, predicted)


def each(score, table) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(score))(table))


@checks("metrics_segmentation*.npz")
def check_segmentation(case: Case) -> None:
    masks = jnp.asarray(case.inputs["pred_masks"][:, :, 0])
    table = tables(case, jax.vmap(labels_of_masks)(masks))
    fg = lambda t: adjusted_rand_index(t[1:])
    fg255 = lambda t: adjusted_rand_index(t[1:], count_scale=255)
    quantised = tables(case, jax.vmap(lambda m: labels_of_masks(m, quantised=True))(masks))
    chosen = table[jnp.asarray(case.outputs["clevrtex_evaluator/examples"])]
    found = {"hhousen/compute_ari_quantised_pred_mask255": each(fg255, quantised)}
    for seed in ("tf_multi_object_datasets", "hhousen"):
        found |= {
            f"{seed}/ari_scale1": each(adjusted_rand_index, table),
            f"{seed}/fg_ari_scale1": each(fg, table),
            f"{seed}/ari_scale255": each(lambda t: adjusted_rand_index(t, count_scale=255), table),
            f"{seed}/fg_ari_scale255": each(fg255, table),
        }
    found |= {"sklearn/ari": found["hhousen/ari_scale1"], "sklearn/fg_ari": found["hhousen/fg_ari_scale1"]}
    for name, weighted in (("mean", False), ("scaled", True)):
        for foreground in (False, True):
            cover = lambda t, w=weighted, f=foreground: segmentation_covering(t, weighted=w, foreground=f)
            found[f"ocl/{name}_segcover_ignore{int(foreground)}"] = each(cover, table)
    found |= gnm(case)
    for name, ours in found.items():
        theirs = case.outputs[name]
        # Without any foreground there is no score: NaN here and for most authors, 0 or 1 for some.
        defined = np.isfinite(ours)
        assert not defined.all() or np.isfinite(theirs).all(), name
        assert_close(ours[defined], theirs[defined], rtol=1e-5, what=f"{case.path.name}: {name}")

    columns = case.meta["clevrtex_columns"]
    options = {
        "mIoU": dict(over="either"),
        "mIoU_fg": dict(over="either", foreground=True),
        "mIoU_gt": {},
        "DICE": dict(over="either", measure="dice"),
        "DICE_FG": dict(over="either", foreground=True, measure="dice"),
    }
    ours = {name: each(lambda t, o=kwargs: mean_iou(t, **o), chosen) for name, kwargs in options.items()}
    ours |= {"ARI": each(adjusted_rand_index, chosen), "ARI_FG": each(fg, chosen)}
    for name, values in ours.items():
        theirs = case.outputs["clevrtex_evaluator/table"][:, columns.index(name)]
        assert_close(values, theirs, rtol=1e-5, what=f"{case.path.name}: ClevrTex evaluator's {name}")


def gnm(case: Case) -> dict[str, np.ndarray]:
    """GNM's validation: its background is what its objects leave over, and its IoU is half of the Dice coefficient."""
    objects = jnp.asarray(case.inputs["pred_masks"][:, 1:, 0]) * float(case.inputs["gnm_fg_masks_scale"])
    full = jnp.concatenate([1 - objects.sum(1, keepdims=True), objects], axis=1)
    table = tables(case, jax.vmap(labels_of_masks)(full))
    alone = tables(case, jax.vmap(labels_of_masks)(objects))
    fg = lambda t: adjusted_rand_index(t[1:])
    dice = each(lambda t: matched(dice_coefficients(t)), table)
    assert_close(dice, case.outputs["gnm/dices"], rtol=1e-5, what="gnm/dices")
    # They add 0.01 points to both sides of the fraction: 0.01 / 31 of the value for the smallest two segments here.
    assert_close(0.5 * dice, case.outputs["gnm/ious"], rtol=3e-4, what="gnm/ious")
    return {
        "gnm_validation/ari_with_background": each(adjusted_rand_index, table),
        "gnm_validation/ari": each(fg, table),
        "gnm_validation/ari_no_background": each(fg, alone),
    }


@checks("metrics_matching*.npz")
def check_matching(case: Case) -> None:
    cost = jnp.asarray(case.inputs["cost"])
    pick = lambda c: matched(-c)
    assert_close(-each(pick, cost), case.outputs["hungarian/costs"], rtol=1e-6, what="matched costs")

    predictions, targets = case.inputs["set_predictions"], case.inputs["set_targets"]

    def loss(predictions):
        one = lambda t, p: hungarian_loss(pairwise_huber(t, p))
        return jnp.mean(jax.vmap(one)(jnp.asarray(targets), predictions))

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(predictions))
    case.compare(value, "set/hungarian_huber_loss", rtol=1e-5)
    expected = case.arrays["grad_in/set_predictions"]
    assert_close(gradient, expected, rtol=1e-5, what="gradient of the set loss")
    costs = jax.vmap(pairwise_huber)(jnp.asarray(targets), jnp.asarray(predictions))
    case.compare(costs, "set/huber_cost", rtol=1e-5)
    limits = [np.inf if t < 0 else float(t) for t in case.outputs["set/ap_thresholds"]]
    assert any_order(predictions, targets, limits, case.outputs["set/ap"])

    source = fixture_root() / "object_discovery" / "metrics_segmentation.npz"
    if source.is_file():  # this file's masks
        masks = load_case(source).inputs
        pairs = jax.vmap(mask_cosine_distance)(
            jnp.asarray(masks["true_masks"][..., 0], jnp.float32), jnp.asarray(masks["pred_masks"][:, :, 0])
        )
        case.compare(pairs, "mask_cosine_distance", rtol=1e-5)


def any_order(predictions, targets, limits, expected) -> bool:
    """Whether some ranking of equally confident predictions gives `expected`: theirs depends on the sorting routine."""
    flags = predictions[..., -1].reshape(-1)
    top = np.flatnonzero(flags == flags.max())
    assert len(top) <= 6, "so many ties that not every ranking can be tried"
    for order in itertools.permutations(range(len(top))):
        ranked = flags.astype(np.float64)
        ranked[top] += 1e-9 * np.asarray(order)
        moved = predictions.astype(np.float64)
        moved[..., -1] = ranked.reshape(moved.shape[:2])
        if np.allclose(average_precision(moved, targets, limits), expected, rtol=1e-6):
            return True
    return False
