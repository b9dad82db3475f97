"""Suite `videos`: SAVi-S and STATM-SAVi beside the formulation of their authors, and memory of long clips.

    train step      loss, gradient and Adam on a batch of clips, float32. `ratio`: the authors' formulation over it;
                    `forwards`: how many times the prediction alone it costs (3 is what differentiation takes)
    compile, step   the train step traced and compiled: the best of `COMPILED` rounds, in seconds and in seconds of a
                    core (`..._core_s`); `ratio`: the authors' formulation over ours, and `unrolled`: one that does
                    everything in a loop over frames over ours, both in seconds of a core
    compile, 24     the prediction for a clip of 24 frames, compiled and not run; `ratio` of the compile times, over
                    the authors' formulation, and `unrolled` over one that does everything in a loop over frames
    remat, slots    what XLA allocates, as a share of the train step's: decoding frame by frame, and again for the
                    gradient; slots for the ten objects that a clip may show instead of 23 (whose step is the base)
    evaluation      clips of any length followed frame by frame (`step`) or in slices of six, and all at once;
                    `temp_bytes` beyond the clip that goes in and the labels that come out

`scale=tiny` is the size of the recorded timings: 4 clips of 6 frames of 64 x 64 pixels, 6 objects and a background.
"""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks import timing
from experiments.benchmarks.videos_published import prediction
from experiments.schema import BenchmarkSettings
from slotzoo.models import create_model
from slotzoo.models.savi import SAVi
from slotzoo.ops import batch_map
from slotzoo.tasks.follow import follow
from slotzoo.train.optimizer import OptimizerConfig, make_optimizer


MODELS = ("savi_small", "statm_savi_small")
COLUMNS = [
    "row",
    "model",
    "frames",
    "median_s",
    "best_s",
    "compile_s",
    "temp_bytes",
    "ratio",
    "unrolled",
    "forwards",
    "memory",
]
# batch, frames, objects; then the lengths of clips that are followed.
SIZES = {"tiny": (4, 6, 6), "paper": (64, 6, 23)}
LENGTHS = {"tiny": (24, 96, 384), "paper": (24, 96, 384)}
# Rounds in which the train step of each formulation is compiled.
COMPILED = 2
# Fields that make the model itself smaller, for tests.
SMALLER: dict[str, Any] = {}


def run(config: BenchmarkSettings) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the suite. The authors' formulation, half a minute a step on two cores, runs `repeats / 4` times."""
    rows = []
    for name in MODELS:
        rows += _step_rows(name, config)
    rows += [_step_compile_row(name, config.scale) for name in MODELS]
    rows += [_compile_row(name) for name in MODELS]
    rows += _memory_rows(config.scale)
    rows += _evaluation_rows(config.scale)
    return rows, COLUMNS


def _model(name: str, **fields: Any) -> SAVi:
    make = eqx.filter_jit(lambda: create_model(name, key=jax.random.key(0), **{**SMALLER, **fields}))
    made: Any = make()
    return made


def _batch(model: SAVi, batch: int, frames: int, objects: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    c = model.config
    video = rng.uniform(0, 1, (batch, frames, c.height, c.width, 3)).astype(np.float32)
    corners = np.sort(rng.uniform(0, 1, (batch, frames, objects, 2, 2)), axis=3).reshape(
        batch, frames, objects, 4
    )
    flow = rng.uniform(0, 1, video.shape).astype(np.float32)
    return {"video": jnp.asarray(video), "boxes": jnp.asarray(corners, jnp.float32), "flow": jnp.asarray(flow)}


def _authors_loss(model: SAVi, clip: dict[str, jax.Array], *, unrolled: bool = False) -> jax.Array:
    made = prediction(model, clip["video"], clip["boxes"][0], unrolled=unrolled)
    return jnp.sum(jnp.square(made["flow"] - clip["flow"]))


def _unrolled_loss(model: SAVi, clip: dict[str, jax.Array]) -> jax.Array:
    return _authors_loss(model, clip, unrolled=True)


def _our_loss(model: SAVi, clip: dict[str, jax.Array]) -> jax.Array:
    return model.loss(clip)[0]


def _step(model: SAVi, batch: dict[str, jax.Array], loss: Any) -> timing.Program:
    """One update: parameters, the optimiser's state, a batch."""
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    optimizer = make_optimizer(
        OptimizerConfig(2e-4, steps=1000, schedule="constant", warmup_steps=0, weight_decay=0.0, clip_norm=0.05)
    )

    def step(parameters: Any, state: Any, batch: Any) -> Any:
        def mean(parameters: Any) -> Any:
            return jnp.mean(batch_map(lambda clip: loss(eqx.combine(parameters, static), clip))(batch))

        value, grads = jax.value_and_grad(mean)(parameters)
        updates, state = optimizer.update(grads, state, parameters)
        return optax.apply_updates(parameters, updates), state, value

    return step, (parameters, optimizer.init(parameters), batch)


def _forward(
    model: SAVi, batch: dict[str, jax.Array], *, authors: bool = False, unrolled: bool = False
) -> timing.Program:
    parameters, static = eqx.partition(model, eqx.is_inexact_array)

    def one(model: Any, clip: dict[str, jax.Array]) -> Any:
        if authors or unrolled:
            return prediction(model, clip["video"], clip["boxes"][0], unrolled=unrolled)
        return model(clip["video"], clip["boxes"][0]).predictions

    def forward(parameters: Any, batch: Any) -> Any:
        return batch_map(lambda clip: one(eqx.combine(parameters, static), clip))(batch)

    return forward, (parameters, batch)


def _step_rows(name: str, config: BenchmarkSettings) -> list[dict[str, Any]]:
    size = SIZES[config.scale]
    model = _model(name, num_slots=size[2] + 1)
    batch = _batch(model, *size)
    few = max(config.repeats // 4, 1)
    rows = []
    both = timing.measure(
        {"ours": _step(model, batch, _our_loss), "authors": _step(model, batch, _authors_loss)}, few
    )
    ours = timing.measure(
        {"step": _step(model, batch, _our_loss), "forward": _forward(model, batch)}, config.repeats
    )
    theirs = timing.measure({"forward": _forward(model, batch, authors=True)}, few)
    forwards = timing.speedup(ours, "forward", over="step")
    common = {"model": name, "frames": size[1], "batch": size[0], "slots": size[2] + 1}
    ratio = timing.speedup(both, "ours", over="authors")
    rows.append({"row": "train step", **common, **ours["step"].as_dict(), "ratio": ratio, "forwards": forwards})
    rows.append({"row": "prediction", **common, **ours["forward"].as_dict()})
    forwards = both["authors"].median_s / theirs["forward"].median_s
    rows.append({"row": "train step, authors", **common, **both["authors"].as_dict(), "forwards": forwards})
    rows.append({"row": "prediction, authors", **common, **theirs["forward"].as_dict()})
    return rows


def _compiled(program: timing.Program) -> tuple[float, int]:
    """Seconds of tracing and compiling, and the scratch bytes of the program."""
    fn, args = program
    start = time.perf_counter()
    compiled = jax.jit(fn).lower(*args).compile()
    seconds = time.perf_counter() - start
    stats: Any = compiled.memory_analysis()
    return seconds, stats.temp_size_in_bytes


def _compiling(program: timing.Program) -> tuple[float, float]:
    """Seconds of tracing and compiling, from nothing, and how many of a core these were."""
    jax.clear_caches()
    core = time.process_time()
    seconds, _ = _compiled(program)
    return seconds, time.process_time() - core


def _step_compile_row(name: str, scale: str) -> dict[str, Any]:
    batch, frames, objects = SIZES[scale]
    model = _model(name, num_slots=objects + 1)
    clips = _batch(model, batch, frames, objects)
    losses = {"ours": _our_loss, "authors": _authors_loss, "unrolled": _unrolled_loss}
    rounds = [
        {form: _compiling(_step(model, clips, loss)) for form, loss in losses.items()} for _ in range(COMPILED)
    ]
    seconds, core = ({form: min(r[form][i] for r in rounds) for form in losses} for i in range(2))
    row = {"row": "compile, step", "model": name, "frames": frames, "compile_s": seconds["ours"]}
    row |= {f"{form}_compile_s": seconds[form] for form in ("authors", "unrolled")}
    row |= {f"{form}_core_s": core[form] for form in losses}
    ratios = {
        name: core[form] / core["ours"] for name, form in (("ratio", "authors"), ("unrolled", "unrolled"))
    }
    return {**row, **ratios}


def _compile_row(name: str) -> dict[str, Any]:
    model = _model(name, num_slots=7)
    batch = _batch(model, 1, 24, 6)
    forms = {"ours": {}, "authors": {"authors": True}, "unrolled": {"unrolled": True}}
    seconds = {form: _compiled(_forward(model, batch, **options))[0] for form, options in forms.items()}
    return {
        "row": "compile, 24",
        "model": name,
        "frames": 24,
        "compile_s": seconds["ours"],
        "authors_compile_s": seconds["authors"],
        "unrolled_compile_s": seconds["unrolled"],
        "ratio": seconds["authors"] / seconds["ours"],
        "unrolled": seconds["unrolled"] / seconds["ours"],
    }


def _memory_rows(scale: str) -> list[dict[str, Any]]:
    """Scratch of the step with the decoder recomputed, and with slots for ten objects, over the plain one with 23."""
    batch_size, frames, _ = SIZES[scale]
    found = {}
    for label, fields, objects in (
        ("24 slots", {}, 23),
        ("24 slots, remat", {"remat": True}, 23),
        ("11 slots", {}, 10),
    ):
        model = _model(MODELS[0], num_slots=objects + 1, **fields)
        found[label] = _compiled(_step(model, _batch(model, batch_size, frames, objects), _our_loss))
    base = found["24 slots"][1]
    return [
        {
            "row": f"train step, {label}",
            "model": MODELS[0],
            "frames": frames,
            "compile_s": seconds,
            "temp_bytes": size,
            "memory": size / max(base, 1),
        }
        for label, (seconds, size) in found.items()
    ]


def _followed(model: SAVi, clip: dict[str, jax.Array], chunk: int) -> timing.Program:
    parameters, static = eqx.partition(model, eqx.is_inexact_array)
    # As pipelines give them: in bytes.
    clip = {n: (255 * x).astype(jnp.uint8) if n != "boxes" else x for n, x in clip.items()}

    def labels(parameters: Any, clip: Any) -> Any:
        return follow(eqx.combine(parameters, static), clip, chunk=chunk, key=jax.random.key(0))

    return labels, (parameters, clip)


def _evaluation_rows(scale: str) -> list[dict[str, Any]]:
    rows = []
    for name in MODELS:
        model = _model(name, num_slots=7)
        for frames in LENGTHS[scale]:
            clip = jax.tree.map(lambda x: x[0], _batch(model, 1, frames, 6))
            for chunk in (1, 6, frames):
                seconds, size = _compiled(_followed(model, clip, chunk))
                how = {1: "frame by frame", frames: "all at once"}.get(chunk, f"slices of {chunk}")
                row = {"row": f"evaluation, {how}", "model": name, "frames": frames}
                rows.append({**row, "compile_s": seconds, "temp_bytes": size})
    return rows
