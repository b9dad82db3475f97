"""SLATE: its parts, the whole loss with its gradients, generation, and the authors' slot encoder."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.models.slate import SLATE, SLATEDraws
from slotzoo.nn.discrete_vae import DiscreteVAE, gumbel_softmax, straight_through
from slotzoo.nn.slate_transformer import TransformerDecoder, TransformerEncoder
from slotzoo.nn.slot_attention import SlotAttention
from slotzoo.train.optimizer import OptimizerConfig, make_optimizer
from slotzoo.weights.convert.object_discovery import convert_checkpoint, read_checkpoint
from slotzoo.weights.convert.object_discovery_slate import (
    DVAE,
    TRANSFORMER_DECODER,
    TRANSFORMER_ENCODER,
    config as slate_config,
    parameters,
    rules,
)
from slotzoo.weights.convert.rules import from_seed, to_seed
from slotzoo.weights.convert.torch_rules import SLATE_SLOT_ENCODER
from tests.parity.harness import Case, checks
from tests.parity.layout import last
from tests.tolerance import assert_close


SINGLE, WHOLE = 1e-5, 1e-4
TINY = float(np.finfo(np.float32).tiny)


def gumbel(exponential: np.ndarray) -> jnp.ndarray:
    """The seed's Gumbel noise from recorded unit exponentials, channels last."""
    return jnp.asarray(-np.log(exponential + np.float32(TINY))).transpose(0, 2, 3, 1)


def built(case: Case, make, table):
    return from_seed(parameters(case.params), eqx.filter_eval_shape(make), table)


def compare_grads(case: Case, grads, table, zero: tuple[str, ...] = (), *, rtol: float = SINGLE) -> None:
    # The masks are stored among the parameters and have no gradient.
    actual = to_seed(grads, parameters(case.grads), table)
    # Shapes with leading axes of size 1 are the seed's.
    actual = {name: array.reshape(case.grads[name].shape) for name, array in actual.items()}
    case.compare_grads(actual, rtol=rtol, zero=zero)


@checks("slate_dvae*.npz")
def check_dvae(case: Case) -> None:
    c = case.config
    model = built(case, lambda: DiscreteVAE(3, c["vocab_size"], key=jax.random.key(0)), DVAE)
    images, noise = last(case.inputs["image"]), gumbel(case.inputs["exp_noise"])
    weights = last(case.inputs["loss_weight_logits"])

    def one(model, image, noise, weights):
        log_p = model.encode(image)
        soft = gumbel_softmax(log_p, noise, c["tau"])
        hard = straight_through(soft)
        made = model.decode(hard if c["hard"] else soft)
        mse = jnp.square(jax.lax.stop_gradient(image) - made).sum()
        return mse + jnp.mean(log_p * weights), (mse, log_p, soft, hard, made)

    def loss(model, images):
        losses, out = jax.vmap(one, (None, 0, 0, 0))(model, images, noise, weights)
        return losses.mean(), out

    compute = eqx.filter_jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, (mse, log_p, soft, hard, made)), (grads, image_grads) = compute(model, images)
    case.compare(value, "loss", rtol=SINGLE)
    case.compare(mse.mean(), "mse", rtol=SINGLE)
    for name, array in (("log_probs", log_p), ("z_soft", soft), ("z_hard", hard), ("recon", made)):
        case.compare(jnp.moveaxis(array, -1, -3), name, rtol=SINGLE)
    compare_grads(case, grads, DVAE)
    expected = case.group("grad_in")["image"]
    assert_close(jnp.moveaxis(image_grads, -1, -3), expected, rtol=SINGLE, what="gradient of the image")


@checks("slate_transformer_*.npz")
def check_transformer(case: Case) -> None:
    c, sizes = case.config, dict(heads=case.config["num_heads"], dropout=case.config["dropout"])
    decoder = case.meta["cls"] == "TransformerDecoder"
    kind, table = (
        (TransformerDecoder, TRANSFORMER_DECODER) if decoder else (TransformerEncoder, TRANSFORMER_ENCODER)
    )
    model = built(case, lambda: kind(c["d_model"], c["num_blocks"], key=jax.random.key(0), **sizes), table)
    names = ["input", "encoder_output"] if decoder else ["input"]
    inputs = [jnp.asarray(case.inputs[name]) for name in names]

    def loss(model, *inputs):
        out = jax.vmap(model)(*inputs)
        return jnp.sum(out * case.inputs["loss_weight"]), out

    compute = eqx.filter_jit(jax.value_and_grad(loss, argnums=tuple(range(1 + len(inputs))), has_aux=True))
    (value, out), (grads, *input_grads) = compute(model, *inputs)
    case.compare(value, "loss", rtol=SINGLE)
    case.compare(out, "output", rtol=SINGLE)
    compare_grads(case, grads, table)
    for name, grad in zip(names, input_grads, strict=True):
        assert_close(grad, case.group("grad_in")[name], rtol=SINGLE, what=f"gradient of {name}")


@checks("slate_original_slot_encoder*.npz")
def check_slot_encoder(case: Case) -> None:
    c = case.config
    make = lambda: SlotAttention(
        c["input_channels"],
        c["slot_size"],
        mlp_dim=c["mlp_hidden_size"],
        heads=c["num_heads"],
        input_mlp=True,
        gradient="explicit",
        key=jax.random.key(0),
    )
    model = built(case, make, SLATE_SLOT_ENCODER)

    def loss(model, inputs):
        def one(inputs, noise):
            return model(inputs, model.sample_slots(noise=noise), iterations=c["num_iterations"])

        out = jax.vmap(one)(inputs, jnp.asarray(case.inputs["slot_noise"]))
        value = jnp.sum(out.slots * case.inputs["loss_weight_slots"])
        return value + jnp.sum(out.attention * case.inputs["loss_weight_attn"]), out

    compute = eqx.filter_jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, out), (grads, input_grads) = compute(model, jnp.asarray(case.inputs["inputs"]))
    case.compare(value, "loss", rtol=SINGLE)
    case.compare(out.slots, "slots", rtol=SINGLE)
    case.compare(out.attention, "attn", rtol=SINGLE)
    # What all slots share moves no softmax over them; that of several heads is over heads and slots together.
    compare_grads(case, grads, SLATE_SLOT_ENCODER, ("*norm_slots.bias",) if c["num_heads"] == 1 else ())
    assert_close(input_grads, case.group("grad_in")["inputs"], rtol=SINGLE, what="gradient of the inputs")


def whole(case: Case, state: dict[str, np.ndarray], **options) -> SLATE:
    """The case's SLATE, every parameter of `state` used once."""
    config = dataclasses.replace(slate_config(case.config, state), **options)
    make = lambda: SLATE(config, key=jax.random.key(0))
    return from_seed(parameters(state), eqx.filter_eval_shape(make), rules(state))


@checks("slate_full*.npz")
def check_whole(case: Case) -> None:
    tau = case.meta["tau"]
    model = whole(case, case.params, tau_start=tau, tau_final=tau, hard=case.meta["hard"])
    images = last(case.inputs["image"])
    draws = SLATEDraws(
        gumbel(case.inputs["exp_noise_soft"]),
        gumbel(case.inputs["exp_noise_hard"]),
        jnp.asarray(case.inputs["slot_noise"]),
    )

    def loss(model):
        losses, terms = jax.vmap(lambda image, draws: model.loss(image, draws=draws, step=0))(images, draws)
        return losses.mean(), {name: term.mean() for name, term in terms.items()}

    (value, terms), grads = eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=True))(model)
    case.compare(value, "loss", rtol=WHOLE)
    case.compare(terms["cross_entropy"], "cross_entropy", rtol=WHOLE)
    case.compare(terms["mse"], "mse", rtol=WHOLE)
    compare_grads(case, grads, rules(case.params), ("*norm_slots.bias",), rtol=WHOLE)

    out = jax.jit(jax.vmap(lambda image, draws: model(image, draws=draws)))(images, draws)
    np.testing.assert_array_equal(out.codes, case.outputs["target_tokens"])
    case.compare(jnp.moveaxis(jnp.clip(out.reconstruction, 0, 1), -1, -3), "recon", rtol=WHOLE)
    case.compare(pictures(images, jax.vmap(model.maps)(out.attention)), "attns", rtol=WHOLE)

    noise = jnp.asarray(case.inputs["ar_slot_noise"])
    found = jax.jit(jax.vmap(lambda image, noise: model.explain(image, draws=noise)))(images, noise)
    np.testing.assert_array_equal(found.extra["codes"], case.outputs["argmax_tokens"])
    np.testing.assert_array_equal(found.extra["generated"], case.outputs["generated_tokens"])
    case.compare(jnp.moveaxis(found.reconstruction, -1, -3), "recon_autoregressive", rtol=WHOLE)
    case.compare(jnp.moveaxis(found.pictures, -1, -3), "ar_attns", rtol=WHOLE)


def pictures(images, masks):
    """The seed's display maps."""
    masks = masks[:, :, None]
    return jnp.moveaxis(images, -1, -3)[:, None] * masks + (1 - masks)


def recorded_draws(batch: dict[str, np.ndarray]) -> SLATEDraws:
    """The draws of one call in their order: relaxed codes, integer codes, slots."""
    soft, codes, slots = (batch[name] for name in sorted(batch) if name.startswith("draw"))
    return SLATEDraws(gumbel(soft), gumbel(codes), jnp.asarray(slots))


@checks("slate_lightning*.ckpt")
def check_checkpoint(case: Case) -> None:
    """The arrays of the file are compared in `check_training`; here, what its names and sizes are read as."""
    found, hyper = convert_checkpoint(case.path), read_checkpoint(case.path).hyper
    assert isinstance(found.model, SLATE) and found.config == found.model.config
    assert (found.config.resolution, found.config.vocab_size) == (hyper["resolution"][0], hyper["vocab_size"])
    assert found.config.gradient == "implicit"  # the only one of object-discovery-pytorch


@checks("slate_lightning*_expected.npz")
def check_training(case: Case) -> None:
    """Steps of Adam in two groups from the recorded start, on the recorded batches and draws; then an evaluation."""
    found, hyper = convert_checkpoint(case.checkpoint), read_checkpoint(case.checkpoint).hyper
    start = {name.removeprefix("model."): array for name, array in case.params.items()}
    table = rules(start)
    model = from_seed(parameters(start), jax.tree.map(lambda x: x, found.model), table)
    optimizer = make_optimizer(
        OptimizerConfig(
            learning_rate=hyper["lr_main"],
            steps=10**6,
            schedule="constant",
            warmup_steps=hyper["lr_warmup_steps"],
            warmup_offset=1,
            no_warmup=("dvae.*",),
            rates={"dvae.*": hyper["lr_dvae"] / hyper["lr_main"]},
            b2=0.999,
            weight_decay=hyper["weight_decay"],
            clip_norm=hyper["gradient_clip_val"],
        )
    )
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    @eqx.filter_jit
    def update(model, state, images, draws, step):
        def loss(model):
            one = lambda image, draws: model.loss(image, draws=draws, step=step)[0]
            return jax.vmap(one)(images, draws).mean()

        value, grads = eqx.filter_value_and_grad(loss)(model)
        updates, state = optimizer.update(grads, state, eqx.filter(model, eqx.is_array), value=value)
        return eqx.apply_updates(model, updates), state, value

    for step in range(case.meta["steps"]):
        batch = case.group(f"in/step{step}")
        model, state, value = update(
            model, state, last(batch["image"]), recorded_draws(batch), jnp.asarray(step)
        )
        assert_close(value, case.outputs["loss"][step], rtol=WHOLE, what=f"loss of step {step}")
    final = {name.removeprefix("model."): array for name, array in case.group("out/final").items()}
    ours, theirs = to_seed(model, parameters(final), table), to_seed(found.model, parameters(final), table)
    for name, array in parameters(final).items():
        np.testing.assert_array_equal(theirs[name].reshape(array.shape), array, err_msg=name)
        # Adam divides a gradient by its own size: where it is rounding noise, the step is as long as any other.
        moved = 2 * sum(case.outputs["lr_last_group"]) if name == "slot_attn.norm_slots.bias" else 0.0
        error = np.abs(ours[name].reshape(array.shape) - array).max()
        assert error <= WHOLE * max(np.abs(array).max(), 1e-2) + moved, (name, error)
    assert found.step == case.meta["steps"] and found.name == "slate_clevr6"

    tau = float(case.meta["eval_call"].split("tau=")[1].split(",")[0])
    batch, expected = case.group("in/eval"), case.group("out/eval")
    images = last(batch["image"])
    see = lambda image, draws: found.model(image, draws=draws, temperature=tau)
    out = jax.jit(jax.vmap(see))(images, recorded_draws(batch))
    likely = jnp.take_along_axis(jax.nn.log_softmax(out.logits), out.codes[..., None], -1)
    assert_close(-likely.sum((1, 2)).mean(), expected["cross_entropy"], rtol=WHOLE, what="cross_entropy")
    mse = jnp.square(out.reconstruction - images).sum((1, 2, 3)).mean()
    assert_close(mse, expected["mse"], rtol=WHOLE, what="mse")
    assert_close(jnp.clip(out.reconstruction, 0, 1), last(expected["recon"]), rtol=WHOLE, what="recon")
