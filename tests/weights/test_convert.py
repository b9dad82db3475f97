"""Converting the folder of a run: what is missing or wrong is said in a sentence. The numbers: tests/parity."""

import argparse
import dataclasses
import pickle

import equinox as eqx
import jax
import msgpack
import numpy as np
import pytest

from slotzoo.errors import WeightsError
from slotzoo.models import model_config
from slotzoo.models.vqgan import VQGAN
from slotzoo.weights import named_leaves
from slotzoo.weights.convert import convssm, convssm_baselines, convssm_vqgan


ARGS = dict(
    model="vqgan",
    resolution=8,
    ch=32,
    ch_mult=[1, 2],
    num_res_blocks=1,
    attn_resolutions=[4],
    z_channels=2,
    double_z=False,
    n_embed=3,
    embed_dim=2,
)


def nested(arrays):
    tree = {}
    for path, array in arrays.items():
        *parts, last = path.split("/")
        node = tree
        for part in parts:
            node = node.setdefault(part, {})
        content = (array.shape, array.dtype.name, array.tobytes())
        node[last] = msgpack.ExtType(1, msgpack.packb(content, use_bin_type=True))
    return tree


def random_arrays():
    """What a checkpoint of `ARGS` holds, under the seed's names; the shortcut's kernel is the third."""
    config = convssm_vqgan.config(ARGS)
    model = eqx.filter_eval_shape(lambda: VQGAN(config, key=jax.random.key(0)))
    leaves, names = named_leaves(model), convssm_vqgan.leaves(model)
    assert set(names) == set(leaves) and len(set(names.values())) == len(names)
    rng = np.random.default_rng(0)
    return {theirs: rng.normal(size=leaves[ours].shape).astype(np.float32) for ours, theirs in names.items()}


@pytest.fixture(scope="module")
def arrays():
    return random_arrays()


def write_run(folder, args, arrays, steps=(0,)):
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "args").write_bytes(pickle.dumps(argparse.Namespace(**args)))
    params = {k.removeprefix("param/"): v for k, v in arrays.items() if k.startswith("param/")}
    stats = {k: v for k, v in arrays.items() if k.startswith("stats/")}
    for step in steps:
        tree = {"step": step, "params": nested(params), "opt_state": {}, "model_state": nested(stats)}
        (folder / "checkpoints" / f"checkpoint_{step}").write_bytes(msgpack.packb(tree))
    return folder


def test_the_newest_checkpoint_is_taken(arrays, tmp_path):
    run = write_run(tmp_path / "vqgan", ARGS, arrays, steps=(2, 9, 10))
    (run / "checkpoints" / "checkpoint_11.tmp").touch()
    result = convssm.convert_run(run)
    assert (result.name, result.step, result.config.ch_mult) == ("vqgan_dmlab", 10, (1, 2))
    found = named_leaves(result.model)
    shortcut = arrays["param/encoder/ResnetBlock_1/Conv_2/kernel"]
    np.testing.assert_array_equal(found["encoder.levels.1.blocks.0.shortcut.weight"], shortcut)
    np.testing.assert_array_equal(found["quantizer.codebook"], arrays["stats/quantize/embeddings"])
    assert convssm.convert_run(run / "checkpoints" / "checkpoint_2").step == 2


def test_a_missing_and_an_unknown_parameter(arrays, tmp_path):
    changed = dict(arrays)
    changed["param/quant_conv/gamma"] = changed.pop("param/quant_conv/bias")
    run = write_run(tmp_path / "vqgan", ARGS, changed)
    with pytest.raises(WeightsError, match=r"1 parameters are missing \(param/quant_conv/bias\), 1 unknown"):
        convssm.convert_run(run)


@pytest.mark.parametrize(
    "args, sentence",
    [
        (ARGS | {"model": "vqgam"}, "the model 'vqgam', which the zoo cannot convert. Did you mean 'vqgan'"),
        ({k: v for k, v in ARGS.items() if k != "ch"}, "do not describe a VQ-GAN"),
        (ARGS | {"ch_mult": 3}, "do not describe a VQ-GAN"),
        (ARGS | {"embed_dim": 4}, "the model wants"),
        ({"model": "convS5_noVQ"}, "do not describe a convS5_noVQ: KeyError"),
        ({"model": "convS5", "vqvae_ckpt": None}, "its args name no VQ-GAN"),
        ({"model": "convS5", "vqvae_ckpt": "../.."}, "which is no folder name"),
        ({"model": "convS5", "vqvae_ckpt": "/home/author/runs/dmlab_vqgan/"}, "the VQ-GAN 'dmlab_vqgan'; put"),
    ],
)
def test_args_that_do_not_fit(arrays, tmp_path, args, sentence):
    run = write_run(tmp_path / "run", args, arrays)
    with pytest.raises(WeightsError, match=sentence):
        convssm.convert_run(run)


@pytest.mark.parametrize("hidden", [{}, {"frame_mask_id": "None"}])
def test_moving_mnist_hides_no_frames(hidden):
    """Of what hidden frames are set to, those of Moving-MNIST say nothing, others the text 'None'."""
    actions = dict(use_actions=False, action_dim=1, action_embed_dim=1, dropout_actions=False)
    stack = dict(n_layers=8, dropout=0.0, use_norm=True, prenorm=False, per_layer_skip=True)
    args = dict(
        **(actions | hidden),
        channels=1,
        loss_weight=0.5,
        encoder=dict(depths=[64, 128, 256], blocks=1),
        decoder=dict(depths=[64, 128, 256], blocks=1),
        d_model=256,
        seq_model=stack | dict(skip_connections=False),
        ssm=dict(ssm_size=256, kernel_size=3),
        latent_height=16,
        latent_width=16,
        drop_loss_rate=0.0,
        causal_masking=False,
        open_loop_ctx_1=100,
    )
    found = convssm_baselines.baseline_config("convLSTM_noVQ", args)
    published = model_config("convlstm_mnist300")
    assert dataclasses.replace(found, remat=True, open_loop_context=144) == published


def test_folders_that_are_no_run(arrays, tmp_path):
    with pytest.raises(WeightsError, match="holds no checkpoint_<step>"):
        convssm.convert_run(tmp_path)
    run = write_run(tmp_path / "vqgan", ARGS, arrays)
    (run / "args").unlink()
    with pytest.raises(WeightsError, match="holds no file 'args'"):
        convssm.convert_run(run)
    with pytest.raises(WeightsError, match="no such file or folder"):
        convssm.convert_run(tmp_path / "nowhere")
