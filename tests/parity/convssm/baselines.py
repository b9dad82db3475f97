"""S5, ConvLSTM, Transformer and FAVOR+: layers and whole models, losses, predictions, rollouts and gradients."""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.losses import pixel_loss, token_cross_entropy
from slotzoo.models.video import VideoPixels, VideoTokens
from slotzoo.nn.favor import STABILISER, relu_features, softmax_features, trigonometric_features
from slotzoo.nn.s5 import S5
from slotzoo.ops.linear_attention import linear_attention
from slotzoo.weights.convert.convssm_baselines import baseline, baseline_config, used
from slotzoo.weights.convert.convssm_s5 import S5_SSM
from slotzoo.weights.convert.rules import from_seed, to_seed
from tests.parity.convssm.convs5 import EIGENVALUES, NO_GRADIENT, draws, neutral_terms
from tests.parity.convssm.ssm import planes
from tests.parity.harness import Case, checks
from tests.tolerance import assert_close


WHOLE = 1e-4
CLASSES = {
    "S5": "S5",
    "CONVLSTM_NOVQ": "convLSTM_noVQ",
    "TRANSFORMER": "transformer",
    "TRANSFORMER_NOVQ": "transformer_noVQ",
}


def one_c(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The output matrices of both directions as the one array that ours is: [C1 | C2] over directions.

    The seed has two arrays, or a single one twice as long.
    """
    params = dict(params)
    if "C1" in params:
        pair = [params.pop("C1"), params.pop("C2")]
    else:
        states = params["Lambda_re"].shape[0]
        whole = params["C"]
        pair = [whole[:, i : i + states] for i in range(0, whole.shape[1], states)]
    params["C"] = np.stack(pair)
    return params


@checks("s5repo_ssm_*.npz")
def check_layer(case: Case) -> None:
    config = case.config
    layer = S5(
        config["H"],
        config["ssm_size"],
        blocks=config["blocks"],
        discretisation=config["discretization"],
        conjugate=config["conj_sym"],
        bidirectional=config["bidirectional"],
        output_init=config["C_init"],
        clip_eigenvalues=config["clip_eigs"],
        step_rescale=config["step_rescale"],
        gate="none",
        key=jax.random.key(0),
    )
    params, grads = one_c(case.params), one_c({**case.params, **case.grads})
    c = params.pop("C")
    layer = from_seed({**params, "C": c[0]}, eqx.tree_at(lambda m: m.c, layer, layer.c[:1]), S5_SSM)
    layer = eqx.tree_at(
        lambda m: m.c, layer, jnp.asarray(c.transpose(0, 3, 2, 1).reshape(len(c), -1, config["H"]))
    )
    u, weights = jnp.asarray(case.inputs["u"]), jnp.asarray(case.inputs["loss_w"])

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(layer):
        ys = layer(u)[0]
        return jnp.mean(weights * ys), ys

    (value, ys), ours = loss(layer)
    case.compare(ys, "ys", rtol=1e-5)
    case.compare(value, "loss", rtol=1e-5)
    expected = grads["C"].transpose(0, 3, 2, 1).reshape(len(c), -1, config["H"])
    assert_close(ours.c, expected, rtol=1e-5, what=f"{case.path.name}: gradient of C")
    rest = [name for name in case.grads if not name.startswith("C")]
    found = to_seed(ours, rest, S5_SSM)
    for name in rest:
        # The seed's (A - 1) / Lambda cancels for short steps, as in the whole models.
        bound = 1e-3 if name.startswith(("Lambda", "log")) else 1e-5
        assert_close(found[name], case.grads[name], rtol=bound, what=f"{case.path.name}: gradient of {name}")


@checks("convlstm_novq*.npz", "transformer_novq*.npz")
def check_pixels(case: Case) -> None:
    config = baseline_config(CLASSES[case.meta["cls"]], case.config)
    rules = baseline(config)
    model = from_seed(case.params, VideoPixels(config, key=jax.random.key(0)), rules)
    video, actions = jnp.asarray(case.inputs["video"]), jnp.asarray(case.inputs["actions"])
    actions = actions if case.config["use_actions"] else None
    batch, length = video.shape[:2]

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model):
        def terms(video, actions, draws):
            out = model(video, actions, draws=draws)
            pixels = lambda squared: jnp.sum(
                out.weights * pixel_loss(out.prediction, video[out.frames], squared=squared)
            )
            return pixels(config.loss_weight), (pixels(1.0), pixels(0.0), out)

        total, aux = jax.vmap(terms)(video, actions, draws(case, batch, length - 1))
        return total.mean(), aux

    (value, (mse, l1, out)), grads = loss(model)
    case.compare(value, "loss", rtol=1e-5)
    case.compare(mse.mean(), "mse_loss", rtol=1e-5)
    case.compare(l1.mean(), "l1_loss", rtol=1e-5)
    case.compare_grads(to_seed(grads, case.grads, rules), rtol=WHOLE, zero=NO_GRADIENT)
    case.compare(out.features, "deter", rtol=WHOLE)
    case.compare(out.prediction, "recon" if "recon" in case.outputs else "train_recon_logits", rtol=WHOLE)

    if "encoded" in case.outputs:
        encoded = eqx.filter_jit(lambda model: jax.vmap(model.core.encoder)(video))(model)
        case.compare(encoded, "encoded", rtol=WHOLE)

    # ConvSSM's Transformer is run again for every frame; ours keeps keys and values.
    context = case.config["open_loop_ctx"]
    generate = eqx.filter_jit(
        lambda model: jax.vmap(lambda v, a: model.generate(v, a, length))(video[:, :context], actions)
    )
    case.compare(generate(model)[:, context:], "rollout", rtol=WHOLE)
    if "ctx_state/0/0" in case.outputs:
        seen = None if actions is None else actions[:, :context]
        observe = eqx.filter_jit(
            lambda model: jax.vmap(lambda v, a: model(v, a).state)(video[:, :context], seen)
        )
        state = observe(model)
        for i in range(config.layers):
            expected = np.concatenate([case.outputs[f"ctx_state/{i}/{part}"] for part in (0, 1)], -1)
            assert_close(state[:, i], expected, rtol=WHOLE, what=f"{case.path.name}: ctx_state/{i}")


@checks("s5_vq*.npz", "transformer_vq*.npz")
def check_tokens(case: Case) -> None:
    codebook = jnp.asarray(case.inputs["vq_codebook"])
    tokens, actions = jnp.asarray(case.inputs["video"]), jnp.asarray(case.inputs["actions"])
    sizes = (*codebook.shape, *tokens.shape[2:])
    config = baseline_config(CLASSES[case.meta["cls"]], case.config, tokens=sizes)
    rules = baseline(config)
    model = from_seed(used(case.params), VideoTokens(config, key=jax.random.key(0)), rules)
    batch, length = tokens.shape[:2]
    drawn = draws(case, batch, length - 1)

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model):
        def one(tokens, actions, draws):
            out = model(tokens, actions, codebook, draws=draws)
            each = token_cross_entropy(out.prediction, tokens[out.frames], smoothing=config.label_smoothing)
            return jnp.sum(out.weights * each.sum((1, 2))), out.prediction

        total, logits = jax.vmap(one)(tokens, actions, drawn)
        return total.mean(), logits

    (value, logits), grads = loss(model)
    case.compare(logits, "train_recon_logits", rtol=WHOLE)
    case.compare(value + neutral_terms(case, config), "loss", rtol=1e-5)
    found = to_seed(grads, used(case.grads), rules)
    # Made, counted and never used: its recorded gradient is zero.
    dead = {name: np.zeros_like(array) for name, array in case.grads.items() if name not in found}
    case.compare_grads(found | dead, rtol=WHOLE, zero=NO_GRADIENT, loose=EIGENVALUES)

    out = eqx.filter_jit(lambda model: jax.vmap(lambda t, a: model(t, a, codebook))(tokens, actions))(model)
    case.compare(out.features, "deter", rtol=WHOLE)
    if "encoded" in case.outputs:
        encoded = eqx.filter_jit(lambda model: jax.vmap(model.core.encoder)(codebook[tokens]))(model)
        case.compare(encoded, "encoded", rtol=WHOLE)
    if "ctx_state/0" not in case.outputs:
        return
    context = case.config["open_loop_ctx"]

    @eqx.filter_jit
    def one_step(model):
        def one(tokens, actions):
            state = model(tokens[:context], actions[:context], codebook).state
            step = lambda hide: model.step(tokens[context - 1], actions[context], codebook, state, hide=hide)
            return state, step(False), step(True)

        return jax.vmap(one)(tokens, actions)

    state, *steps = one_step(model)
    compare_vectors(case, state, "ctx_state")
    for name, step in zip(("plain", "masked"), steps, strict=True):
        compare_vectors(case, step.state, f"step_state_{name}")
        case.compare(step.prediction[:, None], f"step_logits_{name}", rtol=WHOLE)


def compare_vectors(case: Case, state: jax.Array, name: str) -> None:
    """Compare `batch layer 1 1 planes` with one complex vector per layer."""
    for i in range(state.shape[1]):
        expected = planes(case.outputs[f"{name}/{i}"])
        assert_close(state[:, i, 0, 0], expected, rtol=WHOLE, what=f"{case.path.name}: {name}/{i}")


@checks("favor*.npz")
def check_favor(case: Case) -> None:
    q, k, v = (jnp.asarray(case.inputs[name]) for name in "qkv")
    weights = jnp.asarray(case.inputs["proj_softmax"])

    def softmax(q, k, v, frame):
        q, k = softmax_features(q, weights, shift="token"), softmax_features(k, weights, shift="all")
        return linear_attention(q, k, v, frame=frame, stabiliser=STABILISER)[0]

    def relu(q, k, v, frame):
        return linear_attention(relu_features(q), relu_features(k), v, frame=frame)[0]

    def sincos(q, k, v, frame):
        q, k = trigonometric_features(q, weights), trigonometric_features(k, weights)
        return linear_attention(q, k, v, frame=frame, stabiliser=STABILISER)[0]

    forms = {"softmax": softmax, "relu": relu, "sincos": sincos}
    for name in case.outputs:
        kind, direction = name.split("_")
        form, frame = forms[kind], 1 if direction == "causal" else None
        case.compare(jax.jit(jax.vmap(lambda *x: form(*x, frame)))(q, k, v), name, rtol=1e-5)  # noqa: B023
