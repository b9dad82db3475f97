"""GNM: its blocks, its renderer, the whole model at several steps, generation, schedules, and a training run."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.models.gnm import GNM, GNMDraws
from slotzoo.models.gnm_config import GNMConfig, annealed
from slotzoo.models.gnm_latents import LocalNoise, bernoulli_kl
from slotzoo.models.gnm_render import Curriculum, Glimpses, box_frames, compose
from slotzoo.nn.celu_stacks import ConvLSTMCell, ConvStack, MLPStack, Stage
from slotzoo.nn.spatial_transform import crop
from slotzoo.train.optimizer import OptimizerConfig, learning_rate, make_optimizer
from slotzoo.weights.convert.object_discovery import convert_checkpoint, read_checkpoint
from slotzoo.weights.convert.object_discovery_gnm import (
    LSTM,
    config as gnm_config,
    conv_rules,
    mlp_rules,
    parameters,
    rules,
)
from slotzoo.weights.convert.rules import from_seed, to_seed
from tests.parity.harness import Case, checks
from tests.parity.layout import first, last
from tests.tolerance import assert_close


SINGLE, WHOLE = 1e-5, 1e-4
# Our names of the seed's terms of the loss.
GROUPS = {"pres": "presence", "where": "where", "depth": "depth", "what": "what", "bg": "background"}


def whole(c, state: dict[str, np.ndarray]) -> GNM:
    """The GNM of a seed's configuration, every parameter of `state` used once."""
    config = dataclasses.replace(gnm_config(c), presence_kl="probabilities")
    abstract = eqx.filter_eval_shape(lambda: GNM(config, key=jax.random.key(0)))
    return from_seed(parameters(state), abstract, rules(config))


def draws_of(model: GNM, arrays: dict[str, np.ndarray]) -> GNMDraws:
    """The recorded draws of a batch."""
    batch = len(arrays["eps_global"])
    local = LocalNoise(*(last(arrays[name]) for name in ("u_pres", "eps_where", "eps_depth", "eps_what")))
    size = model.config.background_dim if model.background is not None else 0
    background = jnp.asarray(arrays.get("eps_q_bg", np.zeros((batch, 0, 1, 1), np.float32)))
    return GNMDraws(background.reshape(batch, size), jnp.asarray(arrays["eps_global"]), local)


def compare_grads(case: Case, grads, table, **options) -> None:
    actual = to_seed(grads, case.grads, table)
    case.compare_grads({name: x.reshape(case.grads[name].shape) for name, x in actual.items()}, **options)


def stages_of(one: dict) -> tuple[Stage, ...]:
    ones = [1] * len(one["filters"])
    columns = [one.get(part, ones) for part in ("filters", "kernel_sizes", "strides", "upscale", "groups")]
    return tuple(Stage(*row) for row in zip(*columns, strict=True))


def block(name: str, one: dict):
    """How to build a block of the seed, and the table of its parameters."""
    key = jax.random.key(0)
    if name == "convlstm":
        sizes = dict(size=one["num_cell"], kernel=one["kernel_size"])
        return lambda: ConvLSTMCell(one["input_dim"], one["hidden_dim"], **sizes, key=key), LSTM
    bare = not one["norm_act_final"]
    if name in ("conv", "subpixel"):
        table = conv_rules("conv", "", stages_of(one), sub_pixel=name == "subpixel")
        make = lambda: ConvStack(one["dim_inp"], stages_of(one), bare_last=bare, key=key)
    else:
        normed = one.get("layer_norm", True)
        table = mlp_rules("mlp", "", len(one["filters"]), normed=normed)
        make = lambda: MLPStack(one["dim_inp"], one["filters"], norm=normed, bare_last=bare, key=key)
    return make, tuple(rule._replace(ours=rule.ours.removeprefix(".")) for rule in table)


@checks("gnm_blocks*.npz")
def check_blocks(case: Case) -> None:
    """All blocks in one compiled function: outputs, and gradients of the sum of the recorded losses."""
    models, tables, params = {}, {}, {}
    for name, one in case.config.items():
        make, tables[name] = block(name, one)
        params[name] = {k.split("/", 1)[1]: v for k, v in case.params.items() if k.startswith(f"{name}/")}
        models[name] = from_seed(params[name], eqx.filter_eval_shape(make), tables[name])

    def image(path: str):
        array = case.inputs[path]
        return last(array) if array.ndim == 4 else jnp.asarray(array)

    def two_steps(cell: ConvLSTMCell, x):
        one = cell(x, cell.init_state())
        return one, cell(0.5 * x, one)

    plain = {name: image(f"{name}/x") for name in models if name != "convlstm"}

    def loss(arguments):
        models, inputs = arguments
        out = {name: jax.vmap(models[name])(x) for name, x in inputs.items()}
        value = sum((jnp.sum(y * image(f"{name}/loss_weight")) for name, y in out.items()), jnp.zeros(()))
        states = jax.vmap(two_steps, (None, 0))(models["convlstm"], image("convlstm/x"))
        value += jnp.sum(states[1].hidden * image("convlstm/loss_weight_h"))
        return value + jnp.sum(states[1].cell * image("convlstm/loss_weight_c")), (out, states)

    (grads, input_grads), (out, states) = eqx.filter_jit(eqx.filter_grad(loss, has_aux=True))((models, plain))
    as_theirs = lambda x: first(x) if x.ndim == 4 else x
    for name, y in out.items():
        case.compare(as_theirs(y), f"{name}/y", rtol=SINGLE)
        expected = case.group("grad_in")[f"{name}/x"]
        assert_close(
            as_theirs(input_grads[name]), expected, rtol=SINGLE, what=f"gradient of the input of {name}"
        )
    for i, state in enumerate(states):
        case.compare(first(state.hidden), f"convlstm/h{i + 1}", rtol=SINGLE)
        case.compare(first(state.cell), f"convlstm/c{i + 1}", rtol=SINGLE)
    for name in models:
        for path, actual in to_seed(grads[name], params[name], tables[name]).items():
            compare_one(case, f"{name}/{path}", actual)


def compare_one(case: Case, path: str, actual) -> None:
    expected = case.grads[path]
    assert_close(actual.reshape(expected.shape), expected, rtol=SINGLE, what=f"gradient of {path}")


@checks("gnm_render*.npz")
def check_render(case: Case) -> None:
    c, arrays = case.config, {name: jnp.asarray(x) for name, x in case.inputs.items()}
    batch, size = len(arrays["z_pres"]), c["img"]
    per_example = lambda x: x.reshape(batch, -1, *x.shape[1:])
    inputs = {
        "o_att": per_example(arrays["o_att"]),
        "a_att": per_example(arrays["a_att"]),
        "bg": last(case.inputs["background"]),
        **{name: last(case.inputs[name]) for name in ("z_pres", "z_where", "z_depth")},
    }

    def one(x, step):
        curriculum = Curriculum((step > 0) & (step < 500), 0.9)
        presence, depth = x["z_pres"].reshape(-1), x["z_depth"].reshape(-1)
        glimpses = Glimpses(x["o_att"], x["a_att"])
        return compose(glimpses, presence, x["z_where"].reshape(-1, 4), depth, x["bg"], curriculum=curriculum)

    @jax.jit
    @jax.value_and_grad
    def loss(x, weight, step):
        return jnp.sum(jax.vmap(one, (0, None))(x, step).image * weight)

    render = jax.jit(jax.vmap(one, (0, None)))
    for name in ("step100", "step1000"):
        step = jnp.int32(int(name[4:]))
        out = render(inputs, step)
        case.compare(first(out.image), f"{name}/y", rtol=SINGLE)
        case.compare(first(out.foreground), f"{name}/y_fg", rtol=SINGLE)
        case.compare(first(out.alpha), f"{name}/alpha_map", rtol=SINGLE)
        case.compare(out.masks[:, :, None], f"{name}/mask", rtol=SINGLE)
        value, grads = loss(inputs, last(case.inputs[f"loss_weight_{name}"]), step)
        case.compare(value, f"{name}/loss", rtol=SINGLE)
        for part, grad in grads.items():
            expected = case.group("grad_in")[f"{name}/{part}"]
            images = part.startswith(("z_", "bg"))
            grad = first(grad) if images else grad.reshape(-1, *grad.shape[2:])
            if expected.size == 1:  # the seed's mark for "not used"
                expected = np.zeros_like(grad)
            assert_close(grad, expected, rtol=SINGLE, what=f"{name}: gradient of {part}")

    boxes = inputs["z_where"].reshape(batch, -1, 4)
    draw = jax.vmap(lambda p, box: box_frames(p.reshape(-1), box, height=size, width=size))
    case.compare(first(draw(inputs["z_pres"], boxes)), "bbox_sum", rtol=SINGLE)
    glimpse = case.outputs["glimpse_of_bg_cell0"]
    cut = jax.vmap(
        lambda image, box: crop(image, box[:1], height=glimpse.shape[-2], width=glimpse.shape[-1])[0]
    )
    case.compare(cut(arrays["background"], boxes), "glimpse_of_bg_cell0", rtol=SINGLE)
    logits = [jnp.log(p) - jnp.log1p(-p) for p in (arrays["bern_q"], arrays["bern_p"])]
    for probabilities in (False, True):
        case.compare(bernoulli_kl(*logits, probabilities=probabilities), "kl_bern", rtol=SINGLE)


@eqx.filter_jit
def trained(model: GNM, images, draws: GNMDraws, step):
    """Loss, terms and gradient of a batch, and all that is between. Compiled once for all files of one size."""

    def one(model, image, draws):
        loss, terms = model.loss(image, draws=draws, step=step)
        out = model(image, draws=draws, step=step)
        weights = model.log_weights(out.inferred, step=step, relaxed=False)
        return loss, (terms, out, model.divergences(out.inferred, step), weights)

    def mean(model):
        losses, (terms, *rest) = jax.vmap(one, (None, 0, 0))(model, images, draws)
        return losses.mean(), ({name: term.mean() for name, term in terms.items()}, *rest)

    return eqx.filter_value_and_grad(mean, has_aux=True)(model)


@checks("gnm_full*.npz")
def check_whole(case: Case) -> None:
    model = whole(case.config, case.params)
    images, draws = last(case.inputs["image"]), draws_of(model, case.inputs)
    step = jnp.int32(case.meta["global_step"])
    hyper = case.meta["hyper"]
    assert_close(annealed(model.config.temperature, step), hyper["tau_pres"], rtol=1e-6, what="temperature")
    rate = annealed(model.config.presence_prior, step)
    assert_close(rate, case.outputs["aux_p_pres_prob"], rtol=1e-6, what="prior of presence")
    ((value, (terms, out, divergences, weights)), grads) = trained(model, images, draws, step)
    case.compare(value, "terms/loss", rtol=WHOLE)
    for name in ("elbo", "kl"):
        case.compare(terms[name], f"terms/{name}", rtol=WHOLE)
    case.compare(terms["log_likelihood"], "terms/rec_loss", rtol=WHOLE)
    case.compare(terms["kl_global"], "terms/kl_global", rtol=WHOLE)
    for theirs, ours in GROUPS.items():
        zero = jnp.zeros(())
        case.compare(terms.get(f"kl_{ours}", zero), f"terms/kl_{theirs}", rtol=WHOLE)
        case.compare(terms.get(f"kl_aux_{ours}", zero), f"terms/kl_aux_{theirs}", rtol=WHOLE)
    compare_grads(case, grads, rules(model.config), rtol=WHOLE)

    inferred, local, scene = out.inferred, out.inferred.local, out.inferred.scene
    case.compare(first(out.rendering.image), "canvas", rtol=WHOLE)
    case.compare(first(out.background), "background", rtol=WHOLE)
    case.compare(out.rendering.masks, "masks", rtol=WHOLE)
    case.compare(jnp.round(local.presence).sum((1, 2, 3)), "counts", rtol=WHOLE)
    case.compare(first(inferred.features), "img_enc", rtol=WHOLE)
    case.compare(first(scene.features), "global_dec", rtol=WHOLE)
    case.compare(scene.z[..., None, None], "z_global", rtol=WHOLE)
    for name in ("prior", "posterior"):
        side, found = {"prior": "p", "posterior": "q"}[name], getattr(scene, name)
        case.compare(found.mean[..., None, None], f"global/{side}_mean", rtol=WHOLE)
        case.compare(found.std[..., None, None], f"global/{side}_std", rtol=WHOLE)
        found = getattr(inferred, name)
        case.compare(first(found.presence), f"local/{side}_pres_logits", rtol=WHOLE)
        for part in ("where", "depth", "what"):
            case.compare(first(getattr(found, part).mean), f"local/{side}_{part}_mean", rtol=WHOLE)
            case.compare(first(getattr(found, part).std), f"local/{side}_{part}_std", rtol=WHOLE)
    for theirs, ours in {"pres": "presence", "where": "box", "depth": "depth", "what": "what"}.items():
        case.compare(first(getattr(local, ours)), f"z_{theirs}", rtol=WHOLE)

    per = lambda name: f"per_example/{name}"
    zeros = jnp.zeros(len(images))
    for theirs, ours in GROUPS.items():
        case.compare(divergences.get(ours, zeros), per(f"kl_{theirs}"), rtol=WHOLE)
        case.compare(divergences.get(f"aux_{ours}", zeros), per(f"aux_kl_{theirs}"), rtol=WHOLE)
        case.compare(weights.get(ours, zeros), per(f"log_imp_{theirs}"), rtol=WHOLE)
    case.compare(weights["global"], per("log_imp_global"), rtol=WHOLE)
    case.compare(scene.posterior.kl(scene.prior).sum(-1), per("kl_global"), rtol=WHOLE)
    made = jax.vmap(model._log_likelihood)(images, out.rendering.image)
    case.compare(made, per("log_like"), rtol=WHOLE)


@checks("schedules*.npz")
def check_schedules(case: Case) -> None:
    """The published configuration anneals as the seed's does."""
    steps = jnp.asarray(case.inputs["gnm_steps"], jnp.int32)
    ours: dict[str, str] = {"pres": "presence", "bg": "background"}
    columns: list[str] = case.meta["gnm_columns"]
    for column, name in enumerate(columns):
        if name == "beta_aux_global":  # annealed by the seed and never used
            continue
        words = [ours.get(word, word) for word in name.split("_")]
        field = "temperature" if name == "tau_pres" else "_".join(words)
        values = jax.vmap(lambda step, field=field: annealed(getattr(GNMConfig(), field), step))(steps)
        assert_close(values, case.outputs["gnm_hyperparams"][:, column], rtol=1e-6, what=name)
    values = jax.vmap(lambda step: annealed(GNMConfig().presence_prior, step))(steps)
    case.compare(values, "gnm_prior_p_pres", rtol=1e-6)


@checks("gnm_lightning*.ckpt")
def check_checkpoint(case: Case) -> None:
    """The arrays of the file are compared in `check_training`; here, what its names and sizes are read as."""
    found, hyper = convert_checkpoint(case.path), read_checkpoint(case.path).hyper
    assert isinstance(found.model, GNM) and found.config == found.model.config
    sizes = (hyper["data"]["img_w"], hyper["arch"]["draw_step"], hyper["const"]["likelihood_sigma"])
    assert (found.config.resolution, found.config.draws, found.config.sigma) == sizes


@checks("gnm_lightning*_expected.npz")
def check_training(case: Case) -> None:
    """Steps of RMSprop from the recorded start, on the recorded batches and draws; then an evaluation."""
    found, hyper = convert_checkpoint(case.checkpoint), read_checkpoint(case.checkpoint).hyper
    start, final = (
        {name.removeprefix("model."): array for name, array in arrays.items()}
        for arrays in (case.params, case.group("out/final"))
    )
    model = whole(hyper, start)
    table = rules(model.config)
    config = OptimizerConfig(
        optimizer="rmsprop",
        learning_rate=hyper["lr_main"],
        steps=hyper["max_steps"],
        schedule="constant",
        warmup_steps=0,
        b2=0.99,
        weight_decay=hyper["weight_decay"],
        clip_norm=hyper["gradient_clip_val"],
    )
    rates = jax.vmap(learning_rate(config))(jnp.arange(case.meta["steps"]))
    case.compare(rates, "lr_last_group", rtol=1e-6)
    optimizer = make_optimizer(config)
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    update = eqx.filter_jit(lambda grads, state, model: optimizer.update(grads, state, model))

    def recorded(group: str):
        """A batch and its draws, which the file numbers in the order of the calls; it draws `draws` scenes."""
        arrays = case.group(group)
        drawn = {int(name[4:].split("_")[0]): array for name, array in arrays.items() if name != "image"}
        scenes = range(1, 1 + model.config.draws)
        after = scenes.stop + 1  # what follows the scenes is drawn and not used
        local = enumerate(("u_pres", "eps_where", "eps_depth", "eps_what"), after)
        draws = {"eps_q_bg": drawn[0], "eps_global": np.stack([drawn[i] for i in scenes], 1)}
        return last(arrays["image"]), draws_of(model, draws | {name: drawn[i] for i, name in local})

    # RMSprop divides a gradient by its own size, so that an update is at most `lr / sqrt(1 - b2)` however small the
    # gradient: one that is rounded by WHOLE of the tensor's largest is off by as much of its own update as it is
    # smaller than that largest one.
    rounding: dict[str, np.ndarray] = {}
    kick = hyper["lr_main"] / np.sqrt(1 - config.b2)
    for step in range(case.meta["steps"]):
        images, draws = recorded(f"in/step{step}")
        (value, _), grads = trained(model, images, draws, jnp.int32(step))
        assert_close(value, case.outputs["loss"][step], rtol=WHOLE, what=f"loss of step {step}")
        for name, array in to_seed(grads, parameters(final), table).items():
            size = np.abs(np.asarray(array, np.float64))
            share = WHOLE * size.max() / np.maximum(size, 1e-30)
            rounding[name] = rounding.get(name, 0.0) + kick * np.minimum(share, 1.0)
        updates, state = update(grads, state, eqx.filter(model, eqx.is_array))
        model = eqx.apply_updates(model, updates)
    ours, theirs = (to_seed(m, parameters(final), table) for m in (model, found.model))
    for name, array in parameters(final).items():
        np.testing.assert_array_equal(theirs[name].reshape(array.shape), array, err_msg=name)
        error = np.abs(ours[name].reshape(array.shape).astype(np.float64) - array)
        allowed = WHOLE * np.abs(array).max() + rounding[name].reshape(array.shape)
        assert (error <= allowed).all(), (
            f"{name} after training: {(error / allowed).max():.2f} of what is allowed"
        )
    assert found.step == case.meta["steps"] and found.name == "gnm_clevr6"

    images, draws = recorded("in/eval")
    step = jnp.int32(case.meta["eval_call"].split("global_step=")[1].rstrip(")"))
    (value, (_, out, *_)), _ = trained(whole(hyper, final), images, draws, step)
    assert_close(value, case.group("out/eval")["loss"], rtol=WHOLE, what="loss of the evaluation")
    assert_close(first(out.rendering.image), case.group("out/eval")["canvas"], rtol=WHOLE, what="canvas")


@checks("gnm_generation*.npz")
def check_generation(case: Case) -> None:
    model = whole(case.config, case.params)
    noise = jnp.asarray(case.inputs["eps_global"])
    blank = eqx.filter_eval_shape(model.draw, jax.random.key(0))
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), blank)

    @eqx.filter_jit
    def generate(model, noise, known=None):
        one = lambda noise, known: model.generate(draws=blank._replace(scene=noise), known=known)
        return jax.vmap(one, (0, None if known is None else 0))(noise, known)

    out = generate(model, noise)
    case.compare(out.scene.z[..., None, None], "z_global", rtol=WHOLE)
    case.compare(out.scene.prior.mean[..., None, None], "p_global_mean", rtol=WHOLE)
    case.compare(out.scene.prior.std[..., None, None], "p_global_std", rtol=WHOLE)
    case.compare(first(out.scene.features), "global_dec", rtol=WHOLE)
    case.compare(out.background_latent[..., None, None], "z_bg", rtol=WHOLE)
    case.compare(first(out.rendering.image), "canvas", rtol=WHOLE)
    case.compare(first(out.rendering.foreground), "foreground", rtol=WHOLE)
    case.compare(first(out.rendering.alpha), "alpha_map", rtol=WHOLE)
    case.compare(first(out.background), "background", rtol=WHOLE)
    for theirs, ours in {"pres": "presence", "where": "box", "depth": "depth", "what": "what"}.items():
        case.compare(first(getattr(out.local, ours)), f"z_{theirs}", rtol=WHOLE)
    # The first draws given, whatever their noise: the rest follow as before.
    again = generate(model, noise.at[:, :2].set(9.0), out.scene.z[:, :2])
    case.compare(first(again.rendering.image), "canvas", rtol=WHOLE)
