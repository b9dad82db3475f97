"""Checkpoints as the seed's own code writes them: read, converted, run, saved as ours and loaded again."""

import tempfile
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.models.teco import TECO, TECODraws
from slotzoo.models.vqgan import VQGAN
from slotzoo.weights import load_model, save_weights
from slotzoo.weights.convert.convssm import Converted, convert_run, read_run
from slotzoo.weights.convert.convssm_teco import teco
from slotzoo.weights.convert.rules import to_seed
from tests.parity.convssm.convs5 import compare_states
from tests.parity.harness import Case, checks


WHOLE = 1e-4
BEFORE = {"out/train_losses": "of the two updates before the checkpoint, whose parameters are not recorded"}


def converted(case: Case) -> Converted:
    """The model of the case's folder, after a round trip through our own files."""
    arrays = read_run(case.path).arrays
    recorded = {f"{kind}/{k}": v for kind in ("param", "stats") for k, v in case.group(kind).items()}
    assert set(arrays) == set(recorded)
    for name, expected in recorded.items():
        np.testing.assert_array_equal(arrays[name], expected, err_msg=name)
    result = convert_run(case.path)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.safetensors"
        loaded, _ = load_model(save_weights(file, result.model, name=result.name, config=result.config))
    assert eqx.tree_equal(loaded, result.model)
    return result._replace(model=loaded)


@checks("native_ckpt/vqgan*")
def check_tokenizer(case: Case) -> None:
    model = converted(case).model
    assert isinstance(model, VQGAN)
    video = jnp.asarray(case.inputs["video"])
    codes = eqx.filter_jit(lambda m: jax.vmap(jax.vmap(lambda x: m.encode(x).codes))(video))(model)
    np.testing.assert_array_equal(codes, case.outputs["encodings"])


@checks("native_ckpt/convs5_novq*", unchecked=BEFORE)
def check_pixels(case: Case) -> None:
    model = converted(case).model
    video = jnp.asarray(case.inputs["video"])
    length, context = video.shape[1], case.config["open_loop_ctx"]

    @eqx.filter_jit
    def run(model):
        whole = jax.vmap(lambda v: model(v, None))(video)
        return whole, jax.vmap(lambda v: model.generate(v, None, length))(video[:, :context])

    whole, generated = run(model)
    case.compare(whole.features, "deter", rtol=WHOLE)
    case.compare(whole.prediction, "recon", rtol=WHOLE)
    case.compare(generated[:, context:], "rollout", rtol=WHOLE)


@checks("native_ckpt/convs5_vq*", unchecked=BEFORE)
def check_tokens(case: Case) -> None:
    model = converted(case).model
    tokenizer = convert_run(case.path.parent / case.config["vqvae_ckpt"]).model
    video, actions = jnp.asarray(case.inputs["video"]), jnp.asarray(case.inputs["actions"])

    @eqx.filter_jit
    def run(model, tokenizer):
        tokens = jax.vmap(jax.vmap(lambda x: tokenizer.encode(x).codes))(video)
        out = jax.vmap(lambda t, a: model(t, a, tokenizer.codebook))(tokens, actions)
        return tokens, out, jax.vmap(jax.vmap(tokenizer.decode_tokens))(jnp.argmax(out.prediction, -1))

    tokens, out, frames = run(model, tokenizer)
    np.testing.assert_array_equal(tokens, case.inputs["tokens"])
    case.compare(out.features, "deter", rtol=WHOLE)
    case.compare(out.prediction, "recon_logits", rtol=WHOLE)
    case.compare(frames, "argmax_frames", rtol=WHOLE)
    compare_states(case, out.state, "last_state")


@checks("native_ckpt/teco_convs5*", unchecked=BEFORE)
def check_teco(case: Case) -> None:
    result = converted(case)
    model = result.model
    assert isinstance(model, TECO)
    exported = to_seed(model, case.params, teco(result.config))
    for name, expected in case.params.items():
        np.testing.assert_array_equal(exported[name], expected, err_msg=name)
    tokenizer = convert_run(case.path.parent / case.config["vqvae_ckpt"]).model
    video, actions = jnp.asarray(case.inputs["video"]), jnp.asarray(case.inputs["actions"])

    @eqx.filter_jit
    def run(model, tokenizer):
        tokens = jax.vmap(jax.vmap(lambda x: tokenizer.encode(x).codes))(video)
        steps = jnp.arange(video.shape[1] - 1)
        draws = TECODraws(jnp.asarray(False), steps, jnp.zeros((len(steps), *model.prior.grid), bool))
        train = lambda t, a: model.training(t, a, tokenizer.codebook, draws=draws)
        out = jax.vmap(train)(tokens, actions)
        whole = jax.vmap(lambda t, a: model(t, a, tokenizer.codebook))(tokens, actions)
        frames = jax.vmap(jax.vmap(tokenizer.decode_tokens))(jnp.argmax(out.reconstruction, -1))
        return tokens, out, whole, frames

    tokens, out, whole, frames = run(model, tokenizer)
    np.testing.assert_array_equal(tokens, case.inputs["tokens"])
    np.testing.assert_array_equal(out.quantised.codes[:, 1:], case.outputs["z_codes"])
    case.compare(out.quantised.embeddings[:, 1:], "z_embeddings", rtol=WHOLE)
    case.compare(whole.features, "deter", rtol=WHOLE)
    case.compare(out.reconstruction, "recon_logits", rtol=WHOLE)
    case.compare(frames, "argmax_frames", rtol=WHOLE)
    compare_states(case, whole.state.temporal, "last_state")
