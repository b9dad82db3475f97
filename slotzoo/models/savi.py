"""SAVi (Kipf et al., ICLR 2022) and SAVi++ (Elsayed et al., NeurIPS 2022): slots that follow objects through a video.

An encoder makes tokens of every frame; from frame to frame slots are corrected by slot attention over the tokens,
then predicted for the next frame; a spatial broadcast decoder reads optical flow (depth, colours) off the slots. In the
first frame the slots are told where the objects are (boxes, centres or segments), or find them by themselves.

All frames are encoded at once and decoded at once; what runs frame by frame is the recurrence alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from slotzoo.errors import ConfigError, DataError, ShapeError, nearest
from slotzoo.losses import reconstruction_loss
from slotzoo.models.checks import explained
from slotzoo.models.objects import TrackOutput
from slotzoo.nn.conv_stack import ConvStack
from slotzoo.nn.frame_encoder import FrameEncoder
from slotzoo.nn.image_resnet import ImageResNet, NormKind
from slotzoo.nn.predictor import AbstractPredictor, SlotPredictor
from slotzoo.nn.slot_attention import SlotAttention
from slotzoo.nn.slot_init import (
    CoordinateSlots,
    GaussianSlots,
    LearnedSlots,
    SegmentSlots,
    box_centers,
    reduced,
)
from slotzoo.nn.slot_transformer import SlotTransformer
from slotzoo.nn.track_decoder import TrackDecoder


CHANNELS = {"flow": 3, "depth": 1, "rgb": 3}
# Boxes or centres (object, coordinate), or a label map (height, width): `init_state` says what it wants.
Conditions = Float[Array, "..."] | Int[Array, "..."]


@dataclasses.dataclass(frozen=True)
class SAViConfig:
    """Sizes of SAVi-S, on 64 x 64 pixels with values in [0, 1]."""

    height: int = 64
    width: int = 64
    in_channels: int = 3
    num_slots: int = 24  # with the background's; with boxes and centres any other number works as well
    slot_dim: int = 128
    conditioning: Literal["boxes", "centers", "segmentation"] | None = "boxes"
    init: Literal["learned", "gaussian", "gaussian_learned"] = "learned"  # where there is no conditioning
    init_width: int = 256  # hidden size of the perceptron on boxes, centres or segments
    background: float | None = 0.0  # coordinates of the background's slot; None for no such slot
    segment_widths: tuple[int, ...] = (32, 32, 32)  # convolutions over the segments of the first frame
    segment_strides: tuple[int, ...] = (2, 2, 2)
    zero_background: bool = False  # show nothing of the background's segment
    # The encoder: convolutions, or a ResNet where resnet names its units per stage (34 layers: 3, 4, 6, 3).
    encoder_widths: tuple[int, ...] = (32, 32, 32, 32)
    encoder_strides: tuple[int, ...] = (1, 1, 1, 1)
    resnet: tuple[int, ...] = ()
    resnet_width: int = 64
    resnet_norm: NormKind = "group"  # batch: by its running statistics, which are not trained
    kernel: int = 5
    position_width: int = 64
    encoder_layers: int = 0  # of the transformer over tokens (SAVi++)
    encoder_heads: int = 4
    encoder_dim: int = 64
    encoder_mlp: int = 1024
    iterations: int = 1
    corrector_qkv: int = 128
    corrector_heads: int = 1
    corrector_mlp: int | None = None
    predictor_heads: int = 4
    predictor_qkv: int = 128
    predictor_mlp: int = 256
    predictor_pre_norm: bool = False
    decoder_grid: int = 8  # rows that a slot is repeated over; columns by the frame's shape
    decoder_widths: tuple[int, ...] = (64, 64, 64, 64)
    decoder_strides: tuple[int, ...] = (2, 2, 2, 1)
    targets: tuple[str, ...] = ("flow",)  # flow (as a colour), depth (log(1 + d)), rgb
    reduction: Literal["sum", "mean"] = "sum"  # of squared errors over a clip; the authors' is the sum
    # With boxes or centres: how many slots are painted, the background's among them. Those of objects that no clip has
    # begin and stay as copies of the background's, and are given its picture: the same outputs for less work.
    painted: int | None = None
    remat: bool = False  # decode frame by frame, and again for the gradient: far less memory

    @property
    def low(self) -> float:
        """The value of a black pixel."""
        return 0.0

    @property
    def high(self) -> float:
        """The value of a white pixel."""
        return 1.0


class TrackState(NamedTuple):
    """What is carried from frame to frame."""

    slots: Float[Array, "slot dim"]  # that the next frame starts from
    memory: Any  # of the predictor


class Tracked(NamedTuple):
    """The recurrence of a clip, before anything is decoded."""

    corrected: Float[Array, "time slot dim"]  # after each frame was seen
    predicted: Float[Array, "time slot dim"]  # for the frame after it
    attention: Float[Array, "time slot token"]
    state: TrackState


class SAVi(eqx.Module):
    """`slots_t = correct(tokens_t, predicted_{t-1})`, `predicted_t = predict(slots_t)`, targets_t = decode(slots_t).

    Takes one clip of any length, with values in [0, 1]; `state` of an output carries on where the clip ended, so a clip
    in parts equals the clip at once. `step` takes a single frame.
    """

    encoder: FrameEncoder
    initializer: LearnedSlots | GaussianSlots | CoordinateSlots | SegmentSlots
    corrector: SlotAttention
    predictor: AbstractPredictor
    decoder: TrackDecoder
    config: SAViConfig = eqx.field(static=True)

    def __init__(self, config: SAViConfig, *, predictor: AbstractPredictor | None = None, key: PRNGKeyArray):
        """`predictor` stands in for the configuration's transformer block (STATM)."""
        _check(config)
        encoder_key, init_key, corrector_key, predictor_key, decoder_key = jax.random.split(key, 5)
        c = config
        self.encoder = _encoder(c, encoder_key)
        self.initializer = _initializer(c, init_key)
        self.corrector = SlotAttention(
            self.encoder.out_channels,
            c.slot_dim,
            mlp_dim=c.corrector_mlp,
            qkv_dim=c.corrector_qkv,
            heads=c.corrector_heads,
            init="given",
            style="flax",
            key=corrector_key,
        )
        self.predictor = predictor or SlotPredictor(
            c.slot_dim,
            qkv_dim=c.predictor_qkv,
            mlp_dim=c.predictor_mlp,
            heads=c.predictor_heads,
            pre_norm=c.predictor_pre_norm,
            key=predictor_key,
        )
        self.decoder = TrackDecoder(
            c.slot_dim,
            {name: CHANNELS[name] for name in c.targets},
            grid=_decoder_grid(c),
            widths=c.decoder_widths,
            strides=c.decoder_strides,
            kernel=c.kernel,
            key=decoder_key,
        )
        self.config = config

    def draw(self, key: PRNGKeyArray) -> Float[Array, "slot dim"] | None:
        """The random numbers of one clip, standard normal; None where slots begin without."""
        return self.initializer.draw(key) if isinstance(self.initializer, GaussianSlots) else None

    def conditions(self, batch: Mapping[str, Array]) -> Conditions | None:
        """What the slots are told of the first frame, out of the fields of one clip: `boxes` (time object 4) or
        `centers` (time object 2), both from 0 to 1, or `mask` (time height width, 0 the background).
        """
        kind = self.config.conditioning
        if kind is None:
            return None
        if kind == "centers" and "centers" not in batch and "boxes" in batch:
            return box_centers(batch["boxes"][0])
        field = "mask" if kind == "segmentation" else kind
        if field not in batch:
            raise DataError(
                f"SAVi: conditioning={kind!r} needs the field '{field}' of the first frame, and the data set has only "
                f"{', '.join(sorted(batch))}; choose another conditioning, or none."
            )
        first = batch[field][0]
        return first.astype(jnp.int32) if kind == "segmentation" else first

    def init_state(
        self,
        conditions: Conditions | None = None,
        *,
        draws: Float[Array, "slot dim"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> TrackState:
        """The state before the first frame. `conditions`: boxes `(y_low, x_low, y_high, x_high)` or centres of the
        objects of the first frame from 0 to 1, zeros for absent ones; or its label map. Noise, where slots are drawn,
        comes from `draws` or `key`. Where an object has one of the slots that are not `painted`, all slots are NaN
        under `jit`; otherwise that **raises** DataError.
        """
        kind, first = self.config.conditioning, self.initializer
        if (conditions is None) != (kind is None):
            wanted = "nothing" if kind is None else kind
            raise ConfigError(
                f"SAVi was built to be told {wanted} of the first frame, and got "
                f"{'nothing' if conditions is None else 'conditions'}; build it with another conditioning."
            )
        match first:
            case LearnedSlots():
                slots = first()
            case GaussianSlots():
                if draws is None:
                    if key is None:
                        raise ConfigError("SAVi: slots are drawn at random; give a key, or the noise as draws.")
                    draws = first.draw(key)
                slots = first(draws)
            case CoordinateSlots():
                assert conditions is not None
                if conditions.ndim != 2 or not jnp.issubdtype(conditions.dtype, jnp.floating):
                    raise ShapeError(
                        f"SAVi was built for {kind} of one frame, (object, {first.coordinates}) floats from 0 to 1; "
                        f"got {conditions.dtype} {tuple(conditions.shape)}."
                    )
                slots = first(conditions)
                if self.config.painted is not None:
                    unseen = jnp.any(conditions[self.config.painted - 1 :] != 0)
                    if not isinstance(unseen, Tracer) and unseen:
                        raise DataError(
                            f"SAVi: {len(conditions)} objects are told, and with painted={self.config.painted} only "
                            f"the first {self.config.painted - 1} are painted; make it larger or leave it out."
                        )
                    slots = jnp.where(unseen, jnp.nan, slots)
            case SegmentSlots():
                assert conditions is not None
                wanted = (self.config.height, self.config.width)
                if tuple(conditions.shape) != wanted or not jnp.issubdtype(conditions.dtype, jnp.integer):
                    raise ShapeError(
                        f"SAVi was built for an integer label map of shape {wanted} as conditions; got "
                        f"{conditions.dtype} {tuple(conditions.shape)}."
                    )
                slots = first(conditions)
        # The recurrence is float32 under every precision.
        return TrackState(slots.astype(jnp.float32), self.predictor.init_memory(len(slots)))

    @explained(video="time {height} {width} {in_channels}")
    def track(
        self,
        video: Float[Array, "time height width channel"],
        conditions: Conditions | None = None,
        *,
        state: TrackState | None = None,
        draws: Float[Array, "slot dim"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Tracked:
        """The slots of every frame. With a `state` the clip goes on from it, and conditions are not looked at."""
        if state is None:
            state = self.init_state(conditions, draws=draws, key=key)
        elif not self.predictor.carried:
            state = TrackState(state.slots, self.predictor.init_memory(len(state.slots)))
        tokens = self.corrector.project(self.encoder(video))

        def frame(state, tokens):
            slots, query = self.corrector.refine(tokens, state.slots, iterations=self.config.iterations)
            predicted, memory = self.predictor(slots, state.memory)
            return TrackState(predicted, memory), (slots, predicted, query)

        state, (corrected, predicted, queries) = jax.lax.scan(frame, state, tokens)
        attention = jax.vmap(self.corrector.attention)(queries.astype(tokens.key.dtype), tokens.key)
        return Tracked(corrected, predicted, attention, state)

    @explained(video="time {height} {width} {in_channels}")
    def __call__(
        self,
        video: Float[Array, "time height width channel"],
        conditions: Conditions | None = None,
        *,
        state: TrackState | None = None,
        draws: Float[Array, "slot dim"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> TrackOutput:
        """Take a clip apart, as `track` and `decode`."""
        found = self.track(video, conditions, state=state, draws=draws, key=key)
        predictions, masks = self.decode(found.corrected)
        return TrackOutput(found.corrected, masks, predictions, found.attention, found.state)

    @explained(frame="{height} {width} {in_channels}")
    def step(
        self, frame: Float[Array, "height width channel"], state: TrackState
    ) -> tuple[TrackOutput, TrackState]:
        """One frame: the output of a call without its `time` axis, and the state to go on with."""
        out = self(frame[None], state=state)
        return out.first(), out.state

    def decode(
        self, slots: Float[Array, "time slot dim"]
    ) -> tuple[dict[str, Float[Array, "time height width channel"]], Float[Array, "time slot height width"]]:
        """Targets and masks of slots, corrected or predicted ones."""
        slots = slots.astype(self.decoder.alpha.weight.dtype)
        one = lambda x: self.decoder(x, self.config.painted)
        return jax.lax.map(jax.checkpoint(one), slots) if self.config.remat else jax.vmap(one)(slots)

    def imagine(self, state: TrackState, frames: int) -> Float[Array, "{frames} slot dim"]:
        """The slots of `frames` frames that nobody has seen: `state.slots`, and what is predicted of each other."""

        def unseen(state, _):
            predicted, memory = self.predictor(state.slots, state.memory)
            return TrackState(predicted, memory), state.slots

        return jax.lax.scan(unseen, state, None, length=frames)[1]

    def loss(
        self,
        batch: Mapping[str, Array],
        *,
        draws: Float[Array, "slot dim"] | None = None,
        key: PRNGKeyArray | None = None,
        step: Int[Array, ""] | int | None = None,
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The squared errors of all targets of one clip, summed over the clip (with reduction="mean": summed over
        channels, mean over time and space), and each target's.

        `batch` holds `video` with values in [0, 1], the targets by name (`rgb` is the video if not there), and what
        `conditions` wants.
        """
        del step
        out = self(batch["video"], self.conditions(batch), draws=draws, key=key)
        terms = {}
        for name in self.config.targets:
            target = batch["video"] if name == "rgb" and "rgb" not in batch else batch.get(name)
            if target is None:
                raise DataError(
                    f"SAVi: the target '{name}' is not among the fields of the data set: "
                    f"{', '.join(sorted(batch))}; choose other model.targets."
                )
            made = out.predictions[name]
            if made.shape != target.shape:
                raise ShapeError(f"SAVi: the target '{name}' should be {made.shape}, and is {target.shape}.")
            terms[name] = reconstruction_loss(made, target, reduction=self.config.reduction)
        return jnp.sum(jnp.stack(list(terms.values()))), terms


def _encoder(c: SAViConfig, key: PRNGKeyArray) -> FrameEncoder:
    backbone_key, transformer_key, key = jax.random.split(key, 3)
    size = (c.height, c.width)
    if c.resnet:
        grid = reduced(size, (2,) * (len(c.resnet) - 1))
        backbone = ImageResNet(
            c.in_channels,
            blocks=c.resnet,
            width=c.resnet_width,
            norm=c.resnet_norm,
            remat=c.remat,
            key=backbone_key,
        )
    else:
        grid = reduced(size, c.encoder_strides)
        backbone = ConvStack(
            c.in_channels, c.encoder_widths, kernel=c.kernel, strides=c.encoder_strides, key=backbone_key
        )
    transformer = None
    if c.encoder_layers:
        transformer = SlotTransformer(
            c.encoder_dim,
            layers=c.encoder_layers,
            qkv_dim=c.encoder_dim,
            mlp_dim=c.encoder_mlp,
            heads=c.encoder_heads,
            remat=c.remat,
            key=transformer_key,
        )
    return FrameEncoder(backbone, grid=grid, position_width=c.position_width, transformer=transformer, key=key)


def _initializer(
    c: SAViConfig, key: PRNGKeyArray
) -> LearnedSlots | GaussianSlots | CoordinateSlots | SegmentSlots:
    if c.conditioning is None:
        if c.init == "learned":
            return LearnedSlots(c.num_slots, c.slot_dim, key=key)
        return GaussianSlots(c.num_slots, c.slot_dim, learned=c.init == "gaussian_learned", key=key)
    if c.conditioning == "segmentation":
        return SegmentSlots(
            c.num_slots,
            c.slot_dim,
            size=(c.height, c.width),
            widths=c.segment_widths,
            strides=c.segment_strides,
            width=c.init_width,
            zero_background=c.zero_background,
            key=key,
        )
    return CoordinateSlots(
        c.slot_dim,
        coordinates=4 if c.conditioning == "boxes" else 2,
        width=c.init_width,
        background=c.background,
        key=key,
    )


def _decoder_grid(c: SAViConfig) -> tuple[int, int]:
    factor = 1
    for stride in c.decoder_strides:
        factor *= stride
    wanted = c.decoder_grid * factor
    if c.height != wanted or c.width % factor:
        raise ConfigError(
            f"SAVi: decoder_strides={c.decoder_strides} enlarge decoder_grid={c.decoder_grid} to {wanted} rows and "
            f"columns to a multiple of {factor}, but the frames have {c.height} x {c.width}; change one of them."
        )
    return c.decoder_grid, c.width // factor


def _check(c: SAViConfig) -> None:
    sizes = (c.height, c.width, c.in_channels, c.num_slots, c.slot_dim, c.iterations, c.decoder_grid)
    if min(sizes) < 1:
        raise ConfigError(f"SAVi: every size must be at least 1, got {c}.")
    if c.painted is not None and (
        c.painted < 1 or c.conditioning not in ("boxes", "centers") or c.background != 0
    ):
        raise ConfigError(
            f"SAVi: painted={c.painted} with conditioning={c.conditioning!r} and background={c.background}: slots are "
            "copies of the background's where objects are told by boxes or centres and background=0, as are absent "
            "ones; paint at least one slot, or leave painted out."
        )
    for name in c.targets:
        if name not in CHANNELS:
            known = ", ".join(CHANNELS)
            raise ConfigError(f"SAVi: there is no target {name!r}.{nearest(name, CHANNELS)} Known: {known}.")
    if not c.targets or len(set(c.targets)) < len(c.targets):
        raise ConfigError(f"SAVi: targets={c.targets} must name at least one target, each once.")
