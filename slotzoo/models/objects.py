"""What every model of single images says about the objects in one."""

from collections.abc import Mapping
from typing import NamedTuple

from jaxtyping import Array, Float, Shaped


class ObjectsOutput(NamedTuple):
    """An image taken apart; what a model has no word for is in `extra`, by name.

    `masks` sum to 1 over the slots where every pixel belongs to one; `pictures` are in the value range of the image.
    """

    reconstruction: Float[Array, "height width channel"]
    masks: Float[Array, "slot height width"]  # in [0, 1]
    pictures: Float[Array, "slot height width channel"]  # what each slot stands for
    slots: Float[Array, "slot dim"]
    extra: Mapping[str, Shaped[Array, "..."]]
