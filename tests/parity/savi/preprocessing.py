"""The operations that SAVi applies to clips, and its whole evaluation pipeline on MOVi's tiny copy."""

import numpy as np

from slotzoo.data import clip_ops
from slotzoo.data.object_clips import ObjectClips
from slotzoo.data.sources.movi import MoviFiles
from tests.parity.harness import checks, fixture_root
from tests.tolerance import assert_close


# Float32 sums of a few weights, computed from source coordinates in another order than TensorFlow's.
RTOL = 5e-6
FEATURES = ("video", "segmentations", "padding_mask", "flow", "depth", "boxes")


def operations(case, clip):
    """The clip after every recorded operation, with the drawn parameters of those that draw."""

    def window(name):
        y, x, height, width = case.inputs[f"{name}/y_x_h_w"].tolist()
        return y, x, height, width

    start = lambda name: int(case.inputs[f"{name}/start"])
    colours = clip_ops.flow_to_rgb(clip["flow"]).astype(np.float32) / np.float32(255)
    depth = lambda scale: {**clip, "depth": clip_ops.scale_depth(clip["depth"], scale)}
    part = "random_resized_crop_thresh"
    return {
        "resize_small_down": clip_ops.resize_small(clip, 10),
        "resize_small_up": clip_ops.resize_small(clip, 32),
        "resize_small_max": clip_ops.resize_small(clip, 16, 20),
        "central_crop": clip_ops.central_crop(clip, 12, 14),
        "crop_or_pad": clip_ops.crop_or_pad(clip, 24, 16),
        "drop_frames": clip_ops.drop_frames(clip, 2),
        "temporal_crop": clip_ops.frames(clip, 0, 3),
        "temporal_pad": clip_ops.frames(clip, 0, 6),
        "flow_to_rgb": {**clip, "flow": colours},
        "depth_log_plus": depth("log_plus"),
        "depth_log": depth("log"),
        "depth_invert_plus": depth("invert_plus"),
        "strided_window_2": clip_ops.frames(clip, start("strided_window_2"), 2),
        "strided_window_3": clip_ops.frames(clip, start("strided_window_3"), 3),
        "random_resized_crop": clip_ops.resized_crop(clip, window("random_resized_crop"), 16, 16),
        part: clip_ops.resized_crop(clip, window(part), 16, 16, relative_box_area=0.5, seed_area=True),
    }


@checks("preprocessing_ops*.npz")
def check_preprocessing(case):
    clip = {name.removeprefix("src/"): x for name, x in case.inputs.items() if name.startswith("src/")}
    done = operations(case, clip)
    assert set(clip) == set(FEATURES)
    for path, recorded in case.outputs.items():
        name, _, feature = path.partition("/")
        if name == "pipeline_movi_a_tiny":
            check_pipeline(case, path)
        elif name == "crop_distribution":
            check_windows(case)
        elif name == "flow_rgb_direct":
            np.testing.assert_array_equal(clip_ops.flow_to_rgb(case.inputs["flow_rgb_direct/flow"]), recorded)
        else:
            found = done[name][feature]
            assert found.dtype == recorded.dtype, path
            assert_close(found, recorded, rtol=RTOL, what=path)


def check_windows(case):
    """Ours are drawn by another generator: as large, as tall and as often at the edge as the recorded 400."""
    size = int(case.inputs["crop_distribution/size"])
    covered = float(case.inputs["crop_distribution/min_object_covered"])
    recorded = case.outputs["crop_distribution/y_x_h_w_400_draws"]
    rng = np.random.default_rng(0)
    drawn = [clip_ops.sample_window(rng, (size, size), min_object_covered=covered) for _ in range(1000)]
    found = np.asarray(drawn)
    assert (found[:, 2] * found[:, 3] >= covered * size * size).all()
    assert (found[:, :2] + found[:, 2:] <= size).all()
    # Means within four standard errors of their difference.
    error = np.sqrt(recorded.var(axis=0) / len(recorded) + found.var(axis=0) / len(found))
    assert (np.abs(found.mean(axis=0) - recorded.mean(axis=0)) < 4 * error).all()
    np.testing.assert_allclose(found.std(axis=0), recorded.std(axis=0), rtol=0.2)


def check_pipeline(case, name):
    """One recorded feature of a validation clip, 8 frames of which the last 2 are padding."""
    _, most, _, index, feature = name.split("/")
    root, recorded = fixture_root() / "movi_a_tiny", case.outputs[name]
    objects = int(most.removeprefix("max"))
    files = MoviFiles("movi_a", root, "test")
    source = ObjectClips(files, size=16, max_objects=objects, depth=True)
    frames = source.frames(int(index))
    if feature == "padding_mask":
        np.testing.assert_array_equal(recorded, np.arange(len(recorded))[:, None, None] < frames + 0 * recorded)
        return
    found = source[int(index)]["mask" if feature == "segmentations" else feature]
    if feature == "video":  # bytes: half a step away at most
        np.testing.assert_allclose(found / np.float32(255), recorded[:frames], rtol=0, atol=0.5 / 255 + 1e-6)
    elif feature == "flow":
        np.testing.assert_array_equal(found, np.rint(recorded[:frames] * 255))
    else:
        assert_close(found, recorded[:frames], rtol=RTOL, what=name)
