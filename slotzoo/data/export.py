"""Write a source in the layouts that others publish, so that readers are tried on real files."""

import json
import pathlib
from collections.abc import Iterator
from typing import cast

import numpy as np
from jaxtyping import UInt8

from slotzoo.data.export_movi import export_movi
from slotzoo.data.sources.folders import mark
from slotzoo.data.sources.tfds_shards import new_shards, write_shards
from slotzoo.data.spec import Source, View
from slotzoo.data.synthetic.movi import MoviScenes
from slotzoo.data.tfrecord import build_example
from slotzoo.errors import DataError


def export_teco(source: Source, root: str | pathlib.Path, split: str, *, per_folder: int = 100) -> pathlib.Path:
    """Write `<root>/<split>/<number>/<number>.npz` with `video` and `actions`, as TECO publishes DMLab."""
    root = pathlib.Path(root)
    for index, path in enumerate(_clip_paths(source, root, split, per_folder, ".npz")):
        path.parent.mkdir(parents=True, exist_ok=True)
        record = source[index]
        np.savez_compressed(path, video=record["video"], actions=record["actions"])
    return root


def export_moving_mnist(
    source: Source, root: str | pathlib.Path, split: str, *, per_folder: int = 100
) -> pathlib.Path:
    """Write `<root>/<split>/<number>/<number>.npz` with `data` (time, size, size, 1), as the ConvSSM loader reads it.

    From a source that holds one file of many clips this is the split of that file.
    """
    root = pathlib.Path(root)
    for index, path in enumerate(_clip_paths(source, root, split, per_folder, ".npz")):
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, data=source[index]["video"])
    return root


def export_mp4(
    source: Source, root: str | pathlib.Path, split: str, *, per_folder: int = 100, fps: int = 20
) -> pathlib.Path:
    """Write `<root>/<split>/<number>/<number>.mp4` and `.npz` with `actions`, as TECO publishes Minecraft.

    Needs PyAV with libx264 (the extra `video`). Raises `DataError` without.
    """
    root = pathlib.Path(root)
    for index, path in enumerate(_clip_paths(source, root, split, per_folder, ".mp4")):
        record = source[index]
        write_mp4(path, record["video"], fps=fps)
        np.savez_compressed(path.with_suffix(".npz"), actions=record["actions"])
    return root


def export_clevrer(source: Source, root: str | pathlib.Path, split: str) -> pathlib.Path:
    """Write `<root>/video_train/video_00000-01000/video_00000.mp4` and so on, frames as large as those of `source`.

    Needs PyAV with libx264 (the extra `video`). Raises `DataError` without.
    """
    root = pathlib.Path(root)
    word, first = {"train": ("train", 0), "val": ("validation", 10_000), "test": ("test", 15_000)}[split]
    paths = []
    for number in range(first, first + len(source)):
        thousand = number // 1000 * 1000
        folder = root / f"video_{word}" / f"video_{thousand:05d}-{thousand + 1000:05d}"
        paths.append(folder / f"video_{number:05d}.mp4")
    _refuse_others(root / f"video_{word}", ".mp4", paths)
    mark(source, root)
    for index, path in enumerate(paths):
        write_mp4(path, source[index]["video"], fps=25)
    return root


def _clip_paths(
    source: Source, root: pathlib.Path, split: str, per_folder: int, suffix: str
) -> list[pathlib.Path]:
    """Where each clip goes; marks `root`. **Raises** `DataError` where the split has other clips already."""
    paths = [
        root / split / f"{index // per_folder:04d}" / f"{index:06d}{suffix}" for index in range(len(source))
    ]
    _refuse_others(root / split, suffix, paths)
    mark(source, root)
    return paths


def _refuse_others(folder: pathlib.Path, suffix: str, wanted: list[pathlib.Path]) -> None:
    """Raise `DataError` where a folder has clips that would be read together with those of `wanted`."""
    others = sorted(set(folder.rglob(f"*{suffix}")) - set(wanted))
    if others:
        raise DataError(
            f"{folder} has {len(others)} other clips ({others[0].relative_to(folder)}), which would be read together "
            "with these; delete them, or choose another folder."
        )


def write_mp4(path: pathlib.Path, video: UInt8[np.ndarray, "time height width 3"], *, fps: int) -> None:
    """Write an H.264 file with a key frame every 30 frames, and the folders above it."""
    try:
        import av
    except ImportError as error:
        raise DataError("Writing mp4 needs PyAV: install slotzoo[video].") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), mode="w") as container:
        stream = cast("av.VideoStream", container.add_stream("libx264", rate=fps))
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "18", "g": "30"}
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def export_published(source: Source, root: str | pathlib.Path, split: str) -> pathlib.Path:
    """Write a video set in the layout that it is published in."""
    source = source.origin if isinstance(source, View) else source
    if isinstance(source, MoviScenes):
        return export_movi(source, root, split)
    writers = {
        "moving_mnist": export_moving_mnist,
        "minecraft": export_mp4,
        "habitat": export_mp4,
        "clevrer": export_clevrer,
    }
    if source.name not in writers and "actions" not in source.spec:
        raise DataError(f"The data set {source.name!r} has no layout of video files to be written in.")
    encoded = "tokens" in source.spec
    return (export_encoded if encoded else writers.get(source.name, export_teco))(source, root, split)


def export_encoded(source: Source, root: str | pathlib.Path, split: str, *, shards: int = 1) -> pathlib.Path:
    """Write `<root>/1.0.0` as TFDS lays out TECO's encoded sets: features.json, dataset_info.json, TFRecord shards.

    **Raises** `DataError` where the folder has shards of the split that this export would leave beside its own.
    """
    root = pathlib.Path(root)
    folder = root / "1.0.0"
    paths = new_shards(folder, root.name, split, shards)
    mark(source, root)
    mark(source, folder)  # which may be named as the root as well
    shapes = {
        "video": {"shape": {"dimensions": ["-1", *(str(n) for n in source.spec["tokens"].shape[1:])]}},
        "actions": {"shape": {"dimensions": ["-1"]}},
    }
    tensors = {
        name: {
            "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",
            "tensor": {**shape, "dtype": "uint16" if name == "video" else "int32", "encoding": "none"},
        }
        for name, shape in shapes.items()
    }
    features = {
        "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
        "featuresDict": {"features": tensors},
    }
    (folder / "features.json").write_text(json.dumps(features, indent=1))

    def examples(indices: range) -> Iterator[bytes]:
        for index in indices:
            record = source[index]
            yield build_example({"video": record["tokens"], "actions": record["actions"]})

    lengths = write_shards(paths, len(source), examples)
    info = folder / "dataset_info.json"
    splits = json.loads(info.read_text())["splits"] if info.exists() else []
    splits = [s for s in splits if s["name"] != split]
    splits.append({"name": split, "shardLengths": [str(n) for n in lengths]})
    info.write_text(json.dumps({"name": root.name, "version": "1.0.0", "splits": splits}, indent=1))
    return root
