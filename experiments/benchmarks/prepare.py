"""Suite `prepare`: converting published files to ArrayRecord, in records a second and in minutes for the whole set.

Doubles are written in the published layouts at the published resolution: `DISTINCT` different records, again and again,
since nothing that is measured remembers an earlier record. Then `slotzoo.data.prepare` converts them as
`experiments.prepare` does, at its defaults, with as many threads as there are cores.

    index           opening the files: a GZIP file is read once, every description of ClevrTex for its objects
    prepare         reading, cropping, resizing, encoding, writing, reading back; `minutes` for `total` records (all
                    splits), with the index, and for GZIP with passing over the other splits' records; `core_minutes`
                    the same in minutes of one core, which other work on the machine does not stretch
    entry by entry  a record of CLEVR as protobuf gives it, one string per byte, put together: that part alone of how
                    object-discovery-pytorch converts the file (its README says two hours)

Ray-traced pictures are smoother than the published ones, so they get grain of one level up or down. `scale=tiny` writes
a few records, to see that it runs; `paper`, for figures, takes some minutes.
"""

import gzip
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from experiments.schema import BenchmarkSettings
from slotzoo.data import open_source, prepare
from slotzoo.data.export import export_teco
from slotzoo.data.export_movi import export_movi
from slotzoo.data.gzip_records import GzipRecords
from slotzoo.data.spec import Provenance, Source
from slotzoo.data.synthetic.clevr import ClevrScenes
from slotzoo.data.synthetic.maze import MazeSource
from slotzoo.data.synthetic.movi import MoviScenes
from slotzoo.data.tfrecord import build_example, byte_strings, framed, parse_example


COLUMNS = ["set", "row", "records", "seconds", "per_second", "total", "minutes", "core_minutes"]
HEIGHT, WIDTH, ENTITIES = 240, 320, 11
DISTINCT = 32
PARSED = 5  # records that are put together entry by entry


class Published(NamedTuple):
    """A published set: how it is written here, how it is opened, and how many records it has."""

    name: str
    write: Callable[[Path, int, int], None]
    options: dict[str, Any]
    records: int  # written at scale=paper
    total: int


def _pictures(distinct: int, **options: Any) -> list[dict[str, np.ndarray]]:
    """Scenes at the published size, `HEIGHT` rows out of a square."""
    scenes, top = ClevrScenes(size=WIDTH, max_objects=10, **options), (WIDTH - HEIGHT) // 2
    drawn = (scenes.draw(np.random.default_rng(i)) for i in range(distinct))
    cut = lambda x: np.ascontiguousarray(x[top : top + HEIGHT])
    found = []
    for i, record in enumerate(drawn):
        image = cut(record["image"])
        grain = np.random.default_rng(i).integers(-1, 2, size=image.shape)
        image = np.clip(image + grain, 0, 255).astype(np.uint8)
        found.append({**record, "image": image, "mask": cut(record["mask"])})
    return found


def clevr_example(record: dict[str, np.ndarray]) -> bytes:
    """A `tf.train.Example` of CLEVR with masks, as Multi-Object Datasets writes it."""
    masks = (record["mask"][None] == np.arange(ENTITIES, dtype=np.uint8)[:, None, None]) * np.uint8(255)
    visible = np.concatenate([[1], record["visible"], np.zeros(ENTITIES - 1 - len(record["visible"]))])
    return build_example(
        {
            "image": byte_strings(record["image"]),
            "mask": byte_strings(masks),
            "visibility": visible.astype(np.float32),
        }
    )


def write_clevr(root: Path, records: int, distinct: int) -> None:
    """`clevr_with_masks_train.tfrecords`, compressed with GZIP."""
    examples = [framed(clevr_example(record)) for record in _pictures(distinct)]
    root.mkdir()
    with gzip.open(root / "clevr_with_masks_train.tfrecords", "wb", compresslevel=6) as file:
        for i in range(records):
            file.write(examples[i % distinct])


def write_clevrtex(root: Path, records: int, distinct: int) -> None:
    """`clevrtex_full/<number>/CLEVRTEX_full_<number>.png`, `_flat.png` and `.json`."""
    for i, record in enumerate(_pictures(min(distinct, records), textured="full")):
        label = Image.fromarray(record["mask"])
        label.putpalette(list(range(256)) * 3)
        thing = {"shape": "cube", "material": "x" * 40, "3d_coords": [0.1] * 3, "pixel_coords": [1.0] * 3}
        for number in range(i, records, distinct):
            stem = root / "clevrtex_full" / f"{number // 1000}" / f"CLEVRTEX_full_{number:06d}"
            first = root / "clevrtex_full" / "0" / f"CLEVRTEX_full_{i:06d}"
            stem.parent.mkdir(parents=True, exist_ok=True)
            if number == i:
                Image.fromarray(record["image"]).save(f"{stem}.png")
                label.save(f"{stem}_flat.png")
                Path(f"{stem}.json").write_text(json.dumps({"objects": [thing] * int(record["visible"].sum())}))
            else:
                for ending in (".png", "_flat.png", ".json"):
                    shutil.copyfile(f"{first}{ending}", f"{stem}{ending}")


def write_dmlab(root: Path, records: int, distinct: int) -> None:
    """`train/<number>/<number>.npz` of 300 frames."""
    export_teco(_Repeated(MazeSource("train", clips=distinct), records), root, "train")


def write_movi(root: Path, records: int, distinct: int) -> None:
    """`movi_a/128x128/1.0.0` with shards of 32 clips, all features."""
    export_movi(_RepeatedScenes(distinct, records), root, "train", per_shard=32)


class _Repeated:
    """The clips of a source, again and again."""

    def __init__(self, origin: Source, records: int):
        self.origin, self.records = [origin[i] for i in range(len(origin))], records
        self.name, self.spec, self.fingerprint = origin.name, origin.spec, origin.fingerprint
        self.provenance: Provenance = origin.provenance

    def __len__(self) -> int:
        return self.records

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.origin[index % len(self.origin)]

    def close(self) -> None:
        """Nothing is held open."""


class _RepeatedScenes(MoviScenes):
    """The clips of MOVi-A's double, again and again, with all features."""

    def __init__(self, distinct: int, records: int):
        super().__init__("movi_a", "train", size=128, clips=distinct)
        self._drawn = [super(_RepeatedScenes, self).clip(i) for i in range(distinct)]
        self._records = records

    def __len__(self) -> int:
        return self._records

    def clip(self, index: int, *, full: bool = True) -> dict[str, np.ndarray]:
        return self._drawn[index % len(self._drawn)]


SETS = (
    Published("clevr_with_masks", write_clevr, {"size": 128, "max_objects": 10}, 1000, 100_000),
    Published("clevrtex", write_clevrtex, {"size": 128, "variant": "full", "max_objects": 10}, 2000, 50_000),
    Published("dmlab", write_dmlab, {}, 300, 40_000),
    Published("movi_a", write_movi, {}, 192, 9_953),
)


def measured(published: Published, folder: Path, records: int) -> Iterator[dict[str, Any]]:
    """The rows of a set that was written to a folder of its name."""
    name, root = published.name, folder / published.name

    def row(what: str, count: int, took: Took, **more: Any) -> dict[str, Any]:
        figures = {"seconds": took.wall, "core_s": took.core, "per_second": count / took.wall}
        return {"set": name, "row": what, "records": count} | figures | more

    source, index = timed(lambda: open_source(name, "train", root=root, cache=folder, **published.options))
    _, prepared = timed(lambda: prepare(source, folder / f"{name}_prepared", workers=os.cpu_count() or 2))
    whole = index.times(published.total / records).plus(prepared.times(published.total / len(source)))
    entries: list[dict[str, Any]] = []
    if name == "clevr_with_masks":
        # To get to the held-out records, which are the last, those before them are decompressed for each split.
        (path,) = root.iterdir()
        count, passing = timed(lambda: GzipRecords(path).scan(lambda number, data: None))
        whole = whole.plus(passing.times((70_000 + 85_000) / count))
        data = GzipRecords(path)[0]
        parsed = lambda: {k: b"".join(v) for k, v in parse_example(data, "").items() if isinstance(v, list)}
        _, took = timed(lambda: [parsed() for _ in range(PARSED)])
        minutes = took.times(published.total / PARSED).minutes()
        entries = [row("entry by entry", PARSED, took, total=published.total, **minutes)]
    files = [path for path in root.rglob("*") if path.is_file()]
    written = sum(path.stat().st_size for path in (folder / f"{name}_prepared").iterdir())
    yield row("index", records, index)
    yield row(
        "prepare",
        len(source),
        prepared,
        total=published.total,
        **whole.minutes(),
        read_bytes=sum(path.stat().st_size for path in files) // records,
        written_bytes=written // len(source),
    )
    yield from entries


class Took(NamedTuple):
    """Seconds by the clock, and of all cores together."""

    wall: float
    core: float

    def times(self, factor: float) -> "Took":
        return Took(self.wall * factor, self.core * factor)

    def plus(self, other: "Took") -> "Took":
        return Took(self.wall + other.wall, self.core + other.core)

    def minutes(self) -> dict[str, float]:
        return {"minutes": self.wall / 60, "core_minutes": self.core / 60}


def timed(work: Callable[[], Any]) -> tuple[Any, Took]:
    """What a function gives, and what it took."""
    wall, core = time.perf_counter(), time.process_time()
    out = work()
    return out, Took(time.perf_counter() - wall, time.process_time() - core)


def run(settings: BenchmarkSettings) -> tuple[list[dict[str, Any]], list[str]]:
    """Write each set to a temporary folder, measure, and delete it."""
    rows = []
    for published in SETS:
        with tempfile.TemporaryDirectory() as folder:
            small = settings.scale == "tiny"
            records, distinct = (6, 2) if small else (published.records, DISTINCT)
            published.write(Path(folder) / published.name, records, distinct)
            rows += measured(published, Path(folder), records)
    return rows, COLUMNS
