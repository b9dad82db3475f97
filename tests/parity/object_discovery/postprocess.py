"""From masks to segments of objects, as object-discovery-pytorch's `predict` does it."""

import numpy as np

from slotzoo.viz.segments import (
    colour_labels,
    largest_segment,
    processed_labels,
    raw_labels,
    without_background,
)
from tests.parity.harness import Case, checks


@checks("sa_predict_postprocess*.npz")
def check_segments(case: Case) -> None:
    masks = case.inputs["masks_u8"][:, :, 0].astype(np.float32) / 255
    threshold = case.config["threshold"]
    expected = case.outputs
    for i, each in enumerate(masks):
        np.testing.assert_array_equal(raw_labels(each), expected["segmentation"][i])
        sure = processed_labels(each, threshold=threshold)
        np.testing.assert_array_equal(sure, expected["segmentation_thresholded"][i])
        np.testing.assert_array_equal(without_background(each, threshold=threshold), sure)
        for mode in ("concentrated", "both"):
            for metric in ("area", "distance"):
                labels = raw_labels(each) if mode == "concentrated" else sure
                found = largest_segment(labels, len(each) + 1, metric)
                assert found == expected[f"{mode}/{metric}/largest_index"][i]
                objects = without_background(each, mode, metric, threshold=threshold)
                np.testing.assert_array_equal(objects, expected[f"{mode}/{metric}/segmentation_background"][i])
        colours = colour_labels(raw_labels(each)).transpose(2, 0, 1) / 255
        np.testing.assert_allclose(colours, expected["cmap_segmentation"][i], atol=1e-3)  # recorded in float16
