"""Writes tiny image sets in the published layouts, for tests of readers and of preparation."""

import gzip
import json

import numpy as np
from PIL import Image

from slotzoo.data import open_source
from slotzoo.data.tfrecord import build_example, byte_strings, framed


COUNT = 12  # images of the sets that tests write


def double(**options):
    """Generated tetrominoes."""
    return open_source("tetrominoes", "train", clips=COUNT, **options)


def write_gzip(path, examples):
    with gzip.open(path, "wb", compresslevel=1) as file:
        for data in examples:
            file.write(framed(data))


def tetrominoes_features(source):
    """Records of a source of tetrominoes as the features that are published."""
    for i in range(len(source)):
        record = source[i]
        masks = (record["mask"][None] == np.arange(4)[:, None, None]) * np.uint8(255)
        yield {"image": record["image"], "mask": masks[..., None], "visibility": np.ones(4, np.float32)}


def write_tetrominoes(path, source):
    """A file of tetrominoes: GZIP TFRecords, or HDF5 for a name that ends in h5."""
    rows = list(tetrominoes_features(source))
    if path.suffix == ".h5":
        write_hdf5(path, {name: np.stack([row[name] for row in rows]) for name in rows[0]})
        return path
    examples = (
        build_example(
            {name: value if name == "visibility" else byte_strings(value) for name, value in row.items()}
        )
        for row in rows
    )
    write_gzip(path, examples)
    return path


def write_hdf5(path, arrays, **options):
    import h5py

    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            file.create_dataset(name, data=value, **options)
    return path


def write_clevr(root, split, counts, size=(48, 36), attributes=True):
    """CLEVR v1 with so many objects in each picture; `size` is width and height."""
    folder = root / "images" / split
    folder.mkdir(parents=True)
    (root / "scenes").mkdir(exist_ok=True)
    scenes = []
    for i, count in enumerate(counts):
        name = f"CLEVR_{split}_{i:06d}.png"
        noise = np.random.default_rng(i).integers(256, size=(size[1], size[0], 4)).astype(np.uint8)
        Image.fromarray(noise).save(folder / name)
        thing = {
            "3d_coords": [1.0, -2.0, 0.35],
            "size": "small",
            "material": "metal",
            "shape": "cube",
            "color": "red",
        }
        scenes.append({"image_filename": name, "objects": [thing if attributes else {}] * count})
    (root / "scenes" / f"CLEVR_{split}_scenes.json").write_text(json.dumps({"scenes": scenes}))
    return root


def write_clevrtex(root, counts, variant="full", size=(40, 30)):
    """ClevrTex pictures in two folders, with palette label maps."""
    for i, count in enumerate(counts):
        folder = root / f"clevrtex_{variant}" / str(i % 2)
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"CLEVRTEX_{variant}_{i:06d}"
        noise = np.random.default_rng(i).integers(256, size=(size[1], size[0], 4)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{stem}.png")
        labels = np.random.default_rng(i).integers(count + 1, size=(size[1], size[0])).astype(np.uint8)
        flat = Image.fromarray(labels)
        flat.putpalette(list(range(256)) * 3)
        flat.save(folder / f"{stem}_flat.png")
        (folder / f"{stem}.json").write_text(json.dumps({"objects": [{}] * count}))
    return root


def visible_file(path, visible, entities=11, height=240, width=320):
    """CLEVR with masks, all black, with so many objects in each record."""
    n = len(visible)
    masks = np.zeros((n, entities, height, width, 1), np.uint8)
    masks[:, 0] = 255
    flags = np.zeros((n, entities), np.float32)
    for i, objects in enumerate(visible):
        flags[i, 0] = 1
        flags[i, list(objects)] = 1
        for k in objects:
            masks[i, 0, 100 + k] = 0
            masks[i, k, 100 + k] = 255
    images = np.zeros((n, height, width, 3), np.uint8)
    return write_hdf5(path, {"image": images, "mask": masks, "visibility": flags}, compression="gzip")
