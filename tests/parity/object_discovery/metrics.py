"""Segmentation scores, set matching and average precision of several code bases."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.losses import hungarian_loss, pairwise_huber
from slotzoo.metrics.detection import average_precision
from slotzoo.metrics.segmentation import (
    adjusted_rand_index,
    assignment,
    contingency,
    count_accuracy,
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


PICTURES = dict.fromkeys(
    ("in/*_image", "out/gnm_validation/*mse"),
    "errors of pictures under each mask, which the zoo does not report",
)


@checks("metrics_segmentation*.npz", unchecked=PICTURES)
def check_segmentation(case: Case) -> None:
    masks = jnp.asarray(case.inputs["pred_masks"][:, :, 0])
    table = tables(case, jax.vmap(labels_of_masks)(masks))
    fg = lambda t: adjusted_rand_index(t[1:])
    fg255 = lambda t: adjusted_rand_index(t[1:], count_scale=255)
    quantised = tables(case, jax.vmap(lambda m: labels_of_masks(m, quantised=True))(masks))
    chosen = table[jnp.asarray(case.outputs["clevrtex_evaluator/examples"])]
    whole, objects = gnm(case)
    objects |= {"hhousen/compute_ari_quantised_pred_mask255": each(fg255, quantised)}
    for seed in ("tf_multi_object_datasets", "hhousen"):
        whole |= {
            f"{seed}/ari_scale1": each(adjusted_rand_index, table),
            f"{seed}/ari_scale255": each(lambda t: adjusted_rand_index(t, count_scale=255), table),
        }
        objects |= {f"{seed}/fg_ari_scale1": each(fg, table), f"{seed}/fg_ari_scale255": each(fg255, table)}
    whole["sklearn/ari"], objects["sklearn/fg_ari"] = (
        whole["hhousen/ari_scale1"],
        objects["hhousen/fg_ari_scale1"],
    )
    for name, weighted in (("mean", False), ("scaled", True)):
        for foreground, found in enumerate((whole, objects)):
            cover = lambda t, w=weighted, f=foreground: segmentation_covering(t, weighted=w, foreground=bool(f))
            found[f"ocl/{name}_segcover_ignore{foreground}"] = each(cover, table)
    # Without any object there is no score of objects: NaN here and for most authors, 0 or 1 for some.
    some = np.asarray(case.inputs["true_labels"]).any((1, 2))
    assert some.any()
    for found, defined in ((whole, np.ones_like(some)), (objects, some)):
        for name, ours in found.items():
            theirs = case.outputs[name]
            np.testing.assert_array_equal(np.isfinite(ours), defined, err_msg=name)
            assert_close(ours[defined], theirs[defined], rtol=1e-5, what=f"{case.path.name}: {name}")

    # All its columns but the error of the pictures, and a covering that leaves out the last label of both sides.
    columns = case.meta["clevrtex_columns"]
    options = {
        "mIoU": dict(over="either"),
        "mIoU_fg": dict(over="either", foreground=True),
        "mIoU_gt": {},
        "DICE": dict(over="either", measure="dice"),
        "DICE_FG": dict(over="either", foreground=True, measure="dice"),
    }
    ours = {name: each(lambda t, o=kwargs: mean_iou(t, **o), chosen) for name, kwargs in options.items()}
    ours |= {
        "ARI": each(adjusted_rand_index, chosen),
        "ARI_FG": each(fg, chosen),
        "acc": each(count_accuracy, chosen),
    }
    assert {*columns} - {*ours} == {"MSE", "mSC"}
    for name, values in ours.items():
        theirs = case.outputs["clevrtex_evaluator/table"][:, columns.index(name)]
        assert_close(values, theirs, rtol=1e-5, what=f"{case.path.name}: ClevrTex evaluator's {name}")


def gnm(case: Case) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """GNM's validation: scores of all segments, and those of objects.

    Its background is what its objects leave over, and its IoU is half of the Dice coefficient.
    """
    out = case.group("out/gnm")
    objects = jnp.asarray(case.inputs["pred_masks"][:, 1:, 0]) * float(case.inputs["gnm_fg_masks_scale"])
    full = jnp.concatenate([1 - objects.sum(1, keepdims=True), objects], axis=1)
    labels = jax.vmap(labels_of_masks)(full)
    table = tables(case, labels)
    alone = tables(case, jax.vmap(labels_of_masks)(objects))
    fg = lambda t: adjusted_rand_index(t[1:])
    score = dice_coefficients
    dice = each(lambda t: matched(score(t)), table)
    assert_close(dice, out["dices"], rtol=1e-5, what="gnm/dices")
    # They add 0.01 points to both sides of the fraction: 0.01 / 31 of the value for the smallest two segments here.
    assert_close(0.5 * dice, out["ious"], rtol=3e-4, what="gnm/ious")

    # Segments in the order of the true ones. What is left to those that match nothing is up to the solver.
    partner, found = each(lambda t: assignment(score(t)), table), dice > 0
    aligned = np.asarray(labels)[:, None] == partner[:, :, None, None]
    np.testing.assert_array_equal(aligned[found], out["aligned_pred"][found])
    true = np.asarray(case.inputs["true_labels"])[:, None] == np.arange(partner.shape[1])[None, :, None, None]
    np.testing.assert_array_equal(true, out["aligned_true"])
    present = np.pad(case.inputs["pred_vis"] > 0.5, ((0, 0), (1, 0)), constant_values=True)
    shown = np.take_along_axis(present, np.maximum(partner, 0), axis=1)
    np.testing.assert_array_equal(shown[found], out["pred_vis"][found])
    np.testing.assert_array_equal(case.inputs["true_vis"] > 0.5, out["true_vis"])

    # Means over all pairs of which one side is said to be there, the background's left out.
    pairs = (out["pred_vis"] | out["true_vis"]).sum(1) - 1
    mean = lambda values: values[:, 1:].sum(1) / np.where(pairs > 0, pairs, np.nan)
    validation = case.group("out/gnm_validation")
    np.testing.assert_allclose(mean(dice), validation["dice"], rtol=1e-5)
    np.testing.assert_allclose(mean(0.5 * dice), validation["miou"], rtol=3e-4)
    counts = present.sum(1) - 1
    np.testing.assert_array_equal(counts, validation["cnt"])
    np.testing.assert_array_equal(counts == true.any((2, 3)).sum(1) - 1, validation["acc"])
    name = "gnm_validation/ari"
    return {f"{name}_with_background": each(adjusted_rand_index, table)}, {
        name: each(fg, table),
        f"{name}_no_background": each(fg, alone),
    }


@checks("metrics_matching*.npz")
def check_matching(case: Case) -> None:
    cost = jnp.asarray(case.inputs["cost"])
    assert_close(-each(lambda c: matched(-c), cost), case.outputs["hungarian/costs"], rtol=1e-6, what="costs")
    rows, columns = np.moveaxis(case.outputs["hungarian/indices"], 1, 0)
    np.testing.assert_array_equal(np.take_along_axis(each(lambda c: assignment(-c), cost), rows, 1), columns)

    predictions, targets = case.inputs["set_predictions"], case.inputs["set_targets"]

    def loss(predictions):
        one = lambda t, p: hungarian_loss(pairwise_huber(t, p))
        return jnp.mean(jax.vmap(one)(jnp.asarray(targets), predictions))

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(predictions))
    case.compare(value, "set/hungarian_huber_loss", rtol=1e-5)
    expected = case.group("grad_in")["set_predictions"]
    assert_close(gradient, expected, rtol=1e-5, what="gradient of the set loss")
    costs = jax.vmap(pairwise_huber)(jnp.asarray(targets), jnp.asarray(predictions))
    case.compare(costs, "set/huber_cost", rtol=1e-5)
    # Every prediction has the same target; those that stand for nothing are alike, so their order is any.
    partner = each(lambda c: assignment(-c), costs)
    for ours, (rows, columns), target in zip(
        partner, case.outputs["set/indices_target_pred"], targets, strict=True
    ):
        np.testing.assert_array_equal(target[np.argsort(ours)], target[rows[np.argsort(columns)]])
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
