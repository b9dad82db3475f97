"""Four handwritten digits on a black canvas: MNIST-4 of GNM (Jiang and Ahn, NeurIPS 2020).

The paper names the set and publishes no files of it. Here a canvas has a digit in every quarter, anywhere in it; which
digits stand together is left to chance.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from slotzoo.data.spec import FieldSpec, Record
from slotzoo.data.synthetic.digits import SIDE, digits, digits_hash
from slotzoo.data.synthetic.images import Split, SyntheticImages, image_fields
from slotzoo.errors import ConfigError


_DIGITS = 4
_INK = 128  # from here on a pixel belongs to its digit


@dataclasses.dataclass(frozen=True)
class DigitCanvases:
    """Grey digits of 7/16 of the side, one in each quarter, none over another. They are MNIST's from the folder `mnist`
    (IDX), or the 1,000 that ship with the package.
    """

    size: int = 128
    mnist: str | None = dataclasses.field(default=None, repr=False)
    origin: str = dataclasses.field(init=False)  # of the digits, by what is in their file

    def __post_init__(self):
        if self.size < 16:
            raise ConfigError(f"Canvases of four digits need a size of at least 16 pixels, got {self.size}.")
        object.__setattr__(self, "origin", digits_hash(self.mnist)[:16])

    @property
    def version(self) -> int:
        return 1

    @property
    def spec(self) -> dict[str, FieldSpec]:
        return image_fields(self.size, self.size, _DIGITS, channels=1)

    def draw(self, rng: np.random.Generator) -> Record:
        half, side = self.size // 2, self.size * SIDE // 64
        images = digits(self.mnist, side)
        chosen = images[rng.integers(len(images), size=_DIGITS)]
        canvas, mask = (np.zeros((self.size, self.size), np.uint8) for _ in range(2))
        for i, digit in enumerate(chosen):
            row, column = rng.integers(half - side + 1, size=2) + half * np.asarray(divmod(i, 2))
            window = slice(row, row + side), slice(column, column + side)
            canvas[window] = digit
            mask[window] = (digit >= _INK) * np.uint8(i + 1)
        visible = np.bincount(mask.ravel(), minlength=_DIGITS + 1)[1:] > 0
        return {"image": canvas[..., None], "mask": mask, "visible": visible.astype(np.uint8)}


def open_mnist4(
    root: pathlib.Path,
    split: Split,
    *,
    cache: pathlib.Path | None = None,
    clips: int = 2000,
    seed: int = 0,
    size: int | None = None,
) -> SyntheticImages:
    """Canvases of MNIST's own training digits, which are in `root`; drawn as needed, so `cache` is left alone."""
    options: dict[str, Any] = {} if size is None else {"size": size}
    source = SyntheticImages("mnist4", DigitCanvases(mnist=str(root), **options), split, clips=clips, seed=seed)
    source.provenance = "real"
    return source
