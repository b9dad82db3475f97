"""Between batches of data and what SlotSSM and its baselines are given: one example, a dict of float arrays.

    model(inputs, key=...) -> slotzoo.models.SlotSSMOutput
    model.loss(example, key=..., step=...) -> (loss, terms)
    model.config.low, model.config.high, model.config.target

An example has `video` in the model's range and what `model.config.target` names: `image` (a picture in the same
range), `depth` (float), `label` (integer); `video` and `next` need nothing more.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from slotzoo.errors import ConfigError
from slotzoo.tasks.pixels import to_range
from slotzoo.tasks.plain import mean_loss


# Field of a batch that each target of a model is made of.
FIELDS = {"video": "video", "next": "video", "image": "target", "depth": "depth", "label": "label"}
HINTS = {
    "image": "data=blinking_color_balls has it",
    "depth": "data=movi_a with data.options.depth=true has it",
    "label": "data=cater has it",
}


def examples(batch: Mapping[str, Any], config: Any) -> dict[str, Array]:
    """The arrays of a batch that the model is trained on, pixels in its range.

    **Raises** ConfigError where the data set lacks the field that the model's target is made of.
    """
    target = config.target
    missing = [name for name in ("video", FIELDS[target]) if name not in batch]
    if missing:
        raise ConfigError(
            f"The model is trained on target={target!r}, but the data set has no {missing[0]!r}: it has "
            f"{', '.join(sorted(batch))}; {HINTS.get(target, 'choose a set of videos')}."
        )
    found = {"video": cut(to_range(jnp.asarray(batch["video"]), config), getattr(config, "patch_grid", 1))}
    if target == "image":
        found["image"] = to_range(jnp.asarray(batch["target"]), config)
    elif target == "depth":
        found["depth"] = jnp.asarray(batch["depth"]).astype(jnp.float32)
    elif target == "label":
        found["label"] = jnp.asarray(batch["label"]).astype(jnp.int32)
    return found


def cut(
    video: Float[Array, "batch time height width channel"], grid: int
) -> Float[Array, "batch step small_height small_width channel"]:
    """Every frame as `grid x grid` squares, one step each. **Raises** ConfigError where they do not tile it."""
    if grid == 1:
        return video
    batch, time, height, width, channels = video.shape
    if height % grid or width % grid:
        raise ConfigError(
            f"frames of {height} x {width} pixels cannot be cut into patch_grid={grid} squares a side."
        )
    small = (height // grid, width // grid)
    x = video.reshape(batch, time, grid, small[0], grid, small[1], channels)
    return jnp.swapaxes(x, 3, 4).reshape(batch, time * grid * grid, *small, channels)


def clip_loss(
    model: Any, batch: Mapping[str, Any], *, key: PRNGKeyArray, step: Int[Array, ""]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The mean over clips of the model's loss, and of each of its terms."""
    one = lambda example, key: model.loss(example, key=key, step=step)
    return mean_loss(one, examples(batch, model.config), key=key)
