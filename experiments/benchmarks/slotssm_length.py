"""Suite `slotssm_length`: SlotSSM, SlotTransformer and SlotRNN against the length of the history.

Blinking Color Balls, cut into patches that come one after the other: 80 to 2560 steps, the published lengths. All
three are the same network but for the mixer of the slots' steps, and see the same clip.

    forward       the answer to one clip
    train step    loss, gradient and AdamW on one clip
    stream        one more step, its state given, when the history is as long as `steps`

`us_per_step` is the time divided by the steps (of `stream`: of one step), `temp_bytes` what XLA allocates beside
parameters, clip and results, `bytes_per_step` its share of a step. `slower` says how many times longer than SlotSSM a
model takes, `growth` how many times more a step costs than in the shortest history: 1 is time linear in length. Two
charts, of time and of memory per step in training, are written beside the results.
"""

import dataclasses
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from experiments.benchmarks import timing
from experiments.schema import BenchmarkSettings
from slotzoo.models.registry import model_config, tiny
from slotzoo.models.slotssm import SlotSSM
from slotzoo.models.slotssm_config import SlotSSMConfig
from slotzoo.viz.plots import write_plot


# Context frames and squares on a side of each, of 64 pixels: the published histories.
LENGTHS = ((5, 4), (10, 4), (5, 8), (10, 8), (5, 16), (10, 16))
SIDE = 64
MODELS: dict[str, dict[str, Any]] = {
    "slotssm": {},
    "slot_transformer": {"mixer": "attention"},
    "slot_rnn": {"mixer": "gru", "expand": 1.0},
}
COLUMNS = [
    "what",
    "model",
    "steps",
    "median_s",
    "us_per_step",
    "temp_bytes",
    "bytes_per_step",
    "slower",
    "growth",
]


def run(config: BenchmarkSettings) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the suite; writes `slotssm_length_<device>_{time,memory}.png`."""
    rows = []
    for frames, grid in sorted(LENGTHS, key=lambda x: x[0] * x[1] ** 2):
        steps = frames * grid**2
        built = {name: _built(config.scale, steps, grid, options) for name, options in MODELS.items()}
        for what, program in (("forward", forward), ("train step", train_step), ("stream", stream)):
            programs = {name: program(model, steps) for name, model in built.items()}
            # A long history takes seconds; three rounds are enough for it.
            found = timing.measure(programs, config.repeats if steps <= 320 else min(config.repeats, 3))
            for name, result in found.items():
                share = 1 if what == "stream" else steps
                row = {"what": what, "model": name, "steps": steps, **result.as_dict()}
                row |= {
                    "us_per_step": 1e6 * result.median_s / share,
                    "bytes_per_step": result.temp_bytes / share,
                }
                row["slower"] = timing.speedup(found, "slotssm", over=name)
                rows.append(row)
    for row in rows:
        first = next(r for r in rows if (r["what"], r["model"]) == (row["what"], row["model"]))
        row["growth"] = row["us_per_step"] / first["us_per_step"]
    _draw(rows, Path(config.output))
    return rows, COLUMNS


def settings(scale: str, steps: int, grid: int, options: dict[str, Any]) -> SlotSSMConfig:
    """One of the models, for histories of `steps` squares: the published size, or narrow and two blocks deep."""
    small = {k: v for k, v in tiny("slotssm_bcb").items() if k != "resolution"} if scale == "tiny" else {}
    sizes = dict(resolution=SIDE // grid, patch_grid=grid, max_frames=steps)
    return dataclasses.replace(model_config("slotssm_bcb", **small), **{**sizes, **options})


def _built(scale: str, steps: int, grid: int, options: dict[str, Any]) -> SlotSSM:
    config = settings(scale, steps, grid, options)
    return eqx.filter_jit(lambda: SlotSSM(config, key=jax.random.key(0)))()


def _clip(model: SlotSSM, steps: int) -> jax.Array:
    c = model.config
    return jax.random.uniform(jax.random.key(1), (steps, c.resolution, c.resolution, c.in_channels))


def forward(model: SlotSSM, steps: int) -> timing.Program:
    """The answer."""
    arrays, static = eqx.partition(model, eqx.is_array)
    answer = lambda arrays, clip: eqx.combine(arrays, static)(clip).outputs.reconstruction
    return answer, (arrays, _clip(model, steps))


def train_step(model: SlotSSM, steps: int) -> timing.Program:
    """One update on one clip."""
    arrays, static = eqx.partition(model, eqx.is_inexact_array)
    optimizer = optax.adamw(8e-4, weight_decay=0.1)
    side, channels = model.config.out_resolution, model.config.out_channels

    def step(arrays: Any, state: Any, clip: jax.Array) -> Any:
        example = {"video": clip, "image": jnp.zeros((side, side, channels))}
        loss = lambda arrays: eqx.combine(arrays, static).loss(example)[0]
        value, grads = jax.value_and_grad(loss)(arrays)
        updates, state = optimizer.update(grads, state, arrays)
        return optax.apply_updates(arrays, updates), state, value

    return step, (arrays, optimizer.init(arrays), _clip(model, steps))


def stream(model: SlotSSM, steps: int) -> timing.Program:
    """The slots after one more square, with a state that has room for `steps` of them."""
    arrays, static = eqx.partition(model, eqx.is_array)

    def step(arrays: Any, square: jax.Array, state: Any) -> Any:
        return eqx.combine(arrays, static).step(square, state)

    return step, (arrays, _clip(model, 1)[0], model.init_state())


def _draw(rows: list[dict[str, Any]], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    trained = [row for row in rows if row["what"] == "train step"]
    for what, column, scale, unit in (
        ("time", "us_per_step", 1e-3, "ms"),
        ("memory", "bytes_per_step", 2**-20, "MiB"),
    ):
        series = {}
        for name in MODELS:
            own = [row for row in trained if row["model"] == name]
            series[name] = ([row["steps"] for row in own], [scale * row[column] for row in own])
        write_plot(
            folder / f"slotssm_length_{timing.device_slug()}_{what}.png",
            series,
            title=f"Training, {what} for each step of the history ({unit})",
            x_label="steps",
        )
