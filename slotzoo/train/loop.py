"""The training loop. Its order is load-bearing: save, then draw the next batch, step, log the step before."""

import contextlib
import dataclasses
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

from slotzoo.errors import CheckpointError, ConfigError, NonFiniteError, SlotzooError, nearest
from slotzoo.precision import Precision
from slotzoo.prng import stream
from slotzoo.train.checkpoint import Checkpointer
from slotzoo.train.distributed import gather
from slotzoo.train.logging import RunLogger
from slotzoo.train.mesh import check_batch_size, local_mesh, make_mesh, shard_batch
from slotzoo.train.optimizer import Schedule
from slotzoo.train.plan import plan_step
from slotzoo.train.prefetch import Prefetch
from slotzoo.train.protocols import Batch, Task
from slotzoo.train.sharding import abstract, init_sharded, place, whole
from slotzoo.train.signals import Signals
from slotzoo.train.state import TrainState, begun_from, init_state
from slotzoo.train.step import CompiledStep, make_train_step


log = logging.getLogger(__name__)

# Several processes have to agree on stopping, which costs a round trip: so often, in steps.
AGREE_EVERY = 10


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """What the loop does, in updates. `batch_size` is global: over all microbatches, devices and processes."""

    steps: int
    batch_size: int
    accumulate: int = 1
    precision: Precision = "float32"
    remat: bool = False
    ema_decay: float | int | None = None
    log_every: int = 100
    evaluate_every: int = 2000
    save_every: int = 2000
    keep: int = 3
    keep_every: int | None = 20000
    # Save at each evaluation, and keep the best checkpoint by this number of it as well; "-psnr": the largest.
    monitor: str | None = None
    strategy: str = "replicated"
    seed: int = 0
    prefetch: int = 2  # batches kept ready on the devices

    def __post_init__(self):
        for name in ("steps", "batch_size", "accumulate", "log_every", "evaluate_every", "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} is {getattr(self, name)}; it has to be at least 1.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ConfigError(f"train.ema_decay is {self.ema_decay}; it has to lie in [0, 1), or be null.")


@dataclasses.dataclass(frozen=True)
class FitResult:
    """How training ended: `finished`, or `stopped` by `signal` with a checkpoint at `step`."""

    status: Literal["finished", "stopped"]
    step: int
    metrics: dict[str, float]  # of the last evaluation
    state: TrainState
    signal: str | None = None


def fit(
    config: FitConfig,
    *,
    task: Task,
    model: Callable[[PRNGKeyArray], PyTree],
    optimizer: optax.GradientTransformation,
    train: Iterable[Mapping[str, np.ndarray]],
    folder: str | Path,
    frozen: PyTree = None,
    initial: Mapping[str, Any] | None = None,
    evaluation: Callable[[], Iterable[Mapping[str, np.ndarray]]] | None = None,
    learning_rate: Schedule | None = None,
    logger: RunLogger | None = None,
    mesh: Mesh | None = None,
    signals: Signals | None = None,
    card: Mapping[str, Any] | None = None,
) -> FitResult:
    """Train until `config.steps` or a signal; start where the checkpoints in `folder` end.

    - `model(key)` builds the model; it runs under `jit`, straight into the shardings.
    - `initial`: arrays of the model by dotted name that a run at step 0 begins with in place of those it drew.
    - `train`: `iter(train)` is endless, has `get_state`/`set_state`, gives this process's part of each batch.
    - `evaluation()` gives fresh batches: this process's part of the held-out set.
    - `card`: plain values saved with each checkpoint (configuration, versions).

    `folder` receives `checkpoints/`, `metrics.jsonl`, `train.log` and `evaluation/step_<n>/`. Raises
    NonFiniteError, CheckpointError, ConfigError and what the data or the task raises.
    """
    folder = Path(folder)
    mesh = make_mesh() if mesh is None else mesh
    check_batch_size(config.batch_size, mesh, config.accumulate)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals()) if signals is None else signals
        logger = stack.enter_context(RunLogger(folder)) if logger is None else logger
        run = _Run(config, task, frozen, evaluation, folder, logger, mesh, signals, dict(card or {}))
        run.initial = dict(initial or {})
        try:
            return run.fit(model, optimizer, learning_rate, train, stack)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise ConfigError(
                "The memory of the device is exhausted: take a smaller train.batch_size or eval.batch_size, "
                "train.accumulate, train.remat=true, train.precision=bfloat16 or mesh.strategy=fsdp "
                f"({str(error).splitlines()[0][:200]})."
            ) from error


class _Run:
    """The state of one call of `fit`."""

    def __init__(self, config, task, frozen, evaluation, folder, logger, mesh, signals, card):
        self.config: FitConfig = config
        self.task: Task = task
        self.evaluation = evaluation
        self.folder: Path = folder
        self.logger: RunLogger = logger
        self.mesh: Mesh = mesh
        self.signals: Signals = signals
        self.card: dict[str, Any] = card
        self.initial: dict[str, Any] = {}
        self.root = jax.random.key(config.seed % 2**32)
        self.frozen = place(frozen, mesh, "replicated")
        self.pending: tuple[int, dict[str, jax.Array]] | None = None
        self.measured: dict[str, float] = {}  # of the last evaluation
        self.measured_at = -1
        self.saved = 0  # the step of the last checkpoint
        # When the present stretch of steps began: seconds, step, seconds waited for data so far.
        self.clock: tuple[float, int, float] | None = None

    def fit(self, model, optimizer, learning_rate, train, stack) -> FitResult:
        config = self.config
        self.checkpoints = checkpoints = Checkpointer(
            self.folder / "checkpoints", keep=config.keep, keep_every=config.keep_every, monitor=config.monitor
        )
        stack.callback(checkpoints.close)
        self.data = data = Prefetch(iter(train), lambda batch: shard_batch(self.mesh, batch), config.prefetch)
        stack.callback(data.close)
        stack.callback(self.logger.stop)

        state, step = self.begin(model, optimizer)
        self.saved = step
        update = self.compile(optimizer, learning_rate, state) if step < config.steps else None
        self.logger.start(step, config.steps)
        while True:
            if self.due(step):
                self.collect()
                with self.rescue(state, step):
                    self.evaluate(state, step)
            self.clock = self.clock or (time.perf_counter(), step, data.waited)
            stopping = self.should_stop(step)
            monitored = config.monitor is not None and self.measured_at == step
            if stopping or monitored or step % config.save_every == 0 or step == config.steps:
                self.save(state, step)
            if stopping or update is None or step == config.steps:
                break
            with self.rescue(state, step):
                batch = next(data)
            state, metrics = update(state, self.frozen, batch, self.root)
            step += 1
            self.collect()
            self.pending = (step, metrics)
            self.logger.advance(step)
        checkpoints.wait()
        if step >= config.steps and not self.due(step):
            if config.monitor is not None and (best := checkpoints.best()) is not None:
                self.logger.say(f"The best checkpoint by {config.monitor} is that of step {best}.")
            return FitResult("finished", step, self.measured, state)
        self.logger.say(
            f"Stopped at step {step} by {self.signals.received}; the same command goes on from there."
        )
        return FitResult("stopped", step, self.measured, state, self.signals.received)

    def save(self, state: TrainState, step: int) -> None:
        """Save unless `step` is saved already; a step that was not finite is found before."""
        numbers = self.measured if self.measured_at == step else None
        if step > self.saved:
            self.collect()
            self.checkpoints.save(step, state, self.data, self.card, numbers)
            self.saved = step
        elif numbers is not None:  # saved when its evaluation was cut short or failed, and measured since
            self.checkpoints.record(step, numbers)

    @contextlib.contextmanager
    def rescue(self, state: TrainState, step: int) -> Iterator[None]:
        """Save what is trained before an error of the data or of the evaluation ends the run."""
        try:
            yield
        except Exception:
            if jax.process_count() == 1:  # the others do not know of the error and would not take part
                try:
                    self.save(state, step)
                    self.checkpoints.wait()
                    log.warning("An error ends the run; what was trained is saved as step %d.", step)
                except SlotzooError as second:
                    log.warning("An error ends the run, and saving failed as well: %s", second)
            raise

    def begin(self, model, optimizer) -> tuple[TrainState, int]:
        """Restore the newest checkpoint, or initialise."""
        config = self.config

        def build(key):
            return init_state(model, optimizer, key=key, ema=config.ema_decay is not None)

        key = stream(self.root, "init")
        shapes = abstract(eqx.filter_eval_shape(build, key), self.mesh, config.strategy)
        found = self.checkpoints.restore_latest(shapes, self.data)
        if found is None:
            state, step = init_sharded(build, key, mesh=self.mesh, strategy=config.strategy), 0
            state = begun_from(state, self.initial) if self.initial else state
        else:
            state, step = found.state, found.step
            self.logger.say(f"Going on from the checkpoint of step {step}.")
        self.logger.resume(step)
        self.measured_at, self.measured = gather(list(self.logger.last("eval")))[0]
        count = sum(x.size for x in jax.tree.leaves(eqx.filter(state.model, eqx.is_inexact_array)))
        self.logger.say(
            f"{count:,} parameters; {config.steps} steps of {config.batch_size} examples on {self.mesh.size} "
            f"{jax.local_devices()[0].device_kind} device{'s' * (self.mesh.size != 1)}, {config.strategy}, "
            f"{config.precision}."
        )
        return state, step

    def compile(self, optimizer, learning_rate, state: TrainState) -> CompiledStep:
        """Compile the step for the shapes of the next batch, and say what it will need."""
        config = self.config
        update = make_train_step(
            self.task,
            optimizer,
            mesh=self.mesh,
            strategy=config.strategy,
            accumulate=config.accumulate,
            precision=config.precision,
            ema_decay=config.ema_decay,
            remat=config.remat,
            learning_rate=learning_rate,
        )
        batch = self.data.peek()
        sizes = {name: x.shape[0] for name, x in batch.items()}
        if set(sizes.values()) != {config.batch_size}:
            raise ConfigError(
                f"The batches hold {sizes} examples in all, train.batch_size is {config.batch_size}."
            )
        started = time.perf_counter()
        compiled = update.compile(state, self.frozen, batch, self.root)
        self.logger.say(f"Compiled in {time.perf_counter() - started:.1f} s.")
        self.logger.say(plan_step(compiled.compiled, config.precision).sentence())
        return compiled

    def collect(self) -> None:
        """Read the metrics of the last step (by now usually done), stop if they are not finite, log them."""
        if self.pending is None:
            return
        (step, arrays), self.pending = self.pending, None
        finite = bool(np.asarray(arrays["finite"]))
        if finite and step % self.config.log_every and step != self.config.steps:
            return
        values = {name: float(np.asarray(x)) for name, x in arrays.items() if name != "finite"}
        if not finite:
            raise NonFiniteError(_not_finite(step, values, self.checkpoints))
        now = time.perf_counter()
        if self.clock is not None and step > self.clock[1]:
            since, first, waited = self.clock
            elapsed = max(now - since, 1e-9)
            values["steps_per_second"] = (step - first) / elapsed
            values["data_wait"] = min((self.data.waited - waited) / elapsed, 1.0)
            self.logger.progress(step, values["loss"], values["steps_per_second"], values["data_wait"])
            self.clock = (now, step, self.data.waited)
        self.logger.metrics(step, "train", values)

    def due(self, step: int) -> bool:
        """Whether the evaluation of `step` is still to be done; after a resumption too."""
        if self.evaluation is None or step == 0 or self.measured_at == step:
            return False
        # Beyond `steps` is a run that is now asked for fewer than it has done: it ends here, and is measured too.
        return step % self.config.evaluate_every == 0 or step >= self.config.steps

    def evaluate(self, state: TrainState, step: int) -> None:
        """Let the task measure and draw; its result counts only if no signal cut it short."""
        if self.evaluation is None or (self.signals.stop_requested and jax.process_count() == 1):
            return
        self.clock = None  # time spent here is no time of a step
        here = local_mesh(self.mesh)
        model, frozen = state.averaged(), self.frozen
        if here is not self.mesh:
            model, frozen = whole(model, self.mesh, here), whole(frozen, self.mesh, here)
        with contextlib.ExitStack() as stack:
            if self.logger.main:
                folder = self.folder / "evaluation" / f"step_{step}"
                folder.mkdir(parents=True, exist_ok=True)
            else:  # each process measures its part, one draws
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(jax.set_mesh(here))
            values = self.task.evaluate(
                model,
                frozen,
                _placed(self.evaluation(), here),
                key=stream(self.root, "evaluate"),  # the same at every step, so that evaluations compare
                step=step,
                folder=folder,
                should_stop=lambda: self.signals.stop_requested,
            )
            if any(gather(self.signals.stop_requested)):
                self.signals.request("a signal to another process")
                return
            values = {name: float(value) for name, value in values.items()}
            if self.config.monitor is not None:
                _check_monitor(self.config.monitor, values)
            self.measured, self.measured_at = values, step
            self.logger.metrics(step, "eval", self.measured)
            self.logger.pictures(step, folder)
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in self.measured.items())
        self.logger.say(f"Evaluation at step {step}: {numbers}")

    def should_stop(self, step: int) -> bool:
        """Whether all processes stop here: they agree, now and then, so that none waits for another forever."""
        if jax.process_count() == 1:
            return self.signals.stop_requested
        if step % AGREE_EVERY and not self.due(step) and self.measured_at != step:
            return False
        if any(gather(self.signals.stop_requested)):
            self.signals.request("a signal to another process")
            return True
        return False


def _placed(batches: Iterable[Mapping[str, Any]], mesh: Mesh) -> Iterator[Batch]:
    for batch in batches:
        yield shard_batch(mesh, batch)


def _check_monitor(monitor: str, values: Mapping[str, float]) -> None:
    name = monitor.removeprefix("-")
    if name not in values:
        raise ConfigError(
            f"train.monitor={monitor}: an evaluation gives no {name!r}.{nearest(name, values)} It gives: "
            f"{', '.join(values)}; with a minus in front the largest is best."
        )


def _not_finite(step: int, values: Mapping[str, float], checkpoints: Checkpointer) -> str:
    terms = [name for name, value in values.items() if not math.isfinite(value)]
    first = [name for name in terms if name not in ("loss", "grad_norm")] or terms
    try:
        checkpoints.wait()
    except CheckpointError as error:
        return f"{_blame(step, values, first)} Besides: {error}"
    good = checkpoints.steps()
    last = f"The checkpoint of step {good[-1]} is kept" if good else "There is no checkpoint yet"
    return (
        f"{_blame(step, values, first)} {last}. Lower the learning rate, or clip gradients (optim.clip_norm)."
    )


def _blame(step: int, values: Mapping[str, float], terms: list[str]) -> str:
    rate = f"learning rate {values['learning_rate']:.3g}, " if "learning_rate" in values else ""
    return (
        f"Training became not finite at step {step} in {', '.join(terms)} "
        f"({rate}loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g})."
    )
