"""SlotSSM and the models it is compared with: streams, states, slots, what they refuse."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.models.slotssm import Decoded, SlotSSM
from slotzoo.models.slotssm_config import SlotSSMConfig
from slotzoo.precision import policy
from tests.arrays import random_module
from tests.tolerance import assert_close


# A frame is one token of 2 x 2 pixels: nothing to compile but the blocks.
SMALL = SlotSSMConfig(
    resolution=2,
    encoder="patch",
    patch_grid=2,
    token_dim=8,
    num_slots=3,
    dim=8,
    blocks=1,
    slot_heads=2,
    mixer_heads=2,
    ssm_state=3,
    ssm_head_dim=4,
    active=2,
    max_frames=7,
    decoder="none",
)
PAINTS = dataclasses.replace(
    SMALL, decoder="vit", out_resolution=2, decoder_dim=8, decoder_layers=1, decoder_heads=2, decoder_patch=2
)
OBJECTS = dataclasses.replace(
    SMALL,
    resolution=8,
    encoder="cnn",
    encoder_dim=4,
    encoder_layers=1,
    encoder_blocks=1,
    encoder_positions=True,
    cross_heads=2,
    normalise="imagenet",
    decoder="broadcast",
    out_resolution=8,
    decoder_grid=2,
    decoder_dim=4,
)


pytestmark = pytest.mark.usefixtures("compiled_quickly")


def build(config: SlotSSMConfig = SMALL, **fields: Any):
    return random_module(
        lambda: SlotSSM(dataclasses.replace(config, **fields), key=jax.random.key(0)), scale=0.3
    )


def clip(frames=7, side=2):
    return jnp.asarray(np.random.default_rng(1).uniform(size=(frames, side, side, 3)), jnp.float32)


@eqx.filter_jit
def three_ways(model, video):
    """A clip at once; frame by frame; and four frames, then the others after them."""

    def step(state, frame):
        slots, state = model.step(frame, state)
        return state, slots

    first = model(video[:4])
    return (
        model(video),
        jax.lax.scan(step, model.init_state(), video),
        first,
        model(video[4:], state=first.state),
    )


@pytest.mark.parametrize(
    "fields",
    [
        dict(mixer="mamba1", expand=1.25, blocks=2, slots_per_block=(3, 2)),
        dict(mixer="mamba2", cross="self", ffn=True),
        dict(mixer="attention", cross="attention"),
        dict(mixer="gru", conv_width=1),
        dict(mixer="rim", num_slots=4, split=2),
    ],
    ids=lambda fields: fields["mixer"],
)
def test_streams_equal_clips(fields):
    model, video = build(**fields), clip()
    whole, (state, slots), first, rest = three_ways(model, video)
    c = model.config
    assert whole.slots.shape == (7, c.out_slots, c.slot_dim) and whole.outputs == Decoded()
    assert_close(slots, whole.slots, rtol=1e-5, what="steps")
    assert_close(jnp.concatenate([first.slots, rest.slots]), whole.slots, rtol=1e-5, what="two parts")
    for other in (state, rest.state):
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(whole.state), strict=True):
            assert a.dtype == b.dtype
            assert_close(a, b, rtol=1e-5, what="state")
    # The past matters, and so does the place in the grid.
    assert float(jnp.abs(three_ways(model, video[::-1])[0].slots[3] - whole.slots[3]).max()) > 1e-4


def test_each_item_of_a_batch_forgets_by_itself():
    @eqx.filter_jit
    def run(model, video, reset):
        state = model(video[:3]).state
        goes_on = lambda r: model(video[3:5], state=state, reset=r)
        return (
            jax.vmap(goes_on)(reset),
            model(video[3:5]).slots,
            model(video[3:5], state=state).slots,
            model.step(video[3], state, reset=reset[0])[0],
        )

    out, fresh, after, stepped = run(build(mixer="mamba1"), clip(), jnp.asarray([True, False]))
    assert_close(out.slots[0], fresh, rtol=1e-5)
    assert_close(out.slots[1], after, rtol=1e-5)
    assert_close(stepped, fresh[0], rtol=1e-5)
    assert out.state.frames.tolist() == [2, 5]


@pytest.mark.parametrize("mixer", ["mamba1", "attention"])
def test_videos_that_follow_one_another_are_as_by_themselves(mixer):
    """Also against steps, with the place in the grid counted anew; the first frames go on from a state."""

    @eqx.filter_jit
    def run(model, video):
        before = model(video[:1]).state
        reset = jnp.asarray([False, False, True, False, False, True])
        whole = model(video[1:], state=before, reset=reset)
        parts = [model(video[1:3], state=before), model(video[3:6]), model(video[6:])]

        def step(state, now):
            slots, state = model.step(now[0], state, reset=now[1])
            return state, slots

        return (
            whole,
            parts,
            jax.lax.scan(step, before, (video[1:], reset)),
            model(video, reset=jnp.zeros(7, bool)),
        )

    model, video = build(mixer=mixer, blocks=2 if mixer == "mamba1" else 1), clip()
    whole, parts, (state, slots), never = run(model, video)
    assert_close(whole.slots, jnp.concatenate([p.slots for p in parts]), rtol=1e-5, what="parts")
    assert_close(whole.slots, slots, rtol=1e-5, what="steps")
    for share, *others in zip(whole.attention, *(p.attention for p in parts), strict=True):
        assert_close(share, jnp.concatenate(others), rtol=1e-5, what="attention")
    for a, b, c in zip(*(jax.tree.leaves(s) for s in (whole.state, parts[-1].state, state)), strict=True):
        assert a.dtype == b.dtype
        assert_close(a, c, rtol=1e-5, what="state of steps")
        assert_close(a, b, rtol=1e-5, what="state")
    assert int(whole.state.frames) == 1 and int(never.state.frames) == 7


def test_slots_are_equal_but_for_their_start():
    """Another order of the learned slots is another order of everything."""
    model, order = build(mixer="mamba2", cross_heads=2), jnp.asarray([2, 0, 1])
    other = eqx.tree_at(lambda m: m.stack.start, model, model.stack.start[order])
    run = eqx.filter_jit(lambda model: model(clip()))
    a, b = run(model), run(other)
    assert_close(b.slots, a.slots[:, order], rtol=1e-5)
    for one, two in zip(a.attention, b.attention, strict=True):
        assert one is not None and two is not None
        assert_close(two, one[:, :, order], rtol=1e-5)
        # Every token gives its whole self away, to heads and slots together.
        assert_close(one.sum((1, 2)), jnp.ones(one.shape[::3]), rtol=1e-5)


def test_generation_goes_on_from_its_own_frames():
    @eqx.filter_jit
    def run(model, video):
        made = model.generate(video, 3)
        return made, model(jnp.concatenate([video, made])).outputs.reconstruction

    model, video = build(PAINTS, mixer="gru", target="next"), clip(3)
    made, predicted = run(model, video)
    assert_close(made, predicted[2:5], rtol=1e-5)
    with pytest.raises(ShapeError, match="generate needs context and a length of at least 1; got 0 and 3"):
        model.generate(video[:0], 3)
    with pytest.raises(ConfigError, match="decoder='none' paints no frames"):
        eqx.filter_eval_shape(lambda: build().generate(video, 2))


def test_objects_are_masks_and_pictures():
    model, video = build(OBJECTS), clip(2, side=8)
    out = eqx.filter_jit(lambda model: model(video))(model)
    mixed, masks, pictures, logits = out.outputs
    assert logits is None and mixed.shape == (2, 8, 8, 3) and pictures.shape == (2, 3, 8, 8, 3)
    assert_close(masks.sum(1), jnp.ones((2, 8, 8)), rtol=1e-5)
    assert_close((masks[..., None] * pictures).sum(1), mixed, rtol=1e-5)
    assert_close(model.restored(model.normalised(video)), video, rtol=1e-5)


@pytest.mark.parametrize(
    "fields, batch, term",
    [
        (dict(target="video", decode="last"), {}, "mse"),
        (dict(target="next"), {}, "mse"),
        (dict(target="depth", out_channels=1), {"depth": (5, 2, 2, 1)}, "mse"),
        (dict(target="label", decoder="classifier", decode="last", classes=4), {"label": ()}, "cross_entropy"),
    ],
)
def test_losses(fields, batch, term):
    model = build(PAINTS, **fields)
    given = {"video": clip(5)} | {
        name: jnp.int32(3) if name == "label" else jnp.ones(shape) for name, shape in batch.items()
    }
    (value, terms), out = eqx.filter_jit(lambda m, g: (m.loss(g), m(g["video"]).outputs))(model, given)
    assert set(terms) == {term} and value.shape == () and value.dtype == jnp.float32 and value > 0
    if term == "cross_entropy":
        expected = jax.nn.logsumexp(out.logits) - out.logits[3]
    else:
        made, video = out.reconstruction, given["video"]
        pairs = {"next": (made[:-1], video[1:]), "video": (made, video if made.ndim == 4 else video[-1])}
        made, wanted = pairs.get(fields["target"]) or (made, given[fields["target"]])
        expected = jnp.square(made - wanted).mean()
    assert_close(value, expected, rtol=1e-5)


@pytest.mark.parametrize("mixer", ["mamba1", "mamba2"])
def test_bfloat16_gradients_are_finite_at_extreme_decay(mixer):
    """States stay float32; steps so long that everything is forgotten, and so short that nothing is."""
    model = build(PAINTS, mixer=mixer)
    grow = (lambda m: m.dt_proj.bias) if mixer == "mamba1" else (lambda m: m.dt_bias)
    video = clip().astype(jnp.bfloat16)
    gradient = eqx.filter_jit(eqx.filter_value_and_grad(lambda m: m.loss({"video": video})[0]))
    for shift in (-30.0, 60.0):
        extreme = eqx.tree_at(
            lambda m: [grow(block.mixer) for block in m.stack.blocks],
            model,
            replace_fn=lambda bias, shift=shift: bias + shift,
        )
        half = policy("bfloat16").cast(extreme)
        value, grads = gradient(half)
        assert value.dtype == jnp.float32 and jnp.isfinite(value)
        assert all(jnp.isfinite(g.astype(jnp.float32)).all() for g in jax.tree.leaves(grads))
    out = eqx.filter_eval_shape(policy("bfloat16").cast(model), video)
    assert out.slots.dtype == out.outputs.reconstruction.dtype == jnp.bfloat16
    assert {x.dtype.name for x in jax.tree.leaves(out.state.blocks)} == {"bfloat16", "float32"}
    assert all(m.dtype == jnp.float32 for m in out.attention)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(num_slots=0), "every size must be at least 1"),
        (dict(slots_per_block=(3, 2)), r"slots_per_block=\(3, 2\) must give each of the blocks=1"),
        (dict(split=3), "dim=8 cannot be cut into split=3 slots"),
        (dict(mixer="rim", blocks=2, slots_per_block=(3, 2)), "same number of slots in every block"),
        (dict(mixer="rim", active=4), "active=4 of 3 mechanisms; choose 1 to 3"),
        (dict(mixer="mamba2", ssm_head_dim=3), "16 of 16 channels .* cannot be split into heads of 3"),
        (dict(mixer="mamba1", expand=0.1), "Mamba: every size must be at least 1"),
        (dict(expand=0.0), "expand=0.0 must be positive"),
        (dict(slot_heads=3), "8 channels cannot be split into heads=3"),
        (dict(target="label"), "target='label' needs decoder='classifier'"),
        (dict(decoder="classifier"), "decoder='classifier' needs target='label', got 'video'"),
        (dict(target="next", decode="last"), "target='next' needs decode='every'"),
        (dict(normalise="imagenet", in_channels=4, out_channels=1), "is for 3 channels, got in_channels=4"),
        (dict(encoder="vit", encoder_patch=3), "pictures of 2 pixels cannot be tiled by patches of 3"),
        (dict(encoder="cnn", encoder_kernel=4), "kernel=4 must be odd"),
        (dict(token_dim=6), "need a multiple of 4 channels, got 6"),
        (dict(decoder="broadcast", decoder_grid=5, out_resolution=8), "grid of 5 cannot be doubled to 8"),
    ],
)
def test_wrong_sizes_are_one_sentence(fields, message):
    def made():
        model = SlotSSM(dataclasses.replace(SMALL, **fields), key=jax.random.key(0))
        return model(jnp.zeros((2, 2, 2, 3)))

    with pytest.raises(ConfigError, match=message):
        eqx.filter_eval_shape(made)


def test_wrong_clips_are_one_sentence():
    model = build(mixer="attention")
    with pytest.raises(ShapeError, match=r"built for inputs of shape \(time, 2, 2, 3\).*got \(5, 4, 4, 3\)"):
        model(clip(5, side=4))
    with pytest.raises(ShapeError, match="It takes one example: batch it"):
        model(clip(5)[None])
    with pytest.raises(ShapeError, match=r"built for frame of shape \(2, 2, 3\)"):
        model.step(clip(), model.init_state())
    with pytest.raises(ShapeError, match="made for 7 frames, 8 do not fit; make max_frames larger"):
        eqx.filter_eval_shape(model, clip(8))
    with pytest.raises(ConfigError, match="class tokens are noisy: it needs `noise` or a `key`"):
        noisy = build(encoder="vit", encoder_patch=2, encoder_dim=8, encoder_layers=1, encoder_noisy_class=True)
        eqx.filter_eval_shape(noisy, clip())


def test_noisy_class_tokens_follow_the_key():
    sizes: dict[str, Any] = dict(
        encoder_patch=2, encoder_dim=8, encoder_layers=1, encoder_heads=2, encoder_noisy_class=True
    )
    model = build(encoder="vit", **sizes)
    run = eqx.filter_jit(lambda model, key: model(clip(), key=key).slots)
    a, b, c = (run(model, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert float(jnp.abs(a - c).max()) > 1e-4
