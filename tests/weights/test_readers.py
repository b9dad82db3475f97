"""Readers of other projects' files: what they understand, and what they refuse."""

import argparse
import os
import pickle

import msgpack
import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from slotzoo.errors import WeightsError
from slotzoo.weights.flax_msgpack import flat, read_flax
from slotzoo.weights.namespace import read_namespace


def packed(array):
    content = (array.shape, array.dtype.name, array.tobytes())
    return msgpack.ExtType(1, msgpack.packb(content, use_bin_type=True))


def write(path, tree):
    path.write_bytes(msgpack.packb(tree, use_bin_type=True))
    return path


DTYPES = st.sampled_from([np.float32, np.float64, np.int32, np.uint8, np.bool_, np.float16])


@given(hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))
def test_arrays_come_back(tmp_path_factory, array):
    path = write(tmp_path_factory.mktemp("flax") / "x", {"params": {"a": {"b": packed(array)}}, "step": 3})
    tree = read_flax(path)
    assert tree["step"] == 3
    found = flat(tree["params"])["a/b"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_chunks_scalars_and_bfloat16(tmp_path):
    whole = np.arange(6, dtype=np.float32).reshape(2, 3)
    chunked = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 2, "1": 3},
        "chunks": {"0": packed(whole.reshape(-1)[:4]), "1": packed(whole.reshape(-1)[4:])},
    }
    half = msgpack.ExtType(1, msgpack.packb(((2,), "bfloat16", b"\x80\x3f\x00\xc0"), use_bin_type=True))
    scalar = msgpack.ExtType(3, packed(np.float32(2.5)).data)
    tree = read_flax(write(tmp_path / "x", {"a": chunked, "b": half, "c": scalar}))
    np.testing.assert_array_equal(tree["a"], whole)
    np.testing.assert_array_equal(tree["b"], [1.0, -2.0])
    assert tree["c"] == 2.5


@pytest.mark.parametrize(
    "content, sentence",
    [
        (b"", "not a flax msgpack file"),
        (b"\x93\x01", "not a flax msgpack file"),
        (b"\xc1" * 9, "not a flax msgpack file"),
        (b"\x91" * 100000, "not a flax msgpack file"),
        (msgpack.packb([1]), "holds a list, not a tree"),
        (msgpack.packb({"a": msgpack.ExtType(7, b"x")}), "extension type 7"),
        (msgpack.packb({"a": msgpack.ExtType(2, b"x")}), "extension type 2"),
        (msgpack.packb({"a": msgpack.ExtType(1, b"x")}), "not a flax msgpack file"),
        (
            msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((1,), "object", b"12345678")))}),
            "dtype 'object', which is not numeric",
        ),
        (
            msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((9,), "float32", b"1234")))}),
            "4 bytes for an array of shape",
        ),
        (
            msgpack.packb({"a": msgpack.ExtType(1, msgpack.packb(((-1,), "float32", b"1234")))}),
            "array of shape",
        ),
        (msgpack.packb({"a": {"__msgpack_chunked_array__": True}}), "chunks that lacks 'shape'"),
    ],
)
def test_hostile_msgpack(tmp_path, content, sentence):
    path = tmp_path / "checkpoint_0"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=sentence):
        read_flax(path)


def test_a_leaf_that_is_no_array():
    with pytest.raises(WeightsError, match="'a/b' is a str"):
        flat({"a": {"b": "text"}})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_namespace_comes_back(tmp_path, protocol):
    values = dict(model="x", ch_mult=[1, 2], ssm={"size": 4, "rate": 0.5}, none=None, flag=True)
    values["inner"] = argparse.Namespace(a=1)
    path = tmp_path / "args"
    path.write_bytes(pickle.dumps(argparse.Namespace(**values), protocol=protocol))
    assert read_namespace(path) == values | {"inner": {"a": 1}}


class Evil:
    def __init__(self, target, *args):
        self.target, self.args = target, args

    def __reduce__(self):
        return self.target, self.args


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "value, sentence",
    [
        (argparse.Namespace(a=Evil(os.system, "false")), "asks for .*system"),
        (Evil(eval, "1"), "asks for builtins.eval"),
        (argparse.Namespace(a=Evil(getattr, "x", "y")), "asks for builtins.getattr"),
        (argparse.Namespace(a=np.zeros(1)), "asks for numpy"),
        (argparse.Namespace(a=b"bytes"), "holds a bytes"),
        (argparse.Namespace(a={1: 2}), "keys are not text"),
        (argparse.Namespace(a=nested(18)), "too many values"),
        ({"a": 1}, "holds a dict, not an argparse.Namespace"),
    ],
)
def test_hostile_pickles(tmp_path, value, sentence):
    path = tmp_path / "args"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(WeightsError, match=sentence):
        read_namespace(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04", b"cos\nsystem\n(S'false'\ntR.", b"garbage" * 20, b"\x80\x04K\x01Q."]
)
def test_broken_pickles(tmp_path, content):
    path = tmp_path / "args"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="args"):
        read_namespace(path)


def test_a_huge_pickle_is_not_read(tmp_path):
    path = tmp_path / "args"
    with path.open("wb") as file:
        file.truncate(2 << 20)
    with pytest.raises(WeightsError, match="larger than a run's arguments"):
        read_namespace(path)
