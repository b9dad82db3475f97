"""The image sides, whole models as the training script wires them, its optimiser steps, and its checkpoints."""

import dataclasses
import json
import re
import tempfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from slotzoo.models.slotssm import SlotSSM
from slotzoo.nn.slot_cnn import CNNEncoder, NormedBroadcastDecoder
from slotzoo.nn.vit import ViTDecoder, ViTEncoder
from slotzoo.train.optimizer import OptimizerConfig, learning_rate, make_optimizer
from slotzoo.weights.convert.rules import to_seed
from slotzoo.weights.convert.slotssm import convert_folder, export_folder, parameters, rules, slotssm_config
from slotzoo.weights.convert.slotssm_rules import (
    CNN_ENCODER,
    VIT_DECODER,
    VIT_ENCODER,
    broadcast_decoder,
    packed,
    pieces,
)
from slotzoo.weights.leaves import fill, named_leaves
from tests.parity.harness import Case, checks, load_case
from tests.parity.layout import first, last
from tests.parity.slotssm.modules import SINGLE, WHOLE, check_all, filled, in_seed, unseen
from tests.tolerance import assert_close


@checks("vit_encoder_*.npz")
def check_vit_encoder(case: Case):
    c = case.config
    build = lambda: ViTEncoder(
        size=c["image_size"],
        channels=3,
        patch=c["patch_size"],
        dim=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        mlp_dim=c.get("intermediate_size"),
        out_dim=c.get("output_size"),
        class_tokens=c.get("num_cls_tokens", 1),
        key=jax.random.key(0),
    )
    params = dict(case.params)
    if c.get("num_cls_tokens") == 0:
        # The seed has no such parameter then, ours is empty.
        params["cls_tokens"] = np.zeros((1, 0, c["hidden_size"]), np.float32)

    def run(model, inputs):
        found = jax.vmap(model)(last(inputs["pixel_values"]))
        outs = {"last_hidden_state": found.tokens, "cls_tokens": found.class_tokens}
        return {name: out for name, out in outs.items() if name in case.outputs}

    # Positions as they start.
    case.compare(eqx.filter_jit(build)().positions[None], "pos_embed_init", rtol=SINGLE)
    check_all(case, filled(build, params, VIT_ENCODER), VIT_ENCODER, run)


@checks("cnn_encoder_*.npz")
def check_cnn_encoder(case: Case):
    c = case.config
    build = lambda: CNNEncoder(
        3,
        c["out_channels"],
        width=c["hidden_size"],
        stride=c["downsampling_ratio"],
        kernel=c["kernel_size"],
        layers=c["num_hidden_layers"],
        blocks_per_layer=c["blocks_per_layer"],
        key=jax.random.key(0),
    )
    run = lambda model, i: {"features": first(model(last(i["x"])))}
    check_all(case, filled(build, case.params, CNN_ENCODER), CNN_ENCODER, run)


@checks("vit_decoder*.npz")
def check_vit_decoder(case: Case):
    c = case.config
    build = lambda: ViTDecoder(
        c["input_size"],
        size=c["image_size"],
        channels=3,
        patch=c["patch_size"],
        dim=c["hidden_size"],
        layers=c["num_hidden_layers"],
        heads=c["num_attention_heads"],
        key=jax.random.key(0),
    )
    params = {name: array for name, array in case.params.items() if name != "position_embeddings"}
    run = lambda model, i: {"recon": first(jax.vmap(model)(i["slots"]))}
    check_all(case, filled(build, params, VIT_DECODER), VIT_DECODER, run)


@checks("sb_decoder_*.npz")
def check_broadcast_decoder(case: Case):
    c = case.config
    build = lambda: NormedBroadcastDecoder(
        c["in_channels"],
        3,
        grid=c["initial_size"],
        size=c["output_resolution"],
        width=c["hidden_size"],
        key=jax.random.key(0),
    )
    table = broadcast_decoder(doubling=c["output_resolution"] > 8 * c["initial_size"])

    def run(model, inputs):
        mixed, masks, _ = jax.vmap(model)(inputs["slots"])
        return {"recon": first(mixed), "mask": masks[:, :, None]}

    check_all(case, filled(build, case.params, table), table, run)


def whole(case: Case) -> SlotSSM:
    """The model of a recorded pipeline. Its frames are the model's own numbers: nothing is normalised."""
    c = case.config
    config = slotssm_config(c["encoder"], c["slotssm"], c["decoder"])
    config = dataclasses.replace(config, normalise="none")
    return filled(
        lambda: SlotSSM(config, key=jax.random.key(0)), parameters(case.params, config), rules(config)
    )


def mean_loss(model: SlotSSM, frames: jax.Array):
    """The batch's mean squared error, and what the model made of it."""
    losses, terms = jax.vmap(lambda video: model.loss({"video": video}))(frames)
    return losses.mean(), jax.vmap(model)(frames)


@checks("pipeline_*.npz")
def check_pipeline(case: Case):
    model, frames = whole(case), last(case.inputs["frames"])
    program = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
    (value, out), grads = program(model, frames)
    case.compare(value, "loss", rtol=WHOLE)
    case.compare(out.slots, "slots", rtol=WHOLE)
    case.compare(first(out.outputs.reconstruction), "recon", rtol=WHOLE)
    if "features" in case.outputs:
        features = jax.vmap(lambda video: model.encode(video, jnp.int32(0)))(frames)
        case.compare(features, "features", rtol=WHOLE)
    if "mask" in case.outputs:
        case.compare(out.outputs.masks[:, :, :, None], "mask", rtol=WHOLE)
        shares = out.attention[-1]
        case.compare(shares.reshape(-1, *shares.shape[2:]), "attn_last", rtol=WHOLE)
    zero = unseen(inverted=model.config.cross == "inverted", heads=model.config.cross_heads)
    case.compare_grads(in_seed(grads, list(case.grads), rules(model.config)), rtol=WHOLE, zero=zero)


@checks("train_steps*.npz")
def check_training(case: Case):
    """Adam behind clipping, its rate warming up from nothing and falling along half a cosine."""
    c = case.config
    (name,) = re.findall(r"[\w.-]+\.npz", case.meta["notes"])  # the case whose parameters it starts from
    start = load_case(case.path.with_name(name))
    model, frames = whole(start), last(start.inputs["frames"])
    config = OptimizerConfig(
        c["lr"], c["total"], warmup_steps=c["warmup"], b2=0.999, weight_decay=0.0, clip_norm=c["grad_clip"]
    )
    rates = [float(learning_rate(config)(step)) for step in range(c["steps"])]
    assert_close(rates, case.outputs["lrs"], rtol=1e-6, what="rates")
    optimizer = make_optimizer(config)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @jax.jit
    def update(model, state):
        value, grads = jax.value_and_grad(lambda m: mean_loss(m, frames)[0])(model)
        norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grads)))
        updates, state = optimizer.update(grads, state, model)
        return eqx.apply_updates(model, updates), state, value, norm

    losses, norms = [], []
    for _ in range(c["steps"]):
        model, state, value, norm = update(model, state)
        losses.append(float(value))
        norms.append(float(norm))
    losses.append(float(update(model, state)[2]))
    case.compare(losses, "losses", rtol=WHOLE)
    case.compare(norms, "grad_norms", rtol=WHOLE)
    final = {n.removeprefix("final:"): a for n, a in case.outputs.items() if n.startswith("final:")}
    names = [name for name in final if name != "decoder.position_embeddings"]
    table = rules(model.config)
    ours = packed(to_seed(model, [piece for name in names for piece in pieces(name)], table), names)
    for name in names:
        # Adam divides a gradient by its own size: where it is rounding noise, a step is as long as any other.
        noisy = name.endswith("cross_attn.proj_q.bias")
        scale = max(float(np.abs(final[name]).max()), 1e-2)
        error = np.abs(ours[name].reshape(final[name].shape) - final[name])
        assert float(error.max()) <= WHOLE * scale + (2 if noisy else 0.1) * sum(rates), name
        assert float(np.median(error)) <= WHOLE * scale + (2 * sum(rates) if noisy else 0), name


@checks("native_checkpoint*")
def check_folder(case: Case):
    """Every array of the folder arrives, and is written back under its own name, number by number."""
    if case.path.is_file():
        return  # what is expected of a folder, see below
    found = convert_folder(case.path)
    assert isinstance(found.model, SlotSSM)
    with tempfile.TemporaryDirectory() as folder:
        written = export_folder(found.model, folder)
        for part in ("vitencoder", "slotssm", "vitdecoder"):
            ours, theirs = (
                safetensors.numpy.load_file(root / part / "model.safetensors") for root in (written, case.path)
            )
            assert set(ours) == set(theirs)
            for name, array in theirs.items():
                # The table of fixed positions is computed anew.
                tolerance = 1e-6 if name == "position_embeddings" and part == "vitdecoder" else 0
                assert_close(ours[name], array, rtol=tolerance, what=f"{part}: {name}")
            said, known = (
                json.loads((root / part / "config.json").read_text()) for root in (written, case.path)
            )
            same = {name for name in said if said[name] == known.get(name)}
            assert set(said) == same, f"{part}: {set(said) - same}"


@checks("native_checkpoint*_expected.npz")
def check_native(case: Case):
    found = convert_folder(case.checkpoint)
    # The recorded frames are normalised already.
    config = dataclasses.replace(found.config, normalise="none")
    model = fill(
        eqx.filter_eval_shape(lambda: SlotSSM(config, key=jax.random.key(0))), named_leaves(found.model)
    )
    frames = last(case.inputs["frames"])
    value, out = jax.jit(mean_loss)(model, frames)
    case.compare(jax.vmap(lambda video: model.encode(video, jnp.int32(0)))(frames), "features", rtol=WHOLE)
    case.compare(out.slots, "slots", rtol=WHOLE)
    case.compare(first(out.outputs.reconstruction), "recon", rtol=WHOLE)
    case.compare(value, "loss", rtol=WHOLE)
