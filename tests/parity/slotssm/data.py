"""How SlotSSM makes its inputs of CLEVRER's frames."""

import numpy as np

from slotzoo.data.sources.clevrer import ClevrerFiles, squared
from slotzoo.data.sources.mp4 import read_frames
from tests.parity.harness import checks, fixture_root


MEAN, STD = (np.asarray(x, np.float32) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
LEVELS = 4  # grey levels by which two decoders of the same video may differ


def recorded_bytes(pixels):
    """Frames (..., channel, height, width), normalised as for ImageNet, as (..., height, width, channel) in 0..255."""
    return (np.moveaxis(pixels, -3, -1) * STD + MEAN) * 255


@checks("video_transform*.npz")
def check_transform(case):
    size = case.config["resolution"]
    found = squared(case.inputs["image"], size)
    np.testing.assert_allclose(found, recorded_bytes(case.outputs["image_transformed"]), rtol=0, atol=1e-3)
    root = fixture_root() / "clevrer_tiny"
    source = ClevrerFiles(root, "train", size=size, length=case.config["seq_len"])
    names = [str(path.relative_to(root)) for path in source._files]
    index = names.index(case.meta["video"])
    assert source.frames(index) == case.meta["total_frames"]
    # The recorded clip begins in the middle of the video: found by seeking to the key frame before it.
    clip = source.window(index, case.meta["start"], case.config["seq_len"])["video"]
    recorded = recorded_bytes(case.outputs["pixel_values"])
    np.testing.assert_allclose(clip, recorded, rtol=0, atol=LEVELS)
    # Closer than its neighbours: the very same frames.
    for other in (-1, 1):
        shifted = source.window(index, case.meta["start"] + other, case.config["seq_len"])["video"]
        assert np.abs(shifted - recorded).mean() > 4 * np.abs(clip - recorded).mean()
    frame = read_frames(root / case.meta["video"], case.meta["start"], 1, "frame")[0].astype(np.int32)
    np.testing.assert_allclose(frame, case.inputs["raw_frame0"], rtol=0, atol=LEVELS)
