"""Training of an image tokenizer: reconstruction, perceptual and adversarial losses, and those of its latents.

The losses are those of the VQ-GAN (Esser et al., CVPR 2021), or of the KL-VAE (Rombach et al., CVPR 2022). Generator
and discriminator are one module with one scalar loss: `stop_gradient` keeps their two halves apart, so that one
optimiser step serves both.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped, UInt8

from slotzoo import losses
from slotzoo.errors import ConfigError, DataError, ShapeError
from slotzoo.metrics.lpips import LPIPS, load_lpips
from slotzoo.metrics.sums import sum_over_processes
from slotzoo.metrics.video import SSIM_WINDOW, ssim
from slotzoo.models.kl_vae import KLVAE, Gaussian, KLVAEOutput
from slotzoo.models.vqgan import VQGAN, Discriminator, VQGANConfig, VQGANOutput
from slotzoo.nn.quantize import histogram, perplexity, usage
from slotzoo.ops import batch_map
from slotzoo.tasks.held_out import write_table
from slotzoo.tasks.pixels import to_float
from slotzoo.viz import labelled_rows, write_png


# Distance of two images in [-1, 1]: LPIPS, or any module of the same signature.
Perceptual = Callable[[Float[Array, "h w 3"], Float[Array, "h w 3"]], Float[Array, ""]]
Tokenizer = VQGAN | KLVAE
MOST_FRAMES = 16384  # that a process keeps for the mean-frame baseline
LEAST_ERROR = 1e-10


@dataclasses.dataclass(frozen=True)
class TokenizerTaskConfig:
    """Weights of the terms. A term of weight 0 is not computed."""

    l1_weight: float = 1.0
    l2_weight: float = 0.0
    perceptual_weight: float = 1.0
    perceptual_net: Literal["vgg", "alex"] = "vgg"
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25  # times codebook_weight
    entropy_weight: float = 0.0  # sharp and evenly used codes
    entropy_temperature: float = 0.1
    unused_weight: float = 0.0  # draws unused codes to the latents
    kl_weight: float = (
        1e-6  # of a KL-VAE, per pixel value: the divergence of an image over its number of values
    )
    adversarial_weight: float = 0.8
    adversarial_start: int = 20000  # step from which the discriminator takes part
    adaptive: bool = True  # balance the adversarial gradient against the reconstruction's
    discriminator_width: int = 64
    discriminator_layers: int = 3
    pictures: int = 8  # held-out frames drawn at an evaluation

    def __post_init__(self):
        negative = [
            f.name for f in dataclasses.fields(self) if "weight" in f.name and getattr(self, f.name) < 0
        ]
        if negative:
            raise ConfigError(f"tokenizer: {negative[0]} must not be negative.")
        if self.l1_weight + self.l2_weight + self.perceptual_weight == 0:
            raise ConfigError("tokenizer: nothing asks for a faithful image; set l1_weight or l2_weight.")
        if self.entropy_temperature <= 0:
            raise ConfigError("tokenizer: entropy_temperature must be positive.")


class AdversarialTokenizer(eqx.Module):
    """What is trained: the tokenizer, and its adversary if the task has one."""

    generator: Tokenizer
    discriminator: Discriminator | None


class TokenizerTask:
    """The task of `slotzoo.train.protocols.Task` over batches of `video`, uint8 `batch time height width 3`.

    Every frame of a clip counts as one image. `frozen` is what `frozen()` returns: the perceptual network.
    """

    def __init__(self, config: TokenizerTaskConfig | None = None):
        self.config = config or TokenizerTaskConfig()

    def module(self, generator: Tokenizer, *, key: PRNGKeyArray) -> AdversarialTokenizer:
        """What the training state holds: `generator`, and a discriminator unless adversarial_weight is 0."""
        c = self.config
        if c.adversarial_weight == 0:
            return AdversarialTokenizer(generator, None)
        discriminator = Discriminator(
            generator.config.in_channels, c.discriminator_width, c.discriminator_layers, key=key
        )
        return AdversarialTokenizer(generator, discriminator)

    def frozen(self) -> LPIPS | None:
        """The network of the perceptual loss, or None at weight 0. Raises WeightsError where it is missing."""
        c = self.config
        return load_lpips(c.perceptual_net, precision="default") if c.perceptual_weight else None

    def export(self, model: AdversarialTokenizer) -> Tokenizer:
        """The tokenizer alone, for what is built on it."""
        return model.generator

    def loss(
        self,
        model: AdversarialTokenizer,
        frozen: Perceptual | None,
        batch: Mapping[str, Any],
        *,
        key: PRNGKeyArray,
        step: Int[Array, ""],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The generator's loss plus the discriminator's, and every term by name."""
        c = self.config
        images = to_float(flat_frames(batch["video"]))
        dtype = model.generator.encoder.conv_in.weight.dtype
        out = _coded(model.generator, images.astype(dtype), key)
        made = out.reconstruction.astype(jnp.float32)

        def unlikeness(made):
            return self._unlikeness(images, made, frozen)

        code_loss, terms = self._latent_losses(model.generator, out)
        terms["psnr"] = jnp.mean(psnr_of(_shown(made), (images + 1) / 2))
        if model.discriminator is None:
            value, parts = unlikeness(made)
            return value + code_loss, terms | parts

        active = (step >= c.adversarial_start).astype(jnp.float32)
        fixed = jax.lax.stop_gradient(made)
        critic = jax.lax.stop_gradient(model.discriminator)
        score = lambda critic, x: batch_map(critic)(x.astype(dtype))
        (value, parts), pull = jax.value_and_grad(unlikeness, has_aux=True)(fixed)
        adversarial, push = jax.value_and_grad(lambda x: losses.hinge_generator_loss(score(critic, x)))(fixed)
        weight = c.adversarial_weight * active
        if c.adaptive:
            weight = weight * _balance(model.generator, out.features, pull, push)
        # Both gradients with respect to the image are known by now: going on from their sum, the generator is
        # differentiated once, and the balance costs no backward pass of its own.
        generator = value + weight * adversarial
        generator = generator + _only_gradient(jnp.sum(made * (pull + weight * push)))
        discriminator = active * losses.hinge_discriminator_loss(
            score(model.discriminator, images), score(model.discriminator, fixed)
        )
        terms |= {"adversarial": adversarial, "adversarial_weight": weight, "discriminator": discriminator}
        return generator + code_loss + discriminator, terms | parts

    def _unlikeness(
        self, images: Float[Array, "n h w c"], made: Float[Array, "n h w c"], frozen: Perceptual | None
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """How far the made images are from the real ones, in pixels and perceptually."""
        c = self.config
        parts = {"l1": jnp.mean(jnp.abs(made - images)), "l2": jnp.mean(jnp.square(made - images))}
        value = c.l1_weight * parts["l1"] + c.l2_weight * parts["l2"]
        if c.perceptual_weight:
            if frozen is None:
                raise ConfigError("tokenizer: perceptual_weight is not 0, so pass `frozen=task.frozen()`.")
            rgb = lambda x: jnp.broadcast_to(x, (*x.shape[:-1], 3))
            parts["perceptual"] = jnp.mean(batch_map(frozen)(rgb(made), rgb(images)))
            value = value + c.perceptual_weight * parts["perceptual"]
        return value, parts

    def _latent_losses(
        self, generator: Tokenizer, out: VQGANOutput | KLVAEOutput
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """What the latents cost: nearness to the codes, or the divergence from a standard normal."""
        if isinstance(out, VQGANOutput):
            return self._code_losses(generator, out)
        kl = jnp.mean(jax.vmap(Gaussian.kl)(out.posterior))
        return self.config.kl_weight * kl / math.prod(out.reconstruction.shape[1:]), {"kl": kl}

    def _code_losses(
        self, generator: Tokenizer, out: VQGANOutput
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        assert isinstance(generator, VQGAN)
        c, q = self.config, out.quantized
        shares = histogram(q.codes, generator.config.n_embed)
        terms = {
            "codebook": losses.codebook_loss(q.latents, q.rows),
            "commitment": losses.commitment_loss(q.latents, q.rows),
            "perplexity": perplexity(shares),
            "usage": usage(shares),
        }
        value = c.codebook_weight * (terms["codebook"] + c.commitment_weight * terms["commitment"])
        if c.entropy_weight:
            terms["entropy"] = losses.code_entropy_loss(q.distances, temperature=c.entropy_temperature)
            value = value + c.entropy_weight * terms["entropy"]
        if c.unused_weight:
            terms["unused"] = losses.unused_code_loss(q.latents, q.distances, generator.codebook, shares)
            value = value + c.unused_weight * terms["unused"]
        return value, terms

    def evaluate(
        self,
        model: AdversarialTokenizer,
        frozen: Perceptual | None,
        batches: Iterable[Mapping[str, np.ndarray]],
        *,
        key: PRNGKeyArray,
        step: int,
        folder: Path,
        should_stop: Callable[[], bool],
    ) -> dict[str, float]:
        """PSNR, SSIM and L1 of held-out frames, perplexity and usage of their codes, and trivial baselines.

        Means over frames; PSNR in dB and SSIM of images in [0, 1], clipped first. `mean_frame` predicts the
        mean of the held-out frames themselves, `mean_colour` each frame's own mean colour. Writes
        `reconstructions.png` and `table.json` into `folder`.
        """
        del frozen, key, step
        sums: dict[str, np.ndarray] = {}
        frames, originals, made = [], [], []
        for batch in batches:
            if should_stop():
                break
            video = batch["video"]
            valid = np.asarray(batch.get("valid", np.ones(len(video), bool)))  # False: fills up the last batch
            values, images = _measure(model.generator, jnp.asarray(video), jnp.asarray(valid))
            for name, value in values.items():
                sums[name] = np.asarray(sums.get(name, 0) + np.asarray(value, np.float64))
            video = np.asarray(video)[valid]
            if len(made) < self.config.pictures:  # frames of one clip look alike: the first of each
                originals += list(video[:, 0])
                made += list(np.asarray(images)[valid])
            if sum(map(len, frames)) < MOST_FRAMES:
                frames.append(flat_frames(video))
        # Each process measured its own clips. A stopped one comes here too, so that none waits for another forever.
        sums = sum_over_processes(sums)
        guess = np.asarray(sums["pixels"] / sums["frames"] if sums else 0, np.float32)
        mean_frame = sum_over_processes(_mean_frame_scores(frames, guess))
        if should_stop():
            return {}
        if not sums:
            raise DataError("tokenizer: there is no held-out frame to evaluate on; raise eval.clips.")
        rows = _rows(sums, mean_frame)
        if made:
            count = self.config.pictures
            strip = {"original": np.stack(originals[:count]), "tokens": np.stack(made[:count])}
            write_png(folder / "reconstructions.png", labelled_rows(strip, value_range=(0.0, 1.0)))
        config = model.generator.config
        table = _table(rows, config.n_embed if isinstance(config, VQGANConfig) else None)
        write_table(folder, table)
        baselines = {f"{name}_psnr": rows[name]["psnr"] for name in ("mean_frame", "mean_colour")}
        return rows["tokenizer"] | baselines


def flat_frames(video: Shaped[Array | np.ndarray, "..."]) -> Any:
    """Clips `batch time height width channel` as images `batch*time height width channel`."""
    if video.ndim != 5:
        raise ShapeError(f"a video batch has the axes batch, time, height, width, channel; got {video.shape}.")
    return video.reshape(-1, *video.shape[2:])


def _shown(made: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Made images as they are shown: clipped, in [0, 1], float32."""
    return (jnp.clip(made.astype(jnp.float32), -1.0, 1.0) + 1) / 2


def psnr_of(made: Float[Array, "n h w c"], real: Float[Array, "n h w c"]) -> Float[Array, " n"]:
    """PSNR in dB of images in [0, 1]; the floor keeps that of a perfect one finite."""
    error = jnp.mean(jnp.square(made - real), axis=(1, 2, 3))
    return -10.0 * jnp.log10(jnp.maximum(error, LEAST_ERROR))


def _only_gradient(x: Float[Array, ""]) -> Float[Array, ""]:
    """Zero, with the gradient of `x`."""
    return x - jax.lax.stop_gradient(x)


def _balance(
    generator: Tokenizer,
    features: Float[Array, "n h w f"],
    pull: Float[Array, "n H W c"],
    push: Float[Array, "n H W c"],
) -> Float[Array, ""]:
    """`|d unlikeness / d last| / (|d adversarial / d last| + 1e-4)`, at most 1e4; `last`: the last kernel.

    Given are both gradients with respect to the image, so only the last convolution is differentiated.
    """
    decoder, features = jax.lax.stop_gradient((generator.decoder, features))

    def last(weight):
        head = eqx.tree_at(lambda d: d.conv_out.weight, decoder, weight)
        return batch_map(head.head)(features)

    made, back = jax.vjp(last, decoder.conv_out.weight)
    norm = lambda g: jnp.linalg.norm(back(g.astype(made.dtype))[0].astype(jnp.float32))
    return jax.lax.stop_gradient(jnp.clip(norm(pull) / (norm(push) + 1e-4), 0.0, 1e4))


@eqx.filter_jit
def _measure(
    generator: Tokenizer, video: UInt8[Array, "clip time h w c"], valid: Bool[Array, " clip"]
) -> tuple[dict[str, Float[Array, "..."]], Float[Array, "clip h w c"]]:
    """Sums over the frames of the valid clips, and the first made image of each clip, in [0, 1].

    One frame of every clip at a time: a whole batch of long clips would not fit into memory.
    """
    weight = valid.astype(jnp.float32)

    def one(frames):
        scores, codes, _ = _scores(generator, frames)
        sums = {name: jnp.sum(weight * score) for name, score in scores.items()}
        if codes is not None:
            sums["codes"] = weight @ codes
        sums["pixels"] = jnp.tensordot(weight, frames.astype(jnp.float32) / 255, 1)
        sums["frames"] = jnp.sum(weight)
        return sums

    each = jax.lax.map(one, jnp.moveaxis(video, 1, 0))
    return {name: jnp.sum(x, axis=0) for name, x in each.items()}, _scores(generator, video[:, 0])[2]


def _scores(
    generator: Tokenizer, frames: UInt8[Array, "n h w c"]
) -> tuple[dict[str, Float[Array, " n"]], Float[Array, "n codes"] | None, Float[Array, "n h w c"]]:
    """Scores of every frame, how often it uses each code (if there are codes), and what is made of it, in [0, 1]."""
    images = to_float(frames)
    out = _coded(generator, images, None)
    made = _shown(out.reconstruction)
    real = (images + 1) / 2
    colour = jnp.broadcast_to(real.mean((1, 2), keepdims=True), real.shape)
    scores = {"psnr": psnr_of(made, real), "l1": jnp.mean(jnp.abs(made - real), axis=(1, 2, 3))}
    if min(images.shape[1:3]) >= SSIM_WINDOW:
        scores["ssim"] = ssim(made, real)
    scores["mean_colour/psnr"] = psnr_of(colour, real)
    scores["mean_colour/l1"] = jnp.mean(jnp.abs(colour - real), axis=(1, 2, 3))
    if isinstance(out, KLVAEOutput):
        return scores | {"kl": jax.vmap(Gaussian.kl)(out.posterior)}, None, made
    assert isinstance(generator, VQGAN)
    chosen = jax.nn.one_hot(out.quantized.codes, generator.config.n_embed)
    return scores, chosen.sum((1, 2)), made


def _coded(
    generator: Tokenizer, images: Float[Array, "n h w c"], key: PRNGKeyArray | None
) -> VQGANOutput | KLVAEOutput:
    """Encode and decode. A KL-VAE draws its latents with `key`, or takes their means without."""
    if key is None or isinstance(generator, VQGAN):
        return batch_map(generator)(images)
    draw = lambda image, key: generator(image, key=key)
    return batch_map(draw)(images, jax.random.split(key, len(images)))


def _mean_frame_scores(
    frames: Sequence[UInt8[np.ndarray, "_ h w c"]], guess: Float[np.ndarray, "..."]
) -> dict[str, np.ndarray]:
    """Sums of the scores of predicting `guess` for every frame."""
    sums = dict.fromkeys(("psnr", "l1", "frames"), np.float64(0))
    for part in frames:
        real = part.astype(np.float32) / 255
        error = np.square(real - guess).mean((1, 2, 3))
        sums["psnr"] += np.sum(-10 * np.log10(np.maximum(error, LEAST_ERROR)))
        sums["l1"] += np.abs(real - guess).mean((1, 2, 3)).sum()
        sums["frames"] += len(part)
    return {name: np.asarray(value) for name, value in sums.items()}


def _rows(sums: Mapping[str, np.ndarray], mean_frame: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Means over frames, by row of the table."""
    mean = {k: float(v / sums["frames"]) for k, v in sums.items() if np.ndim(v) == 0 and k != "frames"}
    codes = {}
    if "codes" in sums:
        used = jnp.asarray(sums["codes"] / sums["codes"].sum(), jnp.float32)
        codes = {"perplexity": float(perplexity(used)), "usage": float(usage(used))}
    prefix = "mean_colour/"
    return {
        "tokenizer": {k: v for k, v in mean.items() if not k.startswith(prefix)} | codes,
        "mean_frame": {k: float(mean_frame[k] / mean_frame["frames"]) for k in ("psnr", "l1")},
        "mean_colour": {k.removeprefix(prefix): v for k, v in mean.items() if k.startswith(prefix)},
    }


def _table(rows: Mapping[str, Mapping[str, float]], codes: int | None) -> dict[str, Any]:
    """What the report draws."""
    labels = {"psnr": "PSNR", "ssim": "SSIM", "l1": "L1", "perplexity": "perplexity", "usage": "codes in use"}
    labels["kl"] = "KL"
    last = f"Perplexity and use of the {codes} codes are those of all frames together."
    columns = {key: label for key, label in labels.items() if any(key in row for row in rows.values())}
    return {
        "title": "Reconstruction of held-out frames",
        "columns": list(columns.values()),
        "better": {label: "lower" if key in ("l1", "kl") else "higher" for key, label in columns.items()},
        "rows": [
            {"name": name} | {label: row.get(key) for key, label in columns.items()}
            for name, row in rows.items()
        ],
        "notes": [
            "PSNR in dB per frame; L1 of images in [0, 1].",
            "mean_frame predicts the mean of these very frames, mean_colour each frame's own mean colour.",
            "KL: divergence of a frame's latents from a standard normal, in nats." if codes is None else last,
        ],
    }
