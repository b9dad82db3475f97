"""Residual networks over images: shapes, their published sizes, statistics of batches."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slotzoo.errors import ConfigError
from slotzoo.nn.image_resnet import ImageResNet, stages
from slotzoo.nn.norm import BatchNorm
from tests.arrays import random_module


pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.mark.parametrize("depth, parameters", [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_published_sizes(depth, parameters):
    """For ImageNet, as torchvision counts them."""
    found = stages(depth)
    make = lambda key: ImageResNet(
        3, blocks=found.blocks, bottleneck=found.bottleneck, small_inputs=False, classes=1000, key=key
    )
    net = eqx.filter_eval_shape(make, jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(net)) == parameters
    out = eqx.filter_eval_shape(lambda net: net(jnp.zeros((2, 64, 64, 3))), net)
    assert out.shape == (2, 1000)


def test_unknown_depth():
    with pytest.raises(ConfigError, match="there is no ResNet-35; published depths are 18, 34"):
        stages(35)


def test_batch_norm_statistics():
    """Those of the batch in training, blended into the running ones; the running ones otherwise."""
    x = np.random.default_rng(0).normal(2, 3, (4, 3, 2, 5)).astype(np.float32)
    norm = random_module(lambda: BatchNorm(5), scale=1.0)
    norm = eqx.tree_at(lambda n: n.variance, norm, jnp.abs(norm.variance))
    scale, bias, old_mean, old_variance = map(np.asarray, (norm.scale, norm.bias, norm.mean, norm.variance))
    y, after = norm.training(jnp.asarray(x), activation="relu")
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    expected = (x - mean) / np.sqrt(variance + 1e-5) * scale + bias
    np.testing.assert_allclose(y, np.maximum(expected, 0), atol=1e-4)
    np.testing.assert_allclose(after.mean, 0.9 * old_mean + 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(after.variance, 0.9 * old_variance + 0.1 * variance, rtol=1e-3)
    expected = (x - old_mean) / np.sqrt(old_variance + 1e-5) * scale + bias
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4)


def test_training_follows_every_batch_norm():
    """All running statistics of a network move, its parameters do not, and a call without training changes nothing."""
    net = random_module(lambda: ImageResNet(2, blocks=(1, 1), width=2, norm="batch", key=jax.random.key(0)))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 4, 2)), jnp.float32)
    after = eqx.filter_eval_shape(lambda net: net.training(x)[1], net)
    assert jax.tree.structure(after) == jax.tree.structure(net)
    _, after = eqx.filter_jit(lambda net: net.training(x))(net)
    same = jax.tree_util.tree_map_with_path(
        lambda path, a, b: (jax.tree_util.keystr(path), bool(jnp.array_equal(a, b))), net, after
    )
    for name, equal in jax.tree.leaves(same, is_leaf=lambda x: isinstance(x, tuple) and isinstance(x[0], str)):
        assert equal != name.endswith((".mean", ".variance")), name
