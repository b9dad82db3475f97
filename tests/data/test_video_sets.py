"""Moving-MNIST, Minecraft and Habitat: generated, and read from files as they are published."""

import fractions
import gzip
import pickle
import struct

import numpy as np
import pytest

from slotzoo.data import make_pipeline, open_source, prepare
from slotzoo.data.export import export_encoded, export_published
from slotzoo.data.sources.moving_mnist import MovingMnistFiles
from slotzoo.data.sources.mp4 import Mp4Source, read_frames
from slotzoo.data.synthetic.digits import digits, read_idx
from slotzoo.data.synthetic.layout import make_maze
from slotzoo.data.synthetic.moving_mnist import MovingMnistSource, trajectory
from slotzoo.errors import ConfigError, DataError
from tests.arrays import same_records


SMALL = dict(length=12, size=16, clips=5)


def write_idx(path, images):
    data = struct.pack(">4i", 0x803, *images.shape) + images.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


# --- Moving-MNIST, generated


def test_clips_depend_on_their_index_alone():
    source = MovingMnistSource("train", **SMALL)
    assert same_records(source, MovingMnistSource("train", **SMALL))
    assert not np.array_equal(source[0]["video"], source[1]["video"])
    assert not np.array_equal(source[0]["video"], MovingMnistSource("test", **SMALL)[0]["video"])
    assert not np.array_equal(source[0]["video"], MovingMnistSource("train", **SMALL, seed=1)[0]["video"])
    longer = MovingMnistSource("train", length=40, size=16, clips=5)
    assert np.array_equal(longer[2]["video"][:12], source[2]["video"])
    assert np.array_equal(longer.window(2, 7, 5)["video"], source[2]["video"][7:])
    assert longer.fingerprint != source.fingerprint
    assert same_records(pickle.loads(pickle.dumps(source)), source)


def test_digits_keep_their_place_and_brightness():
    video = MovingMnistSource("train", length=50, clips=1)[0]["video"]
    assert video.shape == (50, 64, 64, 1) and video.dtype == np.uint8 and video.max() == 255
    one = MovingMnistSource("train", length=50, clips=1, digits=1)[0]["video"][..., 0]
    assert len({int(frame.sum()) for frame in one}) == 1  # it moves and stays whole
    small = MovingMnistSource("train", length=3, size=32, clips=1)
    assert small.digit_size == 14
    assert small[0]["video"].shape == (3, 32, 32, 1)


def test_paths_bounce_and_stay_in_the_box():
    path = trajectory(np.array([0.5, 0.5, 0.13]), 200, canvas=36)
    assert path.min() == 0 and path.max() == 36
    step = np.abs(np.diff(path, axis=0)).max()
    assert 1 <= step <= np.ceil(0.15 * 36)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"])
def test_the_users_mnist_is_taken(tmp_path, name):
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28), np.uint8)
    (tmp_path / "MNIST" / "raw").mkdir(parents=True)
    write_idx(tmp_path / "MNIST" / "raw" / name, images)
    assert np.array_equal(read_idx(tmp_path / "MNIST" / "raw" / name), images)
    by_root = open_source("moving_mnist", "train", root=tmp_path, **SMALL)
    by_option = open_source("moving_mnist", "train", mnist=str(tmp_path), **SMALL)
    shipped = open_source("moving_mnist", "train", **SMALL)
    assert same_records(by_root, by_option) and by_root.provenance == by_option.provenance == "real"
    assert shipped.provenance == "embedded double" and not same_records(by_root, shipped)
    assert "7 MNIST digits of" in by_root.about and "the 1,000 MNIST digits that ship" in shipped.about
    assert by_root.fingerprint != shipped.fingerprint


def test_what_is_said_of_a_generator_stays_with_its_copy(tmp_path):
    copy = prepare(MovingMnistSource("train", **SMALL), tmp_path / "train")
    assert "1,000 MNIST digits" in copy.about and copy.provenance == "embedded double"
    assert same_records(
        open_source("moving_mnist", "train", root=tmp_path), MovingMnistSource("train", **SMALL)
    )


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda data: data[:-5], "bytes, 2 images need"),
        (lambda data: b"\0\0\x08\x01" + data[4:], "not the images of MNIST: it begins with 0x801"),
        (lambda data: data[:7], "cannot be read as MNIST images"),
        (lambda data: b"\x1f\x8b" + data, "cannot be read as MNIST images"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path, change, sentence):
    path = tmp_path / "train-images-idx3-ubyte"
    write_idx(path, np.zeros((2, 28, 28), np.uint8))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=f"idx3-ubyte: .*{sentence}"):
        open_source("moving_mnist", "train", root=tmp_path, **SMALL)[0]


def test_impossible_options_are_refused():
    for options in ({"digits": 0}, {"size": 16, "digit_size": 17}, {"step": 0.0}, {"seed": -1}, {"length": 0}):
        with pytest.raises(ConfigError, match="Moving-MNIST needs"):
            MovingMnistSource("train", **options)
    with pytest.raises(DataError, match="no training images of MNIST"):
        open_source("moving_mnist", "train", mnist="/nowhere", **SMALL)[0]
    assert digits().shape == (1000, 28, 28)


@pytest.mark.parametrize(
    "name, options, sentence",
    [
        ("dmlab", {"layout": "x"}, "layout must be backtracker or labmaze or rooms or field, got 'x'"),
        ("moving_mnist", {"digits": "a"}, "digits must be a whole number, got 'a'"),
        ("moving_mnist", {"digits": True}, "digits must be a whole number, got True"),
        ("moving_mnist", {"digit_size": 1.5}, "digit_size must be a whole number or null, got 1.5"),
        ("moving_mnist", {"step": "fast"}, "step must be a number, got 'fast'"),
        ("moving_mnist", {"mnist": 3}, "mnist must be a word or null, got 3"),
        ("movi_a", {"object_scale": None}, "object_scale must be a number, got None"),
        ("blinking_color_balls", {"radius": [2]}, r"radius must be a whole number, got \[2\]"),
    ],
)
def test_options_of_another_type_are_refused(name, options, sentence):
    with pytest.raises(ConfigError, match=f"Data set '{name}': {sentence}"):
        open_source(name, "train", **options)


@pytest.mark.parametrize(
    "name", ["dmlab", "minecraft", "moving_mnist", "bouncing_balls", "cater", "movi_a", "clevrer"]
)
def test_no_size_is_the_default_one(name):
    assert open_source(name, "test", size=None, clips=1).spec == open_source(name, "test", clips=1).spec


def test_a_whole_number_is_taken_for_a_float():
    source = open_source("moving_mnist", "train", step=1, digit_size=None, **SMALL)
    assert isinstance(source, MovingMnistSource) and isinstance(source.step, float)
    assert same_records(source, MovingMnistSource("train", step=1.0, **SMALL))
    assert len(open_source("movi_a", "train", object_scale=1, clips=1)) == 1


# --- Moving-MNIST, read


@pytest.mark.parametrize("layout", ["one clip a file", "all, compressed", "all, as it is"])
def test_published_files_are_read(tmp_path, layout):
    double = MovingMnistSource("train", **SMALL)
    if layout == "one clip a file":
        export_published(double, tmp_path, "train")
    else:
        (tmp_path / "train").mkdir()
        clips = np.stack([double[i]["video"] for i in range(5)]).astype(np.float32)
        save = np.savez if "as it is" in layout else np.savez_compressed
        save(tmp_path / "train" / "a.npz", data=clips[:2])
        save(tmp_path / "train" / "b.npz", data=clips[2:])
    source = open_source("moving_mnist", "train", root=tmp_path)
    assert isinstance(source, MovingMnistFiles) and same_records(source, double)
    # Out of order, and in another process.
    copy = pickle.loads(pickle.dumps(source))
    for index in (4, 0, 3, 1):
        assert np.array_equal(copy[index]["video"], double[index]["video"])
    assert source.provenance == ("embedded double" if layout == "one clip a file" else "real")
    source.close()
    copy.close()


@pytest.mark.parametrize(
    "arrays, sentence",
    [
        ({"video": np.zeros((4, 8, 8, 1))}, "no key 'data'; found video"),
        ({"data": np.full((4, 8, 8, 1), 300.0)}, "'data' has values from 300.0 to 300.0, expected 0 to 255"),
        ({"data": np.full((4, 8, 8, 1), np.nan)}, "'data' has values from nan to nan"),
        (
            {"data": np.linspace(0, 1, 256, dtype=np.float32).reshape(4, 8, 8, 1)},
            "'data' has values from 0.0 to 1.0 that are not whole numbers, expected whole numbers from 0 to 255",
        ),
        ({"data": np.zeros((4, 9, 9, 1), np.uint8)}, r"'video' has shape \(4, 9, 9, 1\)"),
        ({"data": np.array([None] * 4)}, "cannot be read"),
    ],
)
def test_a_clip_that_breaks_the_spec_is_named(tmp_path, arrays, sentence):
    (tmp_path / "train").mkdir()
    np.savez(tmp_path / "train" / "0.npz", data=np.zeros((4, 8, 8, 1), np.uint8))
    np.savez(tmp_path / "train" / "1.npz", **arrays)
    with pytest.raises(DataError, match=rf"1.npz \(clip 1\): {sentence}"):
        MovingMnistFiles(tmp_path, "train")[1]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_file_of_many_clips_is_named(tmp_path, damage):
    (tmp_path / "train").mkdir()
    path = tmp_path / "train" / "all.npz"
    clips = np.random.default_rng(0).integers(0, 64, (6, 4, 32, 32, 1), np.uint8)
    np.savez_compressed(path, data=clips)
    data = bytearray(path.read_bytes())
    data[-3000:-2900] = bytes(100)
    path.write_bytes(data[:-40] if damage == "cut" else data)
    # Without its table of contents it is not known to hold many; with it, the last clip is what is lost.
    last = 0 if damage == "cut" else 5
    with pytest.raises(DataError, match=rf"all.npz \(clip {last}\): cannot be read"):
        MovingMnistFiles(tmp_path, "train")[last]
    if damage == "flipped":
        assert np.array_equal(MovingMnistFiles(tmp_path, "train")[1]["video"], clips[1])


# --- Minecraft and Habitat


@pytest.fixture(scope="module")
def mp4_root(tmp_path_factory):
    pytest.importorskip("av", reason="the extra `video` is not installed")
    root = tmp_path_factory.mktemp("minecraft")
    export_published(open_source("minecraft", "train", length=70, size=48, clips=2), root, "train")
    return root


@pytest.mark.parametrize("name", ["minecraft", "habitat"])
def test_doubles_have_the_published_spec(name):
    source = open_source(name, "train", length=3, clips=2)
    assert source.spec["video"].shape == (None, 128, 128, 3) and source.spec["actions"].high == 5
    assert same_records(source, open_source(name, "train", length=3, clips=2))
    assert source.name == name and source.provenance == "embedded double"
    other = open_source({"minecraft": "habitat", "habitat": "minecraft"}[name], "train", length=3, clips=2)
    assert other.fingerprint != source.fingerprint
    encoded = open_source(f"{name}_encoded", "train", length=3, clips=2)
    assert encoded.name == f"{name}_encoded" and encoded[0]["tokens"].shape == (3, 16, 16)


@pytest.mark.parametrize("layout", ["rooms", "field"])
def test_all_open_squares_are_joined(layout):
    for seed in range(30):
        free = make_maze(np.random.default_rng(seed), layout=layout).walls == 0
        seen, queue = set(), [tuple(np.argwhere(free)[0])]
        while queue:
            row, column = queue.pop()
            if (row, column) not in seen and free[row, column]:
                seen.add((row, column))
                queue += [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        assert len(seen) == free.sum()


def test_mp4_windows_are_slices_of_the_clip(mp4_root):
    double = open_source("minecraft", "train", length=70, size=48, clips=2)
    source = open_source("minecraft", "train", root=mp4_root)
    assert isinstance(source, Mp4Source) and len(source) == 2 and source.provenance == "embedded double"
    whole = source[1]
    assert whole["video"].shape == (70, 48, 48, 3) and np.array_equal(whole["actions"], double[1]["actions"])
    # Compressed with loss: near the true frames, and nearer to their own than to their neighbours.
    error = lambda shift: np.abs(
        whole["video"][5:60].astype(int) - double[1]["video"][5 + shift : 60 + shift]
    ).mean()
    assert error(0) < 8 and error(0) < min(error(1), error(-1))
    for start, length in ((0, 3), (29, 4), (30, 1), (31, 12), (47, 23), (69, 1)):
        window = source.window(1, start, length)
        assert np.array_equal(window["video"], whole["video"][start : start + length])
        assert np.array_equal(window["actions"], whole["actions"][start : start + length])
    batch = next(iter(make_pipeline(source, batch_size=2, seed=0, train=True, length=8)))
    assert batch["video"].shape == (2, 8, 48, 48, 3)
    assert same_records(pickle.loads(pickle.dumps(source)), source)


@pytest.mark.parametrize("bframes", [0, 3])
@pytest.mark.parametrize("spacing", ["even", "one gap", "slower", "faster"])
def test_mp4_windows_are_exact_whatever_the_times_of_the_frames(spacing, bframes, tmp_path):
    av = pytest.importorskip("av", reason="the extra `video` is not installed")
    steps = np.full(60, 20)
    steps[{"even": slice(0), "one gap": 19, "slower": slice(30, None), "faster": slice(30)}[spacing]] = 200
    with av.open(str(tmp_path / "clip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        stream.options = {"g": "20", "bf": str(bframes), "sc_threshold": "0", "crf": "10"}
        stream.codec_context.time_base = fractions.Fraction(1, 600)
        for number, time in enumerate(np.cumsum(steps)):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 + 3 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = int(time), fractions.Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    brightness = read_frames(tmp_path / "clip.mp4", 0, 60, "clip").mean((1, 2, 3))
    assert np.abs(brightness - (20 + 3 * np.arange(60))).max() < 1.5
    for start in range(0, 58, 3):
        window = read_frames(tmp_path / "clip.mp4", start, 3, "clip")
        assert np.array_equal(window.mean((1, 2, 3)), brightness[start : start + 3]), start


def copied(mp4_root, tmp_path, name="0.mp4"):
    (tmp_path / "train").mkdir()
    first = sorted((mp4_root / "train").glob("*/*.mp4"))[0]
    for suffix in (".mp4", ".npz"):
        (tmp_path / "train" / name).with_suffix(suffix).write_bytes(first.with_suffix(suffix).read_bytes())
    return tmp_path / "train" / name


def test_without_a_file_of_actions_they_are_zero(mp4_root, tmp_path):
    path = copied(mp4_root, tmp_path)
    path.with_suffix(".npz").unlink()
    assert not Mp4Source("habitat", tmp_path, "train").window(0, 3, 4)["actions"].any()


@pytest.mark.parametrize(
    "actions, sentence",
    [
        (
            {"actions": np.zeros(60, int)},
            r"'actions' is int64 of shape \(60,\), expected an integer for each of the 70",
        ),
        ({"actions": np.zeros(70)}, "'actions' is float64"),
        ({"action": np.zeros(70, int)}, "no key 'actions'; found action"),
        ({"actions": np.full(70, 6)}, "'actions' has values from 6 to 6, expected 0 to 5"),
        (None, "cannot be read"),
    ],
)
def test_actions_that_do_not_fit_are_named(mp4_root, tmp_path, actions, sentence):
    path = copied(mp4_root, tmp_path).with_suffix(".npz")
    if actions is None:
        path.write_bytes(b"torn")
    else:
        np.savez(path, **actions)
    with pytest.raises(DataError, match=rf"\(clip 0\): {sentence}"):
        Mp4Source("habitat", tmp_path, "train")[0]


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "no pictures"])
def test_a_damaged_mp4_is_named(mp4_root, tmp_path, damage):
    path = copied(mp4_root, tmp_path, "1.mp4")
    whole = path.read_bytes()
    path.with_name("0.mp4").write_bytes(whole)
    table = whole.rindex(b"moov") - 4
    media = whole.index(b"mdat") + 4
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "empty": b"",
            "garbage": b"x" * 5000,
            # The table of frames is whole, the frames themselves are gone.
            "no pictures": whole[: media + 200] + bytes(table - media - 200) + whole[table:],
        }[damage]
    )
    source = Mp4Source("habitat", tmp_path, "train")
    with pytest.raises(DataError, match=r"1.mp4 \(clip 1\): .*(fetch|again).*on_error=skip"):
        source[1]
    assert len(source.window(0, 2, 3)["video"]) == 3


def test_published_tokens_of_each_set_are_read(tmp_path):
    for name in ("minecraft_encoded", "habitat_encoded"):
        double = open_source(name, "train", length=4, size=32, clips=3)
        export_encoded(double, tmp_path / name, "train")
        source = open_source(name, "train", root=tmp_path / name)
        assert source.name == name and same_records(source, double)
