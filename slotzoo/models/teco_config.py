"""The options of TECO."""

import dataclasses
from typing import Literal

from slotzoo.errors import ConfigError
from slotzoo.models.maskgit import Sampling, check_schedule
from slotzoo.models.video_config import ConvS5Config, CoreName


@dataclasses.dataclass(frozen=True)
class TECOConfig(ConvS5Config):
    """`TECO`: `height` x `width` codes below `num_codes`, embedded in `code_dim` by the tokenizer.

    What `ConvS5Config` has for its core is that of the temporal core here: `layers`, `d_model`, `ssm_size` and so on.
    """

    num_codes: int = 1024
    code_dim: int = 256
    label_smoothing: float = 0.01
    # Latents: `latent_codes` codes, searched in `latent_code_dim` dimensions, seen by the core in `embedding_dim`.
    embedding_dim: int = 64
    latent_codes: int = 1024
    latent_code_dim: int = 32
    # The core. S5 and Transformer work on squares of `patch` x `patch` latents, in the paper one for the whole map.
    temporal: Literal["convs5", "s5", "transformer"] = "convs5"
    patch: int = 8
    heads: int = 16
    mlp_dim: int = 4096
    # The prior over latents, a MaskGIT.
    prior_vocab_dim: int = 256
    prior_dim: int = 512
    prior_mlp_dim: int = 2048
    prior_heads: int = 8
    prior_layers: int = 8
    prior_schedule: str = "cosine"
    # With `causal_masking`, of which predictions the prior learns: "late" ones; "all", which is what the authors'
    # code comes to at one clip per device (it fails for more); "task": late ones with actions, all without.
    prior_frames: Literal["late", "all", "task"] = "late"
    # Passes of the prior for one generated frame: `draft`, and `revise` in each of `rounds` rounds.
    draft: int = 8
    revise: int = 8
    rounds: int = 2
    # Draw the frames of `drop_loss` as the authors do: with replacement, the last one twice as often as any other.
    authors_frames: bool = False

    def __post_init__(self):
        """Check that the sizes fit together."""
        super().__post_init__()
        check_schedule(self.prior_schedule)
        latent = (self.height // self.reduction, self.width // self.reduction)
        if self.temporal != "convs5" and any(side % self.patch for side in latent):
            raise ConfigError(
                f"patch = {self.patch} does not divide the latent map of {latent[0]} x {latent[1]}."
            )
        for dim, heads in (("prior_dim", "prior_heads"), ("d_model", "heads")):
            if (heads != "heads" or self.temporal == "transformer") and getattr(self, dim) % getattr(
                self, heads
            ):
                raise ConfigError(
                    f"{dim} = {getattr(self, dim)} cannot be split into {heads} = {getattr(self, heads)}."
                )

    @property
    def core(self) -> CoreName:
        return self.temporal

    @property
    def sampling(self) -> Sampling:
        """How latents are drawn from the prior."""
        return Sampling(self.draft, self.revise, self.rounds)
