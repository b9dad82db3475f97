"""The recorded numbers of SAVi, SAVi++ and STATM: modules, models, metrics, preprocessing, checkpoints."""

import pytest

from tests.parity.harness import cases, run_case


# What is not part of the zoo yet, by pattern.
LATER = {
    pattern: "the models of objects in videos are on their way"
    for pattern in (
        "cnn_*.npz",
        "decoder_*.npz",
        "encoder_*.npz",
        "gru.npz",
        "init_*.npz",
        "mlp_*.npz",
        "native_ckpt_*",
        "posemb_*.npz",
        "resnet*.npz",
        "savi*.npz",
        "slot_attention_*.npz",
        "statm_*.npz",
        "transformer_*.npz",
    )
} | {"preprocessing_ops.npz": "the clips of moving objects are on their way"}


@pytest.mark.parametrize("name", cases("savi"))
def test_case(name):
    run_case("savi", name, LATER)
