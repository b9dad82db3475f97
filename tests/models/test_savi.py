"""SAVi and STATM as wholes: parts of a clip, streaming, how slots begin, memory, precision, mistakes in a sentence."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, DataError, ShapeError
from slotzoo.models.savi import SAVi, SAViConfig
from slotzoo.models.statm import STATMConfig, statm
from slotzoo.ops import batch_map
from slotzoo.precision import policy
from tests.arrays import random_module


SMALL: dict[str, Any] = dict(
    height=8,
    width=12,
    num_slots=3,
    slot_dim=8,
    init_width=8,
    encoder_widths=(4,),
    encoder_strides=(2,),
    kernel=3,
    position_width=4,
    corrector_qkv=8,
    predictor_heads=2,
    predictor_qkv=8,
    predictor_mlp=8,
    decoder_grid=4,
    decoder_widths=(4,),
    decoder_strides=(2,),
    segment_widths=(4,),
    segment_strides=(4,),
)
BOXES = jnp.asarray([[0.1, 0.1, 0.5, 0.4], [0.5, 0.3, 0.9, 0.8]])
KEY = jax.random.key(0)


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@functools.cache
def savi(**overrides) -> SAVi:
    return random_module(lambda: SAVi(SAViConfig(**SMALL | overrides), key=KEY), scale=0.4)


@functools.cache
def with_memory(**overrides) -> SAVi:
    return random_module(lambda: statm(STATMConfig(**SMALL | overrides), key=KEY), scale=0.4)


@pytest.fixture(scope="module")
def video():
    return jnp.asarray(np.random.default_rng(0).uniform(0, 1, (5, 8, 12, 3)), jnp.float32)


@pytest.mark.parametrize("make, buffer", [(savi, None), (with_memory, 2)])
def test_whole_clip_slices_and_single_frames_agree(make, buffer, video):
    """The state, the memory of STATM included, is all that a clip needs to go on; a short memory is no exception."""
    model = make(**({} if buffer is None else {"buffer": buffer}))

    @eqx.filter_jit
    def run(model):
        def frame(state, image):
            out, state = model.step(image, state)
            return state, out._replace(state=None)

        first = model(video[:3], BOXES)
        streamed = jax.lax.scan(frame, model.init_state(BOXES), video)
        return model(video, BOXES), first, model(video[3:], state=first.state), *streamed

    whole, first, second, last, frames = run(model)
    assert whole.slots.shape == (5, 3, 8) and whole.masks.shape == (5, 3, 8, 12)
    assert whole.predictions["flow"].shape == (5, 8, 12, 3)
    np.testing.assert_allclose(whole.masks.sum(1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(whole.attention.sum(1), 1.0, rtol=1e-5)

    for name in ("slots", "masks", "attention"):
        expected = getattr(whole, name)
        parts = jnp.concatenate([getattr(first, name), getattr(second, name)])
        np.testing.assert_allclose(parts, expected, atol=2e-5)
        np.testing.assert_allclose(getattr(frames, name), expected, atol=2e-5)
    np.testing.assert_allclose(frames.predictions["flow"], whole.predictions["flow"], atol=2e-5)
    for state in (second.state, last):
        for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(whole.state), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)


def test_slots_of_absent_objects_are_painted_with_the_background(video):
    """The same masks, slots, predictions and gradient as with every slot painted; none that is needed is left out."""
    boxes = jnp.concatenate([BOXES, jnp.zeros((3, 4))])

    @eqx.filter_jit
    def run(model):
        def loss(model):
            out = model(video[:3], boxes)
            return jnp.sum(jnp.square(out.predictions["flow"] - video[1:4])), out

        gradient, out = eqx.filter_grad(loss, has_aux=True)(model)
        return out, gradient, model.init_state(boxes[:3].at[2].set(0.5)).slots

    out, gradient, _ = run(with_memory())
    few, its_gradient, beyond = run(with_memory(painted=3))
    assert out.masks.shape == (3, 6, 8, 12)
    for name in ("slots", "masks", "attention"):
        np.testing.assert_allclose(getattr(few, name), getattr(out, name), atol=2e-5)
    np.testing.assert_allclose(few.predictions["flow"], out.predictions["flow"], atol=2e-5)
    # Of biases that a softmax does not see the gradient is rounding alone, so the largest one sets the scale.
    gradients = [jax.tree.leaves(g) for g in (its_gradient, gradient)]
    scale = max(float(jnp.abs(g).max()) for g in gradients[1])
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale)
    assert jnp.isnan(beyond).all()
    with pytest.raises(DataError, match="3 objects are told, and with painted=3 only the first 2 are painted"):
        with_memory(painted=3).init_state(boxes[:3].at[2].set(0.5))
    wrong: list[dict[str, Any]] = [dict(conditioning="segmentation"), dict(background=None), dict(painted=0)]
    for options in wrong:
        with pytest.raises(ConfigError, match="copies of the background's where objects are told by boxes"):
            savi(**(dict(painted=3) | options))


def test_memory_has_its_length(video):
    """A memory of two frames forgets the third last; one that is dropped between calls forgets all."""

    @eqx.filter_jit
    def slots(model):
        first = model.track(video[:3], BOXES)
        return model.track(video, BOXES).corrected[-1], model.track(video[3:], state=first.state).corrected[-1]

    long, in_parts = slots(with_memory())
    short, _ = slots(with_memory(buffer=2))
    assert float(jnp.abs(long - short).max()) > 1e-4
    _, dropped = slots(with_memory(carry_memory=False))
    assert float(jnp.abs(in_parts - dropped).max()) > 1e-4


def test_one_program_for_every_length():
    """No loop over frames is written out: a longer clip is the same program."""

    def size(frames):
        program = eqx.filter_make_jaxpr(with_memory())(jnp.zeros((frames, 8, 12, 3)), BOXES)[0]
        return len(str(program).split("\n"))

    assert size(3) == size(9)


def test_slots_follow_the_order_of_what_they_are_told(video):
    """Boxes in another order: slots in that order, and the same picture. Absent objects are the background's copies."""
    model = savi()
    boxes = jnp.concatenate([BOXES, jnp.zeros((1, 4))])
    run = eqx.filter_jit(lambda boxes: model(video[:2], boxes))
    out, turned = run(boxes), run(boxes[::-1])
    order = np.array([0, 3, 2, 1])
    np.testing.assert_allclose(turned.masks, out.masks[:, order], atol=1e-5)
    np.testing.assert_allclose(turned.predictions["flow"], out.predictions["flow"], atol=1e-5)
    np.testing.assert_allclose(out.slots[:, 0], out.slots[:, 3], atol=1e-5)


def test_every_way_to_begin(video):
    """Centres are those of boxes; segments, learned and drawn slots need nothing else."""
    centers = savi(conditioning="centers")
    told = centers.init_state((BOXES[:, :2] + BOXES[:, 2:]) / 2).slots
    np.testing.assert_allclose(centers.init_state(BOXES).slots, told, atol=1e-6)
    taken = centers.conditions({"boxes": BOXES[None]})
    assert taken is not None
    np.testing.assert_allclose(taken, (BOXES[:, :2] + BOXES[:, 2:]) / 2)
    segments = savi(conditioning="segmentation")
    labels = jnp.zeros((1, 8, 12), jnp.uint8).at[0, 2:4, 3:6].set(2)
    start = jax.jit(lambda labels: segments.init_state(segments.conditions({"mask": labels})).slots)(labels)
    assert start.shape == (3, 8) and float(jnp.abs(start[1] - start[2]).max()) > 1e-3
    assert savi(conditioning=None).init_state().slots.shape == (3, 8)
    drawn = savi(conditioning=None, init="gaussian_learned")
    noise = drawn.draw(jax.random.key(3))
    np.testing.assert_array_equal(
        drawn.init_state(draws=noise).slots, drawn.init_state(key=jax.random.key(3)).slots
    )


def test_imagined_slots_are_predicted_ones(video):
    """What comes after a clip: the state's slots, and each from the one before."""
    model = with_memory()

    @eqx.filter_jit
    def run(model):
        state = model.track(video[:2], BOXES).state
        return state, model.imagine(state, 3), model.predictor(state.slots, state.memory)[0]

    state, ahead, second = run(model)
    np.testing.assert_array_equal(ahead[0], state.slots)
    np.testing.assert_allclose(ahead[1], second, atol=1e-5)


def test_decoding_again_for_the_gradient_changes_nothing(video):
    """`remat` gives the same loss and gradients."""
    batch = {"video": video[:2], "boxes": BOXES[None], "flow": video[:2] ** 2}
    models = [savi(remat=remat, targets=("flow", "rgb")) for remat in (False, True)]
    differentiated = eqx.filter_value_and_grad(lambda m: m.loss(batch), has_aux=True)
    found = eqx.filter_jit(lambda models: [differentiated(model) for model in models])(models)
    for (value, terms), _ in found:
        np.testing.assert_allclose(value, terms["flow"] + terms["rgb"], rtol=1e-6)
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_recurrence_is_float32_under_bfloat16(video):
    """Tokens and pictures are bfloat16, slots and memory float32; nothing is promoted silently."""
    model = eqx.filter_eval_shape(lambda m: policy("bfloat16").cast(m), with_memory())
    out = eqx.filter_eval_shape(lambda m: m(video, BOXES), model)
    assert out.slots.dtype == out.masks.dtype == jnp.float32
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves(out.state))
    assert out.predictions["flow"].dtype == jnp.bfloat16


def test_a_batch_may_be_sharded(video):
    """Over four devices, as one after the other."""
    model = savi()
    videos, boxes = jnp.stack([video[:2]] * 4), jnp.stack([BOXES * x for x in (1.0, 0.9, 0.8, 0.7)])
    run = eqx.filter_jit(lambda v, b: batch_map(lambda v, b: model(v, b).slots)(v, b))
    plain = run(videos, boxes)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with jax.set_mesh(mesh):
        spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        np.testing.assert_allclose(run(*jax.device_put((videos, boxes), spread)), plain, atol=1e-5)


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"targets": ("flwo",)}, "no target 'flwo'. Did you mean 'flow'?"),
        ({"targets": ()}, "at least one target"),
        ({"height": 10}, "enlarge decoder_grid=4 to 8 rows"),
        ({"iterations": 0}, "every size must be at least 1"),
        ({"predictor_heads": 3}, "8 channels cannot be split into heads=3"),
        ({"resnet": (1,), "resnet_width": 8}, "8 channels cannot be split into 32 groups"),
    ],
)
def test_wrong_sizes(overrides, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        savi(**overrides)


def test_wrong_input(video):
    model = savi()
    with pytest.raises(ShapeError, match=r"built for video of shape \(time, 8, 12, 3\).*got \(5, 8, 11, 3\)"):
        model(video[:, :, 1:], BOXES)
    with pytest.raises(ShapeError, match="It takes one example"):
        model(video[None], BOXES)
    with pytest.raises(ConfigError, match="told boxes of the first frame, and got nothing"):
        model(video)
    with pytest.raises(ShapeError, match=r"boxes of one frame, \(object, 4\)"):
        model(video, jnp.stack([BOXES] * 5))
    with pytest.raises(ShapeError, match="made for 4 per object, got 2"):
        model(video, BOXES[:, :2])
    with pytest.raises(ConfigError, match="told nothing of the first frame, and got conditions"):
        savi(conditioning=None).init_state(BOXES)
    with pytest.raises(ConfigError, match="give a key, or the noise"):
        savi(conditioning=None, init="gaussian").init_state()
    with pytest.raises(ShapeError, match="integer label map of shape"):
        savi(conditioning="segmentation").init_state(jnp.zeros((4, 4), jnp.int32))
    with pytest.raises(DataError, match="conditioning='boxes' needs the field 'boxes'"):
        model.loss({"video": video})
    with pytest.raises(DataError, match="target 'flow' is not among the fields of the data set: boxes, video"):
        model.loss({"video": video, "boxes": BOXES[None]})
    with pytest.raises(ShapeError, match="target 'flow' should be"):
        model.loss({"video": video, "boxes": BOXES[None], "flow": video[..., :2]})
    with pytest.raises(ConfigError, match="at least one frame"):
        with_memory(buffer=0)
