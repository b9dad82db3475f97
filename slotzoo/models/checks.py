"""Shape errors in one sentence, for the modules that a user calls."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from jaxtyping import Array

from slotzoo.errors import ShapeError


Method = TypeVar("Method", bound=Callable[..., Any])


def explained(**arguments: str) -> Callable[[Method], Method]:
    """Check the shapes of named arguments before the method runs (and before its annotations speak).

        @explained(tokens="time {height} {width}")
        def __call__(self, tokens, ...):

    Words stand for any size, but the same one everywhere; `{height}` is the attribute `height` of
    `self.config`. Arguments that are None are passed over.

    **Raises** `ShapeError`: what the model was built for and what it got.
    """

    def decorate(method: Method) -> Method:
        signature = inspect.signature(method)

        @functools.wraps(method)
        def wrapper(self, *args, **kwargs):
            given = signature.bind(self, *args, **kwargs).arguments
            sizes: dict[str, int] = {}
            for name, spec in arguments.items():
                if given.get(name) is not None:
                    _check(self, name, spec, tuple(given[name].shape), sizes)
            return method(self, *args, **kwargs)

        return wrapper  # pyright: ignore[reportReturnType]

    return decorate


def rollout_sizes(context: Array, actions: Array | None, length: int) -> tuple[int, int]:
    """The number of context frames and of frames to generate.

    **Raises** `ShapeError` if there is nothing to begin with or to generate, or not one action per frame.
    """
    first = len(context)
    if not 0 < first < length:
        raise ShapeError(
            f"length = {length} must exceed the {first} context frames, of which there is at least one."
        )
    if actions is not None and len(actions) != length:
        raise ShapeError(f"there must be one action per frame, {length} of them; got {len(actions)}.")
    return first, length - first


def _check(model: Any, name: str, spec: str, shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    axes = spec.split()
    wanted = [_size(model, axis, sizes) for axis in axes]
    fits = len(axes) == len(shape) and all(want in (None, got) for want, got in zip(wanted, shape, strict=True))
    if not fits:
        words = [
            axis.strip("{}") if want is None else str(want) for axis, want in zip(axes, wanted, strict=True)
        ]
        message = (
            f"{type(model).__name__} was built for {name} of shape ({', '.join(words)}), "
            f"{' '.join(axis.strip('{}') for axis in axes)}; got {shape}."
        )
        if len(shape) == len(axes) + 1:
            message += " It takes one example: batch it with slotzoo.ops.batch_map or jax.vmap."
        raise ShapeError(message)
    sizes.update({axis: got for axis, got in zip(axes, shape, strict=True) if not axis.startswith("{")})


def _size(model: Any, axis: str, sizes: dict[str, int]) -> int | None:
    return getattr(model.config, axis[1:-1]) if axis.startswith("{") else sizes.get(axis)
