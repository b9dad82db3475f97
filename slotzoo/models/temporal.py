"""What the video models and TECO remember the past with: from latents and actions to features of the next frame.

The cores have one face. `x(latents, actions, hide, state)` takes all frames of a clip, `step` takes one. Both give
`TemporalOutput(features, state)`: the features at t tell about frame t + 1, given the latents up to t and the action
that leads there. States of ConvS5, S5, ConvLSTM and Performer have one size; that of the Transformer is a cache with
room for a number of frames, which `init_state` is told.
"""

from typing import Any

from jaxtyping import PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.models.temporal_recurrent import (
    Actions as Actions,
    RecurrentTemporal as RecurrentTemporal,
    TemporalOutput as TemporalOutput,
)
from slotzoo.models.temporal_transformer import TransformerTemporal as TransformerTemporal
from slotzoo.nn.conv_lstm import ConvLSTM
from slotzoo.nn.conv_ssm import ConvSSM
from slotzoo.nn.favor import FavorOptions
from slotzoo.nn.s5 import S5


Temporal = RecurrentTemporal | TransformerTemporal


def make_temporal(config: Any, channels: int, *, key: PRNGKeyArray) -> Temporal:
    """The core that `config.core` names, over latents of `channels` channels.

    `config` is a `VideoConfig` with that core's options; features of a core over squares have `config.feature_dim`
    channels, or as many as the latents where it has no such option.
    """
    feature_dim = getattr(config, "feature_dim", None)
    match config.core:
        case "convs5":
            make = lambda key: ConvSSM(
                config.d_model,
                config.ssm_size,
                blocks=config.ssm_blocks,
                kernel_b=config.kernel_b,
                kernel_c=config.kernel_c,
                kernel_d=config.kernel_d,
                dt_min=config.dt_min,
                dt_max=config.dt_max,
                clip_eigenvalues=config.clip_eigenvalues,
                head=config.head,
                activation=config.activation,
                groups=config.ssm_groups,
                squeeze_excite=config.squeeze_excite,
                key=key,
            )
            return RecurrentTemporal(config, channels, make, key=key)
        case "convlstm":
            make = lambda key: ConvLSTM(config.d_model, kernel_size=config.kernel_size, key=key)
            return RecurrentTemporal(config, channels, make, key=key)
        case "s5":
            make = lambda key: S5(
                config.d_model,
                config.ssm_size,
                blocks=config.ssm_blocks,
                discretisation=getattr(config, "discretisation", "zoh"),
                dt_min=config.dt_min,
                dt_max=config.dt_max,
                clip_eigenvalues=config.clip_eigenvalues,
                key=key,
            )
            return RecurrentTemporal(
                config, channels, make, patch=config.patch, feature_dim=feature_dim, key=key
            )
        case "transformer" | "performer":
            favor = None
            if config.core == "performer":
                favor = FavorOptions(config.favor_kernel, config.favor_features)
            return TransformerTemporal(
                config,
                channels,
                patch=config.patch,
                feature_dim=feature_dim,
                mlp_dim=config.mlp_dim,
                heads=config.heads,
                attention_dropout=getattr(config, "attention_dropout", 0.0),
                window=getattr(config, "window", None),
                favor=favor,
                key=key,
            )
        case unknown:
            raise ConfigError(f"there is no temporal core {unknown!r}.")
