"""MOVi-A to E as TensorFlow Datasets wrote them: `<root>/movi_a/128x128/1.0.0/movi_a-train.tfrecord-00000-of-01024`.

`root` is the folder that holds `movi_a`, or any folder on the way to the shards. Read without TensorFlow, by what
`features.json` declares. `train` is `train`, `val` and `test` are `validation`, on which results are published;
`test_split=test` takes the held-out objects and backgrounds that C, D and E have. Source: Greff et al., "Kubric" (CVPR
2022), challenges/movi.
"""

import pathlib
import re
from collections.abc import Iterable
from typing import Literal

import numpy as np

from slotzoo.data.movi_layout import CHUNK, LAYOUTS, Kind, kept, record_spec
from slotzoo.data.sources.folders import checked_root, contents, provenance_of
from slotzoo.data.sources.tfds_shards import Shards, version_folder
from slotzoo.data.spec import FieldSpec, Provenance, Record, check_record
from slotzoo.data.tfds_features import Declared, decode, read_features
from slotzoo.data.tfrecord import parse_example
from slotzoo.errors import ConfigError, DataError


Split = Literal["train", "val", "test"]
_NEEDED = ("video", "segmentations", "instances/bboxes", "instances/bbox_frames")
_RANGES = {"backward_flow": "metadata/backward_flow_range", "depth": "metadata/depth_range"}
_PLAIN_RANGE = (-255.0, 255.0)  # of flow that comes without one, as SAVi takes it
_FLOWS = ("backward_flow", "forward_flow", "flow")
_OVER_TIME = ("video", "segmentations", "depth", "normal", "object_coordinates", *_FLOWS)


class MoviFiles:
    """Records of `movi_layout.record_spec` in the order of the shards; a window decodes its frames alone.

    `config` is the size that is read where there are several, as 128x128.
    """

    chunk = CHUNK

    def __init__(
        self,
        name: Kind,
        root: str | pathlib.Path,
        split: Split,
        *,
        config: str | None = None,
        test_split: str = "validation",
    ):
        self.name: str = name
        tests = ("validation", "test") if LAYOUTS[name].test else ("validation",)
        if test_split not in tests:
            raise ConfigError(f"{name} has no test_split={test_split}; it has {' and '.join(tests)}.")
        self.split = {"train": "train", "val": "validation", "test": test_split}[split]
        self._root = checked_root(root, name)
        sized = _sized_folder(self._root, name, config)
        config_name = sized.name if re.fullmatch(r"\d+x\d+", sized.name) else config or "128x128"
        expected = (
            f"{self._root}/{name}/{config_name}/1.0.0/{name}-{self.split}.tfrecord-* (TFDS) or "
            f"{self._root}/{split}/manifest.json (prepared)"
        )
        folder = version_folder(sized, self.split, expected)
        self.provenance: Provenance = provenance_of(self._root, folder)
        self.declared = read_features(folder / "features.json")
        self.features_file = folder / "features.json"
        self._shards = Shards(folder, self.split)
        self._check_declared()
        self._frames, self._size = self._clip_size()
        self._fingerprint = self._shards.fingerprint(self._root)
        # What a prepared folder must not be asked differently.
        self.options = {"config": f"{self._size}x{self._size}"}
        if split == "test":
            self.options["test_split"] = test_split

    def __repr__(self) -> str:
        return f"MoviFiles({self.name!r}, {self.split!r}, clips={len(self)})"

    def _check_declared(self) -> None:
        for feature in _NEEDED:
            if feature not in self.declared:
                raise DataError(
                    f"{self.features_file}: no feature {feature!r}, which {self.name} has; found "
                    f"{', '.join(sorted(self.declared))}."
                )
        flow = next((name for name in ("backward_flow", "flow") if name in self.declared), None)
        depth = all(name in self.declared for name in ("depth", _RANGES["depth"]))
        self._flow, self._depth = flow, depth
        targets = (*((flow,) if flow else ()), *(("depth",) if depth else ()))
        ranges = (_RANGES[name] for name in targets if name in _RANGES and _RANGES[name] in self.declared)
        self._read = (*_NEEDED, *targets, *ranges)

    def _clip_size(self) -> tuple[int, int]:
        frames, height, width, _ = self.declared["video"].shape
        if frames is None or height is None or height != width:
            raise DataError(
                f"{self.features_file}: videos of {frames} frames, {height} x {width}; {self.name} has square ones "
                "of a fixed length."
            )
        return frames, height

    @property
    def spec(self) -> dict[str, FieldSpec]:
        has = {"flow": self._flow is not None, "depth": self._depth}
        fields = record_spec(self._size)
        return {name: field for name, field in fields.items() if has.get(name.removesuffix("_range"), True)}

    @property
    def fingerprint(self) -> str:
        """Of the paths and sizes of the files."""
        return self._fingerprint

    def __len__(self) -> int:
        return len(self._shards)

    def frames(self, index: int) -> int:
        """Length of a clip, as features.json says."""
        return self._frames

    def features(
        self, index: int, names: Iterable[str] | None = None, frames: slice = slice(None)
    ) -> dict[str, np.ndarray]:
        """Features of a clip by MOVi's names, all of them unless `names` are given; pictures and flow of `frames`."""
        where = self._shards.where(index)
        wanted: dict[str, Declared] = {name: self.declared[name] for name in names or self.declared}
        keys = [key for name, kind in wanted.items() for key in kind.keys(name)]
        example = parse_example(self._shards.read(index), where, keys)
        return decode(example, self.declared, wanted, where, dict.fromkeys(_OVER_TIME, frames))

    def __getitem__(self, index: int) -> Record:
        return self.window(index, 0, self._frames)

    def window(self, index: int, start: int, length: int) -> Record:
        """Frames `start` to `start + length` of a clip."""
        where = self._shards.where(index)
        part = slice(start, start + length)
        clip = self.features(index, self._read, part)
        if self._flow is not None:
            clip["backward_flow"] = clip[self._flow]
            clip.setdefault(_RANGES["backward_flow"], np.asarray(_PLAIN_RANGE, np.float32))
        record = kept(clip, where, frames=self._frames)
        record["boxes"] = record["boxes"][part]
        check_record(record, self.spec, where)
        return record

    def close(self) -> None:
        """Nothing is held open."""


def _sized_folder(root: pathlib.Path, name: str, config: str | None) -> pathlib.Path:
    """The folder of one size of the data set: of `config`, else 128x128, else the smallest."""
    base = root / name if (root / name).is_dir() else root
    sizes = {
        path.name: path for path in base.iterdir() if re.fullmatch(r"\d+x\d+", path.name) and path.is_dir()
    }
    if not sizes:
        if config is not None and base.name != config and base.parent.name != config:
            raise DataError(f"data.root={root} has no folder {config} ({name}'s config): {contents(base)}.")
        return base
    wanted = config or (
        "128x128" if "128x128" in sizes else min(sizes, key=lambda size: int(size.split("x")[0]))
    )
    if wanted not in sizes:
        raise DataError(f"{base} has no config {wanted}; it has {', '.join(sorted(sizes))}.")
    return sizes[wanted]
