"""STATM-SAVi and STATM-SAVi++ (Li et al., 2024): SAVi whose predictor remembers the slots of earlier frames.

It is `slotzoo.models.savi.SAVi` with `slotzoo.nn.time_space.TimeSpacePredictor` between the frames. The memory is a
ring of fixed size in the carried state: one program for every length of clip, and a clip in parts equals the whole.
"""

import dataclasses

import jax
from jaxtyping import PRNGKeyArray

from slotzoo.models.savi import SAVi, SAViConfig
from slotzoo.nn.time_space import Block, TimeSpacePredictor


@dataclasses.dataclass(frozen=True)
class STATMConfig(SAViConfig):
    """Sizes of STATM-SAVi, on 64 x 64 pixels."""

    num_slots: int = 11
    block: Block = 2  # which of the five ways to join attention over space and over time
    buffer: int = 24  # frames that are remembered; the authors' grows without bound, and is 24 in their results
    # Whether the memory goes on with the state; the authors' begins anew in every slice of a clip.
    carry_memory: bool = True


def statm(config: STATMConfig, *, key: PRNGKeyArray) -> SAVi:
    """The model of a configuration."""
    model_key, predictor_key = jax.random.split(key)
    predictor = TimeSpacePredictor(
        config.slot_dim,
        qkv_dim=config.predictor_qkv,
        mlp_dim=config.predictor_mlp,
        heads=config.predictor_heads,
        length=config.buffer,
        block=config.block,
        pre_norm=config.predictor_pre_norm,
        carried=config.carry_memory,
        key=predictor_key,
    )
    return SAVi(config, predictor=predictor, key=model_key)
