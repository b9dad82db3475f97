"""The slot attention module: slots that compete for tokens, a few times over."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, glorot_uniform, lecun_normal
from jaxtyping import Array, Float, PRNGKeyArray

from slotzoo.errors import ConfigError, ShapeError
from slotzoo.nn.gru import GRUCell
from slotzoo.nn.linear import Linear
from slotzoo.nn.mlp import MLP, DeepMLP
from slotzoo.nn.norm import LayerNorm
from slotzoo.ops.slot_attention import Implementation, slot_attention, slot_shares


Gradient = Literal["explicit", "implicit", "neumann"]
Init = Literal["gaussian", "learned", "given"]
Style = Literal["torch", "flax"]
NORM_EPS = {"torch": 1e-5, "flax": 1e-6}


class SlotAttentionOutput(NamedTuple):
    """Slots after the last step, and the attention of that step."""

    slots: Float[Array, "slot dim"]
    attention: Float[Array, "token slot"]  # of each token: sums to 1 over slots


class Tokens(NamedTuple):
    """What the slots compete for, as `SlotAttention.project` makes it."""

    key: Float[Array, "*time token qkv"]
    value: Float[Array, "*time token qkv"]


class SlotAttention(eqx.Module):
    """`slots <- GRU(updates, slots)`, `slots <- slots + MLP(LN(slots))`, repeated; updates from the competition.

    Each step is `slotzoo.ops.slot_attention` of queries from the normalised slots against keys and values from
    the normalised tokens, which are projected once.

    **Gradients**
    - `"explicit"`: through all `iterations` steps.
    - `"implicit"`: `iterations` steps without a gradient, then one more step that is differentiated, its slots taken
      for a fixed point: memory and time of the backward pass do not grow with the iterations. The
      initial slots get no gradient.
    - `"neumann"`: as `"implicit"`, with the gradient multiplied by `I + J + ... + J^k` in place of `(I - J)^-1`,
      where J is the step's Jacobian in the slots and k is `neumann_terms`.

    **Initial slots**: `"gaussian"`, mean and standard deviation learned and shared by all slots, so that there can be
    any number; `"learned"`, a vector for each of `num_slots`; `"given"`, by the caller only.

    **Styles**: "torch", as above; "flax", as SAVi has it, where several heads compete each by itself and a linear
    layer makes an update of one head's width of all of them.

    Sources: Locatello et al., NeurIPS 2020, algorithm 1; Kipf et al., ICLR 2022, section 3.2; Chang, Griffiths,
    Levine: Object Representations as Fixed Points, NeurIPS 2022, section 3.
    """

    mean: Float[Array, " dim"] | None
    log_scale: Float[Array, " dim"] | None
    table: Float[Array, "slot dim"] | None
    input_norm: LayerNorm | None
    input_mlp: MLP | None
    norm_inputs: LayerNorm
    norm_slots: LayerNorm
    norm_mlp: LayerNorm | None
    query: Linear
    key: Linear
    value: Linear
    joined: Linear | None
    gru: GRUCell
    mlp: MLP | DeepMLP | None
    input_dim: int = eqx.field(static=True)
    slot_dim: int = eqx.field(static=True)
    heads: int = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)
    init: Init = eqx.field(static=True)
    gradient: Gradient = eqx.field(static=True)
    neumann_terms: int = eqx.field(static=True)
    style: Style = eqx.field(static=True)
    implementation: Implementation = eqx.field(static=True)

    def __init__(
        self,
        input_dim: int,
        slot_dim: int,
        *,
        mlp_dim: int | None,
        qkv_dim: int | None = None,
        heads: int = 1,
        epsilon: float = 1e-8,
        input_mlp: bool = False,
        init: Init = "gaussian",
        num_slots: int | None = None,
        gradient: Gradient = "explicit",
        neumann_terms: int = 4,
        style: Style = "torch",
        implementation: Implementation = "auto",
        key: PRNGKeyArray,
    ):
        """`qkv_dim` is `slot_dim` unless given; `mlp_dim` of None leaves the MLP away, `input_mlp` puts one (with a
        norm before it) onto the tokens; `num_slots` is needed for `init="learned"` only. `style` also decides on
        the first parameters and the epsilon of norms.
        """
        qkv_dim = slot_dim if qkv_dim is None else qkv_dim
        if heads < 1 or qkv_dim % heads:
            raise ConfigError(f"slot attention: {qkv_dim} channels cannot be split into heads={heads}.")
        if (num_slots is None) == (init == "learned"):
            raise ConfigError('slot attention: num_slots goes with init="learned", and with no other.')
        if neumann_terms < 0:
            raise ConfigError(f"slot attention: neumann_terms={neumann_terms} must not be negative.")
        keys = jax.random.split(key, 8)
        self.mean = self.log_scale = self.table = None
        if init == "gaussian":
            mean, log_scale = jax.random.split(keys[0])
            limit = (3 / slot_dim) ** 0.5  # Glorot-uniform for a (dim, dim) kernel, as the authors of the port
            self.mean = jax.random.uniform(mean, (slot_dim,), minval=-limit, maxval=limit)
            self.log_scale = jax.random.uniform(log_scale, (slot_dim,), minval=-limit, maxval=limit)
        elif init == "learned":
            self.table = glorot_uniform()(keys[0], (num_slots or 0, slot_dim), jnp.float32)
        eps = NORM_EPS[style]
        self.input_norm = LayerNorm(input_dim, eps=eps) if input_mlp else None
        self.input_mlp = MLP(input_dim, input_dim, input_dim, key=keys[1]) if input_mlp else None
        self.norm_inputs = LayerNorm(input_dim, eps=eps)
        self.norm_slots = LayerNorm(slot_dim, eps=eps)
        self.norm_mlp = LayerNorm(slot_dim, eps=eps) if mlp_dim else None
        kernel = lecun_normal() if style == "flax" else glorot_uniform()
        self.query = _projection(slot_dim, qkv_dim, kernel, keys[2])
        self.key = _projection(input_dim, qkv_dim, kernel, keys[3])
        self.value = _projection(input_dim, qkv_dim, kernel, keys[4])
        apart = style == "flax" and heads > 1
        self.joined = Linear(qkv_dim, qkv_dim // heads, key=keys[7]) if apart else None
        self.gru = GRUCell(qkv_dim // heads if apart else qkv_dim, slot_dim, style=style, key=keys[5])
        perceptron = DeepMLP if style == "flax" else MLP
        self.mlp = perceptron(slot_dim, mlp_dim, slot_dim, key=keys[6]) if mlp_dim else None
        self.input_dim, self.slot_dim, self.heads = input_dim, slot_dim, heads
        self.epsilon, self.init, self.gradient = epsilon, init, gradient
        self.neumann_terms, self.style, self.implementation = neumann_terms, style, implementation

    def __call__(
        self,
        inputs: Float[Array, "token {self.input_dim}"],
        slots0: Float[Array, "slot {self.slot_dim}"],
        *,
        iterations: int,
    ) -> SlotAttentionOutput:
        """Refine `slots0` by `iterations` steps over the tokens (and one more unless the gradient is explicit)."""
        least = 1 if self.gradient == "explicit" else 0
        if iterations < least:
            raise ConfigError(f"slot attention: iterations={iterations} must be at least {least}.")
        tokens = self.project(inputs)
        if self.gradient == "explicit":
            slots = slots0
            for _ in range(iterations - 1):
                slots = self._step(tokens, slots)
            return self._last_step(tokens, slots)
        fixed, settled = jax.lax.stop_gradient((self, tokens))
        slots = jax.lax.fori_loop(
            0, iterations, lambda _, slots: fixed._step(settled, slots), jax.lax.stop_gradient(slots0)
        )
        # The barrier of the gradient: what follows sees the slots as a constant.
        slots = jax.lax.stop_gradient(slots)
        output = self._last_step(tokens, slots)
        if self.gradient == "implicit":
            return output
        step = lambda slots: fixed._step(settled, slots)
        return output._replace(slots=_neumann(step, self.neumann_terms, output.slots, slots))

    def sample_slots(
        self,
        num_slots: int | None = None,
        *,
        noise: Float[Array, "slot {self.slot_dim}"] | None = None,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "slot {self.slot_dim}"]:
        """Initial slots: `mean + exp(log_scale) noise`, with standard normal `noise` given or drawn from `key`; or the
        first `num_slots` learned ones (all unless given).
        """
        if self.table is not None:
            wanted = len(self.table) if num_slots is None else num_slots
            if wanted > len(self.table):
                raise ShapeError(
                    f"{wanted} slots were asked for and {len(self.table)} are learned; only "
                    'init="gaussian" has as many as one likes.'
                )
            return self.table[:wanted]
        if self.mean is None or self.log_scale is None:
            raise ConfigError('slot attention: init="given" has no initial slots; pass them as slots0.')
        if noise is None:
            if key is None or num_slots is None:
                raise ConfigError("slot attention: initial slots need `noise`, or `key` and `num_slots`.")
            noise = jax.random.normal(key, (num_slots, self.slot_dim))
        if num_slots not in (None, len(noise)):
            raise ConfigError(
                f"slot attention: {num_slots} slots were asked for, the noise is for {len(noise)}."
            )
        return self.mean[None] + jnp.exp(self.log_scale)[None] * noise.astype(self.mean.dtype)

    def project(self, inputs: Float[Array, "*time token {self.input_dim}"]) -> Tokens:
        """Keys and values of the tokens, of any number of frames at once."""
        if self.input_norm is not None and self.input_mlp is not None:
            inputs = self.input_mlp(self.input_norm(inputs))
        inputs = self.norm_inputs(inputs)
        return Tokens(self.key(inputs), self.value(inputs))

    def refine(
        self, tokens: Tokens, slots: Float[Array, "slot {self.slot_dim}"], *, iterations: int
    ) -> tuple[Float[Array, "slot {self.slot_dim}"], Float[Array, "slot qkv"]]:
        """As a call with an explicit gradient, from tokens that are projected already: the slots after the steps,
        and the queries of the last one, of which `attention` makes that step's attention.
        """
        query = self.query(self.norm_slots(slots))
        for i in range(iterations):
            slots = self._updated(self._updates(query, tokens), slots)
            if i < iterations - 1:
                query = self.query(self.norm_slots(slots))
        return slots, query

    def attention(
        self, query: Float[Array, "slot qkv"], key: Float[Array, "token qkv"]
    ) -> Float[Array, "slot token"]:
        """How queries share each token among the slots, summed over heads (their mean, in the "flax" style)."""
        if self.joined is None:
            return slot_shares(query, key, heads=self.heads)
        return jax.vmap(slot_shares)(_heads_first(query, self.heads), _heads_first(key, self.heads)).mean(0)

    def _step(self, tokens: Tokens, slots: Array) -> Array:
        return self._updated(self._updates(self.query(self.norm_slots(slots)), tokens), slots)

    def _updates(self, query: Array, tokens: Tokens) -> Array:
        compete = functools.partial(slot_attention, epsilon=self.epsilon, implementation=self.implementation)
        if self.joined is None:
            return compete(query, *tokens, heads=self.heads)
        apart = jax.vmap(compete)(*(_heads_first(x, self.heads) for x in (query, *tokens)))
        return self.joined(jnp.swapaxes(apart, 0, 1).reshape(len(query), -1))

    def _last_step(self, tokens: Tokens, slots: Array) -> SlotAttentionOutput:
        query = self.query(self.norm_slots(slots))
        updated = self._updated(self._updates(query, tokens), slots)
        return SlotAttentionOutput(updated, self.attention(query, tokens.key).T)

    def _updated(self, updates: Array, slots: Array) -> Array:
        slots = self.gru(updates, slots)
        if self.mlp is not None and self.norm_mlp is not None:
            slots = slots + self.mlp(self.norm_mlp(slots))
        return slots


def _projection(in_size: int, out_size: int, init: Initializer, key: PRNGKeyArray) -> Linear:
    return Linear(in_size, out_size, bias=False, init=init, key=key)


def _heads_first(x: Array, heads: int) -> Array:
    """`(row, head x channel) -> (head, row, channel)`."""
    return jnp.swapaxes(x.reshape(len(x), heads, -1), 0, 1)


def _neumann(
    step: Callable[[Array], Array], terms: int, slots: Float[Array, "slot dim"], fixed: Float[Array, "slot dim"]
) -> Float[Array, "slot dim"]:
    """`slots`, whose cotangent g becomes `(I + J + ... + J^terms)^T g`, with J the Jacobian of `step` at `fixed`."""
    _, pullback = jax.vjp(step, fixed)

    @jax.custom_vjp
    def series(slots: Array, pullback: Any) -> Array:
        return slots

    def forward(slots: Array, pullback: Any):
        return slots, pullback

    def backward(pullback: Any, cotangent: Array):
        term = total = cotangent
        for _ in range(terms):
            (term,) = pullback(term)
            total = total + term
        return total, jax.tree.map(jnp.zeros_like, pullback)

    series.defvjp(forward, backward)
    return series(slots, pullback)
