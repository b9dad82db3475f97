"""Leaving out corrupted records (`on_error="skip"`): which errors count as that, and how many are too many."""

import errno
from collections.abc import Mapping

from slotzoo.errors import DataError


# The limit of the process and that of the machine.
_TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)


def check_skippable(error: DataError) -> None:
    """Raise a `DataError` that says so where `error` was caused by the system and not by the record.

    A file that could not be opened because too many are open is a good one: to leave it out would change the data set.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _TOO_MANY_OPEN:
            raise DataError(
                f"{cause.filename or 'A file'}: could not be opened ({cause.strerror}); allow more open files "
                "(ulimit -n), or read with fewer data.threads and data.workers."
            ) from error
        cause = cause.__cause__


def too_many(skipped: Mapping[int, str], cap: int) -> DataError:
    """What is raised when more records were skipped than `cap`."""
    last = list(skipped.values())[-1]
    return DataError(
        f"{len(skipped)} corrupted records, more than max_skips={cap} allows; the last one: {last}"
    )
