"""Videos with actions as TECO publishes Minecraft and Habitat: `<root>/<split>/*/*.mp4`, actions in an npz beside.

`NAME.npz` with `actions` (time,) lies beside `NAME.mp4`; without it, all actions are 0. Frames keep their size. A
window is decoded from the key frame before it, found by the times of the packets, which need not be evenly spaced.
Needs PyAV (the extra `video`). Source: Yan et al., "Temporally
Consistent Transformers for Video Generation" (ICML 2023) and its repository's loader.
"""

import functools
import pathlib
import threading
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from slotzoo.data.sources.folders import (
    UNREADABLE_NPZ,
    clip_files,
    files_fingerprint,
    first_readable,
    provenance_of,
    short,
)
from slotzoo.data.spec import FieldSpec, Provenance, Record, check_record
from slotzoo.data.synthetic.layout import ACTIONS
from slotzoo.errors import DataError


if TYPE_CHECKING:
    import av
    from av.container import InputContainer

Split = Literal["train", "test"]


def world_spec(size: int | None = 128) -> dict[str, FieldSpec]:
    """Fields of a record of Minecraft or Habitat, embedded or published."""
    return {
        "video": FieldSpec((None, size, size, 3), "uint8", 0, 255, "RGB frames, 0 to 255"),
        "actions": FieldSpec((None,), "int32", 0, ACTIONS - 1, "id of the action that led to the frame"),
    }


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise DataError("Reading mp4 needs PyAV: install slotzoo[video].") from error
    return av


def read_frames(path: pathlib.Path, start: int, length: int, where: str) -> np.ndarray:
    """Frames `start` to `start + length` of a video, (time, height, width, 3) uint8.

    **Raises** `DataError`, one sentence that starts with `where`, when the file cannot be decoded or ends early.
    """
    av = _pyav()
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, where)
            frames = None
            if start:
                stat = path.stat()
                times = _frame_times(path, stat.st_size, stat.st_mtime_ns)
                if times is not None and start < len(times):
                    container.seek(int(times[start]), stream=stream, backward=True)
                    frames = _decoded(container, stream, start, length, times)
                if frames is None:  # the times do not tell which frame is which: count from the beginning
                    container.seek(0)
            if frames is None:
                frames = _decoded(container, stream, start, length)
    except (av.FFmpegError, ValueError, IndexError, EOFError) as error:
        raise DataError(
            f"{where}: cannot be decoded ({short(error)}); fetch the file again or use on_error=skip."
        ) from error
    found = 0 if frames is None else len(frames)
    if frames is None or found < length:
        raise DataError(
            f"{where}: ends after {start + found} frames, {start + length} were promised; the file is cut off: "
            "fetch it again or use on_error=skip."
        )
    return np.stack(frames)


def count_frames(path: pathlib.Path, where: str) -> int:
    """Frames of a video by its header, or by its packets where the header does not say. Raises `DataError`."""
    av = _pyav()
    try:
        with av.open(str(path)) as container:
            stream = _video_stream(container, where)
            return stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
    except (av.FFmpegError, ValueError, EOFError) as error:
        raise DataError(
            f"{where}: cannot be decoded ({short(error)}); fetch the file again or use on_error=skip."
        ) from error


def _video_stream(container: "InputContainer", where: str) -> "av.VideoStream":
    if not container.streams.video:
        raise DataError(f"{where}: holds no video stream.")
    return container.streams.video[0]


@functools.lru_cache(maxsize=4096)  # 8 bytes a frame; size and time of change are there to notice another file
def _frame_times(path: pathlib.Path, size: int, changed: int) -> np.ndarray | None:
    """Presentation times of the frames in order, (frames,) int64 in units of the stream's time base.

    Reads the packets without decoding them. None where they do not tell the frames apart, or cannot all be read.
    """
    del size, changed
    av = _pyav()
    try:
        with av.open(str(path)) as container:
            packets = [p for p in container.demux(container.streams.video[0]) if p.size and not p.is_discard]
    except av.FFmpegError:  # a damaged file: the frames before the damage can still be decoded
        return None
    found = [packet.pts for packet in packets if packet.pts is not None]
    times = np.unique(np.asarray(found, np.int64))
    return times if len(times) == len(packets) else None


def _decoded(
    container: "InputContainer",
    stream: "av.VideoStream",
    start: int,
    length: int,
    times: np.ndarray | None = None,
) -> list[np.ndarray] | None:
    """Up to `length` frames from number `start` on, decoded from where `container` stands.

    Without `times` it has to stand at the beginning, and frames are counted. With `times` (of all frames) it may
    stand anywhere: None where that is after `start`, or where the frames do not come at these times.
    """
    frames: list[np.ndarray] = []
    number = 0 if times is None else None  # of the next frame that the decoder gives
    for frame in container.decode(stream):
        if times is not None:
            if frame.pts is None:
                return None
            if number is None:
                number = int(np.searchsorted(times, frame.pts))
            if number >= len(times) or times[number] != frame.pts or (number > start and not frames):
                return None
        assert number is not None
        if frame.is_corrupt:
            raise ValueError(f"frame {number} is corrupted")
        if number >= start:
            frames.append(frame.to_ndarray(format="rgb24"))
            if len(frames) == length:
                break
        number += 1
    return frames


class Mp4Source:
    """Clips in the order of their paths. Files are opened when read, checked against the first one's size."""

    def __init__(self, name: str, root: str | pathlib.Path, split: Split):
        _pyav()
        self.name = name
        self._root, self._files = clip_files(root, split, ".mp4", name, "as TECO publishes it")
        self.provenance: Provenance = provenance_of(self._root)
        self.split: Split = split
        self._frames: dict[int, int] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Mp4Source({self.name!r}, {self.split!r}, clips={len(self)})"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        """The fields, at the frame size of the first clip that can be read."""
        return self._spec

    @functools.cached_property
    def _spec(self) -> dict[str, FieldSpec]:
        path, frames = first_readable(self._files, lambda path: read_frames(path, 0, 1, str(path)), self._root)
        _, height, width, _ = frames.shape
        if height != width:
            raise DataError(f"{path}: its frames are {height} x {width} pixels, expected square ones.")
        return world_spec(height)

    @property
    def fingerprint(self) -> str:
        """Of the paths and sizes of the files."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        return files_fingerprint(self._root, self._files)

    def __len__(self) -> int:
        return len(self._files)

    def _where(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        return f"{self._files[index]} (clip {index})"

    def frames(self, index: int) -> int:
        """Length of a clip, as its header says."""
        where = self._where(index)
        with self._lock:
            if index not in self._frames:
                self._frames[index] = count_frames(self._files[index], where)
            return self._frames[index]

    def __getitem__(self, index: int) -> Record:
        return self.window(index, 0, self.frames(index))

    def window(self, index: int, start: int, length: int) -> Record:
        """Frames `start` to `start + length` of a clip, decoded from the key frame before them."""
        where = self._where(index)
        length = min(length, self.frames(index) - start)
        actions = self._actions(index, where)[start : start + length]
        record = {"video": read_frames(self._files[index], start, length, where), "actions": actions}
        check_record(record, self.spec, where)
        return record

    def _actions(self, index: int, where: str) -> np.ndarray:
        path, frames = self._files[index].with_suffix(".npz"), self.frames(index)
        if not path.is_file():
            return np.zeros(frames, np.int32)
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                if "actions" not in file.files:
                    raise DataError(f"{path} (clip {index}): no key 'actions'; found {', '.join(file.files)}.")
                actions = file["actions"]
        except UNREADABLE_NPZ as error:
            raise DataError(
                f"{path} (clip {index}): cannot be read ({short(error)}); fetch the file again or use on_error=skip."
            ) from error
        if actions.ndim != 1 or len(actions) < frames or not np.issubdtype(actions.dtype, np.integer):
            raise DataError(
                f"{path} (clip {index}): 'actions' is {actions.dtype} of shape {actions.shape}, expected an integer "
                f"for each of the {frames} frames."
            )
        return actions[:frames].astype(np.int32)

    def close(self) -> None:
        """Nothing is held open."""

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
