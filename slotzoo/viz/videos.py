"""Videos: truth and predictions side by side, as GIF or mp4 files."""

import io
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import cast

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from slotzoo.errors import DataError, ShapeError
from slotzoo.files import write_bytes
from slotzoo.viz.images import (
    CONTEXT,
    PAPER,
    PREDICTED,
    as_rgb,
    bordered,
    comfortable_scale,
    enlarge,
    text_width,
    to_uint8,
    write_text,
)
from slotzoo.viz.strips import whole_clip


BORDER = 3
TEXT = 12
# In the order of preference; the first is what every browser plays.
CODECS = ("libx264", "h264", "libopenh264")


def side_by_side(
    clips: Mapping[str, Shaped[np.ndarray, "_time height width channel"]],
    *,
    context: int,
    value_range: tuple[int | float, int | float] = (0.0, 1.0),
    scale: int | None = None,
) -> UInt8[np.ndarray, "time video_height video_width 3"]:
    """A video with clips next to each other, their names above and the frame number below.

    The first clip is the truth; another one may lack the `context` given frames, which are then taken from it.
    The border is blue while the model is given the frames and orange from the first predicted one on.
    """
    if not clips:
        raise ShapeError("a video side by side needs at least one clip")
    # As bytes from here on: one may be in bytes and the other in [0, 1].
    pictures = {name: to_uint8(as_rgb(frames), value_range=value_range) for name, frames in clips.items()}
    truth = next(iter(pictures.values()))
    for name, frames in pictures.items():
        if len(frames) != len(truth):
            pictures[name] = whole_clip(truth, frames, context)
    length, height, width, _ = truth.shape
    scale = scale or comfortable_scale(height, width)
    cell = max(width * scale + 2 * BORDER, *(text_width(name, TEXT) + 8 for name in pictures)) + 4
    tall = height * scale + 2 * BORDER
    blank = np.empty((TEXT + 6 + tall + TEXT + 8, cell * len(pictures), 3), np.uint8)
    blank[:] = np.asarray(PAPER, np.uint8)
    for column, name in enumerate(pictures):
        blank = write_text(blank, name, left=column * cell + 4, top=2, size=TEXT)
    frames = []
    for time in range(length):
        canvas = blank.copy()
        given = time < context
        for column, clip in enumerate(pictures.values()):
            framed = bordered(enlarge(clip[time], scale), CONTEXT if given else PREDICTED, BORDER)
            left = column * cell + 2
            canvas[TEXT + 6 : TEXT + 6 + tall, left : left + framed.shape[1]] = framed
        text = f"frame {time} ({'given' if given else 'predicted'})"
        frames.append(write_text(canvas, text, left=4, top=TEXT + 6 + tall + 1, size=TEXT))
    return np.stack(frames)


def gif_bytes(frames: UInt8[np.ndarray, "time height width 3"], *, fps: int | float = 10) -> bytes:
    """Encode frames as an endless animated GIF (256 colours a frame)."""
    if not len(frames):
        raise ShapeError("a video needs at least one frame")
    # One palette for the whole video, made from a few of its frames: no flicker, and smaller files.
    sample = np.concatenate(list(frames[:: max(1, len(frames) // 8)]))
    palette = Image.fromarray(sample).quantize(256, method=Image.Quantize.MEDIANCUT)
    pictures = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=max(20, round(1000 / fps)),
        loop=0,
    )
    return buffer.getvalue()


def write_gif(
    path: str | Path, frames: UInt8[np.ndarray, "time height width 3"], *, fps: int | float = 10
) -> Path:
    """Write an endless animated GIF."""
    return write_bytes(path, gif_bytes(frames, fps=fps))


def mp4_available() -> bool:
    """Whether PyAV (extra `video`) is here with an H.264 encoder."""
    try:
        import av
    except ImportError:
        return False
    return any(codec in av.codecs_available for codec in CODECS)


def mp4_bytes(frames: UInt8[np.ndarray, "time height width 3"], *, fps: int | float = 10) -> bytes:
    """Encode frames as H.264 in mp4, playable in browsers. Raises DataError without the extra `video`."""
    if not len(frames):
        raise ShapeError("a video needs at least one frame")
    try:
        import av
    except ImportError as error:
        raise DataError("writing mp4 needs PyAV: install slotzoo[video], or write a GIF") from error
    codec = next((name for name in CODECS if name in av.codecs_available), None)
    if codec is None:
        raise DataError("this PyAV has no H.264 encoder: write a GIF instead")
    # The 4:2:0 pixel format that every browser plays needs even sizes.
    frames = np.pad(
        frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), constant_values=255
    )
    buffer = io.BytesIO()
    with av.open(buffer, mode="w", format="mp4") as container:
        stream = cast(av.VideoStream, container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000)))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.options = {"crf": "18"} if codec == "libx264" else {}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def write_mp4(
    path: str | Path, frames: UInt8[np.ndarray, "time height width 3"], *, fps: int | float = 10
) -> Path:
    """Write an mp4 file (H.264). Raises DataError without the extra `video`."""
    return write_bytes(path, mp4_bytes(frames, fps=fps))


def write_video(
    path: str | Path, frames: UInt8[np.ndarray, "time height width 3"], *, fps: int | float = 10
) -> Path:
    """Write `path` with the suffix .mp4 where PyAV is installed and .gif elsewhere; returns the file's path."""
    path = Path(path)
    stem = path.stem if path.suffix in (".mp4", ".gif") else path.name
    if mp4_available():
        return write_mp4(path.with_name(f"{stem}.mp4"), frames, fps=fps)
    return write_gif(path.with_name(f"{stem}.gif"), frames, fps=fps)
