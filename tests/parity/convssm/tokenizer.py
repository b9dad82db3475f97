"""The frozen VQ-GAN, and the latent codebook of TECO."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.models.vqgan import VQGAN
from slotzoo.nn.quantize import ProjectedQuantizer, histogram, perplexity
from slotzoo.weights.convert import convssm_vqgan
from slotzoo.weights.leaves import fill
from tests.parity.harness import Case, checks
from tests.tolerance import assert_close


WHOLE = 1e-4  # whole models
SINGLE = 1e-5  # single modules


def build(case: Case) -> VQGAN:
    """The case's VQ-GAN, every parameter of the case used once."""
    config = convssm_vqgan.config(case.config)
    abstract = eqx.filter_eval_shape(lambda: VQGAN(config, key=jax.random.key(0)))
    names = convssm_vqgan.leaves(abstract)
    assert set(names.values()) == {k for k in case.arrays if k.startswith(("param/", "stats/"))}
    return fill(abstract, {ours: case.arrays[theirs] for ours, theirs in names.items()})


@checks("vqgan.npz", "native_ckpt/vqgan")
def check_vqgan(case: Case) -> None:
    model = build(case)
    video = jnp.asarray(case.inputs["video"])
    over_video = lambda f: jax.jit(jax.vmap(jax.vmap(f)))
    encoded = over_video(model.encode)(video)
    np.testing.assert_array_equal(encoded.codes, case.outputs["encodings"])
    case.compare(encoded.embeddings, "embeddings", rtol=SINGLE)
    case.compare(over_video(model.decode_tokens)(encoded.codes), "recon", rtol=WHOLE)
    case.compare(over_video(lambda x: model(x).reconstruction)(video), "recon", rtol=WHOLE)
    if "lookup" in case.outputs:
        case.compare(over_video(model.lookup)(encoded.codes), "lookup", rtol=SINGLE)
    if "pre_quant_frame0" in case.outputs:
        case.compare(jax.vmap(model.latents)(video[:, 0]), "pre_quant_frame0", rtol=WHOLE)
    if "recon_frame0" in case.outputs:
        case.compare(jax.vmap(model.decode)(encoded.embeddings[:, 0]), "recon_frame0", rtol=WHOLE)


@checks("codebook.npz")
def check_codebook(case: Case) -> None:
    c = case.config
    names = {
        "project_in": "Dense_0/kernel",
        "quantizer.codebook": "codebook",
        "project_out": "Dense_1/kernel",
    }
    model = ProjectedQuantizer(c["n_codes"], c["proj_dim"], c["embedding_dim"], key=jax.random.key(0))
    model = fill(model, {ours: case.params[theirs] for ours, theirs in names.items()})

    @eqx.filter_value_and_grad(has_aux=True)
    def loss(model, z):
        embeddings, q = model(z)
        stop = jax.lax.stop_gradient
        commitment = 0.25 * jnp.mean(0.5 * jnp.square(q.latents - stop(q.rows)))
        codebook = jnp.mean(0.5 * jnp.square(stop(q.latents) - q.rows))
        total = jnp.mean(case.inputs["loss_w"] * embeddings) + commitment + codebook
        return total, (embeddings, q.codes, commitment, codebook)

    (total, (embeddings, codes, commitment, codebook)), grads = loss(model, jnp.asarray(case.inputs["z"]))
    np.testing.assert_array_equal(codes, case.outputs["encodings"])
    case.compare(embeddings, "embeddings", rtol=SINGLE)
    case.compare(commitment, "commitment_loss", rtol=SINGLE)
    case.compare(codebook, "codebook_loss", rtol=SINGLE)
    case.compare(perplexity(histogram(codes, c["n_codes"])), "perplexity", rtol=SINGLE)
    case.compare(model.lookup(codes), "lookup", rtol=SINGLE)
    assert_close(total, case.outputs["loss"], rtol=SINGLE, what="loss")
    case.compare_grads(
        {
            "Dense_0/kernel": grads.project_in,
            "codebook": grads.quantizer.codebook,
            "Dense_1/kernel": grads.project_out,
        },
        rtol=WHOLE,
    )
