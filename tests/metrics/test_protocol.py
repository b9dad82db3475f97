"""The evaluation protocol: which frames, how samples and batches are joined, baselines, and its sentences."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, strategies as st
from jax.experimental import multihost_utils

from slotzoo.errors import ShapeError
from slotzoo.metrics import VideoProtocol, add_states, protocol as module, psnr, ssim, video_table
from slotzoo.metrics.i3d import I3D
from slotzoo.metrics.lpips import LPIPS
from slotzoo.metrics.protocol import MEAN_CONTEXT, MEAN_TRAINING, REPEAT_LAST
from tests.metrics.test_perceptual import random_arrays


CONTEXT = 2
RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 256, (4, 6, 12, 12, 3), dtype=np.uint8)
# Two samples of each clip: truth with little and with more noise, exchanged for every other clip.
NOISE = np.where(np.arange(4)[:, None] % 2 == np.arange(2)[None], 8, 40)[:, :, None, None, None, None]
SAMPLES = np.clip(TRUTH[:, None] + NOISE * RNG.normal(size=(4, 2, *TRUTH.shape[1:])), 0, 255).astype(np.uint8)


def settings(**more):
    return {"context": CONTEXT, "frames_at_once": 8, **more}


def test_only_predicted_frames_count():
    spoiled = SAMPLES[:, 0].copy()
    spoiled[:, :CONTEXT] = 0
    whole = video_table(TRUTH, spoiled, **settings())["result"]["model"]
    alone = video_table(TRUTH, SAMPLES[:, 0, CONTEXT:], **settings())["result"]["model"]
    assert whole == alone
    left, right = (jnp.asarray(x[:, CONTEXT:] / np.float32(255)) for x in (SAMPLES[:, 0], TRUTH))
    assert whole["PSNR"] == pytest.approx(float(psnr(left, right).mean()), rel=1e-6)
    assert whole["SSIM"] == pytest.approx(float(ssim(left, right).mean()), rel=1e-6)
    assert whole["PSNR std"] == pytest.approx(float(psnr(left, right).mean(1).std()), rel=1e-4)
    assert whole["clips"] == 4


def test_best_of_two_samples():
    result = video_table(TRUTH, SAMPLES, **settings())["result"]
    first, second = (video_table(TRUTH, SAMPLES[:, i], **settings())["result"]["model"] for i in range(2))
    assert result["model"]["PSNR"] == pytest.approx((first["PSNR"] + second["PSNR"]) / 2, rel=1e-6)
    # The better sample of a clip is the one with little noise: exchange them by hand.
    good = SAMPLES[np.arange(4), np.arange(4) % 2]
    expected = video_table(TRUTH, good, **settings())["result"]["model"]
    assert result["model, best of 2"]["PSNR"] == pytest.approx(expected["PSNR"], rel=1e-6)
    assert result["model, best of 2"]["SSIM"] == pytest.approx(expected["SSIM"], rel=1e-6)


def test_baselines_are_what_they_say():
    mean_frame = np.full((12, 12, 3), 0.5, np.float32)
    result = video_table(TRUTH, SAMPLES, mean_frame=mean_frame, **settings())["result"]
    true = TRUTH / np.float32(255)
    steps = TRUTH.shape[1] - CONTEXT
    for name, frames in {
        REPEAT_LAST: true[:, CONTEXT - 1 : CONTEXT].repeat(steps, 1),
        MEAN_CONTEXT: true[:, :CONTEXT].mean(1, keepdims=True).repeat(steps, 1),
        MEAN_TRAINING: np.full_like(true[:, CONTEXT:], 0.5),
    }.items():
        expected = float(psnr(frames, true[:, CONTEXT:]).mean())
        assert result[name]["PSNR"] == pytest.approx(expected, rel=1e-5)
    assert list(result)[0] == "model" and MEAN_TRAINING in result
    assert list(video_table(TRUTH, SAMPLES[:, 0], baselines=False, **settings())["result"]) == ["model"]


@given(cut=st.integers(1, 3))
def test_batches_and_processes_add_up(cut):
    whole = VideoProtocol(**settings())
    whole.add(TRUTH, SAMPLES)
    parts = [VideoProtocol(**settings()) for _ in range(2)]
    parts[0].add(TRUTH[:cut], SAMPLES[:cut])
    parts[1].add(TRUTH[cut:], SAMPLES[cut:])
    states = [{k: v.copy() for k, v in part.state().items()} for part in parts]
    summed = parts[0].with_state(add_states(*states))
    parts[0].merge(parts[1])
    for joined in (parts[0], summed):
        assert joined.table()["notes"] == whole.table()["notes"]
        for name, entry in whole.result().items():
            assert joined.result()[name] == pytest.approx(entry, rel=1e-5)
        for measure, rows in whole.curves().items():
            for name, curve in rows.items():
                np.testing.assert_allclose(joined.curves()[measure][name], curve, rtol=1e-6)


def test_sums_of_all_processes(monkeypatch):
    made = VideoProtocol(**settings())
    made.add(TRUTH, SAMPLES)
    assert made.over_processes().result() == made.result()
    # Two processes; the other one has the same clips, then none at all.
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", lambda x: np.stack([x, x]))
    both = made.over_processes()
    assert both.result()["model"]["clips"] == 8 and both.length == 6 and both.smallest_side == 12
    assert both.result()["model"]["PSNR"] == pytest.approx(made.result()["model"]["PSNR"])
    idle = VideoProtocol(**settings()).over_processes()
    assert idle.result() == {} and idle.length is None


def test_clips_that_fill_up_a_batch_are_left_out():
    padded = VideoProtocol(**settings())
    valid = np.asarray([True, True, False, False])
    padded.add(TRUTH, SAMPLES, valid=valid)
    padded.add(TRUTH, SAMPLES, valid=np.zeros(4, bool))
    alone = VideoProtocol(**settings())
    alone.add(TRUTH[:2], SAMPLES[:2])
    assert padded.result() == alone.result()


def test_value_ranges():
    floats = TRUTH.astype(np.float32) / 127.5 - 1
    predicted = SAMPLES[:, 0].astype(np.float32) / 127.5 - 1
    expected = video_table(TRUTH, SAMPLES[:, 0], **settings())["result"]
    found = video_table(floats, predicted, value_range=(-1, 1), **settings())["result"]
    for name in expected:
        assert found[name]["PSNR"] == pytest.approx(expected[name]["PSNR"], rel=1e-4)
    with pytest.raises(ShapeError, match=r"not in the value range \[0.0, 1.0\]: they span \[-1, 1\]"):
        video_table(floats, predicted, **settings())


def test_equal_frames_are_clamped_and_the_table_is_json():
    found = video_table(TRUTH, {"oracle": TRUTH, "other": SAMPLES[:, 1]}, **settings())
    assert found["result"]["oracle"]["PSNR"] == 100.0
    table = json.loads(json.dumps(found["table"], allow_nan=False))
    assert table["columns"] == ["PSNR", "SSIM", "clips"]
    assert [row["name"] for row in table["rows"]][:2] == ["oracle", "other"]
    assert table["better"] == {"PSNR": "higher", "SSIM": "higher"}
    assert any("LPIPS" in note for note in table["notes"]) and any("FVD" in note for note in table["notes"])
    assert [curve["title"] for curve in table["curves"]] == ["PSNR by frame", "SSIM by frame"]
    curve = table["curves"][0]
    assert curve["x"] == [2, 3, 4, 5] and all(len(v) == 4 for v in curve["series"].values())


def test_small_frames_lose_a_column_and_a_note_says_so():
    small = TRUTH[:, :, :8, :8]
    table = video_table(small, small, **settings())["table"]
    assert table["columns"] == ["PSNR", "clips"]
    assert any("SSIM is left out: frames are smaller" in note for note in table["notes"])


def test_lpips_of_grey_clips():
    lpips = LPIPS(random_arrays("alex"), "alex")
    grey = np.random.default_rng(0).integers(0, 256, (1, 3, 32, 32, 1), dtype=np.uint8)
    result = video_table(grey, 255 - grey, context=1, frames_at_once=2, lpips=lpips)["result"]
    assert result["model"]["LPIPS"] > result[REPEAT_LAST]["LPIPS"] * 0.1 > 0


def test_fvd_over_batches(monkeypatch):
    # The network is replaced by a few numbers of the clip: what is tested is which clips are compared.
    def logits(i3d, clips):
        return jnp.concatenate([clips.mean((2, 3, 4)), clips.std((2, 3, 4))], axis=1)

    monkeypatch.setattr(module, "i3d_logits", logits)
    network = object.__new__(I3D)
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (30, 9, 4, 4, 3), dtype=np.uint8)
    predicted = truth[:, CONTEXT:] // 2
    made = VideoProtocol(**settings())
    made.i3d = network
    for part in range(0, 30, 10):
        made.add(
            truth[part : part + 10], {"exact": truth[part : part + 10], "dark": predicted[part : part + 10]}
        )
    result = made.result()
    assert result["exact"]["FVD"] == pytest.approx(0.0, abs=1e-6)
    assert result["dark"]["FVD"] > 0.01
    assert made.with_state(made.state()).result()["dark"] == pytest.approx(result["dark"])
    assert any("FVD over 30 whole clips" in note for note in made.table()["notes"])
    few = VideoProtocol(**settings())
    few.i3d = network
    few.add(truth[:5], predicted[:5])
    assert "FVD" not in few.result()["model"]
    assert any("5 clips are fewer than 16" in note for note in few.table()["notes"])
    few.length = None
    with pytest.raises(ShapeError, match="at least 9 frames, got 8"):
        few.add(truth[:5, :8], predicted[:5, :6])


def test_scalars_for_the_log():
    made = VideoProtocol(**settings())
    made.add(TRUTH, SAMPLES)
    scalars = made.scalars()
    assert set(scalars) >= {"psnr", "ssim", "model_best_of_2/psnr", "repeat_last_frame/psnr"}
    assert all(isinstance(v, float) for v in scalars.values())


@pytest.mark.parametrize(
    ("predictions", "sentence"),
    [
        (SAMPLES[:, 0, :3], "with 6 or 4 frames, got"),
        (SAMPLES[:3], "do not fit the true clips"),
        (SAMPLES[:, 0, :, :8], "do not fit the true clips"),
    ],
)
def test_shapes_that_do_not_fit(predictions, sentence):
    with pytest.raises(ShapeError, match=sentence):
        video_table(TRUTH, predictions, **settings())


def test_contexts_that_do_not_fit():
    with pytest.raises(ShapeError, match="at least one given frame"):
        VideoProtocol(context=0)
    with pytest.raises(ShapeError, match="leave none to predict after 6 given"):
        video_table(TRUTH, TRUTH, context=6)
    made = VideoProtocol(**settings())
    made.add(TRUTH, TRUTH)
    with pytest.raises(ShapeError, match="same length: 6, then 5"):
        made.add(TRUTH[:, :5], TRUTH[:, :5])
