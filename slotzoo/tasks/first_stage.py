"""The tokenizer behind a model over tokens: video to codes and back, frame by frame, not trained."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt8

from slotzoo.models.vqgan import VQGAN
from slotzoo.ops import batch_map
from slotzoo.tasks.pixels import to_bytes, to_float


# Frames that the tokenizer takes at once: all of a long clip would need more memory than the sequence model.
FRAMES_AT_ONCE = 16


class FirstStage(eqx.Module):
    """What is not trained: the tokenizer of a model over tokens, None for a model over pixels."""

    tokenizer: VQGAN | None

    def tokens(self, batch: Mapping[str, Any]) -> Int[Array, "clip time height width"]:
        """The codes of a batch: read ones, else those of its frames."""
        if "tokens" in batch:
            return jnp.asarray(batch["tokens"])
        assert self.tokenizer is not None
        encode = self.tokenizer.encode
        return _frame_map(lambda frame: encode(to_float(frame)).codes, jnp.asarray(batch["video"]))

    def frames(
        self, tokens: Int[Array, "clip time height width"]
    ) -> UInt8[Array, "clip time height2 width2 channel"]:
        """The pictures of codes."""
        assert self.tokenizer is not None
        decode = self.tokenizer.decode_tokens
        return _frame_map(lambda codes: to_bytes(decode(codes)), tokens)


def _frame_map(fn: Callable[[Array], Array], video: Array) -> Array:
    """Apply `fn` to every frame of `video` (clip, time, ...), `FRAMES_AT_ONCE` of each clip at a time."""
    clips, length = video.shape[:2]
    size = min(FRAMES_AT_ONCE, length)
    short = -length % size
    padded = jnp.pad(video, [(0, 0), (0, short)] + [(0, 0)] * (video.ndim - 2))
    chunks = jnp.moveaxis(padded.reshape(clips, -1, size, *video.shape[2:]), 1, 0)
    done = jax.lax.map(batch_map(jax.vmap(fn)), chunks)
    return jnp.moveaxis(done, 0, 1).reshape(clips, length + short, *done.shape[3:])[:, :length]
