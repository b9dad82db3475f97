"""The face of a recurrent layer over sequences of feature maps, by which a stack holds layers of any kind."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree


class AbstractRecurrence(eqx.Module):
    """`y_t, x_t = f(u_t, x_{t-1})`, all at once by a call or one by one by `step`.

    `planes` is the number of channels of a state, which is one float32 map. What depends on the parameters alone
    can be computed once by `prepare`, before a loop over steps.
    """

    channels: eqx.AbstractVar[int]
    planes: eqx.AbstractVar[int]

    def init_state(self, height: int, width: int) -> Float[Array, "{height} {width} {self.planes}"]:
        """The zero state."""
        return jnp.zeros((height, width, self.planes))

    @abc.abstractmethod
    def prepare(self) -> PyTree:
        """What `step` takes as `prepared`; fixed while the parameters are."""

    @abc.abstractmethod
    def __call__(
        self,
        u: Float[Array, "time height width {self.channels}"],
        state: Float[Array, "height width {self.planes}"] | None = None,
        *,
        prepared: Any = None,
    ) -> tuple[Float[Array, "time height width {self.channels}"], Float[Array, "height width {self.planes}"]]:
        """All outputs, and the state after the last one. `state` is zero if None."""

    @abc.abstractmethod
    def step(
        self,
        u: Float[Array, "height width {self.channels}"],
        state: Float[Array, "height width {self.planes}"],
        *,
        prepared: Any = None,
    ) -> tuple[Float[Array, "height width {self.channels}"], Float[Array, "height width {self.planes}"]]:
        """One output and the next state."""
