"""A data set seen through a tokenizer: clips of tokens instead of frames, computed once and kept."""

import hashlib
import re
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from slotzoo.data import FieldSpec, Record, Source
from slotzoo.data.preparation import prepare
from slotzoo.data.spec import Provenance
from slotzoo.errors import ConfigError
from slotzoo.models.vqgan import VQGAN
from slotzoo.tasks.first_stage import FirstStage
from slotzoo.weights.leaves import named_leaves


_DIGITS = 16  # of the tokenizer's digest, in the fingerprint of what it encoded


class EncodedClips:
    """The records of `source` with `tokens` (time, height, width) in place of `video`.

    It is a `slotzoo.data.Source`, so that `prepare` can write it; the names of the fields and of the data set
    are those that pre-encoded sets have.
    """

    def __init__(self, source: Source, tokenizer: VQGAN):
        if "video" not in source.spec:
            raise ConfigError(
                f"The data set '{source.name}' has no frames to encode, only {', '.join(source.spec)}."
            )
        self.source, self.tokenizer = source, tokenizer
        self.name = f"{source.name}_encoded"
        self.provenance: Provenance = source.provenance
        self._fingerprint = f"{source.fingerprint}-{digest(tokenizer)[:_DIGITS]}"  # `check_codes` reads it

    def __repr__(self) -> str:
        return f"EncodedClips({self.source!r})"

    @property
    def spec(self) -> dict[str, FieldSpec]:
        config = self.tokenizer.config
        shape = (None, config.latent, config.latent)
        tokens = FieldSpec(shape, "int32", 0, config.n_embed - 1, "codes of the tokenizer")
        return {"tokens": tokens} | {k: v for k, v in self.source.spec.items() if k != "video" and v.time}

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        tokens = _encode(self.tokenizer, record["video"])
        kept = {name: record[name] for name in self.spec if name != "tokens"}
        return {"tokens": np.asarray(tokens, np.int32), **kept}

    def close(self) -> None:
        self.source.close()


def encode_once(
    source: Source,
    tokenizer: VQGAN,
    folder: Path,
    split: str,
    *,
    on_error: Literal["raise", "skip"] = "raise",
    max_skips: int = 100,
) -> None:
    """Write `<folder>/<split>`: what `data.name=<name>_encoded data.root=<folder>` reads. Resumable, verified.

    One thread feeds the tokenizer: the device is the bottleneck, not the reading.
    """
    clips = EncodedClips(source, tokenizer)
    prepare(clips, folder / split, workers=1, on_error=on_error, max_skips=max_skips)


def check_codes(source: Source, tokenizer: VQGAN) -> None:
    """Refuse tokens that another tokenizer made: the same numbers would stand for other vectors.

    Only what `EncodedClips` made says whose codes it holds; published tokens pass. Raises `ConfigError`.
    """
    if "tokens" not in source.spec:
        return
    fingerprint = getattr(source, "prepared_from", source.fingerprint)
    made_by = re.search(rf"-([0-9a-f]{{{_DIGITS}}})$", fingerprint)
    if made_by and made_by[1] != (own := digest(tokenizer)[:_DIGITS]):
        raise ConfigError(
            f"The tokens in {getattr(source, 'folder', source.name)} were made by another tokenizer (digest "
            f"{made_by[1]}) than the one taken here ({own}); give the one that made them as tokenizer.run=FOLDER or "
            "tokenizer.weights=FILE, or encode the clips again with this one."
        )


def digest(tree: Any) -> str:
    """SHA-256 over the names, shapes and values of the arrays of a module."""
    found = hashlib.sha256()
    for name, leaf in sorted(named_leaves(tree).items()):
        array = np.asarray(leaf)
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


@eqx.filter_jit
def _tokens(tokenizer: VQGAN, video: jax.Array) -> jax.Array:
    return FirstStage(tokenizer).tokens({"video": video[None]})[0]


def _encode(tokenizer: VQGAN, video: np.ndarray) -> np.ndarray:
    return np.asarray(_tokens(tokenizer, jnp.asarray(video)))
