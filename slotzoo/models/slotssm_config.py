"""The configuration of SlotSSM and of the models it is compared with, and what can be wrong with one."""

import dataclasses
import math
from typing import Literal

from slotzoo.errors import ConfigError


Encoder = Literal["vit", "cnn", "patch"]
Decoder = Literal["vit", "broadcast", "classifier", "none"]
Cross = Literal["inverted", "attention", "self"]
Mixer = Literal["mamba1", "mamba2", "attention", "gru", "rim"]


@dataclasses.dataclass(frozen=True)
class SlotSSMConfig:
    """Sizes; the defaults are those of the released CLEVRER job."""

    # What goes in: frames of `resolution` pixels with values in [0, 1].
    resolution: int = 128
    in_channels: int = 3
    normalise: Literal["none", "imagenet"] = "none"  # encoder, decoder and loss see (value - mean) / deviation
    encoder: Encoder = "vit"  # "patch": the frame is one token (MLP); for clips cut into patches, one per step
    encoder_dim: int = 256
    encoder_layers: int = 6
    encoder_heads: int = 4
    encoder_mlp: int | None = None  # 4 encoder_dim
    encoder_patch: int = 8
    encoder_class_tokens: int = 1
    encoder_noisy_class: bool = False
    encoder_kernel: int = 5  # cnn
    encoder_stride: int = 2
    encoder_blocks: int = 2  # per layer of the cnn
    encoder_positions: bool = False  # cnn: add learned positions to the tokens (the released modules add none)
    patch_grid: int = 1  # patch: side of the grid that frames are cut into; the place in it is told by sines
    token_dim: int = 256
    # The slots.
    num_slots: int = 6
    slots_per_block: tuple[int, ...] = ()  # other numbers than num_slots, one for each block
    dim: int = 256
    blocks: int = 4
    cross: Cross = "inverted"  # "self": slots attend to themselves and the tokens, as class tokens do
    cross_heads: int = 1
    cross_blocks: Literal["all", "first"] = "all"
    slot_heads: int = 4
    ffn: bool = False
    # What mixes the frames.
    mixer: Mixer = "mamba2"
    expand: float = 2.0
    ssm_state: int = 128
    ssm_head_dim: int = 64  # mamba2
    conv_width: int = 4
    mixer_heads: int = 4  # attention; communication of rim
    active: int = 4  # rim
    max_frames: int = 256  # attention: room of a stream
    split: int = 1  # each slot is cut into that many at the end (one state for all objects)
    # What comes out.
    decoder: Decoder = "vit"
    decode: Literal["every", "last"] = "every"  # which frames
    out_resolution: int = 128
    out_channels: int = 3
    decoder_dim: int = 256
    decoder_layers: int = 4
    decoder_heads: int = 4
    decoder_mlp: int | None = None  # 4 decoder_dim
    decoder_patch: int = 8
    decoder_grid: int = 8  # broadcast
    decoder_remat: bool = False  # broadcast: slot by slot, and again for the gradient
    classes: int = 36  # classifier
    # What `loss` compares the output with: fields of a batch of one.
    target: Literal["video", "next", "image", "depth", "label"] = "video"
    same_start: bool = False  # transformer layers begin with equal weights, as in the released code

    @property
    def low(self) -> float:
        """The value of a black pixel."""
        return 0.0

    @property
    def high(self) -> float:
        """The value of a white pixel."""
        return 1.0

    @property
    def slots(self) -> tuple[int, ...]:
        """The number of slots in each block."""
        return self.slots_per_block or (self.num_slots,) * self.blocks

    @property
    def slot_dim(self) -> int:
        """Channels of a slot that comes out."""
        return self.dim // self.split

    @property
    def out_slots(self) -> int:
        """How many slots come out."""
        return self.slots[-1] * self.split


def check(c: SlotSSMConfig) -> None:
    """**Raises** ConfigError for sizes that do not fit together."""
    sizes = (c.resolution, c.in_channels, c.num_slots, c.dim, c.blocks, c.token_dim, c.conv_width, c.ssm_state)
    if min(*sizes, c.split, c.max_frames, c.patch_grid) < 1:
        raise ConfigError(f"SlotSSM: every size must be at least 1, got {c}.")
    if c.slots_per_block and (len(c.slots_per_block) != c.blocks or min(c.slots_per_block) < 1):
        raise ConfigError(
            f"SlotSSM: slots_per_block={c.slots_per_block} must give each of the blocks={c.blocks} a number of slots."
        )
    if c.dim % c.split:
        raise ConfigError(f"SlotSSM: dim={c.dim} cannot be cut into split={c.split} slots.")
    if c.mixer == "rim" and len(set(c.slots)) > 1:
        raise ConfigError("SlotSSM: mixer='rim' needs the same number of slots in every block.")
    if not math.isfinite(c.expand) or c.expand <= 0:
        raise ConfigError(f"SlotSSM: expand={c.expand} must be positive.")
    if c.target == "label" and c.decoder != "classifier":
        raise ConfigError("SlotSSM: target='label' needs decoder='classifier'.")
    if c.target != "label" and c.decoder == "classifier":
        raise ConfigError(f"SlotSSM: decoder='classifier' needs target='label', got {c.target!r}.")
    if c.target == "next" and c.decode == "last":
        raise ConfigError("SlotSSM: target='next' needs decode='every'.")
    if c.normalise == "imagenet" and 3 not in (c.in_channels, c.out_channels):
        raise ConfigError(f"SlotSSM: normalise='imagenet' is for 3 channels, got in_channels={c.in_channels}.")
