"""What every command shares: how it starts, one sentence instead of a traceback, and the exit codes."""

import contextlib
import errno
import sys
import time
from collections.abc import Callable, Iterator

import hydra
from omegaconf import DictConfig

from experiments import schema, validate
from slotzoo.errors import ConfigError, NonFiniteError, SlotzooError


# 0: done. 1: an unexpected error, with its traceback.
EXIT_CONFIG = 2  # the configuration is wrong and nothing was started, or it takes more memory than there is
EXIT_FAILED = 3  # data, checkpoint, weights: the sentence says what to do
EXIT_NONFINITE = 4  # the loss became NaN or infinite; the last good checkpoint is kept


def command(name: str, run: Callable[[DictConfig], int]) -> Callable[[], None]:
    """The `main` of `python -m experiments.<name>`: it composes `conf/<name>.yaml` with what was typed, and exits with
    what `run` returns. A sweep ends with the first job that does not return 0.
    """

    @hydra.main(version_base="1.3", config_path=str(validate.CONF.absolute()), config_name=name)
    def composed(config: DictConfig) -> None:
        with sentences():
            code = run(config)
        if code:  # not for 0: the jobs of a sweep (-m) follow one another in this process
            raise SystemExit(code)

    def main() -> None:
        schema.register()
        with sentences():  # before Hydra sees them: its messages advise what would hide a mistake
            sys.argv[1:] = validate.check_overrides(name, sys.argv[1:])
        composed()

    return main


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Print an expected error as one sentence and leave with its exit code."""
    try:
        yield
    except SlotzooError as error:
        print(f"error: {error}", file=sys.stderr)
        code = {ConfigError: EXIT_CONFIG, NonFiniteError: EXIT_NONFINITE}.get(type(error), EXIT_FAILED)
        raise SystemExit(code) from error
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            print(
                f"error: A file or folder cannot be used: {error.strerror}{where}; give another, or the right to it.",
                file=sys.stderr,
            )
            raise SystemExit(EXIT_FAILED) from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(
            f"error: The disk is full or a limit of the system is reached: {error.strerror}{where}. Nothing that was "
            "saved is lost; make room and run the same command again.",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_FAILED) from error


def progress(what: str) -> Callable[[int, int], None]:
    """A function of (done, in all) that prints now and then, and at the end."""
    last = [time.monotonic()]

    def show(done: int, total: int) -> None:
        if done == total or time.monotonic() - last[0] > 5:
            last[0] = time.monotonic()
            print(f"{what}: {done}/{total}", flush=True)

    return show
