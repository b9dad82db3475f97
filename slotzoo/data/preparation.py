"""Convert a source once to ArrayRecord shards: resumable, verified, and complete only when the manifest is
there."""

import contextlib
import errno
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

from slotzoo.data.codec import encode
from slotzoo.data.sources.array_record import (
    FORMAT,
    MANIFEST,
    VERSION,
    ArrayRecordSource,
    open_reader,
    read_manifest,
    spec_to_json,
)
from slotzoo.data.spec import Source
from slotzoo.errors import DataError


log = logging.getLogger(__name__)
# `group_size:1`: one record a block. The default of 65536 makes random access useless.
_WRITER = "group_size:1,zstd:1"
_SHARD_BYTES = 256 << 20  # before compression
Progress = Callable[[int, int], None]


def write_atomically(path: pathlib.Path, text: str) -> None:
    """Write beside, flush to the disk, rename: a reader sees the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """One process at a time prepares a folder; the kernel frees the lock when its holder dies."""
    import fcntl

    with open(folder / ".lock", "w") as file:
        with contextlib.suppress(
            OSError
        ):  # some network file systems have no locks; then both do the same work
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _disk(folder: pathlib.Path) -> Iterator[None]:
    """Turn what the system says about the disk into a sentence."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC or "No space left" in str(error):
            raise DataError(f"{folder}: the disk is full; make room and run the same command again.") from error
        if isinstance(error, PermissionError) or "Permission denied" in str(error):
            raise DataError(f"{folder}: not allowed to write there; choose another folder.") from error
        raise DataError(f"{folder}: cannot be written ({str(error).splitlines()[0]}).") from error


class _Reading:
    """Records of a source in order, read ahead by threads; corrupted ones raised or counted."""

    def __init__(self, source: Source, pool: ThreadPoolExecutor, ahead: int, on_error: str, max_skips: int):
        self.source, self.pool, self.ahead = source, pool, ahead
        self.on_error, self.max_skips = on_error, max_skips
        self.skips = 0

    def _read(self, index: int) -> bytes:
        return encode(self.source[index])

    def over(self, indices: range, skipped: list[int]) -> Iterator[bytes]:
        waiting: list[tuple[int, Future[bytes]]] = []
        rest = iter(indices)
        try:
            while True:
                while len(waiting) < self.ahead and (index := next(rest, None)) is not None:
                    waiting.append((index, self.pool.submit(self._read, index)))
                if not waiting:
                    return
                index, future = waiting.pop(0)
                try:
                    yield future.result()
                except DataError as error:
                    self.skips += 1
                    if self.on_error == "raise" or self.skips > self.max_skips:
                        raise
                    log.warning("skipped clip %d: %s", index, error)
                    skipped.append(index)
        finally:
            for _, future in waiting:
                future.cancel()


def _checksum(path: pathlib.Path) -> tuple[int, int]:
    """Number of records and CRC-32 over all of them, read back from the file."""
    reader = open_reader(path)
    try:
        crc, count = 0, reader.num_records()
        for index in range(count):
            crc = zlib.crc32(reader.read([index])[0], crc)
        return count, crc
    except RuntimeError as error:
        raise DataError(f"{path}: corrupted ({str(error).splitlines()[0]}); prepare it again.") from error
    finally:
        reader.close()


def _write_shard(path: pathlib.Path, records: Iterator[bytes]) -> dict[str, Any]:
    """Write, close, read back, flush to the disk, rename. An ArrayRecord that was not closed holds nothing."""
    from array_record.python.array_record_module import ArrayRecordWriter

    temporary = path.with_name(f".{path.name}.tmp")
    writer = ArrayRecordWriter(str(temporary), _WRITER)
    count = crc = 0
    try:
        for data in records:
            writer.write(data)
            crc = zlib.crc32(data, crc)
            count += 1
    finally:
        writer.close()
    if _checksum(temporary) != (count, crc):
        raise DataError(f"{temporary}: what was read back is not what was written; check the disk.")
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return {"file": path.name, "records": count, "bytes": path.stat().st_size, "crc32": crc}


def _finished(path: pathlib.Path, note: pathlib.Path, source: Source) -> dict[str, Any] | None:
    """The note of a shard that an interrupted run completed for the same source, or None."""
    try:
        shard = json.loads(note.read_text())
        if shard.pop("fingerprint") == source.fingerprint and path.stat().st_size == shard["bytes"]:
            return shard
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # no note, or not ours: the shard is written again
    return None


def prepare(
    source: Source,
    folder: str | pathlib.Path,
    *,
    workers: int = 2,
    on_error: Literal["raise", "skip"] = "raise",
    max_skips: int = 100,
    shard_bytes: int = _SHARD_BYTES,
    progress: Progress | None = None,
) -> ArrayRecordSource:
    """Write every record of `source` to `folder` and return the folder opened as a source.

    `workers` threads read ahead. Every shard is read back before it gets its name; stopped at any time, the
    same call goes on after the last complete shard. A folder that is complete already is only checked.
    `progress` is called with (records done, records in all). With `on_error="skip"` at most `max_skips`
    corrupted records are left out and listed in the manifest.
    """
    folder = pathlib.Path(folder)
    if len(source) == 0:
        raise DataError(f"{source!r} has no records; there is nothing to prepare.")
    with _disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if (folder / MANIFEST).exists():
                return _reuse(source, folder)
            shards, skipped = _write_all(
                source,
                folder,
                workers,
                shard_bytes,
                on_error,
                max_skips,
                progress or (lambda done, total: None),
            )
            manifest = {
                "format": FORMAT,
                "version": VERSION,
                "name": source.name,
                "provenance": source.provenance,
                "fingerprint": source.fingerprint,
                "spec": spec_to_json(source.spec),
                "shards": shards,
                "skipped": skipped,
            }
            write_atomically(folder / MANIFEST, json.dumps(manifest, indent=1))
            for shard in shards:
                (folder / f"{shard['file']}.json").unlink(missing_ok=True)
    return ArrayRecordSource(folder)


def _reuse(source: Source, folder: pathlib.Path) -> ArrayRecordSource:
    found = read_manifest(folder)["fingerprint"]
    if found != source.fingerprint:
        raise DataError(
            f"{folder} holds another data set ({found}, wanted {source.fingerprint}); choose another folder or "
            "delete this one."
        )
    return ArrayRecordSource(folder)


def _write_all(
    source: Source,
    folder: pathlib.Path,
    workers: int,
    shard_bytes: int,
    on_error: str,
    max_skips: int,
    progress: Progress,
) -> tuple[list[dict[str, Any]], list[int]]:
    total = len(source)
    # The number of shards must not depend on the machine: a resumed run has to find the same ones.
    per_shard = max(1, min(total, shard_bytes // _record_bytes(source)))
    count = -(-total // per_shard)
    shards, skipped = [], []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        reading = _Reading(source, pool, 2 * max(1, workers), on_error, max_skips)
        for number in range(count):
            path = folder / f"{number:05d}-of-{count:05d}.array_record"
            note = path.with_name(f"{path.name}.json")
            indices = range(number * per_shard, min(total, (number + 1) * per_shard))
            shard = _finished(path, note, source)
            if shard is None:
                lost: list[int] = []
                records = _counted(reading.over(indices, lost), indices.start, total, progress)
                shard = {**_write_shard(path, records), "skipped": lost}
                write_atomically(note, json.dumps({**shard, "fingerprint": source.fingerprint}))
            progress(indices.stop, total)
            skipped += shard.pop("skipped")
            shards.append(shard)
    return shards, skipped


def _record_bytes(source: Source) -> int:
    """Bytes of the first record that can be read; a corrupted one is dealt with when its turn comes."""
    for index in range(len(source)):
        with contextlib.suppress(DataError):
            return max(1, sum(x.nbytes for x in source[index].values()))
    raise DataError(f"{source!r}: not one of its {len(source)} records can be read.")


def _counted(records: Iterator[bytes], done: int, total: int, progress: Progress) -> Iterator[bytes]:
    for data in records:
        yield data
        done += 1
        progress(done, total)


def verify(folder: str | pathlib.Path) -> int:
    """Read every record of a prepared folder again; return how many there are, raise `DataError` if one
    changed."""
    folder = pathlib.Path(folder)
    total = 0
    for shard in read_manifest(folder)["shards"]:
        path = folder / shard["file"]
        if _checksum(path) != (shard["records"], shard["crc32"]):
            raise DataError(
                f"{path}: its records are not those that were written; delete it and prepare again."
            )
        total += shard["records"]
    return total
