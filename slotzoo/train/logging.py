"""The run's log: metrics.jsonl always, a progress bar on a terminal, plain lines elsewhere, extras."""

import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from slotzoo.errors import CheckpointError, ConfigError
from slotzoo.files import write_text


log = logging.getLogger(__name__)

PROGRESS = ("auto", "bar", "plain")


class RunLogger:
    """Writes `metrics.jsonl` and `train.log` in `folder`, and shows progress. Only process 0 writes anything.

    A line of `metrics.jsonl` is one JSON object: `step` (updates done), `split` (`train` or `eval`), and
    numbers; one that is not finite is written as null. `progress` is `bar`, `plain`, or `auto`: a bar on a
    terminal. `tensorboard` and `wandb` write there as well.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        tensorboard: bool = False,
        wandb: bool = False,
        project: str = "slotzoo",
        name: str | None = None,
        progress: str = "auto",
        config: Mapping[str, Any] | None = None,
    ):
        if progress not in PROGRESS:
            raise ConfigError(f"logger.progress is {progress!r}; choose one of {', '.join(PROGRESS)}.")
        self.folder = Path(folder)
        self.path = self.folder / "metrics.jsonl"
        self.main = jax.process_index() == 0
        self._bar: Any = None
        self._task: Any = None
        self._tensorboard: Any = None
        self._wandb: Any = None
        self._handlers: list[logging.Handler] = []
        self._fancy = progress == "bar" or (progress == "auto" and sys.stdout.isatty())
        if not self.main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        # Libraries put a handler of their own on the root logger, which would print everything twice.
        self._propagate, logging.getLogger("slotzoo").propagate = logging.getLogger("slotzoo").propagate, False
        self._handle(logging.FileHandler(self.folder / "train.log"), logging.INFO)
        self._handle(_Lines(self), logging.INFO)
        if tensorboard:
            self._tensorboard = _tensorboard(self.folder, None)
        if wandb:
            self._wandb = _wandb(self.folder, project, name, config)

    def resume(self, step: int) -> None:
        """Forget the lines after `step`, and a last line that a kill cut short: nothing is ever there twice."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = _tensorboard(self.folder, step + 1)
        if not self.main or not self.path.exists():
            return
        kept = [line for line in self._read() if line["step"] <= step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def metrics(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Append a line of numbers."""
        if not self.main:
            return
        plain = {name: float(value) for name, value in values.items()}
        line = {"step": step, "split": split} | {k: v if math.isfinite(v) else None for k, v in plain.items()}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"The log {self.path} could not be written ({error.strerror}); make room and run the same command "
                "again: it goes on from the last checkpoint."
            ) from error
        if self._tensorboard is not None:
            for name, value in plain.items():
                self._tensorboard.add_scalar(f"{split}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{split}/{name}": value for name, value in plain.items()}, step=step)

    def last(self, split: str) -> tuple[int, dict[str, float]]:
        """The step and the numbers of the last line of `split`; -1 and nothing if there is none."""
        lines = [line for line in self._read() if line["split"] == split] if self.path.exists() else []
        if not lines:
            return -1, {}
        numbers = {k: math.nan if v is None else v for k, v in lines[-1].items() if k not in ("step", "split")}
        return lines[-1]["step"], numbers

    def pictures(self, step: int, folder: Path) -> None:
        """Show the PNG files of an evaluation in TensorBoard and W&B."""
        if not self.main or (self._tensorboard is None and self._wandb is None):
            return
        import numpy as np
        from PIL import Image

        for path in sorted(folder.glob("*.png"))[:16]:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
            if self._tensorboard is not None:
                self._tensorboard.add_image(path.stem, pixels, step, dataformats="HWC")
            if self._wandb is not None:
                import wandb

                self._wandb.log({path.stem: wandb.Image(pixels)}, step=step)

    def start(self, step: int, total: int) -> None:
        """Open the progress display at `step` of `total`."""
        if not self.main:
            return
        self._total = total
        self._clock = (time.perf_counter(), step)
        if self._fancy:
            self._bar, self._task = _bar(step, total)

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def progress(self, step: int, loss: float | int, rate: float | int, wait: float | int) -> None:
        """Show loss, steps per second and the share of time spent waiting for data."""
        if not self.main:
            return
        left = (self._total - step) / rate if rate > 0 else math.inf
        if self._bar is not None:
            self._bar.update(
                self._task, completed=step, loss=f"{loss:.4g}", rate=f"{rate:.3g}", wait=f"{wait:.0%}"
            )
        else:
            print(
                f"step {step}/{self._total}  loss {loss:.4g}  {rate:.3g} steps/s  left {_clock(left)}  "
                f"waiting for data {wait:.0%}",
                flush=True,
            )

    def say(self, text: str) -> None:
        """A line for the reader, on the screen and in `train.log`."""
        log.info("%s", text)

    def show(self, text: str) -> None:
        """Write a line to the screen, above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def stop(self) -> None:
        """Close the progress display."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def close(self) -> None:
        """Close everything."""
        self.stop()
        for handler in self._handlers:
            logging.getLogger("slotzoo").removeHandler(handler)
            handler.close()
        if self._handlers:
            logging.getLogger("slotzoo").propagate = self._propagate
        self._handlers.clear()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self.close()

    def _handle(self, handler: logging.Handler, level: int) -> None:
        handler.setLevel(level)
        if isinstance(handler, logging.FileHandler):
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        ours = logging.getLogger("slotzoo")
        ours.addHandler(handler)
        if ours.getEffectiveLevel() > level:
            ours.setLevel(level)
        self._handlers.append(handler)

    def _read(self) -> list[dict[str, Any]]:
        lines = []
        for text in self.path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                log.debug("a torn line of %s is dropped: %r", self.path.name, text[:80])
        return lines


class _Lines(logging.Handler):
    """Python's log records as lines above the bar."""

    def __init__(self, logger: RunLogger):
        super().__init__()
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        self._logger.show(prefix + record.getMessage())


def _bar(step: int, total: int) -> tuple[Any, Any]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[rate]} steps/s  left"),
        TimeRemainingColumn(),
        TextColumn("waiting for data {task.fields[wait]}"),
        refresh_per_second=4,
    )
    task = bar.add_task("train", total=total, completed=step, loss="-", rate="-", wait="-")
    bar.start()
    return bar, task


def _tensorboard(folder: Path, purge: int | None) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ConfigError("logger.tensorboard needs the extra `log`: pip install 'slotzoo[log]'.") from error
    return SummaryWriter(str(folder / "tensorboard"), purge_step=purge)


def _wandb(folder: Path, project: str, name: str | None, config: Mapping[str, Any] | None) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ConfigError("logger.wandb needs the extra `wandb`: pip install 'slotzoo[wandb]'.") from error
    # The same id for the same folder, so that a resumed run goes on in the same charts.
    identity = f"{name or folder.parent.name}-{folder.name}"
    return wandb.init(
        project=project, name=name, id=identity, resume="allow", dir=str(folder), config=dict(config or {})
    )


def _clock(seconds: float | int) -> str:
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
