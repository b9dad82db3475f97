"""Convert a source once to ArrayRecord shards: resumable, verified, and complete only when the manifest is
there."""

import contextlib
import errno
import json
import logging
import os
import pathlib
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

from slotzoo.data.codec import encode
from slotzoo.data.skipping import check_skippable, too_many
from slotzoo.data.sources.array_record import (
    FORMAT,
    MANIFEST,
    VERSION,
    ArrayRecordSource,
    open_reader,
    pack_frames,
    read_manifest,
    spec_to_json,
)
from slotzoo.data.spec import Source, View, check_record, frames_of, slice_time
from slotzoo.errors import ConfigError, DataError
from slotzoo.files import beside, write_text


log = logging.getLogger(__name__)
# `group_size:1`: one record a block. The default of 65536 makes random access useless.
_WRITER = "group_size:1,zstd:1"
_SHARD_BYTES = 256 << 20  # before compression
_CHUNK = 20  # frames: a short window out of a long clip should not cost the whole clip
Progress = Callable[[int, int], None]


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """One process at a time prepares a folder; the kernel frees the lock when its holder dies."""
    import fcntl

    with _disk(folder):
        file = open(folder / ".lock", "w")
    with file:
        # Some network file systems have no locks: then two processes at once both do the whole work.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            for left in folder.glob(".*.tmp"):  # by a process that was killed
                left.unlink()
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


class _Clip(NamedTuple):
    frames: int
    chunks: list[bytes]


class _Reading:
    """Clips of a source in order, read ahead and encoded by threads; corrupted ones raised or counted."""

    def __init__(
        self, source: Source, chunk: int, pool: ThreadPoolExecutor, ahead: int, on_error: str, max_skips: int
    ):
        self.source, self.chunk, self.pool, self.ahead = source, chunk, pool, ahead
        self.on_error, self.max_skips = on_error, max_skips
        self.skipped: dict[int, str] = {}

    def _read(self, index: int) -> _Clip:
        record, spec = self.source[index], self.source.spec
        check_record(record, spec, f"{self.source!r}, clip {index}")
        frames = frames_of(record, spec)
        starts = range(0, frames, self.chunk)
        return _Clip(frames, [encode(slice_time(record, spec, i, i + self.chunk)) for i in starts])

    def count(self, skipped: dict[int, str]) -> None:
        """Add to the clips that are left out. **Raises** `DataError` where these are more than `max_skips`."""
        self.skipped |= skipped
        if len(self.skipped) > self.max_skips:
            raise too_many(self.skipped, self.max_skips)

    def over(self, indices: range, skipped: list[int]) -> Iterator[_Clip]:
        waiting: deque[tuple[int, Future[_Clip]]] = deque()
        rest = iter(indices)
        try:
            while True:
                while len(waiting) < self.ahead and (index := next(rest, None)) is not None:
                    waiting.append((index, self.pool.submit(self._read, index)))
                if not waiting:
                    return
                index, future = waiting.popleft()
                try:
                    yield future.result()
                except DataError as error:
                    check_skippable(error)
                    if self.on_error == "raise":
                        raise
                    self.count({index: str(error)})
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


def _write_shard(path: pathlib.Path, clips: Iterator[_Clip]) -> dict[str, Any]:
    """Write, close, read back, flush to the disk, rename. An ArrayRecord that was not closed holds nothing."""
    from array_record.python.array_record_module import ArrayRecordWriter

    temporary = beside(path)
    frames: list[int] = []
    count = crc = 0
    try:
        with _disk(path.parent):
            writer = ArrayRecordWriter(str(temporary), _WRITER)
        try:
            # Only writing is called a matter of the disk: what goes wrong in a source is told as it is.
            for clip in clips:
                with _disk(path.parent):
                    for data in clip.chunks:
                        writer.write(data)
                        crc = zlib.crc32(data, crc)
                count += len(clip.chunks)
                frames.append(clip.frames)
        finally:
            with _disk(path.parent):
                writer.close()
        if _checksum(temporary) != (count, crc):
            raise DataError(f"{temporary}: what was read back is not what was written; check the disk.")
        with _disk(path.parent):
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    size = path.stat().st_size
    return {"file": path.name, "records": count, "bytes": size, "crc32": crc, "frames": pack_frames(frames)}


def _finished(path: pathlib.Path, note: pathlib.Path, fingerprint: list[Any]) -> dict[str, Any] | None:
    """The note of a shard that an interrupted run completed for the same source, or None."""
    try:
        shard = json.loads(note.read_text())
        same = shard.pop("fingerprint") == fingerprint and path.stat().st_size == shard["bytes"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # no note, or not ours: the shard is written again
    return shard if same else None


def prepare(
    source: Source,
    folder: str | pathlib.Path,
    *,
    workers: int = 2,
    on_error: Literal["raise", "skip"] = "raise",
    max_skips: int = 100,
    shard_bytes: int = _SHARD_BYTES,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> ArrayRecordSource:
    """Write every record of `source` to `folder` and return the folder opened as a source.

    Of a view (`slotzoo.data.spec.View`) the records behind it are written, for whatever options they are opened with
    later. `workers` threads read ahead. Clips are cut into ArrayRecord records of `chunk` frames (by default as many as
    the source's attribute `chunk` says, else 20). Every shard is read
    back before it gets its name; stopped at any time, the same call goes on after the last complete shard. A
    folder that is complete already is only checked. `progress` is called with (clips done, clips in all). With
    `on_error="skip"` at most `max_skips` corrupted clips are left out and listed in the manifest.
    """
    folder = pathlib.Path(folder)
    source = source.origin if isinstance(source, View) else source
    chunk = int(getattr(source, "chunk", _CHUNK)) if chunk is None else chunk
    if len(source) == 0:
        raise DataError(f"{source!r} has no records; there is nothing to prepare.")
    if chunk < 1 or shard_bytes < 1:
        raise ConfigError(
            f"Preparation needs chunk and shard_bytes of at least 1, got {chunk} and {shard_bytes}."
        )
    with _disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if (folder / MANIFEST).exists():
            return _reuse(source, folder)
        with ThreadPoolExecutor(max(1, workers)) as pool:
            reading = _Reading(source, chunk, pool, 2 * max(1, workers), on_error, max_skips)
            shards, skipped = _write_all(reading, folder, shard_bytes, progress or (lambda done, total: None))
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "name": source.name,
            "provenance": source.provenance,
            "fingerprint": source.fingerprint,
            "about": getattr(source, "about", ""),  # what a generator was fed with
            "spec": spec_to_json(source.spec),
            "chunk": chunk,
            "options": getattr(source, "options", {}),  # of the reader: what crop, filter and size made of it
            "shards": shards,
            "skipped": skipped,
        }
        with _disk(folder):
            write_text(folder / MANIFEST, json.dumps(manifest, indent=1), durable=True)
            _remove_others(folder, {shard["file"] for shard in shards})
    return ArrayRecordSource(folder)


def _remove_others(folder: pathlib.Path, files: set[str]) -> None:
    """Remove notes of shards, and shards of a preparation that was never completed, which are named."""
    for path in sorted(folder.iterdir()):
        if path.name not in files and re.fullmatch(r"\d{5}-of-\d{5}\.array_record(\.json)?", path.name):
            if path.suffix != ".json":
                log.warning("removed %s, which a preparation left behind that was never completed", path)
            path.unlink()


def _reuse(source: Source, folder: pathlib.Path) -> ArrayRecordSource:
    found = read_manifest(folder)["fingerprint"]
    if found != source.fingerprint:
        raise DataError(
            f"{folder} holds another data set ({found}, wanted {source.fingerprint}); choose another folder or "
            "delete this one."
        )
    return ArrayRecordSource(folder)


def _write_all(
    reading: _Reading, folder: pathlib.Path, shard_bytes: int, progress: Progress
) -> tuple[list[dict[str, Any]], list[int]]:
    source = reading.source
    total = len(source)
    # The number of shards must not depend on the machine: a resumed run has to find the same ones.
    per_shard = max(1, min(total, shard_bytes // _record_bytes(source)))
    count = -(-total // per_shard)
    shards, skipped = [], []
    for number in range(count):
        path = folder / f"{number:05d}-of-{count:05d}.array_record"
        note = path.with_name(f"{path.name}.json")
        indices = range(number * per_shard, min(total, (number + 1) * per_shard))
        identity = [source.fingerprint, reading.chunk, indices.start, indices.stop]
        shard = _finished(path, note, identity)
        if shard is not None and shard["skipped"] and reading.on_error == "raise":
            shard = None  # what an earlier run left out is read again
        if shard is not None:
            reading.count({index: f"clip {index}, by an earlier run" for index in shard["skipped"]})
        else:
            lost: list[int] = []
            clips = _counted(reading.over(indices, lost), indices.start, total, progress)
            shard = {**_write_shard(path, clips), "skipped": lost}
            with _disk(folder):
                write_text(note, json.dumps({**shard, "fingerprint": identity}), durable=True)
        progress(indices.stop, total)
        skipped += shard.pop("skipped")
        shards.append(shard)
    return shards, skipped


def _record_bytes(source: Source) -> int:
    """Bytes of the first record that can be read; a corrupted one is dealt with when its turn comes."""
    first: DataError | None = None
    for index in range(len(source)):
        try:
            return max(1, sum(x.nbytes for x in source[index].values()))
        except DataError as error:
            first = first or error
    reason = "" if first is None else f" The first: {first}"
    raise DataError(f"{source!r}: not one of its {len(source)} records can be read.{reason}") from first


def _counted(clips: Iterator[_Clip], done: int, total: int, progress: Progress) -> Iterator[_Clip]:
    for clip in clips:
        yield clip
        done += 1
        progress(done, total)


def verify(folder: str | pathlib.Path) -> int:
    """Read every record of a prepared folder again; return the number of clips, raise `DataError` if one
    changed."""
    folder = pathlib.Path(folder)
    for shard in read_manifest(folder)["shards"]:
        path = folder / shard["file"]
        if _checksum(path) != (shard["records"], shard["crc32"]):
            raise DataError(
                f"{path}: its records are not those that were written; delete it and prepare again."
            )
    return len(ArrayRecordSource(folder))
