"""Checkpoints of SAVi and STATM: a model told by its arrays, norms of both generations of flax, what is refused."""

import json
from pathlib import Path

import jax
import msgpack
import numpy as np
import pytest

from slotzoo.errors import WeightsError
from slotzoo.models import registry
from slotzoo.nn.image_resnet import ImageResNet
from slotzoo.weights.convert import savi, savi_rules
from slotzoo.weights.convert.rules import from_seed
from tests.arrays import random_module
from tests.parity.harness import load_case


RUN = Path(__file__).parent.parent / "fixtures" / "savi" / "native_ckpt_statm_savi_flax035"


def test_model_is_told_by_its_arrays(monkeypatch):
    """Without a configuration the registered model with just these arrays is taken, and no other."""
    assert savi.is_checkpoint(RUN) and not savi.is_checkpoint(RUN.parent)
    with pytest.raises(WeightsError, match="are those of none of savi_large, .*statm_savi_small"):
        savi.convert_checkpoint(RUN)
    theirs = load_case(RUN).config["model"]
    expected = savi.convert_checkpoint(RUN, model=theirs)
    card = registry.model_card("statm_savi_small")
    entries = dict(registry._ENTRIES)
    monkeypatch.setattr(registry, "_ENTRIES", {"savi_small": entries["savi_small"]})
    registry.register(card.name, expected.config, savi.build, card)
    found = savi.convert_checkpoint(RUN)
    assert found.name == card.name and found.config == expected.config and found.step == 4
    for a, b in zip(jax.tree.leaves(found.model), jax.tree.leaves(expected.model), strict=True):
        np.testing.assert_array_equal(a, b)


def test_norms_of_both_generations():
    """Scales of shape (1, 1, 1, channel), as flax 0.3 has them, and (channel)."""
    rng = np.random.default_rng(0)
    shapes = {"init_conv/kernel": (3, 3, 3, 32), "init_bn/scale": (32,), "init_bn/bias": (32,)}
    for i in (1, 2):
        shapes[f"stage1/block1/conv{i}/kernel"] = (3, 3, 32, 32)
        shapes |= {f"stage1/block1/bn{i}/{name}": (32,) for name in ("scale", "bias")}
    new = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    old = {path: a.reshape(1, 1, 1, -1) if a.ndim == 1 else a for path, a in new.items()}
    net = random_module(lambda: ImageResNet(3, blocks=(1,), width=32, key=jax.random.key(0)))
    first, second = (from_seed(params, net, savi_rules.resnet((1,))) for params in (new, old))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(second.units[0][0].norms[1].bias, new["stage1/block1/bn2/bias"])


def test_gates_are_joined_and_parted():
    params = {f"GRU_0/GRUCell_0/{a}{g}/kernel": np.full((2, 2), i) for i, g in enumerate("rzn") for a in "ih"}
    params |= {"GRU_0/GRUCell_0/hn/bias": np.arange(2), "x/kernel": np.ones(3)}
    merged = savi_rules.joined(params)
    np.testing.assert_array_equal(merged["GRU_0/GRUCell_0/i/kernel"][0], [0, 0, 1, 1, 2, 2])
    again = savi_rules.parted(merged)
    assert set(again) == set(params)
    for path, array in params.items():
        np.testing.assert_array_equal(again[path], array)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        savi.convert_checkpoint(tmp_path / "ckpt-1.flax")
    with pytest.raises(WeightsError, match="holds no ckpt-<n>.flax"):
        savi.convert_checkpoint(tmp_path)
    foreign = tmp_path / "ckpt-3.flax"
    foreign.write_bytes(msgpack.packb({"step": 1, "optimizer": {"target": {"Dense_0": {}}}}))
    with pytest.raises(WeightsError, match="no training state of SAVi or STATM"):
        savi.convert_checkpoint(tmp_path)
    with pytest.raises(WeightsError, match="'slate_clevr6' is neither a SAVi nor a STATM"):
        savi.convert_checkpoint(RUN, name="slate_clevr6")
    with pytest.raises(WeightsError, match="belongs to a model of another size|does not fit"):
        savi.convert_checkpoint(RUN, name="statm_savi_small")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(WeightsError, match="no JSON file of a configuration"):
        savi.read_model(tmp_path / "config.json")
    theirs = load_case(RUN).config["model"]
    (tmp_path / "config.json").write_text(json.dumps({"model": theirs}))
    assert savi.read_model(tmp_path / "config.json") == theirs
    with pytest.raises(WeightsError, match="there is no predictor 'GRU' in the zoo"):
        savi.convert_checkpoint(RUN, model=theirs | {"predictor": theirs["predictor"] | {"module": "x.GRU"}})
