"""A linear model, its task and its data: small enough that every test of the loop is a matter of seconds."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.train import FitConfig, OptimizerConfig, RunLogger, fit, learning_rate, make_optimizer


class Linear(eqx.Module):
    weight: jax.Array
    bias: jax.Array
    activation: object = eqx.field(default=jax.nn.gelu)

    def __init__(self, size_in: int = 8, size_out: int = 4, *, key):
        self.weight = 0.3 * jax.random.normal(key, (size_in, size_out))
        self.bias = jnp.zeros(size_out)
        self.activation = jnp.tanh

    def __call__(self, x):
        return self.activation(x @ self.weight + self.bias)


class Regression:
    """Squared error against a target, plus noise whose only use is to depend on the key."""

    def __init__(self, noise: float = 0.01, poison=None):
        self.noise = noise
        self.poison = poison
        self.evaluated = []

    def loss(self, model, frozen, batch, *, key, step):
        dtype = model.weight.dtype
        x = batch["x"].astype(dtype) * (1.0 if frozen is None else frozen["scale"].astype(dtype))
        x = x + self.noise * jax.random.normal(key, x.shape, dtype)
        error = (jax.vmap(model)(x) - batch["y"].astype(dtype)).astype(jnp.float32) ** 2
        value = error.mean()
        if self.poison is not None:
            value = value * jnp.where(step == self.poison, jnp.nan, 1.0)
        return value, {"error": value, "bias": jnp.abs(model.bias).mean()}

    def evaluate(self, model, frozen, batches, *, key, step, folder, should_stop):
        errors = []
        for batch in batches:
            if should_stop():
                return {"error": 0.0}
            errors.append(float(jnp.mean((jax.vmap(model)(batch["x"]) - batch["y"]) ** 2)))
        (folder / "picture.txt").write_text(str(step))
        self.evaluated.append(step)
        return {"error": float(np.mean(errors))}


class Batches:
    """Endless, seeded by position, with the state of a Grain iterator."""

    def __init__(self, size: int = 8, seed: int = 0, part: int = 0, parts: int = 1, width: int = 4):
        self.size, self.seed, self.part, self.parts, self.index = size, seed, part, parts, 0
        self.width = width
        self.closed = False

    def __iter__(self):
        return self

    def __next__(self):
        rng = np.random.default_rng([self.seed, self.index])
        self.index += 1
        x = rng.normal(size=(self.size * self.parts, 2 * self.width)).astype(np.float32)
        batch = {"x": x, "y": np.tanh(x[:, : self.width] - 0.5 * x[:, self.width :])}
        return {k: v[self.part * self.size : (self.part + 1) * self.size] for k, v in batch.items()}

    def get_state(self):
        return {"next_index": self.index}

    def set_state(self, state):
        self.index = state["next_index"]

    def close(self):
        self.closed = True


def few(count: int = 2, width: int = 4):
    """A factory of evaluation batches."""
    return lambda: [next(it) for it in [Batches(seed=99, width=width)] for _ in range(count)]


OPTIMIZER = OptimizerConfig(0.05, steps=12, warmup_steps=2)


def run_linear(folder, *, task=None, data=None, signals=None, width=4, initial=None, **options):
    """Twelve steps of the linear model, evaluated every six and saved every four."""
    options = {"steps": 12, "batch_size": 8, "log_every": 1, "evaluate_every": 6, "save_every": 4, **options}
    with RunLogger(folder, progress="plain") as logger:
        return fit(
            FitConfig(**options),
            task=task or Regression(),
            model=lambda key: Linear(2 * width, width, key=key),
            frozen={"scale": jnp.float32(1.0)},
            initial=initial,
            optimizer=make_optimizer(OPTIMIZER),
            learning_rate=learning_rate(OPTIMIZER),
            train=data or Batches(width=width),
            evaluation=few(width=width),
            folder=folder,
            logger=logger,
            signals=signals,
            card={"config": {"name": "linear"}},
        )
