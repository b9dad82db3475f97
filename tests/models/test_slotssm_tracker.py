"""A SlotSSM that follows objects: the face of SAVi, in parts as at once, and which models have none."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.models import SlotSSM, SlotSSMTracker
from slotzoo.precision import policy
from slotzoo.tasks.follow import check_length, follow, looked_at, tracker
from tests.models.test_slotssm import OBJECTS, PAINTS, build, clip
from tests.tolerance import assert_close


pytestmark = pytest.mark.usefixtures("compiled_quickly")


def test_it_says_what_the_model_says():
    """At once, frame by frame, and as a task follows it: in slices of two, the last one filled up."""
    follower, video = SlotSSMTracker(build(OBJECTS, mixer="gru")), clip(3, side=8)
    batch = {"video": jnp.round(video * 255).astype(jnp.uint8)}

    @eqx.filter_jit
    def run(follower, video):
        out = follower(video)
        first, state = follower.step(video[0], follower.init_state())
        rest = follower(video[1:], state=state)
        followed = follow(follower, batch, chunk=2, key=jax.random.key(0))
        return out, follower.model.decode(out.slots[2]), first._replace(state=None), rest, followed

    video = batch["video"].astype(jnp.float32) / 255
    out, painted, first, rest, followed = run(follower, video)
    assert_close(out.masks[2], painted.masks, rtol=1e-6)
    assert_close(out.predictions["rgb"][2], painted.reconstruction, rtol=1e-6)
    assert out.attention is not None and out.attention.shape == (3, 3, 16)
    assert_close(out.attention.sum(1), jnp.ones((3, 16)), rtol=1e-5)
    for name in ("slots", "masks", "attention"):
        parts = jnp.concatenate([getattr(first, name)[None], getattr(rest, name)])
        assert_close(parts, getattr(out, name), rtol=1e-5, what=name)
    assert followed.labels.tolist() == jnp.argmax(out.masks, 1).tolist()
    assert followed.looks is not None and followed.looks.tolist() == looked_at(out.attention, 8, 8).tolist()
    assert_close(followed.errors["rgb"], jnp.square(out.predictions["rgb"] - video).sum(), rtol=1e-4)


def test_slices_of_bfloat16_models_go_on():
    half = policy("bfloat16").cast(SlotSSMTracker(build(OBJECTS)))
    batch = {"video": jnp.zeros((3, 8, 8, 3), jnp.uint8)}
    found = eqx.filter_eval_shape(lambda m: follow(m, batch, chunk=2, key=jax.random.key(0)), half)
    assert found.errors["rgb"].dtype == jnp.float32 and found.labels.shape == (3, 8, 8)


@pytest.mark.parametrize(
    "fields, attended",
    [
        (dict(mixer="attention", cross="attention"), False),  # its shares do not sum to 1 over slots
        (dict(split=2), False),  # a slot that reads is two that paint
        (dict(target="depth", out_channels=1), True),
    ],
)
def test_attention_and_targets_of_other_kinds(fields, attended):
    follower = SlotSSMTracker(build(OBJECTS, **fields))
    out = eqx.filter_eval_shape(follower, clip(2, side=8))
    assert (out.attention is not None) == attended
    assert set(out.predictions) == set(follower.config.targets) == {"depth" if "target" in fields else "rgb"}
    assert out.masks.shape[1] == follower.config.num_slots


def test_models_that_cannot_follow_say_so():
    def made(config, **fields):
        return eqx.filter_eval_shape(
            lambda: tracker(SlotSSM(dataclasses.replace(config, **fields), key=jax.random.key(0)))
        )

    with pytest.raises(ConfigError, match="decoder='vit' .* no mask of every slot .* decoder='broadcast'"):
        made(PAINTS)
    with pytest.raises(ConfigError, match="decode='last'"):
        made(OBJECTS, decode="last")
    with pytest.raises(ConfigError, match="target='next'.* paints the frames it is shown"):
        made(OBJECTS, target="next")
    follower = made(OBJECTS, mixer="attention")
    with pytest.raises(ConfigError, match="told nothing of the first frame"):
        follower.init_state(jnp.zeros((2, 4)))
    check_length(7, follower.config)
    with pytest.raises(ShapeError, match=r"remembers 7 frames at most .* is to follow 8"):
        check_length(8, follower.config)
    assert tracker(follower) is follower
    check_length(10**6, made(OBJECTS).config)


def test_attention_lies_on_its_part_of_the_frame():
    attention = jnp.zeros((1, 2, 8)).at[0, 0, :3].set(1.0).at[0, 1, 3:].set(1.0)
    assert looked_at(attention, 4, 8)[0].tolist() == [[0] * 6 + [1] * 2] * 2 + [[1] * 8] * 2
