"""Whole models: slots, targets, masks, attention, losses, gradients; and the clip in two slices."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.models.savi import SAVi, SAViConfig
from slotzoo.models.statm import STATMConfig
from slotzoo.nn.slot_init import GaussianSlots
from slotzoo.weights.convert.savi import build, parameters, rules, seed_config
from tests.parity.harness import Case, checks
from tests.parity.savi.modules import NO_GRADIENT, gradients
from tests.tolerance import assert_close


WHOLE = 1e-4
DECODER = "intermediates/SpatialBroadcastDecoder_0"
KEY = jax.random.key(0)


def model_of(case: Case, **overrides: Any) -> tuple[SAVi, SAViConfig]:
    """The model that the case's configuration describes, with its parameters."""
    config = dataclasses.replace(seed_config(case.config, case.params), **overrides)
    abstract = eqx.filter_eval_shape(lambda: build(config, key=KEY))
    return parameters(case.params, abstract, config), config


def fields(case: Case) -> dict[str, jax.Array]:
    """The batch, and the initial slots where these are drawn."""
    return {name: jnp.asarray(array) for name, array in case.inputs.items()}


UNCHECKED = {
    "out/loss_aux/*_weight": "1 whatever the weight",
    "out/intermediates/SlotAttention_0/*": "iterations before the last of a frame, whose maps ours does not keep",
}


@checks("savi_*.npz", "savipp_*.npz", "statm_savi_*.npz", "statm_savipp_*.npz", unchecked=UNCHECKED)
def check_model(case: Case) -> None:
    model, config = model_of(case)
    batch = fields(case)
    noise = slots_noise(case, model)

    def loss(model):
        def one(clip, noise):
            found = model.track(clip["video"], model.conditions(clip), draws=noise)
            return model.loss(clip, draws=noise), found, model.decode(found.corrected)

        (losses, terms), found, decoded = jax.vmap(one)(batch, noise)
        return losses.mean(), (terms, found, decoded)

    (value, (terms, found, (made, masks))), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(model)
    case.compare(found.corrected, "states", rtol=WHOLE)
    case.compare(found.predicted, "states_pred", rtol=WHOLE)
    for name in config.targets:
        case.compare(made[name], f"outputs/{name}", rtol=WHOLE)
        case.compare(terms[name].mean(), f"loss_aux/recon_{name}_value", rtol=WHOLE)
        case.compare(made[name], f"{DECODER}/{name}_combined/0", rtol=WHOLE)
    case.compare(masks[..., None], f"{DECODER}/alphas/0", rtol=WHOLE)
    compare_segments(masks, case.outputs["outputs/segmentations"])
    case.compare(value, "loss", rtol=WHOLE)
    compare_attention(case, found.attention, config)
    case.compare_grads(gradients(case, grads, rules(config)), rtol=WHOLE, zero=NO_GRADIENT)
    if "outputs_pred/segmentations" in case.outputs:
        predicted, masks = jax.jit(jax.vmap(model.decode))(found.predicted)
        for name in config.targets:
            case.compare(predicted[name], f"outputs_pred/{name}", rtol=WHOLE)
            case.compare(predicted[name], f"{DECODER}/{name}_combined/1", rtol=WHOLE)
        case.compare(masks[..., None], f"{DECODER}/alphas/1", rtol=WHOLE)
        compare_segments(masks, case.outputs["outputs_pred/segmentations"])


def compare_segments(masks, expected) -> None:
    """Equal, but for places where two slots have the same share to within rounding."""
    labels = np.asarray(masks.argmax(2))
    expected = expected[..., 0]
    best = np.asarray(masks.max(2))
    other = np.take_along_axis(np.asarray(masks), expected[:, :, None], axis=2)[:, :, 0]
    assert np.all((labels == expected) | (best - other < WHOLE))


def compare_attention(case: Case, attention, config: SAViConfig) -> None:
    """The last iteration's. STATM's cases have one for every iteration of every frame, SAVi's one for all frames."""
    prefix = (
        "intermediates/SlotAttention_0/InvertedDotProductAttention_0/GeneralizedDotProductAttention_0/attn/"
    )
    if isinstance(config, STATMConfig):
        frames = range(config.iterations - 1, attention.shape[1] * config.iterations, config.iterations)
        expected = np.stack([case.outputs[f"{prefix}{i}"][:, 0] for i in frames], axis=1)
    else:
        expected = case.outputs[f"{prefix}{config.iterations - 1}"][:, :, 0]
    assert_close(attention, expected, rtol=WHOLE, what=f"{case.path.name}: attention")


@checks("savi_*.npz", "savipp_*.npz", "statm_savi_*.npz", "statm_savipp_*.npz")
def check_slices(case: Case) -> None:
    """As the seeds evaluate: a slice begins with the slots that were predicted, STATM's without its memory."""
    statm = isinstance(seed_config(case.config, case.params), STATMConfig)
    model, _ = model_of(case, **({"carry_memory": False} if statm else {}))
    half = case.meta["sliced_at"]
    batch, noise = fields(case), slots_noise(case, model)

    @jax.jit
    @jax.vmap
    def run(clip, noise):
        video = clip["video"]
        first = model.track(video[:half], model.conditions(clip), draws=noise)
        second = model.track(video[half:], state=first.state)
        corrected, predicted = (jnp.concatenate(pair) for pair in zip(first[:2], second[:2], strict=True))
        return corrected, predicted, model.decode(corrected)[1]

    corrected, predicted, masks = run(batch, noise)
    case.compare(corrected, "sliced/states", rtol=WHOLE)
    case.compare(predicted, "sliced/states_pred", rtol=WHOLE)
    compare_segments(masks, case.outputs["sliced/segmentations"])


def slots_noise(case: Case, model: SAVi):
    """The noise that gives the recorded initial slots, where they are drawn."""
    slots = case.inputs.get("init_slots")
    if slots is None or model.config.init == "learned":
        return None
    first = model.initializer
    assert isinstance(first, GaussianSlots)
    if first.mean is None or first.log_scale is None:
        return jnp.asarray(slots)
    return (jnp.asarray(slots) - first.mean[None, None]) / jnp.exp(first.log_scale)[None, None]
