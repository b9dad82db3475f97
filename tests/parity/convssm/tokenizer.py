"""The frozen VQ-GAN, and the KL-VAE."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.models.kl_vae import KLVAE
from slotzoo.models.vqgan import VQGAN
from slotzoo.weights.convert import convssm_vqgan
from slotzoo.weights.leaves import fill
from tests.parity.harness import Case, checks


WHOLE = 1e-4  # whole models
SINGLE = 1e-5  # single modules


def build(case: Case) -> VQGAN:
    """The case's VQ-GAN, every parameter of the case used once."""
    config = convssm_vqgan.config(case.config)
    abstract = eqx.filter_eval_shape(lambda: VQGAN(config, key=jax.random.key(0)))
    names = convssm_vqgan.leaves(abstract)
    assert set(names.values()) == {k for k in case.arrays if k.startswith(("param/", "stats/"))}
    return fill(abstract, {ours: case.arrays[theirs] for ours, theirs in names.items()})


@checks("vqgan*.npz", "native_ckpt/vqgan*")
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


@checks("klvae*.npz")
def check_kl_vae(case: Case) -> None:
    config = convssm_vqgan.kl_config(case.config)
    abstract = eqx.filter_eval_shape(lambda: KLVAE(config, key=jax.random.key(0)))
    names = convssm_vqgan.leaves(abstract)
    assert set(names.values()) == {k for k in case.arrays if k.startswith("param/")}
    model = fill(abstract, {ours: case.arrays[theirs] for ours, theirs in names.items()})
    video, noise = jnp.asarray(case.inputs["video"]), jnp.asarray(case.inputs["noise"])

    @jax.jit
    @jax.vmap
    @jax.vmap
    def run(image, noise):
        whole = model(image, noise=noise)
        mean = model.encode(image, "mean")
        stats, sample = model.encode(image, "stats"), model.encode(image, noise=noise)
        return mean, stats, sample, model.decode(mean), whole.reconstruction, model.decode(sample)

    mean, stats, sample, decoded, whole, from_sample = run(video, noise)
    case.compare(mean, "mean", rtol=WHOLE)
    case.compare(stats, "stats", rtol=WHOLE)
    case.compare(sample, "sample_default_rng", rtol=WHOLE)
    case.compare(decoded, "recon_mean", rtol=WHOLE)
    np.testing.assert_allclose(whole, from_sample, atol=1e-5)
