"""Converting the folder of a run: what is missing or wrong is said in a sentence. The numbers: tests/parity."""

import argparse
import dataclasses
import pickle
import re

import equinox as eqx
import jax
import msgpack
import numpy as np
import pytest

from slotzoo.errors import WeightsError
from slotzoo.models import model_config
from slotzoo.models.kl_vae import KLVAE
from slotzoo.models.teco import TECO
from slotzoo.models.video import VideoPixels, VideoTokens
from slotzoo.models.vqgan import VQGAN
from slotzoo.weights import named_leaves
from slotzoo.weights.convert import convssm, convssm_baselines, convssm_teco, convssm_vqgan
from slotzoo.weights.convert.rules import to_seed
from tests.arrays import random_module


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


# The sizes of a small run of every kind, with tokens of ARGS where it has some: 4 x 4 of 2 numbers, 3 codes.
COMMON = dict(
    use_actions=True,
    action_dim=6,
    action_embed_dim=4,
    dropout_actions=True,
    action_dropout_rate=0.5,
    action_mask_id=-1,
    frame_mask_id=-2,
    causal_masking=True,
    open_loop_ctx=3,
    open_loop_ctx_1=4,
    open_loop_ctx_2=3,
    drop_loss_rate=0.0,
    loss_weight=0.5,
    n_cond=1,
    channels=1,
    embedding_dim=10,
    z_ds=2,
    latent_height=8,
    latent_width=8,
    encoder=dict(depths=[32, 32], blocks=1),
    decoder=dict(depths=[32, 32], blocks=1),
    vqvae_ckpt="/home/author/runs/vqgan",
)
STACK = dict(n_layers=2, dropout=0.0, use_norm=True, prenorm=False, per_layer_skip=True, skip_connections=False)
S5 = dict(d_model=8, seq_model=STACK, ssm=dict(ssm_size=12, blocks=2, clip_eigs=True, dt_min=1e-3, dt_max=0.1))
LAYERS = dict(embed_dim=16, mlp_dim=24, num_heads=4, num_layers=2, dropout=0.0, attention_dropout=0.0)
TRANSFORMER = dict(z_tfm_kwargs=LAYERS, seq_len=7)
LSTM = dict(d_model=8, seq_model=STACK, ssm=dict(ssm_size=8, kernel_size=3))
CODES = dict(
    codebook=dict(n_codes=14, proj_dim=6),
    z_git=dict(vocab_dim=12, mask_schedule="cosine", tfm_kwargs=LAYERS),
    T_draft=3,
    T_revise=2,
    M=1,
)
TOKENS = (3, 2, 4, 4)
TECO_TOKENS = dict(zip(("num_codes", "code_dim", "height", "width"), TOKENS, strict=True))


KINDS = [
    ("S5", S5, "s5_dmlab", VideoTokens),
    ("transformer", TRANSFORMER, "transformer_dmlab", VideoTokens),
    ("transformer_noVQ", TRANSFORMER, "transformer_mnist300", VideoPixels),
    ("convLSTM_noVQ", LSTM, "convlstm_mnist300", VideoPixels),
    ("teco_S5", S5 | CODES, "teco_s5_dmlab", TECO),
    ("teco_transformer", TRANSFORMER | CODES, "teco_transformer_dmlab", TECO),
]


def seed_names(model, rules):
    """Under which names the seed has the leaves of `model`: `rules` read from ours to theirs."""
    found = {}
    for leaf in named_leaves(model):
        for rule in rules:
            if match := re.fullmatch(re.escape(rule.ours).replace(r"\{\}", "(.+)"), leaf):
                name = rule.seed
                for value in match.groups():
                    name = re.sub(r"\([^()]*\)", value, name, count=1)
                if re.fullmatch(rule.seed, name):
                    found[leaf] = name
    assert set(found) == set(named_leaves(model))
    return list(found.values())


@pytest.mark.parametrize("kind, sizes, name, build", KINDS)
def test_every_kind_of_run(arrays, tmp_path, kind, sizes, name, build):
    """What is written under the seed's names comes back; the numbers that it computes: tests/parity."""
    args = COMMON | sizes | {"model": kind}
    if build is TECO:
        config = convssm_teco.teco_config(args, **TECO_TOKENS)
        rules = convssm_teco.teco(config)
    else:
        tokens = TOKENS if build is VideoTokens else None
        config = convssm_baselines.baseline_config(kind, args, tokens=tokens)
        rules = convssm_baselines.baseline(config)
    model = random_module(lambda: build(config, key=jax.random.key(0)))
    held = to_seed(model, seed_names(model, rules), rules)
    if kind == "transformer":
        held[convssm_baselines.UNUSED] = np.zeros(3, np.float32)
    write_run(tmp_path / "vqgan", ARGS, arrays)
    run = write_run(
        tmp_path / "run", args, {f"param/{path}": array for path, array in held.items()}, steps=(7,)
    )
    found = convssm.convert_run(run)
    assert (found.name, found.step, found.config) == (name, 7, config)
    assert eqx.tree_equal(found.model, model)


def test_a_kl_vae(tmp_path):
    args = ARGS | {"model": "autoencoder", "double_z": True, "dropout": 0.0}
    config = convssm_vqgan.kl_config(args)
    model = random_module(lambda: KLVAE(config, key=jax.random.key(0)))
    leaves = named_leaves(model)
    held = {theirs: np.asarray(leaves[ours]) for ours, theirs in convssm_vqgan.leaves(model).items()}
    assert len(held) == len(leaves)
    found = convssm.convert_run(write_run(tmp_path / "run", args, held))
    assert (found.name, found.config) == ("kl_vae", config)
    assert eqx.tree_equal(found.model, model)


def test_no_kind_is_left_out():
    """The rest is in this file or, with the recorded checkpoints, in tests/parity."""
    tested = {
        mark.args[1][i][0] for mark in test_every_kind_of_run.pytestmark for i in range(len(mark.args[1]))
    }
    recorded = {"vqgan", "convS5_noVQ", "convS5", "teco_convS5"}
    assert tested | recorded | {"autoencoder"} == set(convssm._CONVERTERS)


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
