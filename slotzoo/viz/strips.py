"""Rows of frames side by side: what was given, what happened, what the model predicted."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Shaped, UInt8

from slotzoo.errors import ShapeError
from slotzoo.viz.images import (
    CONTEXT,
    INK,
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


BORDER = 2
GAP = 2
TEXT = 12


def labelled_rows(
    rows: Mapping[str, Shaped[np.ndarray, "_column _height _width _channel"]],
    *,
    titles: Sequence[str] = (),
    borders: Sequence[tuple[int, int, int] | None] | Mapping[str, Sequence[tuple[int, int, int] | None]] = (),
    value_range: tuple[int | float, int | float] = (0.0, 1.0),
    scale: int | None = None,
) -> UInt8[np.ndarray, "strip_height strip_width 3"]:
    """Draw one row of images per entry of `rows`, its name on the left, `titles` above the columns.

    `borders` colours the frame around each column (None: white), for all rows or per row name. Small images are
    enlarged by the whole factor `scale` (default: to about a hundred pixels).
    """
    if not rows:
        raise ShapeError("a strip needs at least one row of images")
    pictures = {name: to_uint8(as_rgb(images), value_range=value_range) for name, images in rows.items()}
    first = next(iter(pictures.values()))
    columns, height, width, _ = first.shape
    for name, images in pictures.items():
        if images.shape != first.shape:
            raise ShapeError(
                f"rows of a strip must have the same shape: {name!r} has {images.shape}, "
                f"{next(iter(pictures))!r} has {first.shape}"
            )
    scale = scale or comfortable_scale(height, width)
    cell_height = height * scale + 2 * BORDER + GAP
    cell_width = width * scale + 2 * BORDER + GAP
    margin = max(text_width(name, TEXT) for name in pictures) + 10
    header = TEXT + 6 if titles else 0
    canvas = np.empty((header + cell_height * len(pictures), margin + cell_width * columns, 3), np.uint8)
    canvas[:] = np.asarray(PAPER, np.uint8)
    for row, (name, images) in enumerate(pictures.items()):
        top = header + row * cell_height
        colours = borders.get(name, ()) if isinstance(borders, Mapping) else borders
        for column, image in enumerate(enlarge(images, scale)):
            colour = (colours[column] if column < len(colours) else None) or PAPER
            left = margin + column * cell_width
            framed = bordered(image, colour, BORDER)
            canvas[top : top + framed.shape[0], left : left + framed.shape[1]] = framed
        canvas = write_text(canvas, name, left=4, top=top + cell_height // 2 - TEXT, size=TEXT)
    for column, title in enumerate(titles[:columns]):
        left = margin + column * cell_width + max(0, (cell_width - text_width(title, TEXT)) // 2)
        canvas = write_text(canvas, title, left=left, top=2, size=TEXT, colour=INK)
    return canvas


def stacked(
    pictures: Sequence[UInt8[np.ndarray, "_height _width 3"]], *, gap: int = 4
) -> UInt8[np.ndarray, "tall wide 3"]:
    """Pictures of any widths below each other, on white."""
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, gap), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(padded)


def prediction_strip(
    truth: Shaped[np.ndarray, "time height width channel"],
    predictions: Mapping[str, Shaped[np.ndarray, "_predicted_time height width channel"]],
    *,
    context: int,
    columns: int = 12,
    value_range: tuple[int | float, int | float] = (0.0, 1.0),
    scale: int | None = None,
) -> UInt8[np.ndarray, "strip_height strip_width 3"]:
    """The true frames above each prediction of them, at up to `columns` times, with frame numbers.

    A prediction covers the whole clip or only the frames after the `context` given ones (then the given frames
    stand in front). Blue borders mark frames that the model was given, orange ones those it had to predict.
    """
    length = truth.shape[0]
    if not 0 < context < length:
        raise ShapeError(
            f"context must lie between 1 and {length - 1} for clips of {length} frames, got {context}"
        )
    times = choose_frames(length, context, columns)
    # As bytes from here on: one may be in bytes and the other in [0, 1].
    true = to_uint8(as_rgb(truth), value_range=value_range)
    rows = {"truth": true[times]}
    for name, frames in predictions.items():
        rows[name] = whole_clip(true, to_uint8(as_rgb(frames), value_range=value_range), context)[times]
    colours = tuple(CONTEXT if time < context else PREDICTED for time in times)
    return labelled_rows(rows, titles=tuple(str(time) for time in times), borders=colours, scale=scale)


def whole_clip(
    truth: Shaped[np.ndarray, "time height width channel"],
    prediction: Shaped[np.ndarray, "predicted_time height width channel"],
    context: int,
) -> Shaped[np.ndarray, "time height width channel"]:
    """A prediction with the `context` given frames in front, whether or not it came with them."""
    length = truth.shape[0]
    if prediction.shape[0] == length:
        return np.concatenate([truth[:context].astype(prediction.dtype), prediction[context:]])
    if prediction.shape[0] == length - context:
        return np.concatenate([truth[:context].astype(prediction.dtype), prediction])
    raise ShapeError(
        f"a prediction has {prediction.shape[0]} frames; expected {length} (the whole clip) "
        f"or {length - context} (without the {context} context frames)"
    )


def choose_frames(length: int, context: int, columns: int) -> list[int]:
    """Frame numbers for a strip: a third of them from the context (its last frame included), the rest spread
    over what was predicted, from its first frame to its last."""
    columns = max(2, columns)
    if length <= columns:
        return list(range(length))
    given = min(context, max(1, columns // 3))
    predicted = min(length - context, columns - given)
    before = np.linspace(context - 1, max(0, context - max(given, context // 2)), given)
    after = np.linspace(context, length - 1, predicted)
    return sorted({int(round(time)) for time in (*before, *after)})
