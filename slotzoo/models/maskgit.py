"""MaskGIT over a grid of codes, as TECO uses it (Chang et al., CVPR 2022; Yan et al., ICML 2023, section 4).

A bidirectional Transformer tells hidden codes from the visible ones and from a condition at every place. Codes are
drawn by draft and revise (Lee et al., NeurIPS 2022): every place once, some at a time; then again, given the others.
"""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.nn.initializers import normal
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.nn.activations import activation
from slotzoo.nn.linear import Linear
from slotzoo.nn.norm import LayerNorm
from slotzoo.nn.transformer import Transformer


class Sampling(NamedTuple):
    """How often the network is asked: `draft` times for a first draft, `revise` times in each of `rounds` rounds."""

    draft: int = 8
    revise: int = 8
    rounds: int = 2

    @property
    def steps(self) -> int:
        """Passes of the network for one grid of codes."""
        return self.draft + self.rounds * self.revise


class MaskGIT(eqx.Module):
    """`logits = embedding . head(transformer([embedding[codes], condition])) + bias` at every place of a grid."""

    embedding: Float[Array, "codes_1 vocab_dim"]  # one row per code, and one for a hidden code
    net: Transformer
    head: Linear
    head_norm: LayerNorm
    head_bias: Float[Array, " codes"]
    codes: int = eqx.field(static=True)
    grid: tuple[int, int] = eqx.field(static=True)
    schedule: str = eqx.field(static=True)

    def __init__(
        self,
        codes: int,
        condition_dim: int,
        grid: tuple[int, int],
        *,
        vocab_dim: int,
        dim: int,
        mlp_dim: int,
        heads: int,
        layers: int,
        schedule: str = "cosine",
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        remat: bool = False,
        key: PRNGKeyArray,
    ):
        """`codes` different codes on a `grid` (height, width); `schedule`: how many are hidden in training."""
        table_key, net_key, head_key = jax.random.split(key, 3)
        self.embedding = normal(0.02)(table_key, (codes + 1, vocab_dim), jnp.float32)
        self.net = Transformer(
            vocab_dim + condition_dim,
            dim,
            mlp_dim=mlp_dim,
            heads=heads,
            layers=layers,
            positions="broadcast",
            grid=grid,
            dropout=dropout,
            attention_dropout=attention_dropout,
            remat=remat,
            key=net_key,
        )
        self.head = Linear(dim, vocab_dim, init=normal(0.02), key=head_key)
        self.head_norm = LayerNorm(vocab_dim)
        self.head_bias = jnp.zeros(codes)
        self.codes, self.grid, self.schedule = codes, grid, schedule

    def __call__(
        self,
        codes: Int[Array, "height width"],
        condition: Float[Array, "height width condition"],
        hidden: Bool[Array, "height width"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> Float[Array, "height width codes"]:
        """Logits of the code at every place, seeing only those that are not `hidden`; a `key` turns dropout on.

        A code of -1 is hidden as well.
        """
        rows = jnp.where(hidden | (codes < 0), self.codes, codes)
        embedded = self.embedding.astype(condition.dtype)[rows]
        x = jnp.concatenate([embedded, condition], -1)
        x = self.net(x.reshape(-1, x.shape[-1]), key=key)
        x = self.head_norm(activation("gelu")(self.head(x)))
        logits = jnp.matmul(
            x, self.embedding[: self.codes].astype(x.dtype).T, preferred_element_type=jnp.float32
        )
        return (logits + self.head_bias.astype(jnp.float32)[None, :]).reshape(*codes.shape, self.codes)

    def draw_hidden(self, *, key: PRNGKeyArray) -> Bool[Array, "height width"]:
        """Which codes are hidden in a training example: the share `schedule(r)`, r uniform, but at least one."""
        ratio_key, place_key = jax.random.split(key)
        places = self.grid[0] * self.grid[1]
        share = hidden_share(jax.random.uniform(ratio_key), self.schedule, places)
        number = jnp.maximum(1, jnp.floor(share * places).astype(jnp.int32))
        return (jax.random.permutation(place_key, places) < number).reshape(self.grid)

    def sample(
        self,
        condition: Float[Array, "height width condition"],
        sampling: Sampling,
        *,
        key: PRNGKeyArray,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> Int[Array, "height width"]:
        """Draw codes with `softmax(logits / temperature)`, 0 takes the likeliest; `sampling.steps` passes in one scan.

        Every round goes through the places in a random order, which is cut into as many parts as it has passes.
        """
        rounds = [sampling.draft] + [sampling.revise] * sampling.rounds
        order_key, *step_keys = jax.random.split(key, 1 + sampling.steps)
        parts = [
            _parts(self.grid, passes, key=round_key)
            for passes, round_key in zip(rounds, jax.random.split(order_key, len(rounds)), strict=True)
        ]

        def body(codes, now):
            asked, key = now
            logits = self(codes, condition, asked)
            drawn = jnp.argmax(logits + temperature * jax.random.gumbel(key, logits.shape), -1)
            return jnp.where(asked, drawn.astype(codes.dtype), codes), None

        nothing = jnp.full(self.grid, -1, jnp.int32)
        return jax.lax.scan(body, nothing, (jnp.concatenate(parts), jnp.stack(step_keys)))[0]


def hidden_share(ratio: Float[Array, "*n"], schedule: str, places: int) -> Float[Array, "*n"]:
    """The share of `places` codes to hide when `ratio` of the way has been gone: falls from 1 to (nearly) 0.

    cosine `cos(pi r / 2)`, uniform `1 - r`, pow`e` `1 - r^e`, log `-log2 r / log2 places`,
    exp `1 - 2^(-log2(places) (1 - r))`, all within [1e-6, 1].
    """
    bits = math.log2(max(places, 2))
    match schedule:
        case "cosine":
            share = jnp.cos(math.pi / 2 * ratio)
        case "uniform":
            share = 1 - ratio
        case "log":
            share = -jnp.log2(ratio) / bits
        case "exp":
            share = 1 - jnp.exp2(-bits * (1 - ratio))
        case _:
            share = 1 - ratio ** _exponent(schedule)
    return jnp.clip(share, 1e-6, 1.0)


def check_schedule(schedule: str) -> None:
    """**Raises** `ConfigError` for the name of a schedule that `hidden_share` does not know."""
    if schedule not in ("cosine", "uniform", "log", "exp"):
        _exponent(schedule)


def _exponent(schedule: str) -> float:
    try:
        return float(schedule.removeprefix("pow"))
    except ValueError as error:
        raise ConfigError(
            f"MaskGIT: there is no schedule {schedule!r}; choose cosine, uniform, log, exp, or pow and a number."
        ) from error


def _parts(grid: tuple[int, int], passes: int, *, key: PRNGKeyArray) -> Bool[Array, "pass height width"]:
    """Every place of the grid in exactly one of `passes` parts of nearly equal size, at random."""
    places = grid[0] * grid[1]
    sizes = [len(part) for part in np.array_split(np.arange(places), passes)]
    numbers = jnp.asarray(np.repeat(np.arange(passes), sizes))[jax.random.permutation(key, places)]
    return (numbers[None, :] == jnp.arange(passes)[:, None]).reshape(passes, *grid)
