"""Sizes and schedules of GNM."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slotzoo.errors import ConfigError
from slotzoo.nn.celu_stacks import Stage


# (value at first, value at last, first step, last step); a last step of 0 means the first value, always.
Schedule = tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class GNMConfig:
    """GNM as published for 128 x 128 images (ARROW, CLEVR). Lists give one entry per layer, input to output.

    The groups of the norms are all 1 unless a checkpoint says otherwise. Schedules are `(first value, last
    value, first step, last step)`: linear between the steps, constant outside; a last step of 0 keeps the first.
    """

    resolution: int = 128  # side of an image in pixels
    in_channels: int = 3
    cells: int = 4  # along one side; each may hold one object
    overlap: bool = True  # opaque objects, the nearer before the farther; else strokes that add up
    background: bool = True  # a modelled background; else black

    draws: int = 4  # of the global latent
    global_dim: int = 32
    what_dim: int = 64
    background_dim: int = 10
    features: int = 128  # channels of the cells' features

    encoder_filters: tuple[int, ...] = (16, 16, 32, 32, 64, 64, 128, 128, 128)
    encoder_kernels: tuple[int, ...] = (4, 3, 4, 3, 4, 3, 4, 3, 4)
    encoder_strides: tuple[int, ...] = (2, 1, 2, 1, 2, 1, 2, 1, 2)
    encoder_groups: tuple[int, ...] = (1, 1, 1, 1, 1, 1, 1, 1, 1)
    what_filters: tuple[int, ...] = (128, 64, 32, 16, 8)  # of all layers but the last, which makes the glimpse
    what_kernels: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    what_upscales: tuple[int, ...] = (2, 2, 2, 2, 2, 2)
    what_groups: tuple[int, ...] = (1, 1, 1, 1, 1)
    background_filters: tuple[int, ...] = (128, 64, 32, 16, 8)
    background_kernels: tuple[int, ...] = (1, 1, 1, 1, 1, 3)
    background_upscales: tuple[int, ...] = (4, 2, 4, 2, 2, 1)
    background_groups: tuple[int, ...] = (1, 1, 1, 1, 1)
    head_filters: tuple[int, ...] = (128, 128)
    head_kernels: tuple[int, ...] = (1, 1)
    head_groups: tuple[int, ...] = (1, 1)
    encoder_hidden: int = 128  # of the convolutional LSTMs
    decoder_hidden: int = 128
    cell_kernel: int = 1
    residual_kernel: int = 3
    posterior_widths: tuple[int, ...] = (512, 512)  # hidden layers, here and below
    prior_widths: tuple[int, ...] = (512, 512)
    global_decoder_widths: tuple[int, ...] = (512, 1024)
    background_widths: tuple[int, ...] = (512, 256)
    background_prior_widths: tuple[int, ...] = (128, 64)

    sigma: float = 0.2  # standard deviation of a pixel, in units of its range
    presence_scale: float = 8.8  # largest log-odds of presence
    scale_mean: float = -1.5  # fixed priors of a box: log-odds of its scale, log of its ratio, shift
    scale_std: float = 0.1
    ratio_mean: float = 0.0
    ratio_std: float = 0.3
    shift_std: float = 1.0
    presence_kl: Literal["logits", "probabilities"] = "logits"  # "probabilities": the authors' rounding

    temperature: Schedule = (1.0, 0.5, 1000.0, 20_000.0)  # of the relaxed presence
    presence_prior: Schedule = (0.1, 0.001, 0.0, 4000.0)  # its fixed prior
    beta_presence: Schedule = (1.0, 0.0, 0.0, 0.0)
    beta_where: Schedule = (1.0, 0.0, 0.0, 0.0)
    beta_what: Schedule = (1.0, 0.0, 0.0, 0.0)
    beta_depth: Schedule = (1.0, 0.0, 0.0, 0.0)
    beta_background: Schedule = (1.0, 0.0, 0.0, 0.0)
    beta_global: Schedule = (0.0, 1.0, 0.0, 100_000.0)
    beta_aux_presence: Schedule = (1.0, 0.0, 0.0, 0.0)
    beta_aux_where: Schedule = (10.0, 1.0, 0.0, 500.0)
    beta_aux_what: Schedule = (1.0, 0.0, 0.0, 0.0)
    beta_aux_depth: Schedule = (1.0, 0.0, 0.0, 0.0)
    beta_aux_background: Schedule = (50.0, 1.0, 0.0, 50_000.0)
    curriculum_steps: tuple[int, ...] = (
        0,
        500,
    )  # strictly between these `curriculum_alpha` holds; () for never
    curriculum_alpha: float = 0.9

    @property
    def low(self) -> float:
        """The least value of a pixel."""
        return 0.0

    @property
    def high(self) -> float:
        """The greatest value of a pixel."""
        return 1.0

    @property
    def opacity(self) -> bool:
        """Whether a glimpse has a mask of its own; one of a grey image, or that adds up, is a rectangle."""
        return self.overlap and self.in_channels > 1

    @property
    def glimpse(self) -> int:
        """Side of a glimpse in pixels."""
        return math.prod(self.what_upscales)

    def encoder_stages(self) -> tuple[Stage, ...]:
        """The layers of the image encoder."""
        ones = (1,) * len(self.encoder_filters)
        return _stages(
            "encoder",
            self.encoder_filters,
            self.encoder_kernels,
            self.encoder_strides,
            ones,
            self.encoder_groups,
        )

    def what_stages(self) -> tuple[Stage, ...]:
        """The layers of the glimpse decoder, the last of which is bare."""
        filters = (*self.what_filters, self.in_channels + self.opacity)
        ones = (1,) * len(filters)
        return _stages("what", filters, self.what_kernels, ones, self.what_upscales, (*self.what_groups, 1))

    def background_stages(self) -> tuple[Stage, ...]:
        """The layers of the background decoder, the last of which is bare."""
        filters = (*self.background_filters, self.in_channels)
        ones = (1,) * len(filters)
        groups = (*self.background_groups, 1)
        return _stages("background", filters, self.background_kernels, ones, self.background_upscales, groups)

    def head_stages(self) -> tuple[Stage, ...]:
        """The layers between cell features and the parameters of their distributions."""
        ones = (1,) * len(self.head_filters)
        return _stages("head", self.head_filters, self.head_kernels, ones, ones, self.head_groups)


def annealed(schedule: Schedule, step: Int[Array, ""]) -> Float[Array, ""]:
    """The value of a schedule at a step: linear from the first to the last step, constant outside."""
    start, end, first, last = schedule
    if last == 0:
        return jnp.full((), start)
    at = step.astype(jnp.float32)
    between = start + (end - start) * ((at - first) / (last - first))
    return jnp.where(at <= first, start, jnp.where(at >= last, end, between))


def check(c: GNMConfig) -> None:
    """**Raises** `ConfigError` for sizes that do not fit each other."""
    size = c.resolution
    for stage in c.encoder_stages():
        pad = (stage.kernel - 1) // 2 if stage.stride else 0
        size = (size + 2 * pad - stage.kernel) // max(stage.stride, 1) + 1
        if size < 1:
            break
    if size != c.cells:
        raise ConfigError(
            f"GNM: the encoder turns an image of resolution={c.resolution} into a map of {size} pixels a side, "
            f"but cells={c.cells}: change encoder_strides, resolution or cells."
        )
    if c.encoder_filters[-1] != c.features:
        raise ConfigError(
            f"GNM: the encoder ends with {c.encoder_filters[-1]} filters but features={c.features}."
        )
    for stages in (c.what_stages, c.head_stages):
        stages()  # raises for lists of different lengths
    if c.background:
        made = math.prod(stage.upscale for stage in c.background_stages())
        if made != c.resolution:
            raise ConfigError(
                f"GNM: background_upscales={c.background_upscales} make an image of {made} pixels a side, "
                f"but resolution={c.resolution}."
            )
    for field in dataclasses.fields(c):
        if field.type is Schedule and len(getattr(c, field.name)) != 4:
            raise ConfigError(
                f"GNM: {field.name} wants (first value, last value, first step, last step), "
                f"got {getattr(c, field.name)}."
            )
        first, last = getattr(c, field.name)[2:] if field.type is Schedule else (0, 0)
        if last and last <= first:
            raise ConfigError(f"GNM: {field.name} ends at step {last}, before its first step {first}.")
    if len(c.curriculum_steps) not in (0, 2):
        raise ConfigError(f"GNM: curriculum_steps wants (first, last) or (), got {c.curriculum_steps}.")
    if c.sigma <= 0:
        raise ConfigError(f"GNM: sigma={c.sigma} must be positive.")


def _stages(
    what: str,
    filters: Sequence[int],
    kernels: Sequence[int],
    strides: Sequence[int],
    upscales: Sequence[int],
    groups: Sequence[int],
) -> tuple[Stage, ...]:
    sizes = {len(filters), len(kernels), len(strides), len(upscales), len(groups)}
    if len(sizes) > 1 or not filters:
        raise ConfigError(
            f"GNM: {what}_filters, kernels, strides, upscales and groups need one entry per layer; got "
            f"{len(filters)}, {len(kernels)}, {len(strides)}, {len(upscales)} and {len(groups)}."
        )
    for width, group in zip(filters, groups, strict=True):
        if group < 1 or width % group:
            raise ConfigError(f"GNM: {width} {what}_filters cannot be split into groups={group}.")
    return tuple(Stage(*each) for each in zip(filters, kernels, strides, upscales, groups, strict=True))
