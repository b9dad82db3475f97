"""Checkpoints of SAVi and STATM: a model told by its arrays, norms of both generations of flax, what is refused."""

import json
from pathlib import Path

import equinox as eqx
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


def test_slots_of_segments():
    """The recorded run, its slots told by segments: sizes are those of the section and of the arrays."""
    theirs, params = load_case(RUN).config["model"], savi.read_checkpoint(RUN)[0]
    cnn = {"module": "x.CNN", "features": [4, 6], "kernel_size": [[3, 3]] * 2, "strides": [[2, 2], [1, 1]]}
    section = {
        "module": "savi.modules.SegmentationEncoderStateInit",
        "max_num_slots": 5,
        "backbone": cnn,
        "pos_emb": {"module": "x.PositionEmbedding", "embedding_type": "linear", "update_type": "project_add"},
        "reduction": "all_flatten",
        "output_transform": {"module": "x.MLP", "hidden_size": 10, "output_size": 8, "layernorm": None},
        "zero_background": True,
    }
    config = savi.seed_config(theirs | {"initializer": section}, params)
    assert (config.conditioning, config.num_slots, config.zero_background) == ("segmentation", 5, True)
    shapes = {
        "CNN_0/conv_0": (3, 3, 1, 4),
        "CNN_0/conv_1": (3, 3, 4, 6),
        "PositionEmbedding_0/dense_pe_0": (2, 6),
    }
    cells = config.height * config.width // 4
    shapes |= {"MLP_0/dense_mlp_0": (6 * cells, 10), "MLP_0/dense_mlp_1": (10, 8)}
    rng, inside = np.random.default_rng(0), "SegmentationEncoderStateInit_0/FrameEncoder_0/"
    own = {path: array for path, array in params.items() if not path.startswith("CoordinateEncoderStateInit_0")}
    for path, shape in shapes.items():
        own[f"{inside}{path}/kernel"] = rng.normal(size=shape).astype(np.float32)
        own[f"{inside}{path}/bias"] = rng.normal(size=shape[-1:]).astype(np.float32)
    grid = (1, config.height // 2, config.width // 2, 2)
    own[f"{inside}PositionEmbedding_0/pos_embedding"] = rng.normal(size=grid).astype(np.float32)
    model = savi.parameters(
        own, eqx.filter_eval_shape(lambda: savi.build(config, key=jax.random.key(0))), config
    )
    np.testing.assert_array_equal(
        model.initializer.embed.layers[0].weight, own[f"{inside}MLP_0/dense_mlp_0/kernel"]
    )
    for change, message in (
        ({"backbone": cnn | {"kernel_size": [[5, 5]] * 2}}, "3 x 3 convolutions"),
        ({"backbone": cnn | {"norm_type": "group"}}, "a CNN without norms"),
    ):
        with pytest.raises(WeightsError, match=f"does not describe a SAVi or STATM: .*{message}"):
            savi.convert_checkpoint(RUN, model=theirs | {"initializer": section | change})


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
