"""Checkpoint folders of SlotSSM: what the recorded one does not show, and folders that are something else."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from slotzoo.errors import WeightsError
from slotzoo.models.slotssm import SlotSSM
from slotzoo.models.slotssm_config import SlotSSMConfig
from slotzoo.nn.linear import Linear
from slotzoo.weights.convert.slotssm import convert_folder, export_folder, is_checkpoint
from slotzoo.weights.leaves import named_leaves
from tests.arrays import random_module
from tests.weights.test_torch_file import tensor, write


SMALL = SlotSSMConfig(
    normalise="imagenet",
    resolution=8,
    encoder_dim=8,
    encoder_layers=1,
    encoder_heads=2,
    encoder_mlp=12,
    encoder_patch=4,
    encoder_noisy_class=True,
    token_dim=6,
    num_slots=3,
    dim=8,
    blocks=2,
    slot_heads=2,
    ssm_state=3,
    ssm_head_dim=4,
    out_resolution=8,
    decoder_dim=8,
    decoder_layers=1,
    decoder_heads=2,
    decoder_patch=4,
    same_start=True,
)
OBJECTS = dataclasses.replace(
    SMALL,
    encoder="cnn",
    encoder_heads=4,
    encoder_mlp=None,
    encoder_patch=8,
    encoder_noisy_class=False,
    encoder_blocks=1,
    encoder_kernel=3,
    ffn=True,
    mixer="mamba1",
    cross="attention",
    cross_heads=2,
    decoder="broadcast",
    decoder_grid=2,
    out_resolution=32,
    decoder_layers=4,
    decoder_heads=4,
    decoder_patch=8,
)


def made(config, folder):
    model = random_module(lambda: SlotSSM(config, key=jax.random.key(0)))
    return model, export_folder(model, folder)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        OBJECTS,
        dataclasses.replace(OBJECTS, out_resolution=16),
        dataclasses.replace(SMALL, normalise="none", target="image", decode="last"),
    ],
    ids=["vit", "broadcast, 16 times", "broadcast, 8 times", "plain pixels, one image"],
)
def test_there_and_back(config, tmp_path):
    model, folder = made(config, tmp_path / "checkpoint_step_12")
    found = convert_folder(folder)
    assert is_checkpoint(folder) and found.step == 12 and found.config == config
    theirs = named_leaves(found.model)
    for name, array in named_leaves(model).items():
        np.testing.assert_array_equal(theirs[name], array, err_msg=name)


def test_weights_that_torch_wrote(tmp_path):
    """`pytorch_model.bin` in place of the safetensors file, read without PyTorch."""
    model, folder = made(SMALL, tmp_path)
    path = folder / "slotssm" / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    path.unlink()
    tensors = {
        name: tensor(str(i), a.size, a.shape, tuple(stride // 4 for stride in a.strides))
        for i, (name, a) in enumerate(arrays.items())
    }
    write(
        path.with_name("pytorch_model.bin"),
        tensors,
        {str(i): a.tobytes() for i, a in enumerate(arrays.values())},
    )
    theirs = named_leaves(convert_folder(folder).model)
    for name, array in named_leaves(model).items():
        np.testing.assert_array_equal(theirs[name], array, err_msg=name)


def changed(folder, part, **fields):
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_folders_of_something_else(tmp_path):
    _, folder = made(SMALL, tmp_path)
    assert not is_checkpoint(tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="it has no folder vitencoder or cnnencoder"):
        convert_folder(tmp_path / "nowhere")
    for part, fields, message in (
        ("slotssm", {"mamba_version": "mamba3"}, "'mamba3' is none of"),
        ("slotssm", {"use_cross_attn": False}, "blocks read no frames"),
        ("slotssm", {"num_slots": "six"}, "do not describe a SlotSSM.*expected int, got 'six'"),
        ("slotssm", {"mamba_headdim": 7}, "cannot be split into heads of 7"),
        ("slotssm", {"num_blocks": 3}, "missing"),
        ("slotssm", {"normalise": "zero_one"}, "do not describe a SlotSSM.*'zero_one'"),
        ("vitencoder", {"output_size": 9}, "tokens of 9 channels, the slots read 6"),
        ("vitencoder", {"hidden_act": "relu"}, "the zoo's has 'gelu' there"),
        ("vitdecoder", {"input_size": 9}, "takes slots of 9 channels, they have 8"),
    ):
        path = folder / part / "config.json"
        before = path.read_text()
        changed(folder, part, **fields)
        with pytest.raises(WeightsError, match=message):
            convert_folder(folder)
        path.write_text(before)
    path = folder / "vitdecoder" / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(arrays | {"position_embeddings": arrays["position_embeddings"] + 1}, path)
    with pytest.raises(WeightsError, match="fixed positions are not the sines and cosines"):
        convert_folder(folder)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        convert_folder(folder)
    (folder / "slotssm" / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="is not JSON"):
        convert_folder(folder)


def test_models_that_were_never_released(tmp_path):
    for fields, names in (
        (dict(mixer="gru"), "mixer"),
        (dict(encoder="patch", expand=1.5), "encoder, expand"),
        (dict(slots_per_block=(3, 2)), "slots_per_block"),
    ):
        with pytest.raises(WeightsError, match=f"no module for this model's {names}"):
            made(dataclasses.replace(SMALL, **fields), tmp_path)
    with pytest.raises(WeightsError, match="this is a Linear"):
        export_folder(random_module(lambda: Linear(2, 2, key=jax.random.key(0))), tmp_path)
