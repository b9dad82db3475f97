"""The options of the video models: what all share, then those of each temporal core, then pixels and tokens.

A model's configuration joins one of a core with one of what is seen, as `ConvS5PixelsConfig` does. Sizes are in
pixels or tokens, `*_dim` and `*_depths` in channels.
"""

import abc
import dataclasses
from typing import Literal

from slotzoo.errors import ConfigError
from slotzoo.nn.activations import Activation
from slotzoo.nn.conv_ssm_head import Head
from slotzoo.nn.discretise import Method


CoreName = Literal["convs5", "s5", "convlstm", "transformer", "performer"]
# The whole numbers that may be 0; `rounds` is TECO's.
MAY_BE_ZERO = ("encoder_blocks", "decoder_blocks", "rounds")


@dataclasses.dataclass(frozen=True)
class VideoConfig(abc.ABC):
    """What all video models share: frames, encoder and decoder, actions, the two tasks of training."""

    height: int = 64
    width: int = 64
    # Encoder and decoder: one entry per resolution, each half of the one before.
    encoder_depths: tuple[int, ...] = (64, 128, 256)
    encoder_blocks: int = 1
    decoder_depths: tuple[int, ...] = (64, 128, 256)
    decoder_blocks: int = 1
    norm_groups: int = 32
    # Actions are integers below `num_actions`; -1 is an unknown action. Without `use_actions` all are 0.
    use_actions: bool = False
    num_actions: int = 1
    action_dim: int = 1
    action_dropout: float = 0.0
    # The temporal core.
    layers: int = 8
    d_model: int = 256
    dropout: float = 0.0
    # Training on two tasks: a clip whose actions were dropped is predicted from its frames; of any other the
    # frames from `open_loop_context` on are hidden (features set to `hidden_value`): only actions tell more.
    causal_masking: bool = False
    open_loop_context: int = 144
    hidden_value: float = -2.0
    # The share of predictions that are not computed in training; ignored with `causal_masking`, as in the seed
    # (by all but TECO).
    drop_loss: float = 0.0
    # One layer in a loop compiles faster (for accelerators: XLA's CPU compiler is forty times slower at the
    # gradient of a convolution inside a loop; attention layers are never in one). `remat` recomputes the inside of
    # blocks in the backward pass.
    scan_layers: bool = True
    remat: bool = False

    def __post_init__(self):
        """Check that the sizes fit together."""
        for name, value in vars(self).items():
            least = 0 if name in MAY_BE_ZERO else 1
            if type(value) is int and value < least:
                raise ConfigError(f"{name} = {value} must be at least {least}.")
            if type(value) is tuple and (not value or min(value) < 1):
                raise ConfigError(f"{name} = {value} must have one entry per resolution, each at least 1.")
        for axis in ("height", "width"):
            if getattr(self, axis) % self.reduction:
                raise ConfigError(
                    f"{axis} = {getattr(self, axis)} cannot be halved {len(self.encoder_depths) - 1} times, as "
                    f"encoder_depths = {self.encoder_depths} wants."
                )
        if len(self.encoder_depths) != len(self.decoder_depths):
            raise ConfigError(
                f"encoder_depths = {self.encoder_depths} and decoder_depths = {self.decoder_depths} must have "
                "the same length, so that predictions are as large as frames."
            )
        for name in ("encoder_depths", "decoder_depths"):
            if any(depth % self.norm_groups for depth in getattr(self, name)):
                raise ConfigError(
                    f"{name} = {getattr(self, name)} must be multiples of norm_groups = {self.norm_groups}."
                )
        for name in ("action_dropout", "dropout", "drop_loss"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} must lie in [0, 1).")

    @property
    def reduction(self) -> int:
        """How many times smaller the feature maps are than the frames."""
        return 2 ** (len(self.encoder_depths) - 1)

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the feature maps."""
        return self.height // self.reduction, self.width // self.reduction

    @property
    @abc.abstractmethod
    def core(self) -> CoreName:
        """The temporal core that `slotzoo.models.temporal.make_temporal` makes."""


@dataclasses.dataclass(frozen=True)
class StackConfig(VideoConfig):
    """A stack of recurrent layers: `u + layer(u)` with a norm behind the sum (or before, `prenorm`)."""

    use_norm: bool = True
    prenorm: bool = False
    residual: bool = True
    skip_connections: bool = False


@dataclasses.dataclass(frozen=True)
class SSMConfig(StackConfig):
    """State-space layers; `ssm_size` numbers per place and layer are remembered."""

    ssm_size: int = 256
    ssm_blocks: int = 1
    dt_min: float = 1e-3
    dt_max: float = 1e-1
    clip_eigenvalues: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.ssm_size % (2 * self.ssm_blocks):
            raise ConfigError(
                f"ssm_size = {self.ssm_size} must be a multiple of twice ssm_blocks = {self.ssm_blocks}."
            )
        if not 0 < self.dt_min <= self.dt_max:
            raise ConfigError(
                f"dt_min = {self.dt_min} and dt_max = {self.dt_max} must be positive, and in this order."
            )


@dataclasses.dataclass(frozen=True)
class ConvS5Config(SSMConfig):
    """Convolutional state-space layers."""

    kernel_b: int = 3
    kernel_c: int = 3
    kernel_d: int = 3
    head: Head = "resnet"
    activation: Activation = "gelu"
    ssm_groups: int = 32
    squeeze_excite: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.head in ("resnet", "standard") and self.d_model % self.ssm_groups:
            raise ConfigError(f"d_model = {self.d_model} must be a multiple of ssm_groups = {self.ssm_groups}.")

    @property
    def core(self) -> CoreName:
        return "convs5"


@dataclasses.dataclass(frozen=True)
class ConvLSTMConfig(StackConfig):
    """ConvLSTM layers; the hidden state has `d_model` channels, as many as the memory."""

    kernel_size: int = 3

    @property
    def core(self) -> CoreName:
        return "convlstm"


@dataclasses.dataclass(frozen=True)
class PatchConfig(VideoConfig):
    """A core over squares of `patch` x `patch` places of the feature map.

    Features come back from it with `feature_dim` channels per place.
    """

    patch: int = 16
    feature_dim: int = 512

    def __post_init__(self):
        super().__post_init__()
        if any(side % self.patch for side in self.latent_size):
            height, width = self.latent_size
            raise ConfigError(f"patch = {self.patch} does not divide the feature map of {height} x {width}.")


@dataclasses.dataclass(frozen=True)
class S5Config(PatchConfig, SSMConfig):
    """S5 layers over every square by itself; the authors take the whole map for one."""

    discretisation: Method = "zoh"

    @property
    def core(self) -> CoreName:
        return "s5"


@dataclasses.dataclass(frozen=True)
class TransformerConfig(PatchConfig):
    """A Transformer over all squares of all frames.

    `window`: with how many frames it attends at most, the one in front of the first included. A longer rollout
    sees the last `window` frames only, at positions counted from the first of these: all is computed again for every
    frame then, as in the authors' code. None: to all, whose keys and values are kept.
    """

    heads: int = 16
    mlp_dim: int = 2048
    attention_dropout: float = 0.0
    window: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.d_model % self.heads:
            raise ConfigError(f"d_model = {self.d_model} cannot be split into heads = {self.heads}.")
        if self.window is not None and self.window < 2:
            raise ConfigError(f"window = {self.window} leaves no frame to look at; it is at least 2, or None.")
        if not 0 <= self.attention_dropout < 1:
            raise ConfigError(f"attention_dropout = {self.attention_dropout} must lie in [0, 1).")

    @property
    def core(self) -> CoreName:
        return "transformer"


@dataclasses.dataclass(frozen=True)
class PerformerConfig(TransformerConfig):
    """A Transformer with FAVOR+ attention, in linear time and with a memory of constant size.

    `features` random features stand for the softmax ("softmax"), or the rectified channels themselves ("relu").
    """

    favor_kernel: Literal["softmax", "relu"] = "softmax"
    favor_features: int = 256

    def __post_init__(self):
        super().__post_init__()
        if self.window is not None or self.attention_dropout:
            raise ConfigError(
                "a Performer remembers all frames and has no weights to drop: leave window and attention_dropout "
                "as they are."
            )

    @property
    def core(self) -> CoreName:
        return "performer"


@dataclasses.dataclass(frozen=True)
class PixelsConfig(VideoConfig):
    """Frames of `channels` in [-1, 1]; `loss_weight` is the share of the squared error, the rest is absolute."""

    channels: int = 1
    loss_weight: float = 0.5


@dataclasses.dataclass(frozen=True)
class TokensConfig(VideoConfig):
    """`height` x `width` codes below `num_codes`, embedded in `code_dim` by the tokenizer."""

    num_codes: int = 1024
    code_dim: int = 256
    label_smoothing: float = 0.01
