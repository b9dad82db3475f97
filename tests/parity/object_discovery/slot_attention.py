"""Slot Attention: the module with both gradients, the autoencoder with its losses, and a training run."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from slotzoo.models.slot_attention import SlotAttentionAutoencoder, SlotDraws, ramp
from slotzoo.nn.slot_attention import SlotAttention
from slotzoo.viz.segments import processed_labels
from slotzoo.weights.convert.object_discovery import convert_checkpoint, read_checkpoint
from slotzoo.weights.convert.object_discovery_slots import config, parameters, rules
from slotzoo.weights.convert.rules import from_seed, to_seed
from slotzoo.weights.convert.torch_rules import SLOT_ATTENTION
from slotzoo.weights.leaves import named_leaves
from tests.parity.harness import Case, checks
from tests.parity.layout import last
from tests.tolerance import assert_close


SINGLE, WHOLE = 1e-5, 1e-4


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
    # Zero by symmetry: it shifts the queries of all slots alike.
    case.compare_grads(to_seed(grads, case.grads, SLOT_ATTENTION), rtol=SINGLE, zero=["norm_slots.bias"])
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
    case.compare(out.masks.argmax(axis=1) + 1, "segmentation", rtol=0)
    sure = [processed_labels(masks, threshold=0.5) for masks in np.asarray(out.masks)]
    np.testing.assert_array_equal(sure, case.outputs["segmentation_thresholded"])
    case.compare(value, "losses/loss", rtol=WHOLE)
    if "losses/mse_loss" in case.outputs:
        # The seed adds the other terms to its squared error in place, which therefore is the total.
        case.compare(value, "losses/mse_loss", rtol=WHOLE)
    for name in ("separation", "area"):
        if f"losses/{name}_loss" in case.outputs:
            case.compare(terms[name], f"losses/{name}_loss", rtol=WHOLE)
            weight = getattr(model.config, f"{name}_weight")
            case.compare(
                ramp(0, weight, getattr(model.config, f"{name}_ramp")), f"losses/{name}_tau", rtol=SINGLE
            )
    table = rules(case.params)
    case.compare_grads(to_seed(grads, case.grads, table), rtol=WHOLE, zero=["*norm_slots.bias"])


@checks("sa_lightning*_expected.npz")
def check_training(case: Case):
    """Steps of Adam from the recorded start, on the recorded batches and draws; then an evaluation."""
    start, final = (
        {name.removeprefix("model."): array for name, array in arrays.items()}
        for arrays in (case.params, case.group("out/final"))
    )
    found = convert_checkpoint(case.checkpoint)
    for name, array in to_seed(found.model, parameters(final), rules(final)).items():
        np.testing.assert_array_equal(array.reshape(final[name].shape), final[name], err_msg=name)
    model = whole(start, read_checkpoint(case.checkpoint).hyper)
    assert model.config == found.config
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


@checks("sa_lightning*.ckpt")
def check_checkpoint(case: Case):
    """The arrays of the file are compared in `check_training`; here, what its names and sizes are read as."""
    found, hyper = convert_checkpoint(case.path), read_checkpoint(case.path).hyper
    assert isinstance(found.model, SlotAttentionAutoencoder) and found.config == found.model.config
    assert (found.config.resolution, found.config.num_slots) == (hyper["resolution"][0], hyper["num_slots"])
    assert found.config.separation == hyper["use_separation_loss"]
