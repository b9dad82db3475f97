"""The face of what mixes the slots of different frames, by which a stack of slot blocks holds mixers of any kind."""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, PyTree


class AbstractMixer(eqx.Module):
    """`y_t, s_t = f(x_t, s_{t-1})`: over all frames at once by a call, over one by `step`; both agree.

    Every slot has a state of its own; weights are shared by the slots unless a mixer says otherwise.
    """

    dim: eqx.AbstractVar[int]

    @abc.abstractmethod
    def init_state(self, slots: int) -> PyTree:
        """The state before the first frame."""

    @abc.abstractmethod
    def __call__(
        self, x: Float[Array, "time slot dim"], state: Any = None
    ) -> tuple[Float[Array, "time slot dim"], PyTree]:
        """All outputs, and the state after the last frame. `state` is the initial one if None."""

    @abc.abstractmethod
    def step(self, x: Float[Array, "slot dim"], state: Any) -> tuple[Float[Array, "slot dim"], PyTree]:
        """The output of one frame, and the state after it."""
