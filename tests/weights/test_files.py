"""Weights files: round trips, and every way in which a file can be wrong."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, strategies as st
from hypothesis.extra import numpy as hnp

from slotzoo.errors import WeightsError
from slotzoo.models import model_config, registry
from slotzoo.models.video import VideoPixels
from slotzoo.models.vqgan import VQGAN
from slotzoo.weights import card_path, fill, load_card, load_model, load_weights, named_leaves, save_weights
from slotzoo.weights.files import MOVED
from tests.arrays import random_module


SIZES = dict(
    resolution=4,
    ch=2,
    ch_mult=(1,),
    num_res_blocks=1,
    attn_resolutions=(),
    mid_attention=False,
    z_channels=2,
    n_embed=3,
    embed_dim=2,
    groups=1,
)
CONFIG = model_config("vqgan_dmlab", **SIZES)


@pytest.fixture(scope="module")
def model():
    return random_module(lambda: VQGAN(CONFIG, key=jax.random.key(1)))


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "small.safetensors"
    card = save_weights(path, model, name="vqgan_dmlab", config=CONFIG, source="a test", licence="Apache-2.0")
    assert card == card_path(path)
    return path


def test_round_trip(model, saved):
    for path in (saved, card_path(saved)):
        loaded, card = load_model(path)
        assert eqx.tree_equal(loaded, model)
    assert card.parameters == sum(x.size for x in jax.tree.leaves(model))
    assert (card.model, card.source, card.licence) == ("vqgan_dmlab", "a test", "Apache-2.0")
    assert card.config["ch_mult"] == [1] and card.config["n_embed"] == 3
    assert "encoder.levels.0.blocks.0.conv_in.weight" in named_leaves(model)
    assert sorted(p.name for p in saved.parent.iterdir()) == ["small.json", "small.safetensors"]
    abstract = eqx.filter_eval_shape(lambda: model)
    card_path(saved).unlink()
    assert eqx.tree_equal(load_weights(saved, abstract), model)  # the card is wanted only to build a model


@given(
    st.dictionaries(
        st.text("abcXYZ_09", min_size=1, max_size=6),
        hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)),
        min_size=1,
        max_size=4,
    )
)
def test_any_tree_survives(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    tree = {"part": [arrays, (jnp.zeros(2, jnp.int32),)]}
    save_weights(path, tree, name="anything", config=CONFIG)
    loaded = load_weights(path, jax.tree.map(jnp.zeros_like, tree))
    for name, leaf in named_leaves(tree).items():
        np.testing.assert_array_equal(named_leaves(loaded)[name], leaf)


def rewrite(saved, change):
    """Write the arrays again, changed, with a card that fits the new file."""
    arrays = safetensors.numpy.load_file(saved)
    change(arrays)
    safetensors.numpy.save_file(arrays, saved)
    card_path(saved).unlink()


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda a: a.pop("quant_conv.bias"), r"1 missing \('quant_conv.bias'\)"),
        (lambda a: a.update(extra=a["quant_conv.bias"]), r"1 unexpected \('extra'\)"),
        (
            lambda a: a.update({"quantconv.bias": a.pop("quant_conv.bias")}),
            r"1 missing .* Did you mean 'quantconv.bias'\?, 1 unexpected",
        ),
        (
            lambda a: a.update({"quant_conv.bias": np.zeros((2, 1), np.float32)}),
            r"leaf 'quant_conv.bias' has shape \(2, 1\), the model wants \(2,\)",
        ),
        (
            lambda a: a.update({"quant_conv.bias": np.zeros(2, np.int32)}),
            "leaf 'quant_conv.bias' is int32, the model wants float32",
        ),
    ],
)
def test_leaves_that_do_not_fit(model, saved, change, sentence):
    rewrite(saved, change)
    with pytest.raises(WeightsError, match=sentence):
        load_weights(saved, model)


def test_a_changed_or_cut_file(model, saved):
    content = saved.read_bytes()
    for other in (content[:-1] + bytes([content[-1] ^ 1]), content[: len(content) // 2], b""):
        saved.write_bytes(other)
        with pytest.raises(WeightsError, match="is not the file its card was written for"):
            load_weights(saved, model)
    card_path(saved).unlink()
    for other in (content[: len(content) // 2], b"", b"\xff" * 64, (2**60).to_bytes(8, "little") + b"{}"):
        saved.write_bytes(other)
        with pytest.raises(WeightsError, match="is not a safetensors file"):
            load_weights(saved, model)
    saved.unlink()
    with pytest.raises(WeightsError, match="cannot read the weights"):
        load_weights(saved, model)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"file": "../small.safetensors"}, "not a file of its own folder"),
        ({"file": "/etc/passwd"}, "not a file of its own folder"),
        ({"file": "link.safetensors"}, "not a file of its own folder"),
        ({"file": ".."}, "not a file of its own folder"),
        ({"file": ""}, "not a file of its own folder"),
        ({"model": "os.system"}, "no model named 'os.system'"),
        ({"config": {"n_embd": 3}}, "no option 'n_embd'. Did you mean 'n_embed'"),
        ({"config": {"ch": "__import__('os')"}}, "expected int"),
        ({"config": []}, "'config' should be dict, is list"),
        ({"_target_": "os.system"}, "not a weights card"),
        ({"format": 2}, "has format 2; this version reads format 1"),
        ({"sha256": "0" * 64}, "is not the file its card was written for"),
    ],
)
def test_a_hostile_card(saved, change, sentence):
    outside = saved.parent.parent / "outside.safetensors"
    outside.write_bytes(saved.read_bytes())
    (saved.parent / "link.safetensors").symlink_to(outside)
    card = card_path(saved)
    card.write_text(json.dumps(json.loads(card.read_text()) | change))
    with pytest.raises(WeightsError, match=sentence):
        load_model(card)


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '"x"', "[" * 100000])
def test_a_broken_card(saved, content):
    card_path(saved).write_text(content)
    with pytest.raises(WeightsError, match="is not JSON|is not a weights card"):
        load_card(saved)


def test_saving_asks_for_the_right_ending(model, tmp_path):
    with pytest.raises(WeightsError, match="ends in .safetensors"):
        save_weights(tmp_path / "x.pickle", model, name="vqgan_dmlab", config=CONFIG)


def test_a_failed_save_leaves_the_old_file(model, saved, monkeypatch):
    before = saved.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        save_weights(saved, model, name="vqgan_dmlab", config=CONFIG)
    assert saved.read_bytes() == before and len(list(saved.parent.iterdir())) == 2


def test_fill_keeps_the_dtype_of_the_model():
    filled = fill({"a": jnp.zeros(2, jnp.bfloat16)}, {"a": np.array([1.5, 2.0])})
    assert filled["a"].dtype == jnp.bfloat16


def test_leaves_that_have_moved_are_found(tmp_path):
    config = model_config("convs5_mnist300", **registry.tiny("convs5_mnist300"))
    model = random_module(lambda: VideoPixels(config, key=jax.random.key(0)))
    path = tmp_path / "old.safetensors"
    save_weights(path, model, name="convs5_mnist300", config=config)
    former = {}
    for name, leaf in safetensors.numpy.load_file(path).items():
        for old, new in MOVED.items():
            name = old + name.removeprefix(new) if name.startswith(new) else name
        former[name] = leaf
    assert {"core.action_embedding.table", "core.sequence.layers.0.ssm.b"} < set(former)
    card_path(path).unlink()
    safetensors.numpy.save_file(former, path)
    assert eqx.tree_equal(load_weights(path, model), model)
