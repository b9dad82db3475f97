"""The modules alone: each is built from the case's own configuration and takes the case's parameters."""

import dataclasses
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.nn.conv_stack import ConvStack
from slotzoo.nn.gru import GRUCell
from slotzoo.nn.image_resnet import ImageResNet, stages
from slotzoo.nn.mlp import DeepMLP
from slotzoo.nn.position import PositionTable
from slotzoo.nn.slot_attention import SlotAttention
from slotzoo.nn.slot_init import CoordinateSlots, GaussianSlots, LearnedSlots, SegmentSlots
from slotzoo.nn.slot_transformer import SlotTransformer, SlotTransformerBlock
from slotzoo.nn.time_space import TimeSpacePredictor
from slotzoo.nn.track_decoder import TrackDecoder
from slotzoo.weights.convert import savi_rules
from slotzoo.weights.convert.rules import Rule, from_seed, to_seed, under
from tests.parity.harness import Case, checks
from tests.tolerance import assert_close


SINGLE = 1e-5
# Zero in theory: what all slots or all keys share moves no softmax. In Slot Attention, the norm of the slots.
NO_GRADIENT = ("*alpha_logits/bias", "*key/bias", "SlotAttention_0/LayerNorm_0/bias")
KEY = jax.random.key(0)


MAPS = {"out/intermediates/*/attn/*": "maps of the predictors' attention, which ours does not return"}


def build(make: Callable[[], Any], params: Mapping[str, np.ndarray], rules: Sequence[Rule]) -> Any:
    """The module with the recorded parameters, every one of them used once."""
    return from_seed(savi_rules.joined(params), eqx.filter_eval_shape(make), tuple(rules))


def gradients(case: Case, grads: Any, rules: Sequence[Rule]) -> dict[str, np.ndarray]:
    """Gradients by the recorded paths, in the recorded shapes."""
    found = savi_rules.parted(to_seed(grads, savi_rules.joined(case.grads), tuple(rules)))
    return {path: np.reshape(array, case.grads[path].shape) for path, array in found.items()}


def check(
    case: Case,
    make: Callable[[], Any],
    rules: Sequence[Rule],
    apply: Callable[[Any], jax.Array],
    *,
    rtol: float = SINGLE,
    zero: tuple[str, ...] = NO_GRADIENT,
) -> Any:
    """Output and, where they are recorded, gradients of `sum(y * cotangent)`."""
    model = build(make, case.params, rules)
    if not case.grads:
        case.compare(jax.jit(apply)(model), "y", rtol=rtol)
        return model

    def loss(model):
        y = apply(model)
        return jnp.sum(y * case.inputs["cotangent"]), y

    (_, y), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(model)
    case.compare(y, "y", rtol=rtol)
    case.compare_grads(gradients(case, grads, rules), rtol=SINGLE, zero=zero)
    return model


def arrays(case: Case, *names: str) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(case.inputs[name]) for name in names)


@checks("gru*.npz")
def check_gru(case: Case) -> None:
    x, carry = arrays(case, "x", "carry")
    make = lambda: GRUCell(x.shape[-1], carry.shape[-1], style="flax", key=KEY)
    check(case, make, under("GRUCell_0/", "", savi_rules.GRU), lambda cell: cell(x, carry))


@checks("mlp_*.npz")
def check_mlp(case: Case) -> None:
    c = case.config
    (x,) = arrays(case, "x")
    make = lambda: DeepMLP(
        x.shape[-1],
        c["hidden_size"],
        c.get("output_size"),
        hidden=c.get("num_hidden_layers", 1),
        norm=c.get("layernorm"),
        residual=c.get("residual", False),
        activate_output=c.get("activate_output", False),
        key=KEY,
    )
    check(case, make, savi_rules.MLP, lambda mlp: mlp(x))


@checks("posemb_*.npz")
def check_positions(case: Case) -> None:
    c = case.config
    (x,) = arrays(case, "x")
    grid = case.params["pos_embedding"].shape[1:-1]
    transform = case.params.get("MLP_0/dense_mlp_0/kernel")
    make = lambda: PositionTable(
        x.shape[-1],
        grid,
        kind=c["embedding_type"],
        update=c["update_type"],
        bases=c.get("num_fourier_bases", 0),
        sigma=c.get("gaussian_sigma", 1.0),
        transform_width=None if transform is None else transform.shape[1],
        key=KEY,
    )
    check(case, make, savi_rules.POSITION, lambda table: table(x))
    if c["embedding_type"] != "gaussian_fourier":
        # The table that it is made with, but for those whose directions are drawn.
        assert_close(make().table[None], case.params["pos_embedding"], rtol=SINGLE, what="table")


@checks("cnn_*.npz")
def check_cnn(case: Case) -> None:
    c = case.config
    (x,) = arrays(case, "x")
    ((kernel, _),) = {tuple(size) for size in c["kernel_size"]}
    make = lambda: ConvStack(
        x.shape[-1],
        tuple(c["features"]),
        kernel=kernel,
        strides=tuple(stride for stride, _ in c["strides"]),
        transposed=tuple(c["layer_transpose"]),
        norm=c.get("norm_type"),
        # The seed applies the norm of instances only.
        discard_norm=c.get("norm_type") != "instance",
        out_size=c.get("output_size"),
        key=KEY,
    )
    check(case, make, savi_rules.CNN, lambda net: net(x))


@checks("resnet*.npz")
def check_resnet(case: Case) -> None:
    c = case.config
    (x,) = arrays(case, "x")
    bottleneck = "Bottleneck" in case.meta["cls"]
    blocks = tuple(c["stage_sizes"]) if "stage_sizes" in c else stages(34).blocks
    make = lambda: ImageResNet(
        x.shape[-1],
        blocks=blocks,
        bottleneck=bottleneck,
        width=int(64 * c.get("width_factor", 1)),
        norm=c["norm_type"],
        small_inputs=c["small_inputs"],
        classes=c["num_classes"] if c.get("include_top") else None,
        key=KEY,
    )
    rules = savi_rules.resnet(blocks, bottleneck=bottleneck)
    if "param_shapes" in case.meta:
        case = dataclasses.replace(case, stored={**case.stored, **recipe(case)})
    check(case, make, rules, lambda net: net(x))


@checks("encoder_resnet_batchnorm*.npz")
def check_batch_norm(case: Case) -> None:
    """With running statistics, and in training over clips and times together; what the statistics are then."""
    (video,) = arrays(case, "video")
    rules = under("ResNet_0/", "", savi_rules.resnet((1,)))
    recorded = {**case.params, **case.group("state/batch_stats")}
    width = case.params["ResNet_0/init_bn/scale"].size
    make = lambda: ImageResNet(video.shape[-1], blocks=(1,), width=width, norm="batch", key=KEY)
    net = build(make, recorded, rules)
    flat = lambda y: y.reshape(*video.shape[:2], -1, width)
    case.compare(flat(jax.jit(lambda net: net(video))(net)), "y_eval", rtol=SINGLE)

    def loss(net):
        y, after = net.training(video)
        return jnp.sum(flat(y) * case.inputs["cotangent"]), (flat(y), after)

    (_, (y, after)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(net)
    case.compare(y, "y_train", rtol=SINGLE)
    case.compare_grads(gradients(case, grads, rules), rtol=SINGLE)
    expected = case.group("out/state_after_train/batch_stats")
    for name, array in to_seed(after, expected, rules).items():
        assert_close(array, expected[name], rtol=SINGLE, what=name)


@checks("slot_attention_*.npz")
def check_slot_attention(case: Case) -> None:
    c = case.config
    slots, inputs = arrays(case, "slots", "inputs")
    make = lambda: SlotAttention(
        inputs.shape[-1],
        slots.shape[-1],
        mlp_dim=c.get("mlp_size"),
        qkv_dim=c.get("qkv_size"),
        heads=c.get("num_heads", 1),
        init="given",
        style="flax",
        key=KEY,
    )
    iterations = c["num_iterations"]
    run = lambda model, steps: jax.vmap(lambda x, s: model(x, s, iterations=steps))(inputs, slots)
    zero = (*NO_GRADIENT, "LayerNorm_0/bias")
    model = check(case, make, savi_rules.SLOT_ATTENTION, lambda m: run(m, iterations).slots, zero=zero)
    for i in range(iterations):
        name = f"intermediates/InvertedDotProductAttention_0/GeneralizedDotProductAttention_0/attn/{i}"
        found = jax.jit(lambda model, i=i: run(model, i + 1).attention)(model)
        # Recorded for each head; ours is their mean.
        expected = np.swapaxes(case.outputs[name].mean(1), -1, -2)
        assert_close(found, expected, rtol=SINGLE, what=f"{case.path.name}: attention of step {i}")


@checks("transformer_*.npz", unchecked=MAPS)
def check_transformer(case: Case) -> None:
    c = case.config
    (queries,) = arrays(case, "queries")
    sizes = {"qkv_dim": c["qkv_size"], "mlp_dim": c["mlp_size"], "heads": c["num_heads"]}
    sizes |= {"pre_norm": c["pre_norm"], "key": KEY}
    dim = queries.shape[-1]
    if "num_layers" in c:
        make = lambda: SlotTransformer(dim, layers=c["num_layers"], **sizes)
        check(case, make, savi_rules.TRANSFORMER, lambda model: jax.vmap(model)(queries))
        return
    contexts = [jnp.asarray(case.inputs["inputs"])] if "inputs" in case.inputs else []
    make = lambda: SlotTransformerBlock(dim, cross=bool(contexts), **sizes)
    check(case, make, savi_rules.BLOCK, lambda model: jax.vmap(model)(queries, *contexts))


@checks("statm_block*_post*.npz", "statm_block*_pre*.npz", unchecked=MAPS)
def check_time_space(case: Case) -> None:
    c = case.config
    queries, buffer = arrays(case, "queries", "buffer")
    block = block_of(case)
    rules = savi_rules.time_space(block)
    if block == 5 and c["pre_norm"]:
        block = 2  # the seed's with norms in front looks at each slot alone
    length = buffer.shape[1]
    make = lambda: predictor(c, queries.shape[-1], length=length + 1, block=block)
    # One frame after the other, the last of which is the query; one row of the memory is never written.
    check(case, make, rules, lambda model: run_over(model, buffer)[:, -1])


@checks("statm_block*_growing_buffer*.npz")
def check_memory(case: Case) -> None:
    """All frames remembered, and the last few, whose number the output's name ends with."""
    (corrected,) = arrays(case, "corrected")
    block = block_of(case)
    for name in case.outputs:
        length = int(name.removeprefix("predicted").removeprefix("_buffer") or corrected.shape[1])
        make = lambda length=length: predictor(case.config, corrected.shape[-1], length=length, block=block)
        model = build(make, case.params, savi_rules.time_space(block))
        case.compare(jax.jit(run_over)(model, corrected), name, rtol=SINGLE)


def block_of(case: Case) -> int:
    return int(case.meta["cls"].removeprefix("TimeSpaceTransformerBlock") or 1)


def predictor(c: Mapping[str, Any], dim: int, *, length: int, block: Any) -> TimeSpacePredictor:
    return TimeSpacePredictor(
        dim,
        qkv_dim=c["qkv_size"],
        mlp_dim=c["mlp_size"],
        heads=c["num_heads"],
        length=length,
        block=block,
        pre_norm=c.get("pre_norm", False),
        key=KEY,
    )


def run_over(model: TimeSpacePredictor, frames: jax.Array) -> jax.Array:
    """The prediction after each frame, from an empty memory."""

    def one(frames):
        def frame(memory, slots):
            predicted, memory = model(slots, memory)
            return memory, predicted

        return jax.lax.scan(frame, model.init_memory(frames.shape[1]), frames)[1]

    return jax.vmap(one)(frames)


@checks("init_coordinate_*.npz")
def check_coordinates(case: Case) -> None:
    c = case.config
    (boxes,) = arrays(case, "boxes")
    widths = [case.params[f"MLP_0/dense_mlp_{i}/kernel"].shape for i in range(2)]
    make = lambda: CoordinateSlots(
        widths[1][1],
        coordinates=2 if c.get("center_of_mass") else 4,
        width=widths[0][1],
        background=c.get("background_value", 0.0) if c.get("prepend_background") else None,
        key=KEY,
    )
    rules = under("MLP_0/", "embed.", savi_rules.MLP)
    check(case, make, rules, lambda first: jax.vmap(first)(boxes[:, 0]))


@checks("init_segmentation*.npz")
def check_segments(case: Case) -> None:
    c = case.config
    (segments,) = arrays(case, "segmentations")
    convs = [case.params[f"FrameEncoder_0/CNN_0/conv_{i}/kernel"].shape for i in range(2)]
    hidden, dim = case.params["FrameEncoder_0/MLP_0/dense_mlp_1/kernel"].shape
    make = lambda: SegmentSlots(
        c["max_num_slots"],
        dim,
        size=(segments.shape[-2], segments.shape[-1]),
        widths=tuple(shape[-1] for shape in convs),
        strides=(2, 2),
        kernel=convs[0][0],
        width=hidden,
        zero_background=c["zero_background"],
        key=KEY,
    )
    check(case, make, savi_rules.SEGMENTS, lambda first: jax.vmap(first)(segments[:, 0]))


@checks("init_param*.npz")
def check_learned(case: Case) -> None:
    size = int(case.inputs["batch_size"])
    make = lambda: LearnedSlots(*case.config["shape"], key=KEY)
    rules = [Rule("state_init", "table", savi_rules.SHAPED)]
    check(case, make, rules, lambda first: jnp.broadcast_to(first()[None], (size, *first().shape)))


@checks("init_nohints*.npz")
def check_no_hints(case: Case) -> None:
    c = case.config
    (noise,) = arrays(case, "noise")
    make = lambda: GaussianSlots(c["num_slots"], c["slot_size"], learned=True, key=KEY)
    check(case, make, savi_rules.NO_HINTS, lambda first: jax.vmap(first)(noise))


@checks("decoder_*.npz")
def check_decoder(case: Case) -> None:
    """Late and early fusion, one target and two."""
    c = case.config
    (slots,) = arrays(case, "slots")
    targets = {key: case.inputs[f"cotangent/{key}"].shape[-1] for key in c["keys"]}
    widths = [case.params[f"CNN_0/conv_{i}/kernel"].shape for i in range(2)]
    make = lambda: TrackDecoder(
        slots.shape[-1],
        targets,
        grid=tuple(c["resolution"]),
        widths=tuple(shape[-1] for shape in widths),
        strides=(2, 2),
        kernel=widths[0][0],
        key=KEY,
    )
    rules = savi_rules.decoder(tuple(targets))
    model = build(make, case.params, rules)

    def loss(model):
        made, masks = jax.vmap(jax.vmap(model))(slots)
        return sum(jnp.sum(made[key] * case.inputs[f"cotangent/{key}"]) for key in targets), (made, masks)

    (_, (made, masks)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(model)
    for key in targets:
        case.compare(made[key], key, rtol=SINGLE)
        case.compare(made[key], f"intermediates/{key}_combined/0", rtol=SINGLE)
    case.compare(masks[..., None], "intermediates/alphas/0", rtol=SINGLE)
    np.testing.assert_array_equal(masks.argmax(2)[..., None], case.outputs["segmentations"])
    case.compare_grads(gradients(case, grads, rules), rtol=SINGLE, zero=NO_GRADIENT)
    pictures = jax.jit(lambda m: jax.vmap(jax.vmap(m.pictures))(slots))(model)
    for key in targets:
        slot = f"intermediates/{key}_slots/0"
        if c["early_fusion"]:  # of all slots together
            case.compare(made[key], slot, rtol=SINGLE)
        else:
            case.compare(pictures[key], slot, rtol=SINGLE)
            case.compare(masks[..., None] * pictures[key], f"intermediates/{key}_masked/0", rtol=SINGLE)


def recipe(case: Case) -> dict[str, np.ndarray]:
    """Parameters that are too many to be recorded, by the rule that the case states: a generator for each path."""
    found = {}
    for path, shape in case.meta["param_shapes"].items():
        drawn = np.random.default_rng([9000, zlib.crc32(path.encode())])
        array = drawn.standard_normal(tuple(shape), dtype=np.float32)
        if path.endswith("kernel"):
            array /= np.float32(np.sqrt(np.prod(shape[:-1])))
        elif path.endswith("scale"):
            array = 1 + np.float32(0.1) * array
        else:
            array *= np.float32(0.1)
        found[f"param/{path}"] = array
    return found
