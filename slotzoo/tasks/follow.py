"""Following the objects of one clip slice by slice: memory that does not grow with the clip, and trivial answers.

A tracking model has the face of `slotzoo.models.objects.TrackOutput`:

    model.conditions(clip) -> conditions     where model.config.conditioning is not None
    model.init_state(conditions, key=...) -> state
    model(video, conditions, state=..., key=...) -> TrackOutput
    model.config.conditioning, .targets, .low, .high
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from slotzoo.errors import DataError
from slotzoo.losses import reconstruction_loss
from slotzoo.metrics.segmentation import labels_of_masks
from slotzoo.tasks.pixels import to_range


class Followed(NamedTuple):
    """What is left of a clip once it was followed: small, however many slots and targets there are."""

    labels: Int[Array, "time height width"]  # the slot with the largest mask
    shares: Float[Array, " slot"]  # of all points of the clip that the slot wins
    errors: dict[str, Float[Array, ""]]  # of each target, the sum of squares over the clip


def targets_of(clip: Mapping[str, Array], config: Any) -> dict[str, Float[Array, "time height width channel"]]:
    """What a model has to predict of a clip (or a batch), by name: `flow` and `rgb` in [0, 1], `depth` as it comes.

    **Raises** `DataError` where the data set has no such field.
    """
    found = {}
    for name in config.targets:
        field = _field(name)
        if field not in clip:
            option = f"; data.options.{field}=true adds it" if field in ("flow", "depth") else ""
            raise DataError(
                f"the model predicts {name!r} and the clips have no field {field!r}{option}. Their fields are: "
                f"{', '.join(sorted(clip))}."
            )
        value = clip[field]
        found[name] = value.astype(jnp.float32) / 255 if value.dtype == jnp.uint8 else value.astype(jnp.float32)
    return found


def _field(target: str) -> str:
    return "video" if target == "rgb" else target


def conditions_of(model: Any, clip: Mapping[str, Array]) -> Array | None:
    """What the model is told of the first frame of a clip."""
    return None if model.config.conditioning is None else model.conditions(clip)


def has_background(config: Any) -> bool:
    """Whether slot 0 stands for the background and slot k for object k; otherwise slot k is for object k + 1."""
    if config.conditioning in ("boxes", "centers"):
        return config.background is not None
    return config.conditioning == "segmentation"


def emptied(model: Any) -> Callable[[Any], Any] | None:
    """A function from a state to the same one with nothing remembered; None for a model without a memory."""
    predictor = getattr(model, "predictor", None)
    if predictor is None or predictor.init_memory(1) is None:
        return None
    return lambda state: state._replace(memory=predictor.init_memory(len(state.slots)))


def follow(
    model: Any,
    clip: Mapping[str, Array],
    *,
    chunk: int,
    key: PRNGKeyArray,
    between: Callable[[Any], Any] = lambda state: state,
) -> Followed:
    """Follow the objects of a clip, `chunk` frames at a time, with the state carried from slice to slice.

    Only labels are kept of a slice, so memory does not grow with the clip beyond them. `between` is done to the
    state after every slice. The result does not depend on `chunk` as long as that is nothing.
    """
    # Bytes are made into numbers slice by slice.
    fields = {
        field: clip[field]
        for field in ("video", *(_field(name) for name in model.config.targets))
        if field in clip
    }
    targets_of(jax.tree.map(lambda x: x[:1], fields), model.config)
    frames = len(clip["video"])
    slices = -(-frames // chunk)
    padding = slices * chunk - frames

    def sliced(x: Array) -> Array:
        """Slices of equal length: the last frame again, where there is none left."""
        longer = jnp.concatenate([x, jnp.repeat(x[-1:], padding, axis=0)]) if padding else x
        return longer.reshape(slices, chunk, *x.shape[1:])

    def body(state: Any, now: tuple[dict[str, Array], Array]) -> tuple[Any, Followed]:
        fields, there = now
        out = model(to_range(fields["video"], model.config), state=state)
        kept = there.astype(jnp.float32)[:, None, None, None]
        errors = {
            name: reconstruction_loss(kept * out.predictions[name].astype(jnp.float32), kept * target)
            for name, target in targets_of(fields, model.config).items()
        }
        labels = jax.vmap(labels_of_masks)(out.masks)
        won = jax.nn.one_hot(labels, out.masks.shape[1], axis=1)
        return between(out.state), Followed(labels, jnp.sum(kept * won, (0, 2, 3)), errors)

    there = (jnp.arange(slices * chunk) < frames).reshape(slices, chunk)
    start = model.init_state(conditions_of(model, clip), key=key)
    _, found = jax.lax.scan(body, start, (jax.tree.map(sliced, fields), there))
    labels = found.labels.reshape(-1, *found.labels.shape[2:])[:frames]
    errors = {name: jnp.sum(value) for name, value in found.errors.items()}
    return Followed(labels, jnp.sum(found.shares, axis=0) / labels.size, errors)


def painted_boxes(boxes: Float[Array, "object 4"], height: int, width: int) -> Int[Array, "{height} {width}"]:
    """Boxes as a label map, object k with the label k + 1, the smallest on top; 0 elsewhere."""
    row = (jnp.arange(height, dtype=jnp.float32) + 0.5) / height
    column = (jnp.arange(width, dtype=jnp.float32) + 0.5) / width
    low_y, low_x, high_y, high_x = (boxes[:, i, None, None] for i in range(4))
    inside = (row[None, :, None] >= low_y) & (row[None, :, None] <= high_y)
    inside = inside & (column[None, None, :] >= low_x) & (column[None, None, :] <= high_x)
    area = (high_y - low_y) * (high_x - low_x)
    inside = inside & (area > 0)
    areas = jnp.where(inside, area, jnp.inf)
    top = jnp.argmin(areas, axis=0).astype(jnp.int32) + 1
    return jnp.where(jnp.any(inside, axis=0), top, 0)


def partners(clip: Mapping[str, Array], config: Any, true_count: int) -> Int[Array, " {true_count}"] | None:
    """The slot that was told of each true object, -1 where none was; None for a model that is told nothing."""
    if config.conditioning is None:
        return None
    label = jnp.arange(true_count, dtype=jnp.int32)
    if config.conditioning == "segmentation":
        points = clip["mask"][0].reshape(-1).astype(jnp.int32)
        shown = jnp.sum(jax.nn.one_hot(points, true_count), axis=0) > 0
    else:
        told = jnp.any(clip["boxes"][0] > 0, axis=-1)
        shown = jnp.zeros(true_count, bool).at[1:].set(jnp.pad(told, (0, true_count))[: true_count - 1])
    slot = label if has_background(config) else label - 1
    return jnp.where(shown & (label > 0), slot, -1)
