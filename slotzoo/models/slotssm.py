"""SlotSSM (Jiang et al., Slot State Space Models, NeurIPS 2024): a video as slots, each a state-space model of its own.

An encoder makes tokens of every frame, a stack of blocks makes slots of the tokens and carries them through time, a
decoder makes pictures (or a class) of the slots. Frames are encoded and decoded one by one; a clip is computed at once,
or frame by frame with a state, with the same result. The models it is compared with differ in the mixer only.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.models.checks import explained
from slotzoo.models.slotssm_blocks import Carried, SlotClassifier, SlotStack
from slotzoo.models.slotssm_config import SlotSSMConfig, check
from slotzoo.nn.linear import Linear
from slotzoo.nn.position import SoftPositionEmbedding
from slotzoo.nn.slot_cnn import CNNEncoder, NormedBroadcastDecoder
from slotzoo.nn.torch_init import TORCH_UNIFORM, torch_biases
from slotzoo.nn.vit import FeedForward, ViTDecoder, ViTEncoder, grid_positions


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


class SlotSSMState(NamedTuple):
    """What is carried from one frame to the next: each block's mixer, and how many frames were seen."""

    blocks: tuple[Any, ...]
    frames: Int[Array, ""]


class Decoded(NamedTuple):
    """What a decoder makes of slots; None what it does not make. Pictures have the value range of the target."""

    reconstruction: Float[Array, "*time height width channel"] | None = None
    masks: Float[Array, "*time slot height width"] | None = None  # broadcast: each pixel's sum to 1
    pictures: Float[Array, "*time slot height width channel"] | None = None  # broadcast: before the masks
    logits: Float[Array, "*time class"] | None = None  # classifier


class SlotSSMOutput(NamedTuple):
    """Slots after each frame, what was decoded, who read which token, and the state to go on with."""

    slots: Float[Array, "time slot slot_dim"]
    outputs: Decoded  # of every frame, or of the last one, without `time`, where config.decode is "last"
    # One entry per block, None where it does not read the frame; inverted attention sums to 1 over heads and slots.
    attention: tuple[Float[Array, "time head slot token"] | None, ...]
    state: SlotSSMState


class PatchEncoder(eqx.Module):
    """A frame that is one token: flattened, through a perceptron, with its place in the grid told by sines."""

    project: Linear
    ffn: FeedForward
    grid: int = eqx.field(static=True)
    dim: int = eqx.field(static=True)

    def __init__(self, in_size: int, dim: int, *, grid: int, key: PRNGKeyArray):
        keys = jax.random.split(key, 3)
        project = Linear(in_size, dim, init=TORCH_UNIFORM, key=keys[0])
        self.project = torch_biases(project, key=keys[1])
        self.ffn = FeedForward(dim, 2 * dim, key=keys[2])
        self.grid, self.dim = grid, dim

    def __call__(
        self,
        frames: Float[Array, "time height width channel"],
        first: Int[Array, ""] | Int[Array, " time"],
    ) -> Float[Array, "time 1 dim"]:
        """`first`: the number of the first frame, which tells the place of each; or the number of every frame."""
        x = self.project(frames.reshape(len(frames), -1))
        if self.grid > 1:
            places = jnp.asarray(grid_positions(self.grid, self.grid, self.dim))
            numbers = first if first.ndim else first + jnp.arange(len(frames))
            x = x + places[numbers % self.grid**2].astype(x.dtype)
        return (x + self.ffn(x))[:, None, :]


class SlotSSM(eqx.Module):
    """`frames -> tokens -> slots -> pictures`. Takes one clip with values in [0, 1]; batch it with `batch_map`.

    Whole clips by a call, streams by `init_state` and `step`, predictions by `generate`.
    """

    encoder: ViTEncoder | CNNEncoder | PatchEncoder
    positions: SoftPositionEmbedding | None
    stack: SlotStack
    decoder: ViTDecoder | NormedBroadcastDecoder | SlotClassifier | None
    config: SlotSSMConfig = eqx.field(static=True)

    def __init__(self, config: SlotSSMConfig, *, key: PRNGKeyArray):
        check(config)
        encoder_key, position_key, stack_key, decoder_key = jax.random.split(key, 4)
        self.encoder = _encoder(config, encoder_key)
        placed = config.encoder == "cnn" and config.encoder_positions
        self.positions = SoftPositionEmbedding(config.token_dim, key=position_key) if placed else None
        self.stack = SlotStack(config, key=stack_key)
        self.decoder = _decoder(config, decoder_key)
        self.config = config

    def init_state(self) -> SlotSSMState:
        """The state before the first frame."""
        return SlotSSMState(self.stack.init_state(), jnp.int32(0))

    @explained(inputs="time {resolution} {resolution} {in_channels}")
    def __call__(
        self,
        inputs: Float[Array, "time height width channel"],
        *,
        state: SlotSSMState | None = None,
        reset: Bool[Array, ""] | Bool[Array, " time"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> SlotSSMOutput:
        """All frames at once, after those that made `state`; where `reset` is True it is forgotten first.

        With a `reset` for every frame, everything before a frame is forgotten where it is True, as between videos that
        follow one another; the blocks then run frame by frame, encoder and decoder still over all frames at once.
        A `key` draws the noise of noisy class tokens, if the configuration has them.
        """
        inside = reset is not None and reset.ndim == 1
        if state is None and inside:
            state = self.init_state()
        elif state is not None and reset is not None and not inside:
            state = _where(reset, self.init_state(), state)
        first = jnp.int32(0) if state is None else state.frames
        if state is not None and reset is not None and inside:
            first, frames = _numbers(reset, first)
            tokens = self.encode(inputs, first, key=key)
            carried = self._frame_by_frame(tokens, reset, state)
        else:
            tokens, frames = self.encode(inputs, first, key=key), first + len(inputs)
            carried = self.stack(tokens, None if state is None else state.blocks)
        slots = self._split(carried.slots)
        decoded = self.decode(slots[-1]) if self.config.decode == "last" else jax.vmap(self.decode)(slots)
        return SlotSSMOutput(slots, decoded, carried.attention, SlotSSMState(carried.state, frames))

    def _frame_by_frame(self, tokens: Array, reset: Array, state: SlotSSMState) -> Carried:
        """The blocks over the tokens of all frames, their states made new before each frame where `reset` is True."""
        new = self.stack.init_state()

        def one(blocks: Any, now: tuple[Array, Array]):
            tokens, forget = now
            carried = self.stack.step(tokens, _where(forget, new, blocks))
            return carried.state, (carried.slots, carried.attention)

        blocks, (slots, attention) = jax.lax.scan(one, state.blocks, (tokens, reset))
        return Carried(slots, attention, blocks)

    @explained(frame="{resolution} {resolution} {in_channels}")
    def step(
        self,
        frame: Float[Array, "height width channel"],
        state: SlotSSMState,
        *,
        reset: Bool[Array, ""] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "slot slot_dim"], SlotSSMState]:
        """The slots after one more frame; `decode` paints them.

        For a stream enclose the model and donate the state, which then stays where it is:
        `jax.jit(lambda frame, state: model.step(frame, state), donate_argnums=1)`.
        """
        if reset is not None:
            state = _where(reset, self.init_state(), state)
        tokens = self.encode(frame[None], state.frames, key=key)[0]
        carried = self.stack.step(tokens, state.blocks)
        return self._split(carried.slots), SlotSSMState(carried.state, state.frames + 1)

    def encode(
        self,
        inputs: Float[Array, "time height width channel"],
        first: Int[Array, ""] | Int[Array, " time"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "time token token_dim"]:
        """The tokens of every frame; `first` is the number of the first one, or of each (only "patch" looks at it)."""
        x = self.normalised(inputs).astype(self.stack.start.dtype)  # bfloat16 models compute in bfloat16
        if isinstance(self.encoder, PatchEncoder):
            return self.encoder(x, first)
        if isinstance(self.encoder, ViTEncoder):
            if key is None:
                return jax.vmap(self.encoder)(x).tokens
            encoder = self.encoder
            run = lambda frame, key: encoder(frame, key=key)
            return jax.vmap(run)(x, jax.random.split(key, len(x))).tokens
        features = self.encoder(x)
        if self.positions is not None:
            features = self.positions(features)
        return features.reshape(len(x), -1, features.shape[-1])

    def decode(self, slots: Float[Array, "slot slot_dim"]) -> Decoded:
        """What the slots of one frame stand for."""
        match self.decoder:
            case None:
                return Decoded()
            case SlotClassifier():
                return Decoded(logits=self.decoder(slots))
            case ViTDecoder():
                return Decoded(self.restored(self.decoder(slots)))
            case NormedBroadcastDecoder():
                mixed, masks, pictures = self.decoder(slots)
                return Decoded(self.restored(mixed), masks, self.restored(pictures))

    def generate(
        self, context: Float[Array, "time height width channel"], length: int
    ) -> Float[Array, "length height width channel"]:
        """`length` predicted frames after those of `context`, each taken for the next input: one scan.

        For models that were trained to decode the next frame (`target="next"`). **Raises** ShapeError without context.
        """
        if len(context) < 1 or length < 1:
            raise ShapeError(
                f"generate needs context and a length of at least 1; got {len(context)} and {length}."
            )
        state = self.init_state()
        carried = self.stack(self.encode(context, state.frames))
        state = SlotSSMState(carried.state, jnp.int32(len(context)))

        def predict(slots: Array) -> Array:
            picture = self.decode(slots).reconstruction
            if picture is None:
                raise ConfigError(f"decoder={self.config.decoder!r} paints no frames to go on with.")
            return picture

        def one(carry: tuple[Array, SlotSSMState], _: None):
            slots, state = self.step(*carry)
            frame = predict(slots)
            return (frame, state), frame

        first = predict(self._split(carried.slots[-1]))
        _, rest = jax.lax.scan(one, (first, state), None, length=length - 1)
        return jnp.concatenate([first[None], rest])

    def loss(
        self, batch: dict[str, Array], *, key: PRNGKeyArray | None = None, step: Any = None
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Of one example, with the input in `video`: mean squared error between what is decoded and `config.target`.

        `"video"`: the frames themselves; `"next"`: those one later; `"image"`, `"depth"`: these fields; `"label"`:
        cross-entropy in nats of the integer in that field. With `normalise="imagenet"` errors are in deviations.
        """
        del step
        c = self.config
        video = batch["video"]
        out = self(video[:-1] if c.target == "next" else video, key=key).outputs
        if c.target == "label":
            assert out.logits is not None
            logs = jax.nn.log_softmax(out.logits.astype(jnp.float32))
            label = batch["label"]
            value = -(logs[..., label] if logs.ndim == 1 else logs[-1, label])
            return value, {"cross_entropy": value}
        wanted = {"video": video, "next": video[1:]}.get(c.target)
        wanted = batch[c.target] if wanted is None else wanted
        if out.reconstruction is None:
            raise ConfigError(f"decoder={c.decoder!r} paints nothing to compare with {c.target!r}.")
        if c.decode == "last" and c.target == "video":
            wanted = wanted[-1]
        error = self.normalised(out.reconstruction.astype(jnp.float32)) - self.normalised(
            wanted.astype(jnp.float32)
        )
        value = jnp.mean(jnp.square(error))
        return value, {"mse": value}

    def normalised(self, x: Float[Array, "*axes channel"]) -> Float[Array, "*axes channel"]:
        """`(x - mean) / deviation` of ImageNet where the configuration says so and `x` has 3 channels."""
        if self.config.normalise == "none" or x.shape[-1] != 3:
            return x
        mean, deviation = _imagenet(x)
        return (x - mean) / deviation

    def restored(self, x: Float[Array, "*axes channel"]) -> Float[Array, "*axes channel"]:
        """The inverse of `normalised`."""
        if self.config.normalise == "none" or x.shape[-1] != 3:
            return x
        mean, deviation = _imagenet(x)
        return x * deviation + mean

    def _split(self, slots: Float[Array, "*time slot dim"]) -> Float[Array, "*time out_slot slot_dim"]:
        c = self.config
        return slots if c.split == 1 else slots.reshape(*slots.shape[:-2], c.out_slots, c.slot_dim)


def _where(reset: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(reset, new, old), new, old)


def _numbers(reset: Bool[Array, " time"], first: Int[Array, ""]) -> tuple[Int[Array, " time"], Int[Array, ""]]:
    """The number of every frame since the last reset (`first` is that of frame 0 without one), and of the next."""
    times = jnp.arange(len(reset))
    last = jax.lax.cummax(jnp.where(reset, times, -1))
    numbers = jnp.where(last < 0, first + times, times - last)
    return numbers, numbers[-1] + 1


def _imagenet(like: Array) -> tuple[Array, Array]:
    shape = (1,) * (like.ndim - 1) + (3,)
    return tuple(
        jnp.asarray(np.asarray(values, np.float32).reshape(shape), like.dtype)
        for values in (IMAGENET_MEAN, IMAGENET_DEVIATION)
    )  # pyright: ignore[reportReturnType]  (two of them)


def _encoder(c: SlotSSMConfig, key: PRNGKeyArray) -> ViTEncoder | CNNEncoder | PatchEncoder:
    match c.encoder:
        case "vit":
            return ViTEncoder(
                size=c.resolution,
                channels=c.in_channels,
                patch=c.encoder_patch,
                dim=c.encoder_dim,
                layers=c.encoder_layers,
                heads=c.encoder_heads,
                mlp_dim=c.encoder_mlp,
                out_dim=c.token_dim,
                class_tokens=c.encoder_class_tokens,
                noisy=c.encoder_noisy_class,
                same_start=c.same_start,
                key=key,
            )
        case "cnn":
            return CNNEncoder(
                c.in_channels,
                c.token_dim,
                width=c.encoder_dim,
                stride=c.encoder_stride,
                kernel=c.encoder_kernel,
                layers=c.encoder_layers,
                blocks_per_layer=c.encoder_blocks,
                key=key,
            )
        case "patch":
            return PatchEncoder(
                c.resolution * c.resolution * c.in_channels, c.token_dim, grid=c.patch_grid, key=key
            )


def _decoder(
    c: SlotSSMConfig, key: PRNGKeyArray
) -> ViTDecoder | NormedBroadcastDecoder | SlotClassifier | None:
    match c.decoder:
        case "vit":
            return ViTDecoder(
                c.slot_dim,
                size=c.out_resolution,
                channels=c.out_channels,
                patch=c.decoder_patch,
                dim=c.decoder_dim,
                layers=c.decoder_layers,
                heads=c.decoder_heads,
                mlp_dim=c.decoder_mlp,
                same_start=c.same_start,
                key=key,
            )
        case "broadcast":
            return NormedBroadcastDecoder(
                c.slot_dim,
                c.out_channels,
                grid=c.decoder_grid,
                size=c.out_resolution,
                width=c.decoder_dim,
                remat=c.decoder_remat,
                key=key,
            )
        case "classifier":
            return SlotClassifier(c.slot_dim, c.classes, heads=c.decoder_heads, key=key)
        case "none":
            return None
