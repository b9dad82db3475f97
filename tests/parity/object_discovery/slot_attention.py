"""Slot Attention: the module with both gradients, the autoencoder with its losses, and a training run."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from slotzoo.models.slot_attention import SlotAttentionAutoencoder, SlotDraws
from slotzoo.nn.slot_attention import SlotAttention
from slotzoo.weights.convert.object_discovery import convert_checkpoint
from slotzoo.weights.convert.object_discovery_slots import config, parameters, rules
from slotzoo.weights.convert.rules import from_seed, to_seed
from slotzoo.weights.convert.torch_rules import SLOT_ATTENTION
from slotzoo.weights.leaves import named_leaves
from tests.parity.harness import Case, checks
from tests.tolerance import assert_close


SINGLE, WHOLE = 1e-5, 1e-4


def last(images) -> jnp.ndarray:
    """Channels last."""
    return jnp.moveaxis(jnp.asarray(images), -3, -1)


@checks("sa_module_*.npz")
def check_module(case: Case):
    c, params = case.config, case.params
    abstract = eqx.filter_eval_shape(
        lambda: SlotAttention(
            c["in_features"],
            c["slot_size"],
            mlp_dim=c["mlp_hidden_size"],
            input_mlp=c.get("do_input_mlp", False),
            gradient="implicit" if "detached" in case.meta["notes"] + case.meta["steps"] else "explicit",
            key=jax.random.key(0),
        )
    )
    module = from_seed(params, abstract, SLOT_ATTENTION)
    noise = jnp.asarray(case.inputs["slot_noise"])

    def loss(arguments):
        module, inputs = arguments

        def one(inputs, noise):
            slots = module.sample_slots(noise=noise)
            return module(inputs, slots, iterations=c["num_iterations"])

        out = jax.vmap(one)(inputs, noise)
        weighted = (out.slots * case.inputs["loss_weight_slots"]).sum()
        return weighted + (out.attention * case.inputs["loss_weight_attn"]).sum(), out

    inputs = jnp.asarray(case.inputs["inputs"])
    program = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, out), (grads, grad_inputs) = program((module, inputs))
    case.compare(out.slots, "slots", rtol=SINGLE)
    case.compare(out.attention, "attn", rtol=SINGLE)
    case.compare(value, "loss", rtol=SINGLE)
    assert_close(grad_inputs, case.group("grad_in")["inputs"], rtol=SINGLE, what="gradient of the inputs")
    # Zero by symmetry, recorded as rounding noise: it shifts the queries of all slots alike.
    case.compare_grads(to_seed(grads, case.grads, SLOT_ATTENTION), rtol=WHOLE, loose={"norm_slots.bias": 1.0})
    for steps in range(1, len(case.outputs.get("slots_trajectory", ()))):
        run = lambda x, n, steps=steps: module(x, module.sample_slots(noise=n), iterations=steps)
        found = jax.jit(jax.vmap(run))(inputs, noise)
        assert_close(found.slots, case.outputs["slots_trajectory"][steps], rtol=SINGLE, what=f"step {steps}")
        assert_close(found.attention, case.outputs["attn_trajectory"][steps - 1], rtol=SINGLE)


def whole(state, hyper) -> SlotAttentionAutoencoder:
    """The autoencoder of a state dict, every parameter used once."""
    sizes = config(hyper, state)
    abstract = eqx.filter_eval_shape(lambda: SlotAttentionAutoencoder(sizes, key=jax.random.key(0)))
    return from_seed(parameters(state), abstract, rules(state))


def mean_loss(model, images, noise, step):
    """The batch's loss and what the model made of it."""

    def one(image, noise):
        draws = SlotDraws(noise)
        return model.loss(image, draws=draws, step=step), model(image, draws=draws)

    (losses, terms), out = jax.vmap(one)(images, noise)
    return losses.mean(), (jax.tree.map(jnp.mean, terms), out)


def compare_output(outputs, out):
    for name, array in (("recon_combined", out.reconstruction), ("recons", out.pictures), ("masks", out.masks)):
        if name in outputs:
            array = array[..., None] if name == "masks" else array
            assert_close(jnp.moveaxis(array, -1, -3), outputs[name], rtol=WHOLE, what=name)
    assert_close(out.slots.reshape(outputs["slots"].shape), outputs["slots"], rtol=WHOLE, what="slots")


@checks("sa_autoencoder*.npz")
def check_autoencoder(case: Case):
    hyper = case.config | {f"{name}_tau": case.meta[f"{name}_tau"] for name in ("separation", "area")}
    model = whole(case.params, hyper)
    images, noise = last(case.inputs["image"]), jnp.asarray(case.inputs["slot_noise"])
    program = jax.jit(jax.value_and_grad(lambda m: mean_loss(m, images, noise, 0), has_aux=True))
    (value, (terms, out)), grads = program(model)
    compare_output(case.outputs, out)
    features = jax.vmap(model.encoder)(images)
    case.compare(features.reshape(case.outputs["features"].shape), "features", rtol=WHOLE)
    segments = out.masks.argmax(axis=1) + 1
    case.compare(segments, "segmentation", rtol=0)
    case.compare(value, "losses/loss", rtol=WHOLE)
    # Not the recorded mse_loss: the seed adds the other terms to it in place, so that it is the total.
    for name in ("separation", "area"):
        if f"losses/{name}_loss" in case.outputs:
            case.compare(terms[name], f"losses/{name}_loss", rtol=WHOLE)
    table = rules(case.params)
    case.compare_grads(to_seed(grads, case.grads, table), rtol=WHOLE, loose={"*norm_slots.bias": 1.0})


@checks("sa_lightning_expected.npz")
def check_training(case: Case):
    """Three steps of Adam from the recorded start, on the recorded batches and draws."""
    start = {name.removeprefix("model."): array for name, array in case.params.items()}
    found = convert_checkpoint(case.path.with_name("sa_lightning.ckpt"))
    hyper = {"use_separation_loss": found.config.separation, **_ramp(found.config)}
    model = whole(start, hyper)
    assert dataclasses.replace(model.config, num_slots=found.config.num_slots) == found.config
    rates = case.outputs["lr_last_group"]
    optimizer = optax.scale_by_adam()
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @jax.jit
    def update(model, state, images, noise, step, rate):
        (value, _), grads = jax.value_and_grad(mean_loss, has_aux=True)(model, images, noise, step)
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            updates, state = optimizer.update(grads, state)
        return eqx.apply_updates(model, jax.tree.map(lambda u: -rate * u, updates)), state, value

    for step, rate in enumerate(rates):
        batch = case.group(f"in/step{step}")
        images, noise = last(batch["image"]), jnp.asarray(batch["draw0_normal"])
        model, state, value = update(model, state, images, noise, step, jnp.float32(rate))
        assert_close(value, np.float32(case.outputs["loss"][step]), rtol=WHOLE, what=f"loss of step {step}")
    ours, theirs = named_leaves(model), named_leaves(found.model)
    for name, array in theirs.items():
        # Adam divides a gradient by its own size: where it is rounding noise, the step is as long as any other.
        moved = 3 * float(max(rates)) if name == "slot_attention.norm_slots.bias" else 0.0
        scale = max(float(jnp.abs(array).max()), 1e-2)
        assert float(jnp.abs(ours[name] - array).max()) <= WHOLE * scale + moved, name

    out = jax.jit(jax.vmap(lambda image, noise: found.model(image, draws=SlotDraws(noise))))(
        last(case.group("in/eval")["image"]), jnp.asarray(case.group("in/eval")["draw0_normal"])
    )
    compare_output(case.group("out/eval"), out)
    assert found.step == len(rates)


def _ramp(c) -> dict:
    start, end = c.separation_ramp
    return {
        "separation_tau_max_val": c.separation_weight,
        "separation_tau_start": start,
        "separation_tau_end": end,
        **dict(zip(("area_tau_start", "area_tau_end"), c.area_ramp, strict=True)),
        "area_tau_max_val": c.area_weight,
    }


@checks("sa_lightning.ckpt")
def check_checkpoint(case: Case):
    """Every array of the file arrives, exactly; the rest of it is in `check_training`."""
    found = convert_checkpoint(case.path)
    with np.load(case.path.with_name("sa_lightning_expected.npz")) as expected:
        final = {
            name.removeprefix("out/final/model."): expected[name]
            for name in expected.files
            if "out/final" in name
        }
    table = rules(final)
    for name, array in to_seed(found.model, parameters(final), table).items():
        assert_close(array.reshape(final[name].shape), final[name], rtol=0, what=name)
