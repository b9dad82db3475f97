"""Recurrent layers (ConvS5, S5, ConvLSTM) with residuals and norms, one above the other."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from slotzoo.nn.dropout import dropout
from slotzoo.nn.norm import LayerNorm
from slotzoo.nn.recurrence import AbstractRecurrence


# (from, to), counted from 0: with `skip_connections` the input of one layer is added to that of a later one.
LONG_SKIPS = ((3, 8), (6, 11))


class ConvSSMLayer(eqx.Module):
    """`norm(u + dropout(ssm(u)))`, or `u + dropout(ssm(norm(u)))` with `prenorm`.

    One dropout mask serves all frames. Without `use_norm` there is no norm, without `residual` no sum.
    """

    norm: LayerNorm | None
    ssm: AbstractRecurrence
    dropout: float = eqx.field(static=True)
    prenorm: bool = eqx.field(static=True)
    residual: bool = eqx.field(static=True)

    def __init__(
        self,
        ssm: AbstractRecurrence,
        *,
        dropout: float = 0.0,
        use_norm: bool = True,
        prenorm: bool = False,
        residual: bool = True,
    ):
        self.norm = LayerNorm(ssm.channels) if use_norm else None
        self.ssm = ssm
        self.dropout, self.prenorm, self.residual = dropout, prenorm, residual

    def before(self, u: Array) -> Array:
        """What the recurrence is fed with."""
        return self.norm(u) if self.norm is not None and self.prenorm else u

    def after(self, u: Array, y: Array, key: PRNGKeyArray | None) -> Array:
        """The output from the input `u` and the recurrence's output `y`."""
        y = dropout(y, self.dropout, key, shared=True)
        y = u + y if self.residual else y
        return self.norm(y) if self.norm is not None and not self.prenorm else y


class StackOutput(NamedTuple):
    """The output of the last layer and the last state of each."""

    output: Float[Array, "*time height width channel"]
    state: Float[Array, "layer height width planes"]


class PreparedStack(NamedTuple):
    """What `ConvSSMStack.step` needs and a loop over steps should compute once.

    If the stack scans over its layers, both have a leading layer axis. If not, `layers` is None and `recurrences` a
    tuple: a loop over steps has no kernels to cut out of a larger array.
    """

    layers: PyTree | None
    recurrences: PyTree


class ConvSSMStack(eqx.Module):
    """`ConvSSMLayer`s of equal shape.

    With `scan_layers` the compiled program holds one layer and a loop over all of them: it compiles several
    times faster, for one copy of the parameters per pass; on a CPU, though, XLA computes the gradients of
    kernels inside a loop forty times slower (jax 0.10: 1.2 s in place of 28 ms). With `remat` the backward pass
    keeps only the input of each layer and recomputes the rest.
    """

    layers: tuple[ConvSSMLayer, ...]
    skip_connections: bool = eqx.field(static=True)
    scan_layers: bool = eqx.field(static=True)
    remat: bool = eqx.field(static=True)

    def __init__(
        self,
        layers: tuple[ConvSSMLayer, ...],
        *,
        skip_connections: bool = False,
        scan_layers: bool = False,
        remat: bool = False,
    ):
        self.layers = layers
        self.skip_connections, self.scan_layers, self.remat = skip_connections, scan_layers, remat

    def init_state(self, height: int, width: int) -> Float[Array, "layer height width planes"]:
        """The zero states."""
        return jnp.stack([layer.ssm.init_state(height, width) for layer in self.layers])

    def prepare(self) -> PreparedStack:
        """Prepare all layers."""
        prepared = tuple(layer.ssm.prepare() for layer in self.layers)
        if not self._scans:
            return PreparedStack(None, prepared)
        return PreparedStack(self._stacked(), jax.tree.map(lambda *leaves: jnp.stack(leaves), *prepared))

    def __call__(
        self,
        u: Float[Array, "time height width channel"],
        state: Float[Array, "layer height width planes"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
    ) -> StackOutput:
        """All outputs, parallel over time. `state` is zero if None; a `key` turns dropout on."""
        if state is None:
            state = self.init_state(*u.shape[1:3])

        def one(layer: ConvSSMLayer, u: Array, x0: Array, prepared: None, key: PRNGKeyArray | None):
            y, last = layer.ssm(layer.before(u), x0)
            return layer.after(u, y, key), last

        keys = None if key is None else jax.random.split(key, len(self.layers))
        return self._through(eqx.filter_checkpoint(one) if self.remat else one, u, state, keys=keys)

    def step(
        self,
        u: Float[Array, "height width channel"],
        state: Float[Array, "layer height width planes"],
        *,
        prepared: PreparedStack | None = None,
    ) -> StackOutput:
        """One output and the next states."""

        def one(layer: ConvSSMLayer, u: Array, x0: Array, prepared: PyTree, key: None):
            y, last = layer.ssm.step(layer.before(u), x0, prepared=prepared)
            return layer.after(u, y, None), last

        return self._through(one, u, state, self.prepare() if prepared is None else prepared)

    @property
    def _scans(self) -> bool:
        return self.scan_layers and not self.skip_connections and len(self.layers) > 1

    def _stacked(self) -> PyTree:
        arrays = [eqx.filter(layer, eqx.is_array) for layer in self.layers]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays)

    def _through(
        self,
        one: Callable[..., tuple[Array, Array]],
        u: Array,
        state: Array,
        prepared: PreparedStack | None = None,
        *,
        keys: Array | None = None,
    ) -> StackOutput:
        """Send `u` through the layers: `(layer, u, state, what its recurrence prepared, key) -> (u, state)`."""
        recurrences = None if prepared is None else prepared.recurrences
        if self._scans:
            stacked = self._stacked() if prepared is None else prepared.layers
            static = eqx.filter(self.layers[0], eqx.is_array, inverse=True)
            body = lambda u, inputs: one(eqx.combine(inputs[0], static), u, *inputs[1:])
            return StackOutput(*jax.lax.scan(body, u, (stacked, state, recurrences, keys)))
        inputs, states = [], []
        for i, layer in enumerate(self.layers):
            if self.skip_connections:
                u = sum((inputs[source] for source, target in LONG_SKIPS if target == i), u)
                inputs.append(u)
            of_layer = (None if each is None else each[i] for each in (recurrences, keys))
            u, last = one(layer, u, state[i], *of_layer)
            states.append(last)
        return StackOutput(u, jnp.stack(states))
