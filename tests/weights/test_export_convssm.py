"""Models written as runs of ConvSSM and TECO, and read again: the recorded runs, and one of every kind."""

import dataclasses
from pathlib import Path

import jax
import pytest

from slotzoo.errors import WeightsError
from slotzoo.models import model_config
from slotzoo.models.kl_vae import KLVAE
from slotzoo.models.teco import TECO
from slotzoo.models.video import VideoPixels, VideoTokens
from slotzoo.models.video_config import PixelsConfig
from slotzoo.models.vqgan import VQGAN
from slotzoo.nn.linear import Linear
from slotzoo.weights.convert.convssm import convert_run, read_run
from slotzoo.weights.convert.convssm_export import can_export, export_run
from slotzoo.weights.flax_msgpack import flat, read_flax
from slotzoo.weights.leaves import named_leaves
from tests.arrays import random_module, same_record
from tests.parity.harness import fixture_root


RUNS = fixture_root() / "convssm" / "native_ckpt"
CODER = dict(resolution=8, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), z_channels=2)
VIDEO = dict(encoder_depths=(32,), decoder_depths=(32,), layers=2, d_model=8, action_dropout=0.25)
SEEN = VIDEO | dict(height=4, width=4)  # the codes of `TOKENIZER`
SMALL_TECO = SEEN | dict(
    embedding_dim=6,
    latent_codes=7,
    latent_code_dim=3,
    prior_vocab_dim=5,
    prior_dim=8,
    prior_mlp_dim=12,
    prior_heads=2,
    prior_layers=1,
    ssm_groups=1,
)
SSM, PATCH = dict(ssm_size=8, ssm_blocks=2, ssm_groups=4), dict(patch=2, heads=2, mlp_dim=12)
TOKENIZER = ("vqgan_dmlab", CODER | dict(n_embed=5, embed_dim=4))
CASES = {
    "kl_vae": ("kl_vae", CODER),
    "convs5 over pixels": ("convs5_mnist300", VIDEO | SSM | dict(height=8, width=8, squeeze_excite=True)),
    "convs5 with a gate": (
        "convs5_mnist300",
        VIDEO | SSM | dict(height=8, width=8, head="half_glu", prenorm=True),
    ),
    "convlstm": ("convlstm_mnist300", VIDEO | dict(height=8, width=8)),
    "transformer over pixels": ("transformer_mnist300", VIDEO | PATCH | dict(height=8, width=8, feature_dim=6)),
    "convs5 over tokens": ("convs5_dmlab", SEEN | SSM),
    "s5": ("s5_dmlab", SEEN | dict(ssm_size=8, patch=4, feature_dim=6)),
    "transformer over tokens": ("transformer_dmlab", SEEN | PATCH | dict(feature_dim=6)),
    "teco_convs5": ("teco_convs5_dmlab", SMALL_TECO | SSM),
    "teco_s5": ("teco_s5_dmlab", SMALL_TECO | dict(ssm_size=8, patch=4)),
    "teco_transformer": ("teco_transformer_dmlab", SMALL_TECO | PATCH),
}


def built(name, fields):
    config = model_config(name)
    codes = dict(num_codes=5, code_dim=4) if hasattr(config, "num_codes") else {}
    config = dataclasses.replace(config, **fields, **codes)
    kinds = {"vqgan_dmlab": VQGAN, "kl_vae": KLVAE}
    pixels = VideoPixels if isinstance(config, PixelsConfig) else VideoTokens
    kind = kinds.get(name, TECO if name.startswith("teco") else pixels)
    return random_module(lambda: kind(config, key=jax.random.key(0)))  # type: ignore[call-arg]


def same_leaves(a, b):
    return same_record(named_leaves(a), named_leaves(b))


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case, tmp_path):
    model = built(*CASES[case])
    tokenizer = built(*TOKENIZER)
    export_run(tokenizer, tmp_path / "tokens")
    folder = export_run(model, tmp_path / "run", step=7, tokenizer="tokens")
    assert can_export(model) and same_leaves(convert_run(tmp_path / "tokens").model, tokenizer)
    found = convert_run(folder)
    assert found.step == 7 and type(found.model) is type(model) and same_leaves(found.model, model)
    # What a core does not use, their configurations do not say; how layers are run, neither.
    unsaid = {"remat", "scan_layers", "window", "prior_frames", "authors_frames"}
    if case.startswith("teco"):
        unsaid |= {"ssm_groups", "ssm_size", "ssm_blocks", "patch", "heads", "mlp_dim", "clip_eigenvalues"}
    for name, value in vars(model.config).items():
        assert getattr(found.config, name) == value or name in unsaid, name


@pytest.mark.parametrize("name", ["vqgan", "convs5_novq", "convs5_vq", "teco_convs5"])
def test_recorded_runs_are_written_as_they_were(name, tmp_path):
    """Arrays by arrays, optimiser state by optimiser state, and every argument that a model is built of."""
    if not (RUNS / name).is_dir():
        pytest.skip(f"{RUNS} has no {name}; SLOTZOO_FIXTURES names the folder that has")
    theirs, found = read_run(RUNS / name), convert_run(RUNS / name)
    ours = read_run(export_run(found.model, tmp_path / name, step=found.step))
    assert same_record(ours.arrays, theirs.arrays) and ours.step == theirs.step
    state, expected = read_flax(ours.checkpoint), read_flax(theirs.checkpoint)
    assert (
        state.keys() == expected.keys()
        and flat(state["opt_state"]).keys() == flat(expected["opt_state"]).keys()
    )
    for path, array in flat(expected["opt_state"]).items():
        assert flat(state["opt_state"])[path].shape == array.shape
    own = {"seed", "lr", "run_id", "data_path", "output_dir", "dropout_actions", "action_dropout_rate"}
    own |= {key for key in theirs.args if of_training(key)}
    for key, value in theirs.args.items():
        assert key in own or ours.args[key] == value, key


def of_training(key):
    """Whether an argument is of training, sampling or logging, which a model does not say."""
    words = (
        "steps",
        "interval",
        "batch",
        "eval",
        "seq_len",
        "open_loop_ctx",
        "channels",
        "image_size",
        "conditioned",
    )
    return any(word in key for word in words)


def test_what_the_authors_cannot_build(tmp_path):
    for name, fields, message in (
        ("vqgan_dmlab", CODER | dict(normalize=True), "the authors' vqgan cannot be built with normalize=True"),
        (
            "convs5_mnist300",
            VIDEO | SSM | dict(height=8, width=8, norm_groups=16),
            "convS5_noVQ .* norm_groups=16",
        ),
        ("performer_mnist300", VIDEO | PATCH | dict(height=8, width=8), "no model like this VideoPixels"),
    ):
        with pytest.raises(WeightsError, match=message):
            export_run(built(name, fields), tmp_path / "run")
    other = random_module(lambda: Linear(2, 2, key=jax.random.key(0)))
    assert not can_export(other) and not Path(tmp_path / "run").exists()
    with pytest.raises(WeightsError, match="no model like this Linear"):
        export_run(other, tmp_path / "run")
