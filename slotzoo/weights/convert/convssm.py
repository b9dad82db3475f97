"""Runs of ConvSSM and TECO as their code leaves them: `args` (pickled) and `checkpoints/checkpoint_<step>` (flax)."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from slotzoo.errors import ConfigError, WeightsError, nearest
from slotzoo.models.convs5 import ConvS5Pixels, ConvS5Tokens
from slotzoo.models.kl_vae import KLVAE
from slotzoo.models.teco import TECO
from slotzoo.models.video import VideoPixels, VideoTokens
from slotzoo.models.vqgan import VQGAN
from slotzoo.weights.convert import convssm_baselines, convssm_convs5, convssm_teco, convssm_vqgan
from slotzoo.weights.convert.rules import Rule, from_seed
from slotzoo.weights.flax_msgpack import flat, read_flax
from slotzoo.weights.leaves import fill
from slotzoo.weights.namespace import read_namespace


class Converted(NamedTuple):
    """A model of the zoo with the authors' weights, and what its card should say."""

    model: eqx.Module
    name: str  # registry name
    config: Any  # its Config
    step: int
    notes: str


class Run(NamedTuple):
    """What a run's folder holds."""

    args: dict[str, Any]
    arrays: dict[str, np.ndarray]  # `param/...` and the variables beside the parameters, by path
    step: int
    checkpoint: Path


def read_run(folder: str | Path) -> Run:
    """Read `args` and the newest checkpoint of a run's folder (or one checkpoint file inside of it)."""
    folder = Path(folder)
    if not folder.exists():
        raise WeightsError(f"'{folder}': no such file or folder.")
    checkpoint = _newest(folder / "checkpoints") if folder.is_dir() else folder
    root = folder if folder.is_dir() else folder.parent.parent
    if not (root / "args").is_file():
        raise WeightsError(f"'{root}' holds no file 'args': it is not the folder of a ConvSSM or TECO run.")
    args = read_namespace(root / "args")
    tree = read_flax(checkpoint)
    if not isinstance(tree.get("params"), dict):
        raise WeightsError(f"'{checkpoint}' has no tree 'params': it is not a training state.")
    arrays = flat(tree["params"], "param/")
    state = tree.get("model_state")
    arrays |= flat(state) if isinstance(state, dict) else {}
    return Run(args, arrays, int(np.asarray(tree.get("step", 0))), checkpoint)


def convert_run(folder: str | Path) -> Converted:
    """The model of a run's folder, with its weights. The folder is only read.

    A model over tokens also needs the folder of the VQ-GAN that its `args` name, beside its own.
    **Raises** `WeightsError` for what is missing, unknown, or does not fit.
    """
    folder = Path(folder)
    run = read_run(folder)
    kind = str(run.args.get("model"))
    if kind not in _CONVERTERS:
        raise WeightsError(
            f"'{folder}' is a run of the model {kind!r}, which the zoo cannot convert."
            f"{nearest(kind, _CONVERTERS)} Known: {', '.join(_CONVERTERS)}."
        )
    try:
        return _CONVERTERS[kind](run, folder if folder.is_dir() else folder.parent.parent)
    except (KeyError, TypeError, ConfigError) as error:
        raise WeightsError(f"the args of '{folder}' do not describe a {kind}: {error!r}.") from error


def _vqgan(run: Run, folder: Path) -> Converted:
    config = convssm_vqgan.config(run.args)
    abstract = eqx.filter_eval_shape(lambda: VQGAN(config, key=jax.random.key(0)))
    return Converted(_tokenizer(run, abstract), "vqgan_dmlab", config, run.step, "VQ-GAN tokenizer")


def _kl_vae(run: Run, folder: Path) -> Converted:
    config = convssm_vqgan.kl_config(run.args)
    abstract = eqx.filter_eval_shape(lambda: KLVAE(config, key=jax.random.key(0)))
    return Converted(_tokenizer(run, abstract), "kl_vae", config, run.step, "KL-VAE tokenizer")


def _tokenizer(run: Run, abstract: Any) -> Any:
    names = convssm_vqgan.leaves(abstract)
    unknown = sorted(set(run.arrays) - set(names.values()))
    missing = sorted(set(names.values()) - set(run.arrays))
    if unknown or missing:
        raise WeightsError(
            f"'{run.checkpoint}' is no tokenizer of the sizes in its args: {len(missing)} parameters are missing "
            f"({', '.join(missing[:2])}), {len(unknown)} unknown ({', '.join(unknown[:2])})."
        )
    return fill(
        abstract, {ours: run.arrays[theirs] for ours, theirs in names.items()}, what=str(run.checkpoint)
    )


def _convs5_pixels(run: Run, folder: Path) -> Converted:
    config = convssm_convs5.pixels_config(run.args)
    model = eqx.filter_eval_shape(lambda: ConvS5Pixels(config, key=jax.random.key(0)))
    return Converted(_filled(run, model), "convs5_mnist300", config, run.step, "ConvS5 over pixels")


def _convs5_tokens(run: Run, folder: Path) -> Converted:
    tokenizer = read_run(beside(folder, run.args["vqvae_ckpt"]))
    sizes = convssm_vqgan.config(tokenizer.args)
    config = convssm_convs5.tokens_config(run.args, num_codes=sizes.n_embed, code_dim=sizes.embed_dim)
    model = eqx.filter_eval_shape(lambda: ConvS5Tokens(config, key=jax.random.key(0)))
    return Converted(_filled(run, model), "convs5_dmlab", config, run.step, "ConvS5 over VQ-GAN tokens")


def _teco(run: Run, folder: Path) -> Converted:
    sizes = convssm_vqgan.config(read_run(beside(folder, run.args["vqvae_ckpt"])).args)
    config = convssm_teco.teco_config(
        run.args, num_codes=sizes.n_embed, code_dim=sizes.embed_dim, height=sizes.latent, width=sizes.latent
    )
    model = eqx.filter_eval_shape(lambda: TECO(config, key=jax.random.key(0)))
    name = f"teco_{config.temporal}_dmlab"
    return Converted(
        _filled(run, model, convssm_teco.teco(config)), name, config, run.step, "TECO over VQ-GAN tokens"
    )


def _baseline(run: Run, folder: Path) -> Converted:
    kind, tokens = str(run.args["model"]), None
    over_tokens = kind in ("S5", "transformer")
    if over_tokens:
        sizes = convssm_vqgan.config(read_run(beside(folder, run.args["vqvae_ckpt"])).args)
        tokens = (sizes.n_embed, sizes.embed_dim, sizes.latent, sizes.latent)
    config: Any = convssm_baselines.baseline_config(kind, run.args, tokens=tokens)
    build = VideoTokens if over_tokens else VideoPixels
    model = eqx.filter_eval_shape(lambda: build(config, key=jax.random.key(0)))
    name, rules = convssm_baselines.NAMES[kind], convssm_baselines.baseline(config)
    params = run._replace(arrays=convssm_baselines.used(run.arrays))
    return Converted(_filled(params, model, rules), name, config, run.step, f"{kind} of ConvSSM")


def _filled(run: Run, model: Any, rules: tuple[Rule, ...] = convssm_convs5.CONVS5) -> Any:
    params = {path.removeprefix("param/"): a for path, a in run.arrays.items() if path.startswith("param/")}
    return from_seed(params, model, rules)


def beside(folder: Path, name: Any) -> Path:
    """The run that `args` name, looked for beside the run itself under its last name only.

    The authors wrote down a path of their own machine, which is nothing to follow.
    """
    if not isinstance(name, str) or not name.strip("/"):
        raise WeightsError(f"'{folder}': its args name no VQ-GAN (vqvae_ckpt is {name!r}).")
    last = name.rstrip("/").split("/")[-1]
    parent = folder.resolve().parent
    if last in ("", ".", "..") or (parent / last).parent != parent:
        raise WeightsError(f"'{folder}': its args name a VQ-GAN at {name!r}, which is no folder name.")
    if not (parent / last).is_dir():
        raise WeightsError(
            f"'{folder}' was trained on the tokens of the VQ-GAN '{last}'; put that run's folder beside it."
        )
    return parent / last


def _newest(folder: Path) -> Path:
    found = {}
    for path in folder.glob("checkpoint_*") if folder.is_dir() else ():
        if match := re.fullmatch(r"checkpoint_(\d+)", path.name):
            found[int(match.group(1))] = path
    if not found:
        raise WeightsError(f"'{folder}' holds no checkpoint_<step>.")
    return found[max(found)]


_CONVERTERS: Mapping[str, Callable[[Run, Path], Converted]] = {
    "vqgan": _vqgan,
    "autoencoder": _kl_vae,
    "convS5_noVQ": _convs5_pixels,
    "convS5": _convs5_tokens,
    **dict.fromkeys(convssm_baselines.NAMES, _baseline),
    "teco_convS5": _teco,
    "teco_S5": _teco,
    "teco_transformer": _teco,
}
