"""Training of a discrete image tokenizer: reconstruction, perceptual, adversarial and codebook losses.

The losses are those of the VQ-GAN (Esser et al., CVPR 2021). Generator and discriminator are one module with
one scalar loss: `stop_gradient` keeps their two halves apart, so that one optimiser step serves both.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped, UInt8

from slotzoo import losses
from slotzoo.errors import ConfigError, DataError, ShapeError
from slotzoo.metrics.lpips import LPIPS, load_lpips
from slotzoo.metrics.video import ssim
from slotzoo.models.vqgan import VQGAN, Discriminator, VQGANOutput
from slotzoo.nn.quantize import histogram, perplexity, usage
from slotzoo.ops import batch_map
from slotzoo.viz import labelled_rows, write_png


# Distance of two images in [-1, 1]: LPIPS, or any module of the same signature.
Perceptual = Callable[[Float[Array, "h w 3"], Float[Array, "h w 3"]], Float[Array, ""]]
MOST_FRAMES = 16384  # of the evaluation that are kept for the mean-frame baseline


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

    generator: VQGAN
    discriminator: Discriminator | None


class TokenizerTask:
    """The task of `slotzoo.train.protocols.Task` over batches of `video`, uint8 `batch time height width 3`.

    Every frame of a clip counts as one image. `frozen` is what `frozen()` returns: the perceptual network.
    """

    def __init__(self, config: TokenizerTaskConfig | None = None):
        self.config = config or TokenizerTaskConfig()

    def module(self, generator: VQGAN, *, key: PRNGKeyArray) -> AdversarialTokenizer:
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

    def export(self, model: AdversarialTokenizer) -> VQGAN:
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
        del key  # nothing here is random
        c = self.config
        images = to_images(flat_frames(batch["video"]))
        dtype = model.generator.encoder.conv_in.weight.dtype
        out: VQGANOutput = batch_map(model.generator)(images.astype(dtype))
        made = out.reconstruction.astype(jnp.float32)

        def unlikeness(made):
            return self._unlikeness(images, made, frozen)

        code_loss, terms = self._code_losses(model.generator, out)
        terms["psnr"] = jnp.mean(_psnr(images, made))
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

    def _code_losses(
        self, generator: VQGAN, out: VQGANOutput
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
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
        scores, frames, made, counts, clip = [], [], [], [], 1
        for batch in batches:
            if should_stop():
                return {}
            clip = batch["video"].shape[1]
            pixels = np.asarray(flat_frames(batch["video"]))
            part, images, shares = _reconstruct(model.generator, pixels)
            scores.append({name: np.asarray(x) for name, x in part.items()})
            counts.append(np.asarray(shares) * len(pixels))
            if len(made) < self.config.pictures:
                made += list(np.asarray(images)[::clip])  # frames of one clip look alike: the first of each
            frames.append(pixels)
        if not frames:
            raise DataError("tokenizer: there is no held-out frame to evaluate on; raise eval.clips.")
        mean = {name: float(np.mean(np.concatenate([s[name] for s in scores]))) for name in scores[0]}
        used = jnp.asarray(np.sum(counts, axis=0) / sum(len(part) for part in frames))
        result = mean | {"perplexity": float(perplexity(used)), "usage": float(usage(used))}
        rows = {
            "original": np.stack([f for part in frames for f in part[::clip]][: self.config.pictures]),
            "tokens": np.stack(made[: self.config.pictures]),
        }
        write_png(folder / "reconstructions.png", labelled_rows(rows, value_range=(0.0, 1.0)))
        baselines = _baselines(np.concatenate(frames)[:MOST_FRAMES])
        table = _table({"tokenizer": result} | baselines, model.generator.config.n_embed)
        (folder / "table.json").write_text(json.dumps(table, indent=1) + "\n")
        return result | {f"{name}_psnr": row["psnr"] for name, row in baselines.items()}


def flat_frames(video: Shaped[Array | np.ndarray, "..."]) -> Any:
    """Clips `batch time height width channel` as images `batch*time height width channel`."""
    if video.ndim != 5:
        raise ShapeError(f"a video batch has the axes batch, time, height, width, channel; got {video.shape}.")
    return video.reshape(-1, *video.shape[2:])


def to_images(frames: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """uint8 pixels as float32 in [-1, 1]."""
    return frames.astype(jnp.float32) / 127.5 - 1.0


def _psnr(images: Float[Array, "n h w c"], made: Float[Array, "n h w c"]) -> Float[Array, " n"]:
    """In dB, of images in [-1, 1]; the floor keeps a perfect image finite."""
    error = jnp.mean(jnp.square((jnp.clip(made, -1.0, 1.0) - images) / 2), axis=(1, 2, 3))
    return -10.0 * jnp.log10(jnp.maximum(error, 1e-10))


def _only_gradient(x: Float[Array, ""]) -> Float[Array, ""]:
    """Zero, with the gradient of `x`."""
    return x - jax.lax.stop_gradient(x)


def _balance(
    generator: VQGAN,
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
def _reconstruct(
    generator: VQGAN, frames: UInt8[Array | np.ndarray, "n h w c"]
) -> tuple[dict[str, Float[Array, " n"]], Float[Array, "n h w c"], Float[Array, " codes"]]:
    """Scores of every frame, the made images in [0, 1], and how often each code was used."""
    images = to_images(jnp.asarray(frames))
    out: VQGANOutput = batch_map(generator)(images)
    made = (jnp.clip(out.reconstruction.astype(jnp.float32), -1.0, 1.0) + 1) / 2
    real = (images + 1) / 2
    scores = {"psnr": _psnr(images, out.reconstruction), "l1": jnp.mean(jnp.abs(made - real), axis=(1, 2, 3))}
    if min(images.shape[1:3]) >= 11:  # SSIM's window
        scores["ssim"] = ssim(made, real)
    return scores, made, histogram(out.quantized.codes, generator.config.n_embed)


def _baselines(frames: UInt8[np.ndarray, "n h w c"]) -> dict[str, dict[str, float]]:
    """Scores of two predictions that need no model."""
    real = frames.astype(np.float32) / 255
    guesses = {"mean_frame": real.mean(0, keepdims=True), "mean_colour": real.mean((1, 2), keepdims=True)}
    rows = {}
    for name, guess in guesses.items():
        error = np.square(real - guess).mean((1, 2, 3))
        rows[name] = {
            "psnr": float(np.mean(-10 * np.log10(np.maximum(error, 1e-10)))),
            "l1": float(np.abs(real - guess).mean()),
        }
    return rows


def _table(rows: Mapping[str, Mapping[str, float]], codes: int) -> dict[str, Any]:
    """What the report draws."""
    labels = {"psnr": "PSNR", "ssim": "SSIM", "l1": "L1", "perplexity": "perplexity", "usage": "codes in use"}
    columns = {key: label for key, label in labels.items() if any(key in row for row in rows.values())}
    return {
        "title": "Reconstruction of held-out frames",
        "columns": list(columns.values()),
        "better": {label: "lower" if key == "l1" else "higher" for key, label in columns.items()},
        "rows": [
            {"name": name} | {label: row.get(key) for key, label in columns.items()}
            for name, row in rows.items()
        ],
        "notes": [
            "PSNR in dB per frame; L1 of images in [0, 1].",
            "mean_frame predicts the mean of these very frames, mean_colour each frame's own mean colour.",
            f"Perplexity and use of the {codes} codes are those of all frames together.",
        ],
    }
