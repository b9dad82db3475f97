"""Whole TECO models with every temporal core: losses, logits, codes, states and gradients."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.losses import token_cross_entropy
from slotzoo.models.teco import TECO, TECODraws
from slotzoo.models.teco_config import TECOConfig
from slotzoo.nn.quantize import histogram, perplexity
from slotzoo.weights.convert.convssm_teco import teco, teco_config
from slotzoo.weights.convert.rules import from_seed, to_seed
from tests.parity.convssm.convs5 import EIGENVALUES, NO_GRADIENT
from tests.parity.convssm.ssm import planes
from tests.parity.harness import Case, checks
from tests.tolerance import assert_close


WHOLE = 1e-4


def draws(case: Case, batch: int) -> TECODraws:
    """The random choices that the seed recorded, per example."""
    dropped = jnp.asarray(case.inputs.get("dropout_actions", np.zeros(batch, bool)))
    frames = jnp.asarray(case.inputs["drop_idxs"])
    return TECODraws(
        dropped, jnp.broadcast_to(frames, (batch, len(frames))), jnp.asarray(case.inputs["z_mask"])
    )


def states(case: Case, state, name: str) -> None:
    """Compare `batch layer ... planes` with one complex array per layer."""
    for i in range(state.shape[1]):
        expected = planes(case.outputs[f"{name}/{i}"])
        assert_close(
            state[:, i].reshape(expected.shape), expected, rtol=WHOLE, what=f"{case.path.name}: {name}/{i}"
        )


def neutral_terms(config: TECOConfig) -> float:
    """What the seed adds to its prior loss for samples that one of its two terms leaves out.

    It puts the one-hot labels in the place of their logits there: `log(e + n - 1) - 1` per code, and every sample is
    left out of exactly one of the two means.
    """
    places = (config.height // config.reduction) * (config.width // config.reduction)
    return places * (np.log(np.e + config.latent_codes - 1) - 1) if config.causal_masking else 0.0


# MaskGIT's own draws after one step.
RANDOM = {f"out/step_{what}_*": "sampled at random, recorded for its shape" for what in ("z_sample", "codes")}


@checks("teco_*.npz", unchecked=RANDOM)
def check_teco(case: Case) -> None:
    codebook = jnp.asarray(case.inputs["vq_codebook"])
    tokens, actions = jnp.asarray(case.inputs["video"]), jnp.asarray(case.inputs["actions"])
    config = teco_config(
        case.config,
        num_codes=codebook.shape[0],
        code_dim=codebook.shape[1],
        height=tokens.shape[2],
        width=tokens.shape[3],
    )
    if "exactly as" in case.meta["notes"] or "peer as it is" in case.meta["notes"]:
        config = dataclasses.replace(config, prior_frames="all")
    rules = teco(config)
    model = from_seed(case.params, TECO(config, key=jax.random.key(0)), rules)
    batch = len(tokens)
    drawn = draws(case, batch)

    @eqx.filter_jit
    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model):
        train = lambda t, a, d: model.training(t, a, codebook, draws=d)
        out = jax.vmap(train)(tokens, actions, drawn)
        target = jax.vmap(lambda t, f: t[f])(tokens, out.frames)
        smoothed = token_cross_entropy(out.reconstruction, target, smoothing=config.label_smoothing)
        recon = smoothed.sum((2, 3)).mean()
        # The seed divides by the codes that the whole batch scores; ours by those of a clip.
        scored = out.scored.astype(jnp.float32)
        places = out.codes.shape[2] * out.codes.shape[3]
        trans = places * jnp.sum(scored * token_cross_entropy(out.prior, out.codes)) / scored.sum()
        commitment, rows = out.quantised.commitment.mean(), out.quantised.codebook.mean()
        return recon + trans + commitment + rows, (out, recon, trans, commitment, rows)

    (value, (out, recon, trans, commitment, rows)), grads = loss(model)
    case.compare(out.reconstruction, "train_recon_logits", rtol=WHOLE)
    case.compare(out.prior, "train_z_logits", rtol=WHOLE)
    case.compare(recon, "recon_loss", rtol=1e-5)
    case.compare(commitment, "commitment_loss", rtol=1e-5)
    case.compare(rows, "codebook_loss", rtol=1e-5)
    case.compare(trans + neutral_terms(config), "trans_loss", rtol=1e-5)
    case.compare(value + neutral_terms(config), "loss", rtol=1e-5)
    case.compare_grads(to_seed(grads, case.grads, rules), rtol=1e-4, zero=NO_GRADIENT, loose=EIGENVALUES)
    embeddings, codes = out.quantised.embeddings[:, 1:], out.quantised.codes[:, 1:]
    case.compare(embeddings, "z_embeddings" if "z_embeddings" in case.outputs else "encoded", rtol=1e-5)
    # Of all codes of the batch; ours is that of each clip.
    shares = histogram(out.quantised.codes, config.latent_codes)
    case.compare(perplexity(shares), "perplexity", rtol=1e-5)
    if "z_codes" in case.outputs:
        np.testing.assert_array_equal(codes, case.outputs["z_codes"])
        case.compare(out.latents[:, :1], "cond", rtol=1e-5)

    # With all frames visible and all actions known.
    context = case.config["open_loop_ctx"]
    temporal, visible = model.temporal, jnp.zeros(tokens.shape[1] - 1, bool)

    @eqx.filter_jit
    @jax.vmap
    def core(latents, actions):
        features = temporal(latents, actions[1:], visible).features
        if config.temporal == "transformer":
            return features, None, ()
        # The state after the context but its last frame, then one step from there.
        seen = temporal(latents[: context - 1], actions[1:context], visible[: context - 1]).state
        step = lambda hide: temporal.step(latents[context - 1], actions[context], jnp.asarray(hide), seen).state
        return features, seen, (step(False), step(True))

    features, seen, steps = core(out.latents, actions)
    case.compare(features, "deter", rtol=WHOLE)
    if seen is not None:
        for name, state in zip(
            ("ctx_state", "step_state_plain", "step_state_masked"), (seen, *steps), strict=True
        ):
            states(case, state, name)
