"""The folder of a run: `runs_dir/name/seed<seed>`, what lies in it, and how it is found and read again."""

import dataclasses
import fcntl
import json
import platform
import subprocess
import sys
import time
import types
import typing
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import jax
from jax.experimental import multihost_utils
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from experiments import validate
from experiments.schema import RunSettings
from slotzoo.errors import ConfigError
from slotzoo.files import write_text


# What the same command may change when it goes on with a run. Everything else would make a different run.
MAY_CHANGE = (
    "train.steps",
    "train.log_every",
    "train.evaluate_every",
    "train.save_every",
    "train.keep",
    "train.keep_every",
    "train.monitor",
    "train.remat",
    "eval.*",
    "logger.*",
    "mesh.*",
    "plugins",
    "runs_dir",
    "data.root",
    "data.cache",
    "data.threads",
    "data.workers",
    "data.prefetch",
    "data.max_skips",
    "tokenizer.*",
)

PACKAGES = ("slotzoo", "jax", "jaxlib", "equinox", "optax", "grain", "orbax-checkpoint", "numpy")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what it writes."""

    path: Path

    @classmethod
    def of(cls, run: RunSettings) -> "RunFolder":
        """The folder that belongs to these settings."""
        return cls(Path(run.runs_dir).expanduser() / run.name / f"seed{run.seed}")

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def card(self) -> Path:
        return self.path / "run.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def evaluation(self, step: int) -> Path:
        return self.path / "evaluation" / f"step_{step}"

    def has_checkpoint(self) -> bool:
        """Whether any finished or torn step was ever saved."""
        return self.checkpoints.is_dir() and any(p.name.isdigit() for p in self.checkpoints.iterdir())

    def read_settings(self) -> RunSettings:
        """The settings of the run, as they were saved. **Raises** `ConfigError` if there are none."""
        if not self.path.is_dir():
            raise ConfigError(
                f"run={self.path}: no such folder; give the folder of a run, e.g. runs/NAME/seed0."
            )
        if not self.config.is_file():
            seeds = sorted(str(path.parent) for path in self.path.glob("seed*/config.yaml"))
            if seeds:
                raise ConfigError(f"run={self.path}: holds the seeds of a run; give one of {', '.join(seeds)}.")
            raise ConfigError(
                f"run={self.path}: holds no config.yaml, so it is not the folder of a run; "
                "give the one that experiments.train printed, e.g. runs/NAME/seed0."
            )
        text = self.config.read_text()
        if "${" in text:  # a saved configuration is data: nothing in it may be looked up
            raise ConfigError(f"{self.config}: holds an interpolation, which a saved configuration never does.")
        try:
            loaded = OmegaConf.create(text)
            merged = OmegaConf.merge(OmegaConf.structured(RunSettings), loaded)
        except (OmegaConfBaseException, YAMLError) as error:
            first = str(error).strip().split("\n")[0]
            raise ConfigError(f"{self.config}: cannot be read as the settings of a run: {first}") from error
        return validate.settings(typing.cast(Any, merged), RunSettings, saved=True)

    def write_settings(self, run: RunSettings) -> None:
        """Write config.yaml (atomically)."""
        write_text(self.config, OmegaConf.to_yaml(OmegaConf.structured(run)))

    def update_card(self, start: bool = False, **entries: Any) -> None:
        """Write entries of run.json: what the run is made of and how it ended; with `start`, this start as well, from
        which on the run has not ended.
        """
        card = {**self.read_card(), **entries}
        if start:
            now = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
                "python": platform.python_version(),
                "packages": {name: _version(name) for name in PACKAGES},
                "git": _revision(),
            }
            card["starts"] = [*card.get("starts", []), now]
            card.pop("finished", None)  # that was of fewer steps
        write_text(self.card, json.dumps(card, indent=1) + "\n")

    def read_card(self) -> dict[str, Any]:
        """The contents of run.json; empty if there is none."""
        if not self.card.is_file():
            return {}
        try:
            return json.loads(self.card.read_text())
        except ValueError as error:
            raise ConfigError(f"{self.card}: is not JSON ({error}); move it away and run again.") from error


class Lock:
    """Only one command at a time may write to a run. Freed by the system when the process ends, however it ends.

    Several processes of one run share it: the first one holds it.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.path / ".lock"
        self._file: IO[str] | None = None

    def __enter__(self) -> None:
        if jax.process_index() != 0:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ConfigError(
                f"Another process is working on {self._path.parent}; wait for it, or give this run another "
                "name= or seed=."
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def meet(where: str) -> None:
    """Wait until every process of the run has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


def flat_settings(run: RunSettings) -> dict[str, Any]:
    """Settings as one mapping with dotted keys, for comparing two runs."""
    return validate.flat(dataclasses.asdict(run))


def free(path: Path) -> Path:
    """`path`, or the first of `path_2`, `path_3`, ... that does not exist yet."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}_{number}")
    return candidate


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The git revision of this code, with `+` when files differ from it; None outside a repository."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else None
