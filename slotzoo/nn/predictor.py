"""What comes between two frames: from the slots of one to what they are expected to be in the next."""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.nn.slot_transformer import SlotTransformerBlock


class AbstractPredictor(eqx.Module):
    """`slots_{t+1}, memory_{t+1} = f(slots_t, memory_t)`; the memory has a fixed size, so this runs in a scan."""

    dim: eqx.AbstractVar[int]
    carried: eqx.AbstractVar[bool]  # whether a clip that goes on still has the memory of what came before

    @abc.abstractmethod
    def init_memory(self, num_slots: int) -> Any:
        """The memory before the first frame."""

    @abc.abstractmethod
    def __call__(
        self, slots: Float[Array, "slot {self.dim}"], memory: Any
    ) -> tuple[Float[Array, "slot {self.dim}"], Any]:
        """The slots expected next, and the memory with these slots in it."""


class SlotPredictor(AbstractPredictor):
    """A transformer block between the slots of one frame, without memory. Source: Kipf et al., ICLR 2022, 3.3."""

    block: SlotTransformerBlock
    dim: int = eqx.field(static=True)
    carried: bool = eqx.field(static=True)

    def __init__(
        self, dim: int, *, qkv_dim: int, mlp_dim: int, heads: int, pre_norm: bool = False, key: PRNGKeyArray
    ):
        self.block = SlotTransformerBlock(
            dim, qkv_dim=qkv_dim, mlp_dim=mlp_dim, heads=heads, pre_norm=pre_norm, key=key
        )
        self.dim, self.carried = dim, True

    def init_memory(self, num_slots: int) -> None:
        """There is none."""

    def __call__(
        self, slots: Float[Array, "slot {self.dim}"], memory: None
    ) -> tuple[Float[Array, "slot {self.dim}"], None]:
        return self.block(slots), memory
