"""Following the objects of one clip slice by slice: memory that does not grow with the clip, and trivial answers.

A tracking model has the face of `slotzoo.models.objects.TrackOutput`:

    model.conditions(clip) -> conditions     where model.config.conditioning is not None
    model.init_state(conditions, key=...) -> state
    model(video, conditions, state=..., key=...) -> TrackOutput
    model.config.conditioning, .targets, .low, .high

`tracker` makes one of a SlotSSM.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from slotzoo.errors import DataError, ShapeError
from slotzoo.losses import reconstruction_loss
from slotzoo.metrics.segmentation import labels_of_masks
from slotzoo.models.slotssm import SlotSSM
from slotzoo.models.slotssm_tracker import SlotSSMTracker
from slotzoo.tasks.pixels import to_range


class Followed(NamedTuple):
    """What is left of a clip once it was followed: small, however many slots and targets there are."""

    labels: Int[Array, "time height width"]  # the slot with the largest mask
    shares: Float[Array, " slot"]  # of all points of the clip that the slot wins
    errors: dict[str, Float[Array, ""]]  # of each target, the sum of squares over the clip
    looks: Int[Array, "time height width"] | None  # the slot that the token of the place went to most


def tracker(model: Any) -> Any:
    """The model with the face above. **Raises** ConfigError for a SlotSSM that does not paint slot by slot."""
    return SlotSSMTracker(model) if isinstance(model, SlotSSM) else model


def check_length(frames: int, config: Any) -> None:
    """**Raises** ShapeError for a clip that is longer than what the model can follow."""
    if not fits(frames, config):
        raise ShapeError(
            f"The model remembers {config.longest} frames at most (model.max_frames) and is to follow {frames}; make "
            "the clip shorter (frames=N of experiments.predict), or train one with a larger model.max_frames."
        )


def fits(frames: int, config: Any) -> bool:
    """Whether the model can be shown so many frames, those that only fill up a slice among them."""
    longest = getattr(config, "longest", None)
    return longest is None or frames <= longest


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
    frames, (height, width) = len(clip["video"]), clip["video"].shape[1:3]
    check_length(frames, model.config)
    chunk = min(chunk, frames)
    slices = -(-frames // chunk)
    # A model without room for what fills up the last slice is shown that slice as short as it is, which has to be
    # compiled by itself.
    rest = 0 if fits(slices * chunk, model.config) else frames % chunk
    slices -= rest > 0
    padding = max(0, slices * chunk - frames)

    def sliced(x: Array) -> Array:
        """Slices of equal length: the last frame again, where there is none left."""
        longer = jnp.concatenate([x, jnp.repeat(x[-1:], padding, axis=0)]) if padding else x[: slices * chunk]
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
        looks = None if out.attention is None else looked_at(out.attention, height, width)
        return between(out.state), Followed(labels, jnp.sum(kept * won, (0, 2, 3)), errors, looks)

    there = (jnp.arange(slices * chunk) < frames).reshape(slices, chunk)
    start = model.init_state(conditions_of(model, clip), key=key)
    state, found = jax.lax.scan(body, start, (jax.tree.map(sliced, fields), there))
    labels, looks = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:frames], (found.labels, found.looks))
    shares, errors = jax.tree.map(lambda x: jnp.sum(x, axis=0), (found.shares, found.errors))
    if rest:
        _, last = body(state, (jax.tree.map(lambda x: x[-rest:], fields), jnp.ones(rest, bool)))
        join = lambda x, more: jnp.concatenate([x, more])
        labels, looks = jax.tree.map(join, (labels, looks), (last.labels, last.looks))
        shares, errors = jax.tree.map(jnp.add, (shares, errors), (last.shares, last.errors))
    return Followed(labels, shares / labels.size, errors, looks)


def looked_at(
    attention: Float[Array, "time slot token"], height: int, width: int
) -> Int[Array, "time {height} {width}"]:
    """The slot with the largest share of each token, over the part of the frame that the token is of."""
    tokens = attention.shape[-1]
    rows = max(1, round((tokens * height / width) ** 0.5))
    while tokens % rows:
        rows -= 1
    columns = tokens // rows
    grid = jnp.argmax(attention, axis=1).astype(jnp.int32).reshape(-1, rows, columns)
    place = lambda size, of: np.minimum((np.arange(size) + 0.5) * of / size, of - 1).astype(np.int32)
    return grid[:, place(height, rows)][:, :, place(width, columns)]


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


def told_objects(
    clip: Mapping[str, Array], config: Any, true_count: int
) -> Bool[Array, " {true_count}"] | None:
    """Whether the first frame tells where each true object is; None for a model that is told nothing."""
    if config.conditioning is None:
        return None
    if config.conditioning == "segmentation":
        points = clip["mask"][0].reshape(-1).astype(jnp.int32)
        shown = jnp.sum(jax.nn.one_hot(points, true_count), axis=0) > 0
    else:
        told = jnp.any(clip["boxes"][0] > 0, axis=-1)
        shown = jnp.zeros(true_count, bool).at[1:].set(jnp.pad(told, (0, true_count))[: true_count - 1])
    return shown.at[0].set(False)


def partners(clip: Mapping[str, Array], config: Any, true_count: int) -> Int[Array, " {true_count}"] | None:
    """The slot that was told of each true object, -1 where none was; None for a model that is told nothing."""
    told = told_objects(clip, config, true_count)
    if told is None:
        return None
    label = jnp.arange(true_count, dtype=jnp.int32)
    if config.conditioning == "segmentation":
        told = told & (label < config.num_slots)  # labels from there on are in no slot
    return jnp.where(told, label if has_background(config) else label - 1, -1)
