"""Reading torch files: nothing in them runs, and what is broken is said in a sentence. The numbers: tests/parity."""

import collections
import io
import pickle
import zipfile

import numpy as np
import pytest

from slotzoo.errors import WeightsError
from slotzoo.weights.convert.object_discovery import convert_checkpoint, read_checkpoint
from slotzoo.weights.torch_file import Opaque, read_torch


class Named:
    """Pickles as a reference to a name, whatever that is."""

    def __init__(self, name):
        self.name = name


class Call:
    """Pickles as a call of a named function."""

    def __init__(self, name, *args):
        self.name, self.args = name, args


class Reference:
    """Pickles as a reference to a storage."""

    def __init__(self, *content):
        self.content = ("storage", *content)


class Writer(pickle._Pickler):  # the Python one: its `save` can be taught new names
    def persistent_id(self, obj):
        return obj.content if isinstance(obj, Reference) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Named):
            module, name = obj.name.rsplit(".", 1)
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
        elif isinstance(obj, Call):
            self.save(Named(obj.name))
            self.save(obj.args)
            self.write(pickle.REDUCE)
        else:
            super().save(obj, save_persistent_id)


def tensor(name, count, shape, strides, kind="torch.FloatStorage", offset=0):
    storage = Reference(Named(kind), name, "cpu", count)
    return Call("torch._utils._rebuild_tensor_v2", storage, offset, shape, strides, False, {})


def write(path, value, storages, compression=zipfile.ZIP_STORED):
    content = io.BytesIO()
    Writer(content, protocol=2).dump(value)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content.getvalue())
        for name, numbers in storages.items():
            archive.writestr(f"archive/data/{name}", numbers)
    return path


def test_tensors_are_views_of_storages(tmp_path):
    numbers = np.arange(6, dtype="<f4")
    halves = (np.asarray([1.5, -2.0], "<f4").view("<u4") >> 16).astype("<u2")
    value = {
        "turned": tensor("0", 6, (3, 2), (1, 3)),
        "tail": tensor("0", 6, (2,), (1,), offset=4),
        "half": tensor("1", 2, (2,), (1,), "torch.BFloat16Storage"),
        "parameter": Call("torch._utils._rebuild_parameter", tensor("0", 6, (), ()), True, {}),
        "ordered": collections.OrderedDict(step=3),
    }
    found = read_torch(write(tmp_path / "x.ckpt", value, {"0": numbers.tobytes(), "1": halves.tobytes()}))
    np.testing.assert_array_equal(found["turned"], numbers.reshape(2, 3).T)
    np.testing.assert_array_equal(found["tail"], [4, 5])
    np.testing.assert_array_equal(found["half"], [1.5, -2.0])
    assert found["parameter"] == 0 and found["ordered"] == {"step": 3}


def test_nothing_runs(tmp_path):
    mark = tmp_path / "mark"
    value = {"a": Call("os.system", f"touch {mark}"), "b": Call("builtins.eval", "1/0"), "c": 1}
    found = read_torch(write(tmp_path / "x.ckpt", value, {}))
    assert not mark.exists()
    assert isinstance(found["a"], Opaque) and repr(found["a"]) == "<os.system, not read>"
    assert found["c"] == 1


@pytest.mark.parametrize(
    "value, message",
    [
        (tensor("0", 4, (5,), (1,)), "reaches past the 4 numbers"),
        (tensor("0", 4, (2, 2), (100, 1)), "reaches past"),
        (tensor("0", 4, (2,), (-1,)), "strides"),
        (tensor("0", 9, (2,), (1,)), "holds 4 numbers of 9: it is cut short"),
        (tensor("7", 4, (2,), (1,)), "storage '7' are missing"),
        (tensor("0", 4, (2,), (1,), "torch.ComplexFloatStorage"), "of a type that is not read"),
        (Call("torch._utils._rebuild_tensor_v2", 1, 0, (1,), (1,)), "no storage"),
    ],
)
def test_wrong_tensors_are_one_sentence(tmp_path, value, message):
    path = write(tmp_path / "x.ckpt", {"w": value}, {"0": np.zeros(4, "<f4").tobytes()})
    with pytest.raises(WeightsError, match=message):
        read_torch(path)


def test_wrong_files_are_one_sentence(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        read_torch(tmp_path / "none.ckpt")
    whole = write(tmp_path / "x.ckpt", {"a": 1}, {"0": bytes(1000)})
    (tmp_path / "cut.ckpt").write_bytes(whole.read_bytes()[:600])
    with pytest.raises(WeightsError, match="no PyTorch checkpoint, or cut short"):
        read_torch(tmp_path / "cut.ckpt")
    with pytest.raises(WeightsError, match="members are compressed"):
        read_torch(write(tmp_path / "small.ckpt", {"a": 1}, {}, zipfile.ZIP_DEFLATED))
    with pytest.raises(WeightsError, match="holds no state dict of arrays"):
        read_checkpoint(whole)
    with pytest.raises(WeightsError, match="holds a list, not a checkpoint"):
        read_checkpoint(write(tmp_path / "list.ckpt", [1], {}))


def test_foreign_checkpoints_are_one_sentence(tmp_path):
    numbers = {"0": np.zeros(4, "<f4").tobytes()}
    foreign = {"state_dict": {"fc.weight": tensor("0", 4, (2, 2), (2, 1))}}
    with pytest.raises(WeightsError, match="checkpoint of something else: its arrays are fc.weight"):
        convert_checkpoint(write(tmp_path / "x.ckpt", foreign, numbers))
    broken = {"state_dict": {"decoder_pos_embedding.grid": tensor("0", 4, (1, 1, 1, 4), (4, 4, 4, 1))}}
    with pytest.raises(WeightsError, match="no Slot Attention autoencoder: it has no decoder"):
        convert_checkpoint(write(tmp_path / "y.ckpt", broken, numbers))
