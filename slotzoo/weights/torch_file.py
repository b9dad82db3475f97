"""Files of `torch.save`, read without PyTorch and without executing the pickle inside.

Such a file is a ZIP archive: a pickle of the object, in which every tensor refers to a member of raw numbers. The
pickle here can name what it likes; what is on a list of five names gets a harmless stand-in (an array, a dictionary),
everything else becomes an `Opaque` that takes any arguments and does nothing.
"""

import io
import math
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slotzoo.errors import WeightsError


# numpy's type of each storage; bfloat16 has none, and is read as the upper half of a float32.
STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bf16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
MOST_PICKLE_BYTES = 64 << 20


class Opaque:
    """Stands for an object of a class that is not admitted: keeps its name, ignores everything else."""

    name = "unknown"

    def __init__(self, *args: Any, **kwargs: Any):
        del args, kwargs

    def __setstate__(self, state: Any) -> None:
        del state

    def __repr__(self) -> str:
        return f"<{self.name}, not read>"

    # Some pickles fill objects the way they fill lists and dictionaries.
    def append(self, item: Any) -> None:
        del item

    def extend(self, items: Any) -> None:
        del items

    def __setitem__(self, key: Any, value: Any) -> None:
        del key, value


class Namespace:
    """Stands for argparse.Namespace: takes attributes, does nothing."""


class _Ordered(dict):
    """Stands for collections.OrderedDict, without the attributes that modules hang on theirs."""

    def __setstate__(self, state: Any) -> None:
        del state


class _Storage(NamedTuple):
    kind: str


class _Numbers(NamedTuple):
    """The numbers of one storage, flat."""

    values: np.ndarray


def _tensor(storage: Any, offset: int, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    """What `torch._utils._rebuild_tensor_v2` stands for: a view of a storage, copied."""
    if not isinstance(storage, _Numbers):
        raise WeightsError("a tensor refers to something that is no storage.")
    shape, strides = tuple(shape), tuple(strides)
    values = storage.values
    if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)) or len(shape) != len(strides):
        raise WeightsError(f"a tensor has the shape {shape} and the strides {strides}.")
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 in shape:
        return np.empty(shape, values.dtype)
    if last >= values.size or math.prod(shape) > values.size:
        raise WeightsError(f"a tensor of shape {shape} reaches past the {values.size} numbers stored for it.")
    steps = [step * values.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(values[offset:], shape, steps).copy()


def _parameter(data: Any, *_: Any) -> Any:
    return data


class _Inert(pickle.Unpickler):
    """Resolves no name to anything that exists outside of this file."""

    def __init__(self, content: bytes, storages: Mapping[str, bytes]):
        super().__init__(io.BytesIO(content))
        self.storages = storages

    def find_class(self, module_name: str, global_name: str) -> Any:
        match module_name, global_name:
            case "collections", "OrderedDict":
                return _Ordered
            case "torch._utils", "_rebuild_tensor_v2":
                return _tensor
            case "torch._utils", "_rebuild_parameter":
                return _parameter
            case "argparse", "Namespace":
                return Namespace
            case "torch", name if name in STORAGES:
                return _Storage(name)
        return type("Opaque", (Opaque,), {"name": f"{module_name}.{global_name}"})

    def persistent_load(self, pid: Any) -> _Numbers:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"):
            raise WeightsError("it refers to objects outside of the file.")
        _, kind, name, _, count = pid
        if not isinstance(kind, _Storage):
            raise WeightsError(f"it holds a tensor of a type that is not read: {kind!r}.")
        if name not in self.storages:
            raise WeightsError(f"the numbers of the storage {name!r} are missing.")
        code, content = STORAGES[kind.kind], self.storages[name]
        values = np.frombuffer(content, "<u2" if code == "bf16" else f"<{code}" if code != "?" else code)
        if values.size < count:
            raise WeightsError(f"the storage {name!r} holds {values.size} numbers of {count}: it is cut short.")
        if code == "bf16":
            values = (values.astype("<u4") << 16).view("<f4")
        return _Numbers(values)


def read_torch(path: str | Path) -> Any:
    """What a file of `torch.save` holds: tensors as numpy arrays, namespaces as dictionaries, the rest as it is.

    Objects of other classes are `Opaque`. **Raises** `WeightsError` for a file that is missing, cut short, or
    not in the ZIP format that PyTorch writes since 1.6.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"'{path}': no such file.")
    try:
        with zipfile.ZipFile(path) as archive:
            value = _Inert(*_members(archive)).load()
        return _plain(value)
    except WeightsError as error:
        raise WeightsError(f"'{path}' cannot be read as a PyTorch file: {error}") from error
    except zipfile.BadZipFile as error:
        raise WeightsError(
            f"'{path}' is no PyTorch checkpoint, or cut short: it is not the ZIP archive that torch.save writes."
        ) from error
    except Exception as error:  # a broken pickle can raise nearly anything
        raise WeightsError(
            f"'{path}' is not a readable PyTorch file ({type(error).__name__}: {error})."
        ) from error


def _members(archive: zipfile.ZipFile) -> tuple[bytes, dict[str, bytes]]:
    """The pickle and the raw storages. Nothing in such an archive is compressed, so it cannot blow up."""
    found = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in found):
        raise WeightsError("its members are compressed, which torch.save never does.")
    pickles = [m for m in found if m.filename.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise WeightsError("it holds no data.pkl.")
    if pickles[0].file_size > MOST_PICKLE_BYTES:
        raise WeightsError(f"its data.pkl has {pickles[0].file_size} bytes, more than a checkpoint's can have.")
    root = pickles[0].filename.split("/")[0]
    order = f"{root}/byteorder"
    if any(m.filename == order for m in found) and archive.read(order) != b"little":
        raise WeightsError("it was written on a big-endian machine.")
    prefix = f"{root}/data/"
    storages = {
        m.filename.removeprefix(prefix): archive.read(m) for m in found if m.filename.startswith(prefix)
    }
    return archive.read(pickles[0]), storages


def _plain(value: Any) -> Any:
    """`value` with its namespaces as dictionaries."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
