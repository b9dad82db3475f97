"""Reading the weights that the metric packages ship as pickles, without letting a pickle run anything."""

import hashlib
import importlib.util
import io
import math
import pickle
from pathlib import Path

import numpy as np

from slotzoo.errors import WeightsError


DTYPES = ("f2", "f4", "f8", "i4", "i8", "u1")


class _Dtype:
    """What a pickled `numpy.dtype` becomes here: its code and byte order, checked against DTYPES."""

    def __init__(self, code: str, align: bool = False, copy: bool = False):
        if code not in DTYPES:
            raise WeightsError(f"the pickle holds an array of dtype {code!r}; admitted are {', '.join(DTYPES)}")
        self.code, self.order = code, "<"

    def __setstate__(self, state):
        self.order = state[1] if state[1] in "<>" else "<"


class _Pending:
    """What a pickled `numpy.ndarray` becomes here, until the whole file has been read."""

    value: np.ndarray

    def __setstate__(self, state):
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise WeightsError("the pickle holds an array that is not made of plain numbers")
        plain = np.dtype(dtype.order + dtype.code)
        if len(content) != math.prod(shape) * plain.itemsize:
            raise WeightsError(f"the pickle holds {len(content)} bytes for an array of shape {shape}")
        self.value = np.frombuffer(content, plain).reshape(shape, order="F" if fortran else "C")


def _reconstruct(kind, shape, code) -> _Pending:
    return _Pending()


class _ArraysOnly(pickle.Unpickler):
    """Knows three names, and gives each a harmless meaning of its own; any other name is refused."""

    NAMES = {
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): _Pending,
        ("numpy", "dtype"): _Dtype,
    }

    def find_class(self, module: str, name: str):
        try:
            return self.NAMES[module, name]
        except KeyError:
            raise WeightsError(
                f"the pickle asks for {module}.{name}; only dictionaries of numpy arrays are admitted"
            ) from None

    def persistent_load(self, pid):
        raise WeightsError("the pickle refers to objects outside of the file; only numpy arrays are admitted")


def load_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Read a pickle of nested dictionaries of numpy arrays; returns `{"outer/inner/leaf": array}`.

    Nothing that the pickle names is imported or called. Raises WeightsError for anything but such dictionaries.
    """
    try:
        tree = _ArraysOnly(io.BytesIO(content)).load()
    except WeightsError:
        raise
    except Exception as error:  # A broken pickle can raise nearly anything.
        raise WeightsError(f"not a readable pickle of numpy arrays: {error}") from error
    flat: dict[str, np.ndarray] = {}

    def walk(node: object, path: tuple[str, ...]) -> None:
        if isinstance(node, dict):
            for name, child in node.items():
                walk(child, (*path, str(name)))
        elif isinstance(node, _Pending) and hasattr(node, "value"):
            flat["/".join(path)] = node.value
        else:
            raise WeightsError(f"the pickle holds a {type(node).__name__} at {'/'.join(path)!r}, not an array")

    walk(tree, ())
    return flat


def load_packaged(
    package: str, file: str, sha256: str, *, distribution: str, what: str
) -> dict[str, np.ndarray]:
    """The arrays of a weights file inside an installed package, which is found but never imported.

    Raises WeightsError where the package is missing or its file is not the published one.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if not folders:
        raise WeightsError(
            f"{what} needs the weights inside the package {distribution}: install slotzoo[metrics] "
            f"(or only that package, without its dependencies)"
        )
    path = Path(folders[0]) / file
    if not path.is_file():
        raise WeightsError(f"{distribution} is installed without {file}, which {what} needs: install it again")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise WeightsError(
            f"{file} of {distribution} is not the published file (sha256 {found[:12]}..., expected "
            f"{sha256[:12]}...): install the version that slotzoo[metrics] names"
        )
    return load_arrays(content)
